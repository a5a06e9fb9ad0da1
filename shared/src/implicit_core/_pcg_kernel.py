from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int

from ._batched import loop
from ._custom_types import IntScalar, RealScalar, Vector
from ._misc import real_dtype, scale_of, tree_axpy, tree_dot, tree_scale


class PCGInfo(eqx.Module):
    r"""Say how a run of [`implicit_core.krylov.pcg`][] went. Every field is a scalar array.

    **Attributes:**

    - `num_steps`: steps made, which is also the number of products with the operator.
    - `relres`: $\lVert r\rVert/\lVert b\rVert$ of the *recurrence* residual. Rounding makes it smaller than the true
        one where the tolerance is below about $\epsilon\kappa$.
    - `indefinite`: a direction with $p^* A p \le 0$, or a residual with $r^* M r \le 0$, was met.
    - `stagnated`: progress stopped before the tolerance was met.
    - `nonfinite`: the right-hand side, the operator or the preconditioner gave a NaN or an infinity.
    - `ritz_min`, `ritz_max`: Rayleigh quotients that estimate, from inside, the extreme eigenvalues of the preconditioned operator
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


class _Monitor(NamedTuple):
    # What is watched beside the recurrence: scalars.
    energy: Any  # what the energy norm of the error, squared, has lost so far
    mark: Any  # the residual norm of the last step that counted as progress by it
    energy_mark: Any  # the same for the energy
    idle: Any  # number of steps since either
    inv_precond: Any  # largest |r|^2 / <r, M r>, an estimate of the norm of the inverse of M
    # Rayleigh quotients of M A that cost a few scalar operations a step. From above, those of the leading pairs of
    # Lanczos vectors: 2 x 2 blocks of the matrix T_kk = 1/alpha_k + beta_k/alpha_{k-1}, T_{k,k+1} = sqrt(beta_{k+1})/alpha_k.
    # From below, that of the iterate, <x, A x> / <x, M^-1 x>: the first is the energy, the second follows from the
    # recurrences of x and p, as in Steihaug, SIAM J. Numer. Anal. 20 (1983).
    high: Any
    inv_alpha: Any  # 1/alpha of the last step
    ratio: Any  # beta/alpha of the last step
    entry: Any  # T_kk of the last step
    xx: Any  # <x, M^-1 x>
    xp: Any
    pp: Any
    gauss: Any  # the coefficient of the Gauss-Radau bound, or `None`

    @property
    def ritz_min(self) -> Array:
        return self.energy / jnp.where(self.xx > 0, self.xx, 1)

    @property
    def norm_estimate(self) -> Array:
        return self.high * self.inv_precond


# Why a loop ended, beside the tolerance and the limits.
_FINE, _INDEFINITE, _NONFINITE, _DIVERGED = range(4)


class PCGCarry(eqx.Module):
    """The state of `pcg_loop`."""

    k: Int[Array, ""]
    x: Any
    r: Any
    p: Any
    g: Float[Array, ""]  # <r, M r>
    rnorm: Float[Array, ""]
    watched: _Monitor
    status: Int[Array, ""]

    @property
    def indefinite(self) -> Array:
        return self.status == _INDEFINITE

    @property
    def nonfinite(self) -> Array:
        return self.status == _NONFINITE


def _status(finite, indefinite, diverged) -> Int[Array, ""]:
    # Sums of booleans: no constants, which inside `shard_map` would not vary over the mesh axes as the rest does.
    flags = (finite & indefinite, ~finite, finite & ~indefinite & diverged)
    codes = [code * flag.astype(jnp.int32) for code, flag in enumerate(flags, start=1)]
    return codes[0] + codes[1] + codes[2]


def _watch(c: _Monitor, alpha, beta, g, g_new, rnorm, eps, lower_bound) -> _Monitor:
    gauss = None
    if lower_bound is not None:
        # The Gauss-Radau bound |e_k|_A^2 <= gauss <r_k, M r_k>, by Meurant and Tichy, Numer. Algorithms 62 (2013), (4.2).
        # In exact arithmetic gauss > alpha; rounding must not make it smaller.
        mu = jnp.asarray(lower_bound, rnorm.dtype)
        gap = jnp.maximum(c.gauss - alpha, 0)
        gauss = jnp.where(beta > 0, gap / (mu * gap + beta), 1 / mu)
    energy = c.energy + alpha * g
    # Residuals of ill-conditioned systems rise for long before they fall, while the energy falls at every step.
    smaller = rnorm < 0.9 * c.mark
    lower = energy > c.energy_mark * (1 + 16 * eps)
    inv_alpha = 1 / alpha
    entry = inv_alpha + c.ratio
    # The off-diagonal square is at most the product of the diagonal: dividing by the larger avoids overflow.
    large = jnp.maximum(entry, c.entry)
    half = 0.5 * (entry - c.entry) / large
    off = (c.ratio / large) * (c.inv_alpha / large)
    top = 0.5 * (entry + c.entry) + large * jnp.sqrt(half * half + off)
    xp = c.xp + alpha * c.pp
    return _Monitor(
        energy=energy,
        mark=jnp.where(smaller, rnorm, c.mark),
        energy_mark=jnp.where(lower, energy, c.energy_mark),
        idle=jnp.where(smaller | lower, 0, c.idle + 1),
        inv_precond=jnp.maximum(c.inv_precond, jnp.where(g_new > 0, rnorm * (rnorm / g_new), 0)),
        high=jnp.maximum(c.high, top),
        inv_alpha=inv_alpha,
        ratio=beta * inv_alpha,
        entry=entry,
        xx=c.xx + alpha * (c.xp + xp),
        xp=beta * xp,
        pp=g_new + beta * beta * c.pp,
        gauss=gauss,
    )


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
    x, r = None, b
    if x0 is not None:
        # Where `b` is zero, so is the solution, whatever the first iterate.
        x = tree_scale(jnp.where(bnorm > 0, 1 / scale, 0), x0)
        r = tree_axpy(-jnp.ones((), dtype), mv(x), b)
    carry = pcg_loop(mv, r, precond_mv=precond_mv, tol=tol, max_steps=max_steps, stagnation=stagnation, dot=dot)
    x = carry.x if x is None else tree_axpy(jnp.ones((), dtype), x, carry.x)
    watched = carry.watched
    stepped = carry.k > 0
    info = PCGInfo(
        num_steps=carry.k,
        relres=carry.rnorm / jnp.where(bnorm > 0, bnorm, 1),
        indefinite=carry.indefinite,
        stagnated=(carry.rnorm > tol) & ((watched.idle >= stagnation) | (carry.status == _DIVERGED)),
        nonfinite=carry.nonfinite,
        ritz_min=jnp.where(stepped, watched.ritz_min, jnp.nan),
        ritz_max=jnp.where(stepped, watched.high, jnp.nan),
        norm_estimate=jnp.where(stepped, watched.norm_estimate, jnp.nan),
    )
    return tree_scale(scale, x), info


def pcg_loop(mv, r, *, precond_mv, tol, max_steps, stagnation, dot, lower_bound=None, compact=False) -> PCGCarry:
    """Run the recurrence on `A x = r` from zero, without scaling, to the absolute tolerance `tol`."""
    max_steps = jnp.asarray(max_steps, jnp.int32)

    def active(c: PCGCarry) -> Array:
        going = (c.status == _FINE) & (c.watched.idle < stagnation)
        return (c.rnorm > tol) & (c.k < max_steps) & going

    def step(c: PCGCarry) -> PCGCarry:
        return _pcg_step(c, mv, precond_mv, dot, lower_bound)

    return loop(active, step, _pcg_init(r, precond_mv, dot, lower_bound), compact=compact)


def _pcg_init(r, precond_mv, dot, lower_bound) -> PCGCarry:
    z = r if precond_mv is None else precond_mv(r)
    rr = dot(r, r)
    g = rr if precond_mv is None else dot(r, z)
    rnorm = jnp.sqrt(rr)
    zero = 0 * rnorm
    status = _status(jnp.isfinite(rr) & jnp.isfinite(g), (rr > 0) & (g <= 0), rr < 0)
    inv_precond = jnp.where(g > 0, rnorm * (rnorm / g), 0)
    gauss = None if lower_bound is None else zero + 1 / jnp.asarray(lower_bound, zero.dtype)
    watched = _Monitor(zero, rnorm, zero, zero, inv_precond, zero, zero, zero, zero, zero, zero, g, gauss)
    return PCGCarry(
        k=0 * status,
        # Made from `r`, so that inside `shard_map` it varies over the same mesh axes as what replaces it.
        x=tree_scale(jnp.zeros((), rnorm.dtype), r),
        r=r,
        p=z,
        g=g,
        rnorm=rnorm,
        watched=watched,
        status=status,
    )


def _pcg_step(c: PCGCarry, mv, precond_mv, dot, lower_bound) -> PCGCarry:
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
    diverged = (alpha <= 0) | (rnorm * eps > c.watched.mark)
    sound = finite & positive & ~diverged
    # A step that cannot be trusted is not taken: the iterate stays finite.
    alpha = jnp.where(sound, alpha, 0)
    beta = jnp.where(sound, g / c.g, 0)
    watched = _watch(c.watched, jnp.where(sound, alpha, 1), beta, c.g, g, rnorm, eps, lower_bound)
    return PCGCarry(
        k=c.k + 1,
        x=tree_axpy(alpha, c.p, c.x),
        r=r,
        p=tree_axpy(beta, c.p, z),
        g=g,
        rnorm=jnp.where(sound, rnorm, c.rnorm),
        watched=jtu.tree_map(lambda new, old: jnp.where(sound, new, old), watched, c.watched),
        status=_status(finite, ~positive | ((rr > 0) & (g <= 0)), diverged),
    )
