import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from implicit_core.krylov import tree_norm as norm
from jaxtyping import Array, Float, PyTree

from ._ep_estimators import AsymEP, Cauchy
from ._ep_field import AbstractVectorField
from ._ep_gradient import batch_size
from ._ep_phases import Coordinates, Sample, Settle, Settler, free_phase, limit, residual
from ._misc import tree_sub


_RANGE = 1e4  # the largest nudge that is looked at, over the smallest


class NudgeRadius(eqx.Module):
    r"""What [`fixedpoint_eq.diagnostics.nudge_radius`][] found, for each sample.

    **Attributes:**

    - `beta`: the largest nudge that serves; zero where none does, which also means a free phase that did not settle.
    - `tail`: there, $\lVert q_N - q_{N/2}\rVert / \lVert q_N\rVert$. Where the Taylor coefficients of the state are geometric
        the relative error of $q_N$ is its square, and $\mathrm{tail}^{2/N}$ the nudge over the radius of holomorphy.
    - `residual`: the largest of the nudged phases there.
    """

    beta: Float[Array, "..."]
    tail: Float[Array, "..."]
    residual: Float[Array, "..."]


def nudge_radius(
    field: AbstractVectorField,
    params: Any,
    x: PyTree[Array],
    y: PyTree[Array],
    estimator: Cauchy | AsymEP = Cauchy(1.0, 6),
    *,
    tail: float = 0.1,
    free: Settler = Settle(),
    nudged: Settler | None = None,
    coordinates: Coordinates = "activity",
    initial: PyTree[Array] | None = None,
    tol: float | None = None,
    num_bisections: int = 12,
) -> NudgeRadius:
    r"""Find the largest nudge of holomorphic equilibrium propagation that can be trusted.

    One for which all $N$ equilibria settle, and at which $q_N$ and $q_{N/2}$, the estimates of
    [`fixedpoint_eq.ep.Cauchy`][] with $N$ and $N/2$ points, agree up to `tail`. By bisection, which takes for granted that
    what serves at a nudge serves at smaller ones.

    **Arguments:**

    - `field`, `params`, `x`, `y`, `free`, `nudged`, `coordinates`, `initial`, `tol`: as for
        [`fixedpoint_eq.ep.gradient`][].
    - `estimator`: [`fixedpoint_eq.ep.Cauchy`][] with an even number of points, or [`fixedpoint_eq.ep.AsymEP`][] around
        one. Its `beta` is the largest nudge that is looked at; the smallest is 1e-4 of it.
    - `tail`: how far the two estimates may be apart, relatively.
    - `num_bisections`: each halves what is unknown of the logarithm of the nudge. Twelve leave 0.2 percent.

    **Returns:**

    A [`fixedpoint_eq.diagnostics.NudgeRadius`][].

    **Raises:**

    `TypeError` for another estimator; `ValueError` for an odd number of points, a `tail` that is not positive, or fewer
    bisections than one.

    !!! Example

        ```python
        found = diagnostics.nudge_radius(field, params, x, y, ep.AsymEP(ep.Cauchy(1.0, 6)))
        beta = jnp.min(found.beta)
        ```
    """
    circle = estimator.inner if isinstance(estimator, AsymEP) else estimator
    if not isinstance(circle, Cauchy):
        raise TypeError(f"`estimator` must be `Cauchy`, or `AsymEP` around one; got `{type(circle).__name__}`")
    if circle.num_points % 2:
        raise ValueError(f"`estimator` must have an even number of points; got {circle.num_points}")
    if not tail > 0:
        raise ValueError(f"`tail` must be positive; got {tail}")
    if num_bisections < 1:
        raise ValueError(f"`num_bisections` must be at least 1; got {num_bisections}")
    batch_size(x, y, initial)

    def one(x, y, start):
        start = field.initial(x) if start is None else start
        sample = free_phase(field, params, x, y, start, free, free if nudged is None else nudged, coordinates)
        settled = residual(sample.free_map, sample.u0) <= limit(sample.u0, tol)
        if isinstance(estimator, AsymEP):
            sample = sample.transpose()
        return _bisect(sample, circle, settled, tail, tol, num_bisections)

    return eqx.filter_vmap(one, in_axes=(0, 0, None if initial is None else 0))(x, y, initial)


def _bisect(sample: Sample, circle: Cauchy, settled: Array, tail: float, tol: float | None, count: int) -> NudgeRadius:
    dtype = norm(sample.u0).dtype
    high = jnp.log(jnp.asarray(circle.beta, dtype))
    low = high - jnp.log(jnp.asarray(_RANGE, dtype))

    def look(beta):
        """Return whether a nudge serves, and why."""
        whole, half = (
            dataclasses.replace(circle, beta=beta, num_points=n).response(sample)
            for n in (circle.num_points, circle.num_points // 2)
        )
        size = norm(whole.value)
        apart = norm(tree_sub(whole.value, half.value)) / jnp.where(size > 0, size, 1)
        ok = settled & (whole.residual <= limit(sample.u0, tol)) & (apart <= tail)
        # Of dynamics that are not holomorphic the ratio is infinite.
        ok = ok & (jnp.array(True) if whole.nudge_ratio is None else jnp.isfinite(whole.nudge_ratio))
        return ok, apart, whole.residual

    def step(carry, k):
        low, high, found = carry
        # Both ends first. If the upper one serves nothing is left to look for.
        here = jnp.where(k == 0, high, jnp.where(k == 1, low, (low + high) / 2))
        ok, apart, res = look(jnp.exp(here))
        found = tuple(jnp.where(ok, new, old) for new, old in zip((jnp.exp(here), apart, res), found, strict=True))
        return (jnp.where(ok, here, low), jnp.where(ok, high, here), found), None

    nothing = (jnp.zeros((), dtype), jnp.array(jnp.inf, dtype), jnp.array(jnp.inf, dtype))
    (_, _, found), _ = jax.lax.scan(step, (low, high, nothing), jnp.arange(count + 2, dtype=jnp.int32))
    return NudgeRadius(*found)
