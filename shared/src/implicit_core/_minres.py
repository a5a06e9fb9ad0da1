from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Bool, Float, Int

from ._batched import loop
from ._custom_types import RealScalar
from ._krylov import AbstractKrylov, Mode, Run, preconditioner
from ._misc import stop_gradient, tree_axpy, tree_dot, tree_scale


class MINRES(AbstractKrylov):
    r"""Solve a symmetric system, definite or not, by the minimal residual method.

    For saddle-point (KKT) systems above all, best with `precond=precond.saddle(...)`. One product and one application of
    the preconditioner a step, memory for seven vectors. A singular system is solved if it is consistent; if it is not,
    the residual stagnates, and the result says so. Stopping, outcomes and `stats` are those of
    [`implicit_core.krylov.PCG`][]; for definite operators `PCG` is faster.

    The operator must be tagged symmetric, or definite if it is complex (Lineax has no tag for Hermitian, and complex
    symmetric is not enough).

    **Arguments:**

    - `rtol`, `atol`, `max_steps`, `precond`, `mode`, `dot`: as for [`implicit_core.krylov.PCG`][]. The preconditioner
        must be positive definite although the operator is not.
    - `stagnation`: number of steps in which the residual must fall by one per cent. `None` means `max(200, 2 n)`:
        residuals of indefinite systems have long plateaus.

    **Raises:**

    `ValueError` as [`implicit_core.krylov.PCG`][], where the operator is not tagged symmetric.

    !!! Example

        ```python
        operator = lx.MatrixLinearOperator(jnp.array([[1.0, 1.0], [1.0, 0.0]]), lx.symmetric_tag)
        lx.linear_solve(operator, jnp.ones(2), MINRES(rtol=1e-6)).value  # [1. 0.]
        ```

    ??? cite "Reference"

        Paige and Saunders, SIAM J. Numer. Anal. 12 (1975); with a preconditioner as in Elman, Silvester and Wathen,
        "Finite elements and fast iterative solvers" (2014), Algorithm 4.1.
    """

    rtol: RealScalar | None = eqx.field(default=None, converter=stop_gradient)
    atol: RealScalar = eqx.field(default=0.0, converter=stop_gradient)
    max_steps: int | None = eqx.field(default=None, static=True)
    precond: lx.AbstractLinearOperator | None = eqx.field(default=None, converter=stop_gradient)
    mode: Mode = eqx.field(default="strict", static=True)
    stagnation: int | None = eqx.field(default=None, static=True)
    dot: Callable[[Any, Any], Array] = eqx.field(default=tree_dot, static=True)
    compact: bool = eqx.field(default=False, static=True, kw_only=True)

    _minimises_residual: ClassVar[bool] = True
    _max_rounds: ClassVar[int] = 3
    _progress: ClassVar[float] = 0.5

    def _prepare(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> tuple[Any, int]:
        definite = lx.is_positive_semidefinite(operator) or lx.is_negative_semidefinite(operator)
        real = all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jtu.tree_leaves(operator.in_structure()))
        if not (definite or (real and lx.is_symmetric(operator))):
            raise ValueError(
                "`MINRES` needs an operator that is tagged symmetric (definite, if it is complex). If it is, say so with "
                "`lineax.TaggedLinearOperator(operator, lineax.symmetric_tag)`; if it is not, use `FGMRES`."
            )
        return preconditioner(self.precond, operator, options), 1

    def _run(self, mv: Callable[[Any], Any], aux: Any, r: Any, rnorm: Array, tol: Array, max_steps: Array) -> Run:
        size = sum(leaf.size for leaf in jtu.tree_leaves(r))
        patience = max(200, 2 * size) if self.stagnation is None else self.stagnation
        precond_mv = None if aux is None else aux.mv

        def active(c: _Carry) -> Array:
            return (c.rnorm > tol) & (c.k < max_steps) & (c.idle < patience) & c.sound

        start = _init(r, rnorm, precond_mv, self.dot)
        c = loop(active, lambda c: _step(c, mv, precond_mv, self.dot), start, compact=self.compact)
        ratio = jnp.where(start.gamma > 0, start.rnorm * (start.rnorm / start.gamma) / start.gamma, 0)
        cond = c.high / jnp.where(c.low > 0, c.low, 1)
        return Run(c.x, c.rnorm, c.k, c.k, c.high * ratio, cond, c.indefinite, c.nonfinite)


class _Carry(eqx.Module):
    k: Int[Array, ""]
    x: Any
    r: Any  # the residual by its recurrence; without a preconditioner its norm is known and it is left out
    rnorm: Float[Array, ""]
    eta: Float[Array, ""]  # its norm in the metric of the preconditioner, with a sign
    v: tuple[Any, Any]  # the last two Lanczos vectors, not normalised
    z: Any  # M v
    w: tuple[Any, Any]  # the last two search directions
    gamma: Float[Array, ""]
    gamma_old: Float[Array, ""]
    cos: tuple[Array, Array]
    sin: tuple[Array, Array]
    high: Float[Array, ""]  # estimates of the extreme singular values, from the tridiagonal matrix and its R factor
    low: Float[Array, ""]
    mark: Float[Array, ""]
    idle: Int[Array, ""]
    sound: Bool[Array, ""]
    indefinite: Bool[Array, ""]  # the preconditioner is
    nonfinite: Bool[Array, ""]


def _init(r, rnorm, precond_mv, dot) -> _Carry:
    z = r if precond_mv is None else precond_mv(r)
    zr = rnorm * rnorm if precond_mv is None else dot(z, r)
    zero, one = 0 * rnorm, 0 * rnorm + 1
    nonfinite = ~(jnp.isfinite(rnorm) & jnp.isfinite(zr))
    indefinite = (rnorm > 0) & (zr <= 0)
    gamma = jnp.sqrt(jnp.maximum(zr, 0))
    nothing = tree_scale(zero, r)
    return _Carry(
        k=jnp.zeros((), jnp.int32),
        x=nothing,
        r=None if precond_mv is None else r,
        rnorm=rnorm,
        eta=gamma,
        v=(nothing, r),
        z=z,
        w=(nothing, nothing),
        gamma=gamma,
        gamma_old=one,
        cos=(one, one),
        sin=(zero, zero),
        high=zero,
        low=jnp.inf * one,
        mark=rnorm,
        idle=jnp.zeros((), jnp.int32),
        sound=~(nonfinite | indefinite),
        indefinite=indefinite,
        nonfinite=nonfinite,
    )


def _step(c: _Carry, mv, precond_mv, dot) -> _Carry:
    # The names are those of Algorithm 4.1: `v`, `z`, `w`; a pair holds the values at j - 1 and j.
    eps = float(jnp.finfo(c.rnorm.dtype).eps)
    (v0, v1), (w0, w1), (c0, c1), (s0, s1) = c.v, c.w, c.cos, c.sin
    z = tree_scale(1 / jnp.where(c.gamma > 0, c.gamma, 1), c.z)
    az = mv(z)
    delta = dot(az, z)
    v2 = tree_axpy(-c.gamma / c.gamma_old, v0, tree_axpy(-delta / jnp.where(c.gamma > 0, c.gamma, 1), v1, az))
    z2 = v2 if precond_mv is None else precond_mv(v2)
    square = dot(z2, v2)
    gamma = jnp.sqrt(jnp.maximum(square, 0))
    a0 = c1 * delta - c0 * s1 * c.gamma
    a1 = jnp.hypot(a0, gamma)
    a2 = s1 * delta + c0 * c1 * c.gamma
    a3 = s0 * c.gamma
    # The first row of the tridiagonal matrix has no entry to the left: c.gamma is the norm of the residual there.
    left = jnp.where(c.k > 0, c.gamma, 0)
    high = jnp.maximum(c.high, jnp.hypot(jnp.hypot(left, delta), gamma))
    finite = jnp.isfinite(delta) & jnp.isfinite(square)
    indefinite = finite & (square < -100 * eps * high * high)
    # |A r| / |r|. Where it vanishes and r has stopped to fall, the system is inconsistent, and r as small as it can be.
    slope = jnp.hypot(a0, c1 * gamma)
    least = (slope <= eps * high) | ((slope <= eps**0.5 * high) & (c.idle >= 10))
    sound = finite & ~indefinite & ~least
    safe = jnp.where(sound, a1, 1)
    c2, s2 = a0 / safe, gamma / safe
    w2 = tree_scale(1 / safe, tree_axpy(-a2, w1, tree_axpy(-a3, w0, z)))
    length = jnp.where(sound, c2 * c.eta, 0)
    x = jtu.tree_map(lambda new, old: jnp.where(sound, new, old), tree_axpy(length, w2, c.x), c.x)
    eta = -s2 * c.eta
    if precond_mv is None:
        r, rnorm = None, jnp.abs(eta)
    else:
        r = tree_axpy(-length / safe, v2, tree_scale(s2 * s2, c.r))
        rnorm = jnp.sqrt(dot(r, r))
    rnorm = jnp.where(sound, rnorm, c.rnorm)
    smaller = rnorm < 0.99 * c.mark
    return _Carry(
        k=c.k + 1,
        x=x,
        r=r,
        rnorm=rnorm,
        eta=eta,
        v=(v1, v2),
        z=z2,
        w=(w1, w2),
        gamma=gamma,
        gamma_old=c.gamma,
        cos=(c1, c2),
        sin=(s1, s2),
        high=jnp.where(finite, high, c.high),
        low=jnp.where(sound, jnp.minimum(c.low, a1), c.low),
        mark=jnp.where(smaller, rnorm, c.mark),
        idle=jnp.where(smaller, 0, c.idle + 1),
        sound=sound,
        indefinite=c.indefinite | indefinite,
        nonfinite=c.nonfinite | ~finite,
    )
