import math
import sys
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from .._factor.factor import Factor, factor
from .._factor.snapshots import Snapshots
from .._loss import conditioned_defect
from .dictionary import AbstractDictionary


# Activations with slope at most one; the flag says whether their values are too.
_SLOPE_ONE = {jnp.tanh: True, jax.nn.tanh: True, jnp.sin: True, jax.nn.relu: False, jax.nn.softplus: False}


class LearnedDictionary(AbstractDictionary):
    r"""A dictionary of neural networks, to be trained by [`koopman_verify.train_dictionary`][].

    The functions are the outputs of one network, or, with `separate`, of one small network each. The constant and the
    coordinates may be joined; `num_functions` counts them.

    **Arguments:**

    - `state_size`: $d$, the number of coordinates of a state.
    - `num_functions`: $N$.
    - `width`, `depth`: the size and the number of hidden layers.
    - `activation`: a smooth one makes the functions smooth.
    - `separate`: whether each function has a network of its own (the form of arXiv:2606.29083, `width=32, depth=2`).
    - `constant`, `coordinates`: whether the constant function and the coordinates are part of the dictionary.
    - `centre`, `scale`: numbers or `[d]`; the networks, and the coordinates, see $(x - $ `centre` $)/$ `scale`. Not
        trained.
    - `key`: for the initial weights.

    **Raises:** `ValueError` for sizes that are not positive, if no function is left to be learned, or if one network is
    not wide enough for so many independent functions.

    !!! Example

        ```python
        LearnedDictionary(2, 20, width=64, depth=2, key=jax.random.key(0))(jnp.zeros(2))
        ```
    """

    network: eqx.nn.MLP
    centre: Float[Array, " d"]
    scale: Float[Array, " d"]
    num_functions: int = eqx.field(static=True)
    separate: bool = eqx.field(static=True)
    constant: bool = eqx.field(static=True)
    coordinates: bool = eqx.field(static=True)

    def __init__(
        self,
        state_size: int,
        num_functions: int,
        *,
        width: int = 64,
        depth: int = 2,
        activation: Callable = jnp.tanh,
        separate: bool = False,
        constant: bool = True,
        coordinates: bool = True,
        centre: Any = 0.0,
        scale: Any = 1.0,
        key: PRNGKeyArray,
    ):
        for name, size in (("state_size", state_size), ("width", width), ("depth", depth)):
            if size < 1:
                raise ValueError(f"`{name}` must be positive; got {size}")
        learned = num_functions - constant - coordinates * state_size
        if learned < 1:
            raise ValueError(
                f"`num_functions` counts the constant and the coordinates, and one must be left to be learned; got "
                f"{num_functions} for a state of size {state_size}"
            )
        if not separate and learned > width + (not constant):
            raise ValueError(
                f"`width` must be at least {learned - (not constant)}: {learned} outputs of one network with `width` = "
                f"{width} depend linearly on each other. Or give each function a network of its own (`separate=True`)."
            )
        make = lambda out, key: eqx.nn.MLP(state_size, out, width, depth, activation, key=key)
        if separate:
            self.network = eqx.filter_vmap(lambda key: make("scalar", key))(jr.split(key, learned))
        else:
            self.network = make(learned, key)
        dtype = jnp.result_type(float)
        self.centre = jnp.broadcast_to(jnp.asarray(centre, dtype), (state_size,))
        self.scale = jnp.broadcast_to(jnp.asarray(scale, dtype), (state_size,))
        self.num_functions, self.separate = num_functions, separate
        self.constant, self.coordinates = constant, coordinates

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " N"]:
        """Return the constant, the scaled coordinates and the networks' outputs."""
        dtype = x.dtype
        z = (x - jax.lax.stop_gradient(self.centre).astype(dtype)) / jax.lax.stop_gradient(self.scale).astype(dtype)
        network = _in_dtype(self.network, dtype)
        out = eqx.filter_vmap(lambda net: net(z))(network) if self.separate else network(z)
        given = [jnp.ones(1, dtype)] * self.constant + [z] * self.coordinates
        return jnp.concatenate([*given, out])

    def supremum(self) -> Float[Array, " N"] | None:
        """Return the sums of the last layer's weights, for a bounded activation; `None` with coordinates."""
        if self.coordinates or not self._slope_one(bounded=True):
            return None
        last = self.network.layers[-1]
        assert last.bias is not None
        learned = jnp.sum(jnp.abs(last.weight), axis=-1) + jnp.abs(last.bias)
        return jnp.concatenate([jnp.ones(int(self.constant)), learned.reshape(-1).astype(jnp.result_type(float))])

    def lipschitz(self) -> Float[Array, " N"] | None:
        """Return products of the layers' norms, for an activation of slope at most one; `None` for others."""
        if not self._slope_one(bounded=False):
            return None
        hidden, last = self.network.layers[:-1], self.network.layers[-1]
        # Of the same shape whether or not networks are stacked along a first axis.
        slope = jnp.linalg.norm(last.weight, axis=-1)
        for layer in hidden:
            norms = jnp.linalg.norm(layer.weight, 2, axis=(-2, -1))
            slope = slope * (norms[:, None] if self.separate else norms)
        dtype = jnp.result_type(float)
        parts = [jnp.zeros(int(self.constant), dtype), slope.reshape(-1).astype(dtype) / jnp.min(jnp.abs(self.scale))]
        if self.coordinates:
            parts.insert(1, 1 / jnp.abs(self.scale))
        return jnp.concatenate(parts)

    def _slope_one(self, bounded: bool) -> bool:
        # An activation may carry arrays of its own, and then nothing is known.
        activation = getattr(self.network.activation, "fn", self.network.activation)
        known = [limited for fn, limited in _SLOPE_ONE.items() if fn is activation]
        return bool(known) and (known[0] or not bounded)


class Training(eqx.Module):
    r"""A trained dictionary, and how it came about.

    **Attributes:**

    - `dictionary`: the one of the epoch with the smallest test loss.
    - `test_losses`: the loss on the test snapshots, before training and after every epoch, `[epochs + 1]`.
    - `batch_losses`: the mean loss on the batches of every epoch, `[epochs]`. A batch has few snapshots for each
        function, and flatters.
    - `best_epoch`: the index of the smallest test loss.
    - `seconds`: the median time of an epoch, without the first, which compiles.

    !!! Example

        ```python
        training.test_losses[training.best_epoch] / training.test_losses[0]
        ```
    """

    dictionary: Any
    test_losses: np.ndarray
    batch_losses: np.ndarray
    best_epoch: int
    seconds: float


def train_dictionary(
    dictionary: Any,
    train: Snapshots,
    test: Snapshots,
    *,
    loss: Callable[[Factor], Float[Array, ""]] = conditioned_defect,
    optimiser: optax.GradientTransformation | None = None,
    batch_size: int | None = None,
    max_epochs: int = 1000,
    patience: int = 50,
    key: PRNGKeyArray,
    progress: bool = False,
) -> Training:
    r"""Train a dictionary so that its span becomes invariant, and keep the best by test snapshots.

    Every step factorises a random batch, each epoch sees every training snapshot once (up to the last incomplete batch),
    and the test loss decides when to stop and what to keep. The test snapshots have then been used: certify on others.

    **Arguments:**

    - `dictionary`: any `equinox.Module` that is a dictionary, such as [`koopman_verify.LearnedDictionary`][]; all its
        inexact arrays are trained (in the dtype that they have).
    - `train`, `test`: snapshots. Split whole trajectories, not pairs of one trajectory.
    - `loss`: a function of a factor, from `koopman_verify.loss` or your own.
    - `optimiser`: from Optax; by default Adam with rate 1e-3.
    - `batch_size`: by default a tenth of `train`, but no fewer than 20 N snapshots.
    - `max_epochs`, `patience`: stop after so many epochs, or so many without a smaller test loss.
    - `key`: for the order of the batches.
    - `progress`: print the test loss to standard error.

    **Returns:** a [`koopman_verify.Training`][].

    **Raises:** `ValueError` for a batch of fewer than four snapshots for each function: with M about N every residual is
    small and means nothing. `RuntimeError` if the loss stops being finite. A run-time error if the functions depend on
    each other at the precision of the snapshots: untrained networks often do in float32, and do not in float64.

    ??? cite "Reference"

        The scheme of arXiv:2606.29083 (minibatches, early stopping), with a loss without eigenvectors.

    !!! Example

        ```python
        training = koopman_verify.train_dictionary(dictionary, train, test, max_epochs=50, key=jax.random.key(0))
        ```
    """
    size = jax.eval_shape(dictionary, train.x[0]).shape[0]
    batch = min(train.num_snapshots, max(20 * size, train.num_snapshots // 10)) if batch_size is None else batch_size
    if not 4 * size <= batch <= train.num_snapshots:
        raise ValueError(
            f"`batch_size` must be between 4 N = {4 * size} and the number of training snapshots; got {batch} of "
            f"{train.num_snapshots}. Residuals of fewer snapshots are small whatever the dictionary."
        )
    optimiser = optax.adam(1e-3) if optimiser is None else optimiser
    params, static = eqx.partition(dictionary, eqx.is_inexact_array)
    state = optimiser.init(params)
    run = _Epoch(loss, optimiser, batch)
    tested = [run.score(dictionary, test)]
    _check_loss(tested[0], 0)
    batches, times, best = [], [], (tested[0], 0, params)
    for epoch in range(1, max_epochs + 1):
        start = time.perf_counter()
        params, state, mean = run(params, static, state, train, jr.fold_in(key, epoch))
        tested.append(run.score(eqx.combine(params, static), test))
        times.append(time.perf_counter() - start)
        batches.append(float(mean))
        _check_loss(tested[-1], epoch)
        if progress:
            print(f"epoch {epoch}: test loss {tested[-1]:.4g}, batches {batches[-1]:.4g}", file=sys.stderr)
        if tested[-1] < best[0]:
            best = (tested[-1], epoch, params)
        if epoch - best[1] >= patience:
            break
    seconds = float(np.median(times[1:] or times or [0.0]))
    return Training(eqx.combine(best[2], static), np.array(tested), np.array(batches), best[1], seconds)


class _Epoch(eqx.Module):
    """One pass over the training snapshots, compiled once."""

    loss: Callable = eqx.field(static=True)
    optimiser: optax.GradientTransformation = eqx.field(static=True)
    batch: int = eqx.field(static=True)

    @eqx.filter_jit
    def __call__(self, params: Any, static: Any, state: Any, train: Snapshots, key: Array) -> tuple[Any, Any, Array]:
        num = train.num_snapshots // self.batch
        order = jr.permutation(key, train.num_snapshots)[: num * self.batch].reshape(num, self.batch)
        value = lambda params, rows: self.loss(factor(eqx.combine(params, static), _rows(train, rows)))

        def step(carry: tuple[Any, Any], rows: Array) -> tuple[tuple[Any, Any], Array]:
            params, state = carry
            loss, gradient = eqx.filter_value_and_grad(value)(params, rows)
            # Optax raises a float to an integer count, which strict promotion refuses.
            with jax.numpy_dtype_promotion("standard"):
                updates, state = self.optimiser.update(gradient, state, params)
            return (eqx.apply_updates(params, updates), state), loss

        (params, state), losses = jax.lax.scan(step, (params, state), order)
        return params, state, jnp.mean(losses)

    def score(self, dictionary: Any, test: Snapshots) -> float:
        return float(_score(self.loss, dictionary, test))


@eqx.filter_jit
def _score(loss: Callable, dictionary: Any, test: Snapshots) -> Array:
    return loss(factor(dictionary, test))


def _rows(snapshots: Snapshots, rows: Array) -> Snapshots:
    weights = None if snapshots.weights is None else snapshots.weights[rows]
    return Snapshots(snapshots.x[rows], snapshots.y[rows], weights, snapshots.kind)


def _check_loss(value: float, epoch: int) -> None:
    if not math.isfinite(value):
        raise RuntimeError(
            f"`loss` is {value} on `test` after {epoch} epochs: the functions became dependent, or the optimiser's rate is "
            "too large"
        )


def _in_dtype(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, tree)
