from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int

from ._custom_types import IntScalar, RealScalar, Vector
from ._misc import real_dtype, tree_axpy, tree_dot, tree_scale


class PCGInfo(eqx.Module):
    r"""Say how a run of [`implicit_core.krylov.pcg`][] went. Every field is a scalar array.

    **Attributes:**

    - `num_steps`: steps made, which is also the number of products with the operator.
    - `relres`: $\lVert r\rVert/\lVert b\rVert$ of the *recurrence* residual. Rounding makes it smaller than the true
        one where the tolerance is below about $\epsilon\kappa$.
    - `indefinite`: a direction with $p^* A p \le 0$, or a residual with $r^* M r \le 0$, was met.
    - `stagnated`: progress stopped before the tolerance was met.
    - `nonfinite`: the right-hand side, the operator or the preconditioner gave a NaN or an infinity.
    - `ritz_min`, `ritz_max`: estimates, from inside, of the extreme eigenvalues of the preconditioned operator
        $M A$: in exact arithmetic $\lambda_{\min} \le$ `ritz_min` $\le$ `ritz_max` $\le \lambda_{\max}$. NaN before the
        first step.
    - `norm_estimate`: estimate of $\lVert A\rVert_2$, the unpreconditioned operator.
    """

    num_steps: Int[Array, ""]
    relres: Float[Array, ""]
    indefinite: Bool[Array, ""]
    stagnated: Bool[Array, ""]
    nonfinite: Bool[Array, ""]
    ritz_min: Float[Array, ""]
    ritz_max: Float[Array, ""]
    norm_estimate: Float[Array, ""]


class _Ritz(eqx.Module):
    # The Lanczos matrix is T = R^T R with R upper bidiagonal, R_jj = alpha_j^(-1/2), R_{j,j+1} = (beta_{j+1}/alpha_j)^(1/2).
    # Its extreme singular values are followed by bordering one vector each, a few scalar operations a step:
    # Meurant and Tichy, "Approximating the extreme Ritz values and upper bounds for the A-norm of the error in CG",
    # Numerical Algorithms 82 (2019). Both stay inside the spectrum because each is a Rayleigh quotient of T.
    high: Float[Array, ""]  # largest Ritz value, from below
    high_last: Float[Array, ""]  # last entry of the vector that shows it
    inv_low: Float[Array, ""]  # inverse of the smallest Ritz value, from below
    inv_low_last: Float[Array, ""]
    coupling: Float[Array, ""]  # R_{j,j+1} of the next column


class _Carry(eqx.Module):
    k: Int[Array, ""]
    x: Any
    r: Any
    p: Any
    g: Float[Array, ""]  # <r, M r>
    rnorm: Float[Array, ""]
    energy: Float[Array, ""]  # what the energy norm of the error has lost so far
    mark: Float[Array, ""]  # the residual norm, and below the energy, of the last step that counted as progress
    energy_mark: Float[Array, ""]
    idle: Int[Array, ""]
    inv_precond: Float[Array, ""]  # largest |r|^2 / <r, M r>, an estimate of the norm of the inverse of M
    ritz: _Ritz
    indefinite: Bool[Array, ""]
    nonfinite: Bool[Array, ""]
    diverged: Bool[Array, ""]


def _top_eigenpair(a, b, c):
    # Largest eigenvalue of [[a, b], [b, c]] and its unit eigenvector. `hypot` does not overflow where squares do.
    half = 0.5 * (a - c)
    radius = jnp.hypot(half, b)
    u = jnp.where(half >= 0, half + radius, b)
    v = jnp.where(half >= 0, b, radius - half)
    length = jnp.hypot(u, v)
    safe = jnp.where(length > 0, length, 1)
    return 0.5 * (a + c) + radius, jnp.where(length > 0, u / safe, 1), v / safe


def _ritz_step(ritz: _Ritz, first, alpha, beta) -> _Ritz:
    pivot = 1 / jnp.sqrt(alpha)
    y = ritz.high_last * ritz.coupling
    high, _, high_last = _top_eigenpair(ritz.high + y * y, y * pivot, pivot * pivot)
    w = ritz.inv_low_last * ritz.coupling / pivot
    inv_low, s, c = _top_eigenpair(ritz.inv_low + w * w, -w / pivot, alpha)
    return _Ritz(
        high=jnp.where(first, 1 / alpha, high),
        high_last=jnp.where(first, 1, high_last),
        inv_low=jnp.where(first, alpha, inv_low),
        inv_low_last=jnp.where(first, jnp.sqrt(alpha), c / pivot - s * w),
        coupling=jnp.sqrt(beta / alpha),
    )


def scale_of(b: Any, dot: Callable[[Any, Any], Array]) -> Float[Array, ""]:
    """Return a power of two near the size of `b`, and one where `b` is zero.

    Powers of two make scaling exact, so the iterates for `b` and for `2**k b` have the same digits.
    """
    dtype = real_dtype(b)
    finfo = jnp.finfo(dtype)
    if dot is tree_dot:
        peaks = [jnp.max(jnp.abs(leaf), initial=0).astype(dtype) for leaf in jtu.tree_leaves(b)]
        size = jnp.max(jnp.stack(peaks))
    else:
        # All that is known of `dot` is that it sums over every shard. Square roots keep the products in range, and
        # their sum is the 1-norm of `b`.
        roots = jtu.tree_map(lambda leaf: jnp.sqrt(jnp.abs(leaf)), b)
        size = dot(roots, roots).astype(dtype)
    usable = (size > 0) & (size <= finfo.max)
    _, exponent = jnp.frexp(jnp.where(usable, size, 1))
    # Both the scale and its inverse must be normal numbers.
    exponent = jnp.clip(exponent, int(finfo.minexp) + 4, -int(finfo.minexp) - 4)
    return jnp.ldexp(jnp.ones((), dtype), exponent)


def pcg(
    mv: Callable[[Vector], Vector],
    b: Vector,
    *,
    precond_mv: Callable[[Vector], Vector] | None = None,
    rtol: RealScalar,
    atol: RealScalar = 0.0,
    max_steps: IntScalar,
    stagnation: int = 50,
    dot: Callable[[Any, Any], Array] = tree_dot,
    x0: Vector | None = None,
) -> tuple[Vector, PCGInfo]:
    r"""Run preconditioned conjugate gradients on $A x = b$: the bare loop, for use inside other loops.

    `A` and the preconditioner are Hermitian positive definite. Each step makes exactly one product with `A` and there
    is no other, except one at the start if `x0` is given. The loop stops when the recurrence residual satisfies
    $\lVert r\rVert_2 \le \max(\text{rtol}\lVert b\rVert_2, \text{atol})$; when a direction of non-positive curvature is
    met; when for `stagnation` steps neither the residual fell by a tenth nor the energy norm of the error fell
    measurably; or after `max_steps`. It works on `b` divided by a power of two, so the size of `b` does not matter:
    cotangents of 1e-30 do not underflow in float32.

    The result is the last iterate, which has the smallest energy norm of the error. It is finite whenever `mv`,
    `precond_mv` and `b` are. `b = 0` gives zero in no steps.

    This function is not reverse-differentiable (it is a `while_loop`); for derivatives use
    [`implicit_core.krylov.PCG`][] through `lineax.linear_solve`. It may be used under `jit`, `vmap` and, with `dot`
    summing over the mesh axis, inside `jax.shard_map`.

    **Arguments:**

    - `mv`: the product $v \mapsto A v$.
    - `b`: right-hand side, a pytree of real or complex arrays; `mv` maps its structure to itself.
    - `precond_mv`: the product $v \mapsto M v$, $M \approx A^{-1}$.
    - `rtol`, `atol`: tolerances, numbers or traced scalars.
    - `max_steps`: limit on the number of steps, an integer or a traced scalar.
    - `stagnation`: number of steps without progress after which to stop.
    - `dot`: real inner product of two pytrees. For a vector that is split over the mesh axis `"i"` pass
        `lambda u, v: jax.lax.psum(tree_dot(u, v), "i")`.
    - `x0`: first iterate; zero if `None`.

    **Returns:**

    The pair of the solution and a [`implicit_core.krylov.PCGInfo`][].

    **Raises:**

    `ValueError` if `b` has no array in it; `TypeError` if its arrays are not of floating point.

    !!! Example

        ```python
        x, info = pcg(lambda v: 2 * v, jnp.ones(3), rtol=1e-6, max_steps=10)
        info.num_steps  # 1
        ```

    ??? cite "Reference"

        Section 5.1 of the core's specification; Hestenes and Stiefel, "Methods of conjugate gradients for solving
        linear systems", J. Res. Natl. Bur. Stand. 49 (1952).
    """
    for leaf in jtu.tree_leaves(b):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(f"`b` must be of floating point; got a leaf of dtype {leaf.dtype}")
    dtype = real_dtype(b)
    scale = scale_of(b, dot)
    b = tree_scale(1 / scale, b)
    bnorm = jnp.sqrt(dot(b, b))
    tol = jnp.maximum(jnp.asarray(rtol, dtype) * bnorm, jnp.asarray(atol, dtype) / scale)
    # Zeros are made from `b`, so that inside `shard_map` they vary over the same mesh axes as what replaces them.
    x = tree_scale(jnp.zeros((), dtype), b)
    r = b
    if x0 is not None:
        x0 = tree_scale(jnp.where(bnorm > 0, 1 / scale, 0), x0)
        x = tree_axpy(jnp.ones((), dtype), x0, x)
        r = tree_axpy(-jnp.ones((), dtype), mv(x), b)
    carry = _pcg_init(r, x, precond_mv, dot)
    max_steps_ = jnp.asarray(max_steps, carry.k.dtype)

    def active(c: _Carry) -> Array:
        return (
            (c.rnorm > tol) & (c.k < max_steps_) & (c.idle < stagnation) & ~(c.indefinite | c.nonfinite | c.diverged)
        )

    carry = jax.lax.while_loop(active, lambda c: _pcg_step(c, mv, precond_mv, dot), carry)
    unmet = carry.rnorm > tol
    stepped = carry.k > 0
    info = PCGInfo(
        num_steps=carry.k,
        relres=carry.rnorm / jnp.where(bnorm > 0, bnorm, 1),
        indefinite=carry.indefinite,
        stagnated=unmet & ((carry.idle >= stagnation) | carry.diverged),
        nonfinite=carry.nonfinite,
        ritz_min=jnp.where(stepped, 1 / carry.ritz.inv_low, jnp.nan),
        ritz_max=jnp.where(stepped, carry.ritz.high, jnp.nan),
        norm_estimate=jnp.where(stepped, carry.ritz.high * carry.inv_precond, jnp.nan),
    )
    return tree_scale(scale, carry.x), info


def _pcg_init(r, x, precond_mv, dot) -> _Carry:
    z = r if precond_mv is None else precond_mv(r)
    rr = dot(r, r)
    g = rr if precond_mv is None else dot(r, z)
    rnorm = jnp.sqrt(rr)
    zero = 0 * rnorm
    finite = jnp.isfinite(rr) & jnp.isfinite(g)
    count = jnp.where(finite, jnp.int32(0), jnp.int32(0))
    return _Carry(
        k=count,
        x=x,
        r=r,
        p=z,
        g=g,
        rnorm=rnorm,
        energy=zero,
        mark=rnorm,
        energy_mark=zero,
        idle=count,
        inv_precond=jnp.where(g > 0, rr / jnp.where(g > 0, g, 1), 0),
        ritz=_Ritz(zero, zero, zero, zero, zero),
        indefinite=finite & (rr > 0) & (g <= 0),
        nonfinite=~finite,
        diverged=rnorm < 0,
    )


def _pcg_step(c: _Carry, mv, precond_mv, dot) -> _Carry:
    eps = float(jnp.finfo(c.rnorm.dtype).eps)
    q = mv(c.p)
    d = dot(c.p, q)
    positive = d > 0
    alpha = c.g / jnp.where(positive, d, 1)
    alpha = jnp.where(positive & jnp.isfinite(alpha), alpha, 0)
    r = tree_axpy(-alpha, q, c.r)
    z = r if precond_mv is None else precond_mv(r)
    rr = dot(r, r)
    g = rr if precond_mv is None else dot(r, z)
    rnorm = jnp.sqrt(rr)
    finite = jnp.isfinite(d) & jnp.isfinite(rr) & jnp.isfinite(g)
    # |r_k| <= sqrt(kappa) |r_0| in exact arithmetic: growth beyond 1/eps means kappa > 1/eps^2, or no solution.
    diverged = finite & positive & ((alpha <= 0) | (rnorm * eps > c.mark))
    sound = finite & positive & ~diverged
    # A step that cannot be trusted is not taken: the iterate stays finite.
    alpha = jnp.where(sound, alpha, 0)
    beta = jnp.where(sound, g / c.g, 0)
    energy = c.energy + alpha * c.g
    # Residuals of ill-conditioned systems rise for long before they fall, while the energy falls at every step.
    smaller = sound & (rnorm < 0.9 * c.mark)
    lower = energy > c.energy_mark * (1 + 16 * eps)
    ritz = _ritz_step(c.ritz, c.k == 0, jnp.where(sound, alpha, 1), jnp.maximum(beta, 0))
    return _Carry(
        k=c.k + 1,
        x=tree_axpy(alpha, c.p, c.x),
        r=r,
        p=tree_axpy(beta, c.p, z),
        g=g,
        rnorm=jnp.where(sound, rnorm, c.rnorm),
        energy=energy,
        mark=jnp.where(smaller, rnorm, c.mark),
        energy_mark=jnp.where(lower, energy, c.energy_mark),
        idle=jnp.where(smaller | lower, 0, c.idle + 1),
        inv_precond=jnp.maximum(c.inv_precond, jnp.where(sound & (g > 0), rr / jnp.where(g > 0, g, 1), 0)),
        ritz=jtu.tree_map(lambda new, old: jnp.where(sound, new, old), ritz, c.ritz),
        indefinite=finite & (~positive | ((rr > 0) & (g <= 0))),
        nonfinite=~finite,
        diverged=diverged,
    )
