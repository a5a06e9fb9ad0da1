import functools as ft
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float

from ._custom_types import IntScalar, RealScalar
from ._results import RESULTS
from ._shard_cg import Solution, outcome, vary_like


_PATIENCE = 30  # steps without progress after which to stop
_LEAST_DAMPING = 1e-12  # from which as many rejected steps, four times as much damping each, lead to a million


def _mul(a: Array, b: Array) -> Array:
    # Full precision, because normal equations have half of the digits already.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _shifted(matrix: Array, shift: Any) -> Array:
    return matrix + shift * jnp.eye(matrix.shape[0], dtype=matrix.dtype)


def _equilibrate(matrix: Array) -> tuple[Array, Array]:
    """Return `D^-1 matrix D^-1`, of unit diagonal, so that units do not matter; and the diagonal of `D`."""
    size = jnp.abs(matrix)
    # The second guards against an overflow where a diagonal entry is next to nothing.
    d = jnp.sqrt(jnp.maximum(jnp.diagonal(size), float(jnp.finfo(matrix.dtype).eps) ** 2 * jnp.max(size, axis=1)))
    d = jnp.where(d > 0, d, 1)
    return matrix / d[:, None] / d[None, :], d


def _symmetric_inverse(matrix: Float[Array, "n n"]) -> tuple[Callable[[Array], Array], Array]:
    """Return the inverse of a symmetric matrix, as a function, and whether the matrix is positive definite numerically.

    If it is not, the function is a regularised pseudo-inverse, `(H^2 + delta I)^-1 H`: near the inverse where
    eigenvalues are merely negative, and always finite.
    """
    scaled, d = _equilibrate(matrix)
    n = scaled.shape[0]
    eps = float(jnp.finfo(scaled.dtype).eps)
    triangle = jnp.linalg.cholesky(scaled)
    definite = jnp.min(jnp.diagonal(triangle)) ** 2 > 10 * n * eps  # false for NaN too
    square = _mul(scaled, scaled)
    trace = jnp.trace(square)
    spare = jnp.linalg.cholesky(_shifted(square, eps ** (2 / 3) * jnp.where(trace > 0, trace, 1)))
    triangle = jnp.where(definite, triangle, spare)

    def apply(v):
        v = v / d
        return jsl.cho_solve((triangle, True), jnp.where(definite, v, _mul(scaled, v))) / d

    return apply, definite


def _stationary(
    gradient: Callable[[Array], Array],
    w: Array,
    solve: Callable[[Any, Array], Any],
    inverse: Callable[[Array], Callable[[Array], Array]],
) -> Any:
    """Run `solve`, and differentiate its result as the point at which `gradient`, a gradient field, is zero.

    `inverse` makes a function that solves with the Hessian from the Hessian. What it computes is a constant to
    differentiation, which uses only that it inverts.
    """

    def tangent_solve(hessian_mv, v):
        # As a matrix, because captured arrays that vary over fewer mesh axes than `v` are more than JAX can do here.
        H = _materialise(hessian_mv, w)
        return jax.lax.custom_linear_solve(ft.partial(_mul, H), v, lambda _, u: inverse(H)(u), symmetric=True)

    return jax.lax.custom_root(gradient, w, solve, tangent_solve, has_aux=True)


def _materialise(mv: Callable[[Array], Array], like: Array) -> Array:
    return jax.vmap(mv)(vary_like(jnp.eye(like.size, dtype=like.dtype), like))


def _check(name: str, value: Any) -> Array:
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"`{name}` must be real and of floating point; got {value.dtype}")
    return value


def _check_ridge(ridge: RealScalar, dtype: Any) -> Array:
    if isinstance(ridge, int | float) and not ridge >= 0:
        raise ValueError(f"`ridge` must be non-negative; got {ridge}")
    return jnp.asarray(ridge, dtype)


def least_squares(
    A: Float[Array, "m n"],
    y: Float[Array, " m"],
    *,
    ridge: RealScalar = 0.0,
    method: Literal["qr", "cholesky"] = "qr",
) -> Solution:
    r"""Minimise $\lVert A w - y\rVert^2 + \text{ridge}\,\lVert w\rVert^2$ for one small dense matrix.

    For `jax.vmap` over many problems, and inside `jax.shard_map`, where `lineax.linear_solve` raises. The derivative,
    forward and reverse to any order in all three arguments, is that of the minimiser,
    $(A^\top A + \text{ridge})\, dw = -(dA^\top r + A^\top dA\, w - A^\top dy)$ with $r = A w - y$ of any size.

    **Arguments:**

    - `A`, `y`: the matrix and the right-hand side.
    - `ridge`: a number or a scalar array.
    - `method`: `"qr"` factors `A`. `"cholesky"` factors $A^\top A$: fewer operations, for condition numbers up to about
        1e6 in float64 and 1e2 in float32. Either is refined once.

    **Returns:**

    A [`implicit_core.dist.Solution`][]. `result` is `indefinite` where `A` has no full column rank in the precision of the
    method (value and derivative are then regularised, and finite), and `nonfinite` where an input is. `stats` holds
    `num_steps`, zero, and `residual_norm`, that of `A w - y`.

    **Raises:**

    `TypeError` if `A` or `y` is not real and of floating point; `ValueError` for shapes that do not fit, a negative
    `ridge` or an unknown `method`.

    !!! Example

        ```python
        solve = jax.vmap(lambda A, y: dist.least_squares(A, y).value)
        jax.shard_map(solve, mesh=dist.mesh("expert"), in_specs=P("expert"), out_specs=P("expert"))(matrices, ys)
        ```

    ??? cite "Reference"

        Björck, "Numerical Methods for Least Squares Problems", SIAM 1996, sections 2.4 and 2.9.
    """
    A, y = _check("A", A), _check("y", y)
    if A.ndim != 2 or y.shape != A.shape[:1]:
        raise ValueError(f"`A` must be of shape (m, n) and `y` of shape (m,); got {A.shape} and {y.shape}")
    if method not in ("qr", "cholesky"):
        raise ValueError(f'`method` must be "qr" or "cholesky"; got {method!r}')
    ridge = _check_ridge(ridge, A.dtype)
    n = A.shape[1]
    matrix, rhs, weight = jax.lax.stop_gradient((A, y, ridge))
    # Columns of size one: their units do not matter, nor do squares overflow.
    d = jnp.maximum(jnp.max(jnp.abs(matrix), axis=0, initial=0), jnp.sqrt(weight))
    d = jnp.where(d > 0, d, 1)
    matrix, weight = matrix / d[None, :], weight / d / d
    projected = _mul(matrix.T, rhs)
    if method == "qr":
        # The last column of the triangle is Q^T y, so Q itself is not needed.
        rows = jnp.concatenate([jnp.diag(jnp.sqrt(weight)), jnp.zeros((n, 1), A.dtype)], 1)
        triangle = jnp.linalg.qr(jnp.concatenate([jnp.concatenate([matrix, rhs[:, None]], 1), rows]), mode="r")
        triangle, rotated = triangle[:n, :n], triangle[:n, n]
        pivots = jnp.abs(jnp.diagonal(triangle))
        regular = jnp.min(pivots) > 10 * n * float(jnp.finfo(A.dtype).eps) * jnp.max(pivots)
        spare, _ = _symmetric_inverse(_mul(triangle.T, triangle))
        # What is not selected must be finite too.
        triangle = jnp.where(regular, triangle, jnp.eye(n, dtype=A.dtype))
        inverse = lambda v: jnp.where(regular, jsl.cho_solve((triangle, False), v), spare(v))
        w = jnp.where(regular, jsl.solve_triangular(triangle, rotated), spare(projected))
    else:
        inverse, regular = _symmetric_inverse(_mul(matrix.T, matrix) + jnp.diag(weight))
        w = inverse(projected)
    w = w + inverse(_mul(matrix.T, rhs - _mul(matrix, w)) - weight * w)
    norm = jnp.linalg.norm(_mul(matrix, w) - rhs)
    w = w / d

    def gradient(w):
        return _mul(A.T, _mul(A, w) - y) + ridge * w

    start = vary_like(jnp.zeros(n, A.dtype), (A, y, ridge))
    value = _stationary(gradient, start, lambda *_: (w, ()), lambda _: lambda v: inverse(v / d) / d)[0]
    finite = jnp.isfinite(norm) & jnp.all(jnp.isfinite(w))
    result = outcome((~finite, RESULTS.nonfinite), (~regular, RESULTS.indefinite))
    return Solution(value, result, {"num_steps": jnp.zeros((), jnp.int32), "residual_norm": norm})


class _State(NamedTuple):
    k: Any
    w: Any
    cost: Any
    g: Any  # gradient and Gauss-Newton Hessian at `w`
    H: Any
    lam: Any
    cost_mark: Any  # what last counted as progress: a lower cost, or a shorter step
    size_mark: Any
    idle: Any
    done: Any


def _steps(s: _State) -> tuple[Array, Array, Array]:
    """Return the damped step, and of the Gauss-Newton step `p` the norms of `p` and of `J p`."""
    scaled, d = _equilibrate(s.H)
    rounding = 10 * d.size * float(jnp.finfo(d.dtype).eps)
    # One batched factorisation for both. Convergence is judged by the undamped step: the damped one is short far from
    # the solution too, if only the damping is large.
    triangles = jnp.linalg.cholesky(jnp.stack([_shifted(scaled, s.lam), _shifted(scaled, rounding)]))
    g = s.g / d
    damped, newton = jax.vmap(lambda triangle: jsl.cho_solve((triangle, True), g))(triangles)
    return -damped / d, jnp.linalg.norm(newton / d), jnp.sqrt(jnp.maximum(jnp.sum(g * newton), 0))


def _lm_loop(evaluate, w, rtol, atol, max_steps) -> _State:
    eps = float(jnp.finfo(w.dtype).eps)

    def body(s: _State) -> _State:
        p, size, reduction = _steps(s)
        cost, g, H = evaluate(s.w + p)
        # With slack, because at the minimum rounding decides which of two costs is lower.
        accept = cost <= s.cost * (1 + 64 * eps)
        new, old = (s.w + p, cost, g, H), (s.w, s.cost, s.g, s.H)
        w, cost, g, H = (jnp.where(accept, x, y) for x, y in zip(new, old, strict=True))
        lower = cost < s.cost_mark * (1 - 64 * eps)
        shorter = size < 0.5 * s.size_mark
        lam = jnp.where(accept, jnp.maximum(s.lam / 3, max(eps, _LEAST_DAMPING)), s.lam * 4)
        marks = jnp.where(lower, cost, s.cost_mark), jnp.where(shorter, size, s.size_mark)
        idle = jnp.where(lower | shorter, 0, s.idle + 1)
        done = (size <= rtol * jnp.linalg.norm(s.w) + atol) | (reduction <= rtol * jnp.sqrt(2 * s.cost))
        return _State(s.k + 1, w, cost, g, H, lam, *marks, idle, done)

    def active(s: _State) -> Array:
        return ~s.done & (s.k < max_steps) & (s.idle < _PATIENCE) & jnp.isfinite(s.cost)

    cost, g, H = evaluate(w)
    # Made from `cost`, so that inside `shard_map` they vary over the same mesh axes. If it is not finite, no step is made.
    done = cost < 0
    k = 0 * done.astype(jnp.int32)
    return jax.lax.while_loop(
        active, body, _State(k, w, cost, g, H, 1e-3 + 0 * cost, cost, jnp.inf + 0 * cost, k, done)
    )


def levenberg_marquardt(
    residual_fn: Callable[[Any, Any], Any],
    w0: Any,
    args: Any = None,
    *,
    rtol: RealScalar | None = None,
    atol: RealScalar = 0.0,
    max_steps: IntScalar = 100,
    ridge: RealScalar = 0.0,
    adjoint: Literal["full", "gauss_newton"] = "full",
) -> Solution:
    r"""Minimise $\tfrac12\lVert r(w, \text{args})\rVert^2 + \tfrac12\,\text{ridge}\,\lVert w\rVert^2$ in few unknowns.

    The method of Levenberg and Marquardt with dense normal equations, for `jax.vmap` over many problems, and inside
    `jax.shard_map`, where `optimistix.least_squares` raises: there each device's loop ends when its own problems are
    solved, without communication.

    The derivative is that of a stationary point, $H\, dw = -d_\text{args}(J^\top r)$ with the full Hessian
    $H = J^\top J + \sum_j r_j \nabla^2 r_j + \text{ridge}$: forward and reverse to any order, in `args`, `ridge` and the
    arrays that `residual_fn` captures. There is none in `w0`.

    **Arguments:**

    - `residual_fn`: `(w, args) -> residuals`, a pytree of real arrays.
    - `w0`: the first iterate, a pytree of real arrays of one dtype.
    - `args`: passed on to `residual_fn`.
    - `rtol`, `atol`: stop when the Gauss-Newton step $p$ has $\lVert p\rVert \le \text{rtol}\lVert w\rVert + \text{atol}$, or
        reaches no more than a small part of the residual, $\lVert J p\rVert \le \text{rtol}\lVert r\rVert$. `rtol=None`
        means `eps ** 0.75` of the dtype.
    - `max_steps`: limit on the number of steps, taken or rejected.
    - `ridge`: a number or a scalar array.
    - `adjoint`: `"gauss_newton"` leaves out what derivatives of $J$ contribute in $H$ and in `args`. It costs less and is
        right only where the residual is zero at the solution.

    **Returns:**

    A [`implicit_core.dist.Solution`][]. `result` is `nonlinear_max_steps_reached`; `stagnation` if rounding stopped progress
    short of the tolerance; `indefinite` if $H$ is not positive definite in this precision (a saddle, or unknowns that
    the residual does not determine; the derivative is then regularised, and finite); or `nonfinite` if the residual at
    `w0`, or its derivative, is. `stats` holds `num_steps`, `cost` and `gradient_norm`.

    **Raises:**

    `TypeError` if `w0` or a residual is not real and of floating point; `ValueError` for a negative `ridge` or an unknown
    `adjoint`.

    !!! Example

        ```python
        residual_fn = lambda w, args: jnp.exp(-w * args[0]) - args[1]
        solve = jax.vmap(lambda t, y: dist.levenberg_marquardt(residual_fn, jnp.ones(()), (t, y)).value)
        jax.shard_map(solve, mesh=dist.mesh("expert"), in_specs=P("expert"), out_specs=P("expert"))(times, ys)
        ```

    ??? cite "Reference"

        Marquardt, "An algorithm for least-squares estimation of nonlinear parameters", J. SIAM 11 (1963). The second test
        to stop: Bates and Watts, "A relative offset orthogonality convergence criterion for nonlinear least squares",
        Technometrics 23 (1981). The experts that this is for: arXiv:2402.13412.
    """
    if adjoint not in ("full", "gauss_newton"):
        raise ValueError(f'`adjoint` must be "full" or "gauss_newton"; got {adjoint!r}')
    start, unravel = jfu.ravel_pytree(w0)
    start = jax.lax.stop_gradient(_check("w0", start))
    dtype = start.dtype
    eps = float(jnp.finfo(dtype).eps)
    ridge = _check_ridge(ridge, dtype)
    rtol, atol = jnp.asarray(eps**0.75 if rtol is None else rtol, dtype), jnp.asarray(atol, dtype)

    def residual(w, args):
        return _check("residual_fn", jfu.ravel_pytree(residual_fn(unravel(w), args))[0])

    def gradient(w):
        if adjoint == "full":
            r, pullback = jax.vjp(lambda v: residual(v, args), w)
        else:
            # J constant: what is left to differentiate is J^T dr.
            _, pullback = jax.vjp(lambda v: residual(v, jax.lax.stop_gradient(args)), jax.lax.stop_gradient(w))
            r = residual(w, args)
        return pullback(r)[0] + ridge * w

    def evaluate(w):
        r, jvp = jax.linearize(lambda v: residual(v, args), w)
        rows = _materialise(jvp, w)  # the transpose of J
        cost = 0.5 * (jnp.sum(r * r) + ridge * jnp.sum(w * w))
        return cost, _mul(rows, r) + ridge * w, _shifted(_mul(rows, rows.T), ridge)

    def solve(gradient, w):
        s = _lm_loop(evaluate, w, rtol, atol, max_steps)
        H = s.H
        if adjoint == "full":
            H = _materialise(lambda t: jax.jvp(gradient, (s.w,), (t,))[1], w)
        aux = (s.k, s.cost, jnp.linalg.norm(s.g), s.done, _symmetric_inverse(H)[1])
        # `custom_root` gives tangents to auxiliary outputs, which must hence be of floating point.
        return s.w, jax.tree.map(lambda x: x.astype(dtype), aux)

    given = (start, args, ridge, rtol, atol)
    start, args, ridge, rtol, atol = vary_like(given, (given, residual(start, args)))
    w, aux = _stationary(gradient, start, solve, lambda H: _symmetric_inverse(H)[0])
    k, cost, gradient_norm, done, definite = jax.lax.stop_gradient(aux)
    k = k.astype(jnp.int32)
    result = outcome(
        (~jnp.isfinite(cost + gradient_norm), RESULTS.nonfinite),
        ((done == 0) & (k >= max_steps), RESULTS.nonlinear_max_steps_reached),
        (done == 0, RESULTS.stagnation),
        (definite == 0, RESULTS.indefinite),
    )
    return Solution(unravel(w), result, {"num_steps": k, "cost": cost, "gradient_norm": gradient_norm})
