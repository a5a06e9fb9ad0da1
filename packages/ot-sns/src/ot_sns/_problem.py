import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from ._check import as_float, require
from ._custom_types import FloatScalar
from ._geometry import AbstractGeometry


class EntropicOT(eqx.Module):
    r"""Entropic optimal transport between two discrete measures.

    $$\min_{P \ge 0} \sum_{ij} C_{ij} P_{ij} + \varepsilon \sum_{ij} P_{ij} (\log P_{ij} - 1)
    \quad \text{subject to} \quad P 1 = a, \; P^\top 1 = b.$$

    The solution is $P_{ij} = \exp((f_i + g_j - C_{ij}) / \varepsilon)$: there is no reference
    measure. This is the convention of POT, OTT and regot; the paper (arXiv 2401.12253) writes
    $\eta = 1/\varepsilon$ and $\exp(\eta(x_i + y_j - C_{ij}) - 1)$, so $f + g = x + y - 1/\eta$.

    **Arguments:**

    - `geometry`: the cost, an [`ot_sns.AbstractGeometry`][] of shape `(n, m)`.
    - `a`: the source weights, of shape `(n,)`; `None` is uniform, summing to one.
    - `b`: the target weights, of shape `(m,)`; `None` is uniform, with the total mass of `a`.
    - `epsilon`: the regularisation, in the units of the cost, positive.

    Weights must be nonnegative and have the same total, to a relative $\sqrt{\text{eps}}$ of
    their dtype; what rounding leaves of a difference is removed by rescaling `b`. An atom of
    zero weight is allowed: it carries no mass, its potential is $-\infty$, and derivatives with
    respect to its weight are zero.

    **Raises:**

    A `ValueError` for wrong shapes, negative or non-finite weights, no mass, unequal masses or
    `epsilon <= 0` (Equinox's run-time error where the value is traced), a `TypeError` for a wrong
    dtype.

    ```python
    import jax.numpy as jnp
    import ot_sns

    geometry = ot_sns.DenseCost(jnp.array([[0.0, 1.0], [1.0, 0.0]]))
    problem = ot_sns.EntropicOT(geometry, epsilon=0.1)
    assert problem.a.shape == (2,)
    ```
    """

    geometry: AbstractGeometry
    a: Float[Array, " n"]
    b: Float[Array, " m"]
    epsilon: FloatScalar

    def __init__(
        self,
        geometry: AbstractGeometry,
        a: Real[ArrayLike, " n"] | None = None,
        b: Real[ArrayLike, " m"] | None = None,
        *,
        epsilon: float | Real[ArrayLike, ""],
    ):
        if not isinstance(geometry, AbstractGeometry):
            raise TypeError(
                "`geometry` must be an `ot_sns.AbstractGeometry`, such as `ot_sns.DenseCost(C)` "
                f"or `ot_sns.PointCloud(x, y)`; got {type(geometry).__name__}."
            )
        n, m = geometry.shape
        dtype = geometry.dtype
        self.geometry = geometry
        self.a = _weights(a, "a", n, jnp.ones((), dtype))
        mass_a = jax.lax.stop_gradient(jnp.sum(self.a))
        target = _weights(b, "b", m, mass_a)
        mass_b = jax.lax.stop_gradient(jnp.sum(target))
        target = require(
            target,
            jnp.abs(mass_a - mass_b) <= jnp.sqrt(jnp.finfo(dtype).eps) * mass_a,
            "`a` and `b` must have the same total mass.",
            sum_of_a=mass_a,
            sum_of_b=mass_b,
        )
        # Without this the two marginals would contradict each other by their rounding.
        self.b = target * (mass_a / mass_b)
        self.epsilon = _epsilon(epsilon, dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of source and target atoms `(n, m)`."""
        return self.geometry.shape


def _weights(given: Real[ArrayLike, " n"] | None, name: str, size: int, mass: FloatScalar) -> Float[Array, " n"]:
    if given is None:
        return jnp.full((size,), mass / size)
    weights = as_float(given, name)
    if weights.shape != (size,):
        raise ValueError(f"`{name}` must have shape ({size},) to match the geometry, got {weights.shape}.")
    if weights.dtype != mass.dtype:
        raise TypeError(f"`{name}` must have the geometry's dtype {mass.dtype}, got {weights.dtype}.")
    weights = require(
        weights,
        jnp.all(jnp.isfinite(weights)),
        f"`{name}` must be finite, but has NaN or infinite entries.",
    )
    weights = require(weights, jnp.all(weights >= 0), f"`{name}` must be nonnegative.", smallest=jnp.min(weights))
    return require(weights, jnp.sum(weights) > 0, f"`{name}` must have positive total mass.")


def _epsilon(given: float | Real[ArrayLike, ""], dtype: jnp.dtype) -> FloatScalar:
    epsilon = jnp.asarray(given, dtype)
    if epsilon.shape != ():
        raise ValueError(f"`epsilon` must be a scalar, got shape {epsilon.shape}.")
    return require(
        epsilon,
        (epsilon > 0) & jnp.isfinite(epsilon),
        "`epsilon` must be positive and finite.",
        epsilon=epsilon,
    )
