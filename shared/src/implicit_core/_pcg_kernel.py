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
    # What is watched beside the recurrence: scalars. Each costs a kernel to compile, so there are no more than needed.
    energy: Any  # what the energy norm of the error, squared, has lost so far
    mark: Any  # the residual norm of the last step that counted as progress by it
    idle: Any  # number of steps since that, or since the energy last changed
    # Rayleigh quotients of M A that cost a few scalar operations a step. From above, those of the leading pairs of
    # Lanczos vectors: 2 x 2 blocks of the matrix T_kk = 1/alpha_k + beta_k/alpha_{k-1}, T_{k,k+1} = sqrt(beta_{k+1})/alpha_k.
    # From below, that of the iterate, <x, A x> / <x, M^-1 x>: the first is the energy; the second, with a
    # preconditioner, follows from the recurrences of x and p, as in Steihaug, SIAM J. Numer. Anal. 20 (1983).
    high: Any
    inv_alpha: Any  # 1/alpha of the last step
    entry: Any  # T_kk of the last step
    gauss: Any  # the coefficient of the Gauss-Radau bound, or `None`
    metric: Any  # with a preconditioner, see `_Metric`, else `None`


class _Metric(NamedTuple):
    inv_precond: Any  # largest |r|^2 / <r, M r>, an estimate of the norm of the inverse of M
    xx: Any  # <x, M^-1 x>
    xp: Any  # <x, M^-1 p>, where p is the next direction
    pp: Any  # <p, M^-1 p>, where p is the last direction


# Why a loop ended, beside the tolerance and the limits.
_FINE, _INDEFINITE, _NONFINITE, _DIVERGED = range(4)


class PCGCarry(eqx.Module):
    """The state of `pcg_loop`."""

    k: Int[Array, ""]
    x: Any
    r: Any
    z: Any  # M r, or `None` without a preconditioner
    p: Any  # the last direction; the next is z + beta p, formed at the start of a step, so that `p` can be overwritten
    g: Float[Array, ""]  # <r, M r>
    beta: Float[Array, ""]
    rnorm: Float[Array, ""]
    watched: _Monitor
    status: Int[Array, ""]

    @property
    def gauss(self) -> Array:
        """The coefficient of the Gauss-Radau bound; infinite where the last step was not taken, so that none holds."""
        return jnp.where(self.status == _FINE, self.watched.gauss, jnp.inf)

    @property
    def indefinite(self) -> Array:
        return self.status == _INDEFINITE

    @property
    def nonfinite(self) -> Array:
        return self.status == _NONFINITE

    def ritz_min(self, dot) -> Array:
        """Return a Rayleigh quotient near the smallest eigenvalue of `M A`; zero before the first step."""
        metric = self.watched.metric
        xx = dot(self.x, self.x) if metric is None else metric.xx
        return self.watched.energy / jnp.where(xx > 0, xx, 1)

    @property
    def norm_estimate(self) -> Array:
        metric = self.watched.metric
        return self.watched.high if metric is None else self.watched.high * metric.inv_precond


def _status(finite, indefinite, diverged) -> Int[Array, ""]:
    # Sums of booleans: no constants, which inside `shard_map` would not vary over the mesh axes as the rest does.
    flags = (finite & indefinite, ~finite, finite & ~indefinite & diverged)
    codes = [code * flag.astype(jnp.int32) for code, flag in enumerate(flags, start=1)]
    return codes[0] + codes[1] + codes[2]


def _watch(c: "PCGCarry", alpha, beta, g, rnorm, sound, lower_bound) -> _Monitor:
    # Where the step is not sound, alpha is zero, and this is the last: what is read after it must stay as it is.
    watched = c.watched
    energy = watched.energy + alpha * c.g
    inv_alpha = 1 / alpha
    entry = inv_alpha + c.beta * watched.inv_alpha
    # The off-diagonal square is at most the product of the diagonal: dividing by the larger avoids overflow.
    large = jnp.maximum(entry, watched.entry)
    half = 0.5 * (entry - watched.entry) / large
    off = (c.beta * watched.inv_alpha / large) * (watched.inv_alpha / large)
    top = 0.5 * (entry + watched.entry) + large * jnp.sqrt(half * half + off)
    # Residuals of ill-conditioned systems rise for long before they fall, while the energy falls at every step.
    smaller = rnorm < 0.9 * watched.mark
    gauss = metric = None
    if lower_bound is not None:
        # The Gauss-Radau bound |e_k|_A^2 <= gauss <r_k, M r_k>, by Meurant and Tichy, Numer. Algorithms 62 (2013), (4.2).
        # In exact arithmetic gauss > alpha; rounding must not make it smaller.
        mu = jnp.asarray(lower_bound, rnorm.dtype)
        gap = jnp.maximum(watched.gauss - alpha, 0)
        gauss = jnp.where(sound, jnp.where(beta > 0, gap / (mu * gap + beta), 1 / mu), watched.gauss)
    if watched.metric is not None:
        inv_precond, xx, xp, pp = watched.metric
        pp = c.g + c.beta * c.beta * pp
        new = xp + alpha * pp
        ratio = jnp.where(sound & (g > 0), rnorm * (rnorm / g), 0)
        metric = _Metric(jnp.maximum(inv_precond, ratio), xx + alpha * (xp + new), beta * new, pp)
    return _Monitor(
        energy=energy,
        mark=jnp.where(smaller, rnorm, watched.mark),
        idle=jnp.where(smaller | (energy > watched.energy), 0, watched.idle + 1),
        high=jnp.maximum(watched.high, jnp.where(sound, top, 0)),
        inv_alpha=inv_alpha,
        entry=entry,
        gauss=gauss,
        metric=metric,
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
    rnorm = bnorm if x0 is None else jnp.sqrt(dot(r, r))
    carry = pcg_loop(mv, r, rnorm, precond_mv=precond_mv, tol=tol, max_steps=max_steps, stagnation=stagnation, dot=dot)
    x = carry.x if x is None else tree_axpy(jnp.ones((), dtype), x, carry.x)
    watched = carry.watched
    stepped = carry.k > 0
    info = PCGInfo(
        num_steps=carry.k,
        relres=carry.rnorm / jnp.where(bnorm > 0, bnorm, 1),
        indefinite=carry.indefinite,
        stagnated=(carry.rnorm > tol) & ((watched.idle >= stagnation) | (carry.status == _DIVERGED)),
        nonfinite=carry.nonfinite,
        ritz_min=jnp.where(stepped, carry.ritz_min(dot), jnp.nan),
        ritz_max=jnp.where(stepped, watched.high, jnp.nan),
        norm_estimate=jnp.where(stepped, carry.norm_estimate, jnp.nan),
    )
    return tree_scale(scale, x), info


def pcg_loop(mv, r, rnorm, *, precond_mv, tol, max_steps, stagnation, dot, lower_bound=None, compact=False) -> PCGCarry:
    """Run the recurrence on `A x = r`, where `rnorm` is the norm of `r`, from zero to the absolute tolerance `tol`."""
    max_steps = jnp.asarray(max_steps, jnp.int32)

    def active(c: PCGCarry) -> Array:
        going = (c.status == _FINE) & (c.watched.idle < stagnation)
        return (c.rnorm > tol) & (c.k < max_steps) & going

    def step(c: PCGCarry) -> PCGCarry:
        return _pcg_step(c, mv, precond_mv, dot, lower_bound)

    return loop(active, step, _pcg_init(r, rnorm, precond_mv, dot, lower_bound), compact=compact)


def _pcg_init(r, rnorm, precond_mv, dot, lower_bound) -> PCGCarry:
    z = None if precond_mv is None else precond_mv(r)
    g = rnorm * rnorm if z is None else dot(r, z)
    zero = 0 * rnorm
    status = _status(jnp.isfinite(rnorm) & jnp.isfinite(g), (rnorm > 0) & (g <= 0), rnorm < 0)
    gauss = None if lower_bound is None else zero + 1 / jnp.asarray(lower_bound, zero.dtype)
    metric = None if z is None else _Metric(jnp.where(g > 0, rnorm * (rnorm / g), 0), zero, zero, zero)
    # Made from `r`, so that inside `shard_map` it varies over the same mesh axes as what replaces it.
    nothing = tree_scale(jnp.zeros((), rnorm.dtype), r)
    return PCGCarry(
        k=0 * status,
        x=nothing,
        r=r,
        z=z,
        p=nothing,
        g=g,
        beta=zero,
        rnorm=rnorm,
        watched=_Monitor(zero, rnorm, 0 * status, zero, zero, zero, gauss, metric),
        status=status,
    )


def _pcg_step(c: PCGCarry, mv, precond_mv, dot, lower_bound) -> PCGCarry:
    eps = float(jnp.finfo(c.rnorm.dtype).eps)
    p = tree_axpy(c.beta, c.p, c.r if c.z is None else c.z)
    q = mv(p)
    d = dot(p, q)
    positive = d > 0
    alpha = c.g / jnp.where(positive, d, jnp.inf)
    r = tree_axpy(-alpha, q, c.r)
    z = None if precond_mv is None else precond_mv(r)
    rr = dot(r, r)
    g = rr if z is None else dot(r, z)
    rnorm = jnp.sqrt(rr)
    finite = jnp.isfinite(d) & jnp.isfinite(rr) & jnp.isfinite(g)
    # |r_k| <= sqrt(kappa) |r_0| in exact arithmetic: growth beyond 1/eps means kappa > 1/eps^2, or no solution.
    diverged = (alpha <= 0) | (rnorm * eps > c.watched.mark)
    sound = finite & positive & ~diverged
    # A step that cannot be trusted is not taken: the iterate stays finite.
    alpha = jnp.where(sound, alpha, 0)
    beta = g / c.g
    return PCGCarry(
        k=c.k + 1,
        x=tree_axpy(alpha, p, c.x),
        r=r,
        z=z,
        p=p,
        g=g,
        beta=beta,
        rnorm=jnp.where(sound, rnorm, c.rnorm),
        watched=_watch(c, alpha, beta, g, rnorm, sound, lower_bound),
        status=_status(finite, ~positive | ((rr > 0) & (g <= 0)), diverged),
    )
