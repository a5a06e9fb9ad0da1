import functools as ft
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from implicit_core import RESULTS
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .forcing import AbstractForcing, AnnealedForcing, loss
from .plrnn import AbstractObservation, AbstractSimulator, IdentityObservation


class TrainState(eqx.Module):
    """What one training step hands to the next.

    **Attributes:**

    - `model`, `observation`: what is learned.
    - `opt_state`: the state of the optimiser.
    - `forcing`: the strength of forcing.
    - `failed`: whether a loss or a gradient was not finite; nothing changes after that.

    !!! Example

        ```python
        state = gtf.TrainState.create(model, optim)
        ```
    """

    model: AbstractSimulator
    observation: AbstractObservation
    opt_state: Any
    forcing: AbstractForcing
    failed: Bool[Array, ""]

    @classmethod
    def create(
        cls,
        model: AbstractSimulator,
        optim: optax.GradientTransformation,
        *,
        observation: AbstractObservation = IdentityObservation(),
        forcing: AbstractForcing | None = None,
    ) -> "TrainState":
        """Return the state before the first step; `forcing=None` is `AnnealedForcing()` of the model's dtype."""
        learned = eqx.filter((model, observation), eqx.is_inexact_array)
        if forcing is None:
            forcing = AnnealedForcing(dtype=jnp.result_type(*jax.tree.leaves(learned)))
        return cls(model, observation, eqx.filter_jit(optim.init)(learned), forcing, jnp.asarray(np.array(False)))


class Training(eqx.Module):
    """How a training ended, and its course.

    **Attributes:**

    - `value`: the trained model.
    - `observation`: the trained observation.
    - `result`: `RESULTS.successful` if all steps were made, `RESULTS.nonfinite` if a loss or a gradient was not finite:
        then `value` is the last model before that.
    - `stats`: `num_steps`, the number of updates made.
    - `loss`, `alpha`: the loss and the strength of forcing of each step, `[num_steps]`. After a failure, those of the
        failed step come last.

    !!! Example

        ```python
        gtf.train(model, data, key=key).value
        ```
    """

    value: AbstractSimulator
    observation: AbstractObservation
    result: RESULTS
    stats: dict[str, Any]
    loss: Float[Array, " S"]
    alpha: Float[Array, " S"]


@ft.lru_cache
def exponential_radam(num_steps: int, first: float = 1e-3, last: float = 1e-6) -> optax.GradientTransformation:
    r"""Return RAdam with a rate that falls exponentially, the optimiser of arXiv:2306.04406.

    **Arguments:**

    - `num_steps`: the number of updates.
    - `first`, `last`: the rates of the first update and after the last one.

    **Returns:** an Optax optimiser.

    !!! Example

        ```python
        gtf.train(model, data, optim=gtf.exponential_radam(5000, 3e-3), num_steps=5000, key=key)
        ```
    """
    if not (first > 0 and last > 0):
        raise ValueError(f"`first` and `last` must be positive; got {first} and {last}")
    return optax.radam(optax.exponential_decay(first, num_steps, last / first))


@eqx.filter_jit
def train_step(
    state: TrainState,
    batch: Float[Array, "B T d"],
    optim: optax.GradientTransformation,
    regularisation: float = 1e-5,
) -> tuple[TrainState, Float[Array, ""]]:
    r"""Make one update by generalised teacher forcing.

    The forcing is updated from the states of the batch, then the model from the gradient of
    [`koopman_verify.gtf.loss`][] $+\;\lambda\sum_i\theta_i^2$ over all parameters of the model. $\alpha$ is not
    differentiated.

    **Arguments:**

    - `state`: the state before.
    - `batch`: sequences `[B, T, d]`.
    - `optim`: the Optax optimiser that `state` was created with.
    - `regularisation`: $\lambda$.

    **Returns:** the state after, and the loss before the update, without the penalty.

    !!! Example

        ```python
        state, value = gtf.train_step(state, batch, optim)
        ```
    """
    learned, fixed = eqx.partition((state.model, state.observation), eqx.is_inexact_array)
    forcing = state.forcing.update(state.model, state.observation.encode(batch))

    def objective(learned):
        model, observation = eqx.combine(learned, fixed)
        error = loss(model, batch, forcing.alpha, observation=observation)
        penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(learned[0]))
        return error + regularisation * penalty, error

    gradient, error = jax.grad(objective, has_aux=True)(learned)
    # RAdam mixes integers and floats, which users may have forbidden for their own code.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optim.update(gradient, state.opt_state, learned)
    finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((error, gradient))])
    failed = state.failed | ~jnp.all(finite)
    model, observation = eqx.combine(eqx.apply_updates(learned, updates), fixed)
    new = TrainState(model, observation, opt_state, forcing, failed)
    return _select(failed, eqx.tree_at(lambda s: s.failed, state, failed), new), error


def train(
    model: AbstractSimulator,
    data: Float[Array, "... T d"],
    *,
    key: PRNGKeyArray,
    num_steps: int = 5000,
    batch_size: int = 16,
    length: int = 200,
    observation: AbstractObservation = IdentityObservation(),
    forcing: AbstractForcing | None = None,
    optim: optax.GradientTransformation | None = None,
    regularisation: float = 1e-5,
    chunk: int = 250,
    progress: bool = False,
    throw: bool = True,
) -> Training:
    r"""Train a model by generalised teacher forcing, on random pieces of one or several recordings.

    **Arguments:**

    - `model`: the model to begin with.
    - `data`: one recording `[T, d]`, or several of one length, `[R, T, d]`. Standardise it.
    - `key`: draws the pieces.
    - `num_steps`: the number of updates. The paper makes 250,000.
    - `batch_size`, `length`: pieces of an update, and their number of states.
    - `observation`: how latent states and data belong together; learned with the model.
    - `forcing`: `None` is [`koopman_verify.gtf.AnnealedForcing`][].
    - `optim`: an Optax optimiser; `None` is [`koopman_verify.gtf.exponential_radam`][] over `num_steps`.
    - `regularisation`: the factor of the penalty on squared parameters.
    - `chunk`: how many updates run on the device between two looks at the result.
    - `progress`: whether to write a line after each chunk, on stderr.
    - `throw`: whether to raise where a loss or a gradient is not finite.

    **Returns:** a [`koopman_verify.gtf.Training`][].

    **Raises:** `ValueError` for arguments that do not fit each other or data that are not finite; with `throw`, an
    error where training meets a loss that is not finite.

    !!! Example

        ```python
        recording = gtf.lorenz63(jax.random.key(0), 20_000).standardised()
        training = gtf.train(model, recording.values, key=jax.random.key(1))
        ```
    """
    recordings = _recordings(data, length)
    for name, value in (("num_steps", num_steps), ("batch_size", batch_size), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}")
    _check_fit(model, observation, recordings)
    optim = exponential_radam(num_steps) if optim is None else optim
    state = TrainState.create(model, optim, observation=observation, forcing=forcing)
    pieces, done = [], 0
    while done < num_steps:
        # Every chunk has one length, so that one program serves all; the surplus of the last one is masked.
        limit = jnp.asarray(num_steps - done)
        state, piece = _chunk(
            state, recordings, jr.fold_in(key, done), limit, optim, regularisation, batch_size, length, chunk
        )
        kept = min(chunk, num_steps - done)
        pieces.append([np.asarray(x)[:kept] for x in piece])
        done += kept
        if progress:
            last = [float(x[-1]) for x in pieces[-1]]
            print(f"step {done:6d}  loss {last[0]:.3e}  alpha {last[1]:.3f}", file=sys.stderr)
        if bool(state.failed):
            break
    losses, alphas, failed = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return _finish(state, losses, alphas, failed, throw)


@eqx.filter_jit
def _chunk(
    state: TrainState,
    recordings: Array,
    key: PRNGKeyArray,
    limit: Int[Array, ""],
    optim: optax.GradientTransformation,
    regularisation: float,
    batch_size: int,
    length: int,
    chunk: int,
) -> tuple[TrainState, tuple[Array, Array, Array]]:
    arrays, static = eqx.partition(state, eqx.is_array)

    def body(arrays, index):
        state = eqx.combine(arrays, static)
        batch = _draw(jr.fold_in(key, index), recordings, batch_size, length)
        new, error = train_step(state, batch, optim, regularisation)
        new = _select(index < limit, new, state)
        return eqx.filter(new, eqx.is_array), (error, new.forcing.alpha, new.failed)

    arrays, history = jax.lax.scan(body, arrays, jnp.arange(chunk))
    return eqx.combine(arrays, static), history


def _draw(key: PRNGKeyArray, recordings: Array, batch_size: int, length: int) -> Array:
    key_r, key_t = jr.split(key)
    which = jr.randint(key_r, (batch_size,), 0, recordings.shape[0])
    start = jr.randint(key_t, (batch_size,), 0, recordings.shape[1] - length + 1)
    rows = start[:, None] + jnp.arange(length)[None]
    return recordings[which[:, None], rows]


def _select(condition: Array, yes: TrainState, no: TrainState) -> TrainState:
    arrays, static = eqx.partition(yes, eqx.is_array)
    chosen = jax.tree.map(lambda a, b: jnp.where(condition, a, b), arrays, eqx.filter(no, eqx.is_array))
    return eqx.combine(chosen, static)


def _recordings(data: Array, length: int) -> Array:
    if data.ndim not in (2, 3):
        raise ValueError(f"`data` must have shape [T, d] or [R, T, d]; got {list(data.shape)}")
    recordings = data[None] if data.ndim == 2 else data
    if not 2 <= length <= recordings.shape[1]:
        raise ValueError(f"`length` must be in 2...T = {recordings.shape[1]}, the length of `data`; got {length}")
    if not np.all(np.isfinite(np.asarray(data))):
        raise ValueError("`data` must be finite; remove or interpolate NaN and infinite values first")
    return recordings


def _check_fit(model: AbstractSimulator, observation: AbstractObservation, recordings: Array) -> None:
    states = jax.eval_shape(observation.encode, recordings[0])
    try:
        new = jax.eval_shape(model, jax.ShapeDtypeStruct(states.shape[1:], states.dtype))
    except TypeError as error:
        raise ValueError(
            f"`model` does not take the states {states.dtype}{list(states.shape[1:])} that `data` and `observation` give: "
            f"{error}"
        ) from error
    if new.shape != states.shape[1:] or new.dtype != states.dtype:
        raise ValueError(
            f"`model` must map states to states of one shape and dtype; it maps {states.dtype}{list(states.shape[1:])} "
            f"to {new.dtype}{list(new.shape)}"
        )


def _finish(state: TrainState, losses: np.ndarray, alphas: np.ndarray, failed: np.ndarray, throw: bool) -> Training:
    result = RESULTS.where(state.failed, RESULTS.nonfinite, RESULTS.successful)  # pyright: ignore[reportArgumentType]
    num_steps = len(losses) - int(np.sum(failed))
    course = [jnp.asarray(x[: num_steps + 1]) for x in (losses, alphas)]
    training = Training(state.model, state.observation, result, {"num_steps": num_steps}, *course)
    if throw and bool(state.failed):
        raise RuntimeError(
            f"training stopped after {num_steps} steps, as a loss or a gradient was not finite. Likely causes: too little "
            "forcing for the length of the pieces, too large a rate, or data that are not standardised. `throw=False` "
            "returns the last model before that."
        )
    return training
