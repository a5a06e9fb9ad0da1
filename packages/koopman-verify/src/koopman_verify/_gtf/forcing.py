import abc
from typing import Any, Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .plrnn import AbstractObservation, AbstractSimulator, IdentityObservation


Estimator: TypeAlias = Literal["product", "parameters", "max", "geometric", "arithmetic"]


def forced_orbit(
    model: AbstractSimulator,
    states: Float[Array, "T M"],
    alpha: Float[Array, ""] | float,
    *,
    z0: Float[Array, " M"] | None = None,
) -> Float[Array, "S M"]:
    r"""Run a model that is drawn towards the data before every step.

    $$ z_t = F\big((1 - \alpha)\,z_{t-1} + \alpha\,\bar z_{t-1}\big), \qquad t = 1, \ldots, T - 1. $$

    $\alpha = 0$ is the free orbit, $\alpha = 1$ one-step prediction.

    **Arguments:**

    - `model`: the map $F$.
    - `states`: the states $\bar z_0, \ldots, \bar z_{T-1}$ of the data, `[T, M]`.
    - `alpha`: the strength of forcing, in $[0, 1]$.
    - `z0`: where the orbit starts; `None` is $\bar z_0$.

    **Returns:** the predictions $z_1, \ldots, z_{T-1}$ of `states[1:]`, `[T - 1, M]`.

    !!! Example

        ```python
        gtf.forced_orbit(model, data, 0.2)
        ```
    """
    if len(states) < 2:
        raise ValueError(f"`states` must hold at least two states [T, M]; got shape {list(states.shape)}")
    # An array, so that another strength is not another program.
    return _forced_orbit(model, states, jnp.asarray(alpha, states.dtype), z0)


@eqx.filter_jit
def _forced_orbit(model: AbstractSimulator, states: Array, alpha: Array, z0: Array | None) -> Array:
    def step(z, target):
        new = model((1 - alpha) * z + alpha * target)
        return new, new

    _, predicted = jax.lax.scan(step, states[0] if z0 is None else z0, states[:-1])
    return predicted


def loss(
    model: AbstractSimulator,
    data: Float[Array, "... T d"],
    alpha: Float[Array, ""] | float,
    *,
    observation: AbstractObservation = IdentityObservation(),
) -> Float[Array, ""]:
    r"""Return the mean squared error of forced orbits.

    **Arguments:**

    - `model`: the map $F$ of the latent space.
    - `data`: one sequence `[T, d]`, or a batch of them `[B, T, d]`.
    - `alpha`: the strength of forcing, see [`koopman_verify.gtf.forced_orbit`][].
    - `observation`: how latent states and data belong together.

    **Returns:** the mean over times, channels and sequences of the squared error of the predictions.

    **Raises:** `ValueError` if `data` has another number of axes.

    !!! Example

        ```python
        jax.grad(gtf.loss)(model, data, 0.2)
        ```
    """
    if data.ndim not in (2, 3):
        raise ValueError(f"`data` must have shape [T, d] or [B, T, d]; got {list(data.shape)}")
    return _loss(model, data, jnp.asarray(alpha, data.dtype), observation)


@eqx.filter_jit
def _loss(model: AbstractSimulator, data: Array, alpha: Array, observation: AbstractObservation) -> Array:
    batch = data[None] if data.ndim == 2 else data
    states = observation.encode(batch)
    predicted = jax.vmap(lambda s: forced_orbit(model, s, alpha))(states)
    return jnp.mean((observation.decode(predicted) - batch[:, 1:]) ** 2)


@eqx.filter_jit
def jacobian_growth(
    model: AbstractSimulator, states: Float[Array, "... T M"], estimator: Estimator = "product"
) -> Float[Array, ""]:
    r"""Estimate the factor $\mathcal{N}$ by which a step of the model stretches.

    **Arguments:**

    - `model`: the map.
    - `states`: where its Jacobians $J_t$ are taken, one sequence `[T, M]` or a batch `[B, T, M]`.
    - `estimator`: one of
        `"product"`: the geometric mean $(\prod_t\lVert J_t\rVert_2)^{1/T}$ of each sequence, the largest of the batch
        (the product upper bound);
        `"parameters"`: `model.lipschitz()`, which holds for all states;
        `"max"`: the largest $\lVert J_t\rVert_2$ of the batch;
        `"geometric"`: the norm of the elementwise $\exp(\mathrm{mean}\log J_t)$ (principal logarithm), the largest of
        the batch;
        `"arithmetic"`: the norm of the mean of $J_t$, the largest of the batch.

    **Returns:** $\mathcal{N}$. Only `"parameters"`, and `"max"` on the states that a forced orbit visits, bound the
    gradients of that orbit; the others are estimates.

    **Raises:** `ValueError` for an unknown `estimator`.

    !!! Example

        ```python
        gtf.jacobian_growth(model, data, "max")
        ```
    """
    if estimator not in get_args(Estimator):
        raise ValueError(f"`estimator` must be one of {get_args(Estimator)}; got {estimator!r}")
    if estimator == "parameters":
        return model.lipschitz()
    if states.ndim not in (2, 3):
        raise ValueError(f"`states` must have shape [T, M] or [B, T, M]; got {list(states.shape)}")
    batch = states[None] if states.ndim == 2 else states
    jacobians = jax.vmap(jax.vmap(model.jacobian))(batch)
    if estimator == "arithmetic":
        return jnp.max(_norms(jnp.mean(jacobians, axis=1)))
    if estimator == "geometric":
        size = jnp.exp(jnp.mean(jnp.log(jnp.abs(jacobians)), axis=1))
        # The imaginary part of the logarithm of a negative entry is pi.
        turn = jnp.pi * jnp.mean((jacobians < 0).astype(size.dtype), axis=1)
        return jnp.max(_norms(jax.lax.complex(size * jnp.cos(turn), size * jnp.sin(turn))))
    norms = _norms(jacobians)
    if estimator == "max":
        return jnp.max(norms)
    return jnp.max(jnp.exp(jnp.mean(jnp.log(norms), axis=1)))


@eqx.filter_jit
def alpha_star(
    model: AbstractSimulator, states: Float[Array, "... T M"], estimator: Estimator = "product"
) -> Float[Array, ""]:
    r"""Return the strength of forcing at which Jacobian products cease to grow, $\alpha^* = \max(0, 1 - 1/\mathcal{N})$.

    Along a forced orbit they are $\prod_t(1 - \alpha)J_t$.

    **Arguments:** those of [`koopman_verify.gtf.jacobian_growth`][].

    **Returns:** $\alpha^* \in [0, 1)$.

    !!! Example

        ```python
        gtf.loss(model, data, gtf.alpha_star(model, data))
        ```
    """
    return 1 - 1 / jnp.maximum(jacobian_growth(model, states, estimator), 1.0)


class AbstractForcing(eqx.Module):
    """The strength of forcing in the course of training.

    !!! Example

        ```python
        forcing = gtf.AnnealedForcing().update(model, states)
        ```
    """

    alpha: eqx.AbstractVar[Float[Array, ""]]

    @abc.abstractmethod
    def update(self, model: AbstractSimulator, states: Float[Array, "B T M"]) -> "AbstractForcing":
        """Return the forcing of the next training step."""


class ConstantForcing(AbstractForcing):
    r"""Forcing of one strength.

    **Arguments:**

    - `alpha`: the strength, in $[0, 1]$.
    - `dtype`: `None` is JAX's default.

    **Raises:** `ValueError` if `alpha` is outside.

    !!! Example

        ```python
        gtf.ConstantForcing(0.3)
        ```
    """

    alpha: Float[Array, ""]

    def __init__(self, alpha: float, *, dtype: Any = None):
        self.alpha = _strength("alpha", alpha, dtype)

    def update(self, model: AbstractSimulator, states: Float[Array, "B T M"]) -> "ConstantForcing":
        """Return itself."""
        del model, states
        return self


class AnnealedForcing(AbstractForcing):
    r"""Forcing that follows the model.

    Every `every` training steps, with the estimate $\alpha^*$ on the batch: $\alpha \leftarrow \alpha^*$ if that is
    larger, $\alpha \leftarrow \gamma\alpha + (1 - \gamma)\alpha^*$ otherwise. So it rises at once, and falls slowly.

    **Arguments:**

    - `estimator`: that of [`koopman_verify.gtf.alpha_star`][].
    - `every`: how many training steps lie between two estimates; the first step makes one.
    - `gamma`: the memory $\gamma \in [0, 1]$.
    - `alpha`: the first strength.
    - `dtype`: `None` is JAX's default.

    **Raises:** `ValueError` if an argument is outside its range.

    !!! Example

        ```python
        gtf.AnnealedForcing("arithmetic")
        ```
    """

    alpha: Float[Array, ""]
    count: Int[Array, ""]
    gamma: Float[Array, ""]
    estimator: Estimator = eqx.field(static=True)
    every: int = eqx.field(static=True)

    def __init__(
        self,
        estimator: Estimator = "product",
        *,
        every: int = 5,
        gamma: float = 0.999,
        alpha: float = 1.0,
        dtype: Any = None,
    ):
        if estimator not in get_args(Estimator):
            raise ValueError(f"`estimator` must be one of {get_args(Estimator)}; got {estimator!r}")
        if every < 1:
            raise ValueError(f"`every` must be at least 1; got {every}")
        self.alpha, self.gamma = _strength("alpha", alpha, dtype), _strength("gamma", gamma, dtype)
        self.count = jnp.zeros((), jnp.int32)
        self.estimator, self.every = estimator, every

    @eqx.filter_jit
    def update(self, model: AbstractSimulator, states: Float[Array, "B T M"]) -> "AnnealedForcing":
        """Return the forcing after one more training step."""
        due: Bool[Array, ""] = self.count % self.every == 0
        alpha = jax.lax.cond(due, lambda: self._anneal(model, states), lambda: self.alpha)
        return eqx.tree_at(lambda f: (f.alpha, f.count), self, (alpha, self.count + 1))

    def _anneal(self, model: AbstractSimulator, states: Array) -> Array:
        estimate = alpha_star(model, states, self.estimator).astype(self.alpha.dtype)
        slow = self.gamma * self.alpha + (1 - self.gamma) * estimate
        return jnp.where(estimate > self.alpha, estimate, slow)


def _norms(matrices: Array) -> Array:
    return jnp.linalg.svd(matrices, compute_uv=False)[..., 0]


def _strength(name: str, value: float, dtype: Any) -> Array:
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be in [0, 1]; got {value}")
    return jnp.asarray(value, jnp.result_type(float) if dtype is None else dtype)
