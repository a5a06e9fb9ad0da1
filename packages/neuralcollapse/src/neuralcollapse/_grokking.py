from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ._perp_grad import nlm_alignment


class ModularData(eqx.Module):
    """All pairs of residues with their sum, split at random.

    **Attributes:**

    - `train_x`, `test_x`: one-hot pairs, `[samples, 2 p]`.
    - `train_y`, `test_y`: the sums modulo `p`.
    """

    train_x: Float[Array, "train inputs"]
    train_y: Int[Array, " train"]
    test_x: Float[Array, "test inputs"]
    test_y: Int[Array, " test"]


class GrokkingRun(eqx.Module):
    """Curves of one training run, one entry every so many steps.

    **Attributes:**

    - `steps`: how many steps had been made, `[records]`.
    - `train_accuracy`, `test_accuracy`, `train_loss`: at those steps.
    - `collapsed`: the fraction of training samples whose loss is exactly zero: with softmax, those in softmax collapse.
    - `alignment`: the cosine of minus the gradient with the parameters.
    - `params`: the final weights.
    """

    steps: Int[Array, " records"]
    train_accuracy: Float[Array, " records"]
    test_accuracy: Float[Array, " records"]
    train_loss: Float[Array, " records"]
    collapsed: Float[Array, " records"]
    alignment: Float[Array, " records"]
    params: tuple[Array, ...]


def modular_addition(
    p: int = 113, *, train_fraction: float = 0.4, key: PRNGKeyArray, dtype: Any = jnp.float32
) -> ModularData:
    """Return addition modulo `p`: all pairs, one-hot, split at random.

    **Arguments:**

    - `p`: the modulus.
    - `train_fraction`: of all pairs, strictly between zero and one.
    - `key`: draws the split.
    - `dtype`: of the inputs.

    **Returns:**

    A [`neuralcollapse.numerics.ModularData`][].

    !!! Example

        ```python
        data = neuralcollapse.numerics.modular_addition(113, key=jax.random.key(0))
        ```
    """
    if not isinstance(p, int) or p < 2:
        raise ValueError(f"`p` must be a whole number of at least two; got {p!r}.")
    count = round(p * p * train_fraction)
    if not 0 < count < p * p:
        raise ValueError(f"`train_fraction` must leave samples on both sides; got {train_fraction}.")
    order = jr.permutation(key, p * p)
    a, b = order // p, order % p
    x = jnp.concatenate([jax.nn.one_hot(a, p, dtype=dtype), jax.nn.one_hot(b, p, dtype=dtype)], axis=1)
    y = (a + b) % p
    return ModularData(x[:count], y[:count], x[count:], y[count:])


def grok(
    data: ModularData,
    optimiser: optax.GradientTransformation,
    *,
    key: PRNGKeyArray,
    num_steps: int = 1000,
    record_every: int = 50,
    widths: tuple[int, ...] = (200, 200),
    loss_fn: Callable[[Array, Array], Array] = optax.softmax_cross_entropy_with_integer_labels,
    logit_dtype: Any = None,
) -> GrokkingRun:
    """Train a ReLU network without biases on a task by full-batch steps, recording when it comes to generalise.

    **Arguments:**

    - `data`: from [`neuralcollapse.numerics.modular_addition`][].
    - `optimiser`: an Optax transformation, for instance `optax.chain(perp_grad(), optax.adam(1e-2))`.
    - `key`: draws the weights (uniform, of variance one third over the fan-in).
    - `num_steps`: full-batch steps; a multiple of `record_every`.
    - `record_every`: steps between records.
    - `widths`: of the hidden layers.
    - `loss_fn`: `(logits, labels) -> losses`: softmax cross-entropy, or
        [`neuralcollapse.numerics.stablemax_cross_entropy`][].
    - `logit_dtype`: compute the loss in this dtype, as mixed precision does.

    **Returns:**

    A [`neuralcollapse.numerics.GrokkingRun`][].

    !!! Example

        ```python
        run = grok(data, optax.chain(perp_grad(), optax.adam(1e-2)), key=jax.random.key(1), num_steps=300)
        run.test_accuracy[-1]
        ```
    """
    if record_every < 1 or num_steps < 1 or num_steps % record_every:
        raise ValueError(f"`num_steps` must be a multiple of `record_every`; got {num_steps} and {record_every}.")
    sizes = (data.train_x.shape[1], *widths, data.train_x.shape[1] // 2)
    dtype = data.train_x.dtype
    params = tuple(
        jr.uniform(k, (n, m), dtype, -1.0, 1.0) / jnp.sqrt(jnp.asarray(n, dtype))
        for k, n, m in zip(jr.split(key, len(sizes) - 1), sizes[:-1], sizes[1:], strict=True)
    )
    return _train(
        data, params, optimiser, loss_fn, dtype if logit_dtype is None else logit_dtype, num_steps, record_every
    )


@eqx.filter_jit
def _train(data, params, optimiser, loss_fn, logit_dtype, num_steps, record_every) -> GrokkingRun:
    def apply(params, x):
        for weight in params[:-1]:
            x = jax.nn.relu(x @ weight)
        return (x @ params[-1]).astype(logit_dtype)

    def loss(params):
        return jnp.mean(loss_fn(apply(params, data.train_x), data.train_y).astype(jnp.float32))

    def step(carry, _):
        params, state = carry
        updates, state = optimiser.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def accuracy(params, x, y):
        return jnp.mean((jnp.argmax(apply(params, x), axis=-1) == y).astype(jnp.float32))

    def record(carry, _):
        carry, _ = jax.lax.scan(step, carry, None, length=record_every)
        params, _ = carry
        value, grads = jax.value_and_grad(loss)(params)
        row = (
            accuracy(params, data.train_x, data.train_y),
            accuracy(params, data.test_x, data.test_y),
            value,
            jnp.mean((loss_fn(apply(params, data.train_x), data.train_y) == 0).astype(jnp.float32)),
            nlm_alignment(grads, params).total_cosine,
        )
        return carry, row

    count = num_steps // record_every
    (params, _), rows = jax.lax.scan(record, (params, optimiser.init(params)), None, length=count)
    return GrokkingRun(record_every * jnp.arange(1, count + 1), *rows, params)
