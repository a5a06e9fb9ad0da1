from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from implicit_core.certify import Certificate
from implicit_core.implicit import fixed_point
from jaxtyping import Array, Bool, Float

from ._arguments import Counts, Scalar, class_counts, positive
from ._check import require
from ._results import RESULTS, choose
from ._spectral import left_gram, spectral_map


class ConvexSolution(eqx.Module):
    r"""A certified minimum of the unconstrained-features model with a convex loss, at depth 1.

    `loss` and `logits` are differentiable with respect to the class sizes and the strengths, by the implicit function
    theorem at the optimum.

    **Attributes:**

    - `loss`: the objective at the point found. The global minimum is at least `loss - gap`, and at most `loss`.
    - `gap`: the duality gap of the point found: a bound on its distance from the optimal value, up to rounding.
    - `logits`: the logits, one row for each class, `[K, K]`.
    - `matrix`: $X = \bar Z \operatorname{diag}(\sqrt{n_k})$, by columns.
    - `dual_norm`: $\lVert\nabla f(X)\rVert_{\mathrm{op}}/\sqrt{\lambda_W\lambda_H}$: one at an optimum that is not zero.
    - `collapsed`: which classes have logits that are all zero to rounding, `[K]`.
    - `result`: how the solve ended, a [`neuralcollapse.RESULTS`][].
    - `stats`: `num_steps`.
    """

    loss: Float[Array, ""]
    gap: Float[Array, ""]
    logits: Float[Array, "K K"]
    matrix: Float[Array, "K K"]
    dual_norm: Float[Array, ""]
    collapsed: Bool[Array, " K"]
    result: RESULTS
    stats: dict[str, Array]
    _strengths: tuple[Float[Array, ""], Float[Array, ""]]
    _root_counts: Float[Array, " K"]

    @property
    def certificate(self) -> Certificate:
        """The gap as a proved bound, with its assumptions."""
        return Certificate(
            quantity="distance of `loss` from the global minimum",
            value=self.gap,
            kind="proved",
            assumptions=("Fenchel duality, whatever the solver did", "up to the rounding of the two values"),
        )

    @property
    def gram_classifier(self) -> Float[Array, "K K"]:
        r"""The inner products $W W^\top$ of the classifiers at this point."""
        lam_W, lam_H = self._strengths
        return jnp.sqrt(lam_H / lam_W) * left_gram(_identity, self.matrix, ())

    @property
    def gram_means(self) -> Float[Array, "K K"]:
        r"""The inner products $\bar H^\top \bar H$ of the class means at this point."""
        lam_W, lam_H = self._strengths
        root = self._root_counts
        return jnp.sqrt(lam_W / lam_H) * left_gram(_identity, self.matrix.T, ()) / (root[:, None] * root[None])


def solve_convex(
    loss: Literal["ce", "mse"],
    counts: Counts,
    lam_W: Scalar,
    lam_H: Scalar,
    *,
    smoothing: Scalar = 0.0,
    offsets: Float[Array, " K"] | None = None,
    tol: float | None = None,
    max_steps: int = 100_000,
    throw: bool = True,
) -> ConvexSolution:
    r"""Solve the unconstrained-features model of depth 1 for a convex loss and any class sizes, with a certificate.

    The problem $\min_{W,H} \frac1N\sum_i \ell(W h_i, y_i) + \frac{\lambda_W}{2}\lVert W\rVert^2 +
    \frac{\lambda_H}{2}\lVert H\rVert^2$ with $d \ge K$ is not convex, but has the minimum of the convex

    $$\min_X \sum_k p_k\, \ell(X_{:k}/\sqrt{n_k}, k) + \sqrt{\lambda_W\lambda_H}\, \lVert X\rVert_*$$

    over $K \times K$ matrices, whatever the number of samples. It is solved by accelerated proximal gradients until the
    gap to a feasible point of the dual problem, which bounds the error in the value, is at most `tol`.

    **Arguments:**

    - `loss`: `"ce"`, softmax cross-entropy; or `"mse"`, half the squared distance from one-hot targets, for which
        [`neuralcollapse.ufm.solve_mse`][] has the closed form.
    - `counts`: the class sizes, `[K]`; may be traced and differentiated.
    - `lam_W`, `lam_H`: the strengths, positive (sample-mean normalisation).
    - `smoothing`: label smoothing of the cross-entropy, in `[0, 1)`.
    - `offsets`: constants added to the logits inside of the cross-entropy (logit adjustment), `[K]`.
    - `tol`: the gap to reach, absolute; `None` is `64 K eps` of the dtype.
    - `max_steps`: the most steps made.
    - `throw`: raise where the tolerance is not reached; otherwise `result` says so, and the gap holds all the same.

    **Returns:**

    A [`neuralcollapse.ufm.ConvexSolution`][].

    **Raises:**

    `ValueError` for an unknown loss, an empty class or strengths that are not positive (with one of them zero there
    is no minimum: the logits of cross-entropy diverge).

    !!! Example

        ```python
        solution = neuralcollapse.ufm.solve_convex("ce", [12, 8, 4, 2], 1e-2, 1e-2)
        solution.loss, solution.gap
        ```

    ??? cite "Reference"

        Thrampoulidis et al., "Imbalance Trouble: Revisiting Neural-Collapse Geometry", arXiv:2208.05512, has the
        convex problem; the certificate and the derivatives are not in it.
    """
    if loss not in ("ce", "mse"):
        raise ValueError(f'`loss` must be "ce" or "mse"; got {loss!r}.')
    n = class_counts(counts)
    size, dtype = n.shape[0], n.dtype
    strengths = positive(lam_W, "lam_W", dtype), positive(lam_H, "lam_H", dtype)
    smooth = jnp.asarray(smoothing, dtype)
    smooth = require(smooth, (smooth >= 0) & (smooth < 1), "`smoothing` must be in [0, 1).", smoothing=smooth)
    offset = jnp.zeros((size,), dtype) if offsets is None else jnp.asarray(offsets, dtype)
    if offset.shape != (size,):
        raise ValueError(f"`offsets` must have shape ({size},); got {offset.shape}.")
    if loss == "mse" and (offsets is not None or (isinstance(smoothing, int | float) and smoothing != 0)):
        raise ValueError('`smoothing` and `offsets` belong to the loss "ce".')
    if tol is None:
        tol = 64 * size * float(jnp.finfo(dtype).eps)
    elif not tol > 0:
        raise ValueError(f"`tol` must be positive; got {tol}.")
    solution = _solve(loss, n, strengths, smooth, offset, tol, max_steps)
    if throw:
        solution = solution.result.error_if(solution, solution.result != RESULTS.successful)
    return solution


class _Data(eqx.Module):
    """What the convex problem depends on."""

    n: Float[Array, " K"]
    weight: Float[Array, ""]  # of the nuclear norm
    labels: Float[Array, "K K"]  # target distributions, by columns
    offset: Float[Array, " K"]


@eqx.filter_jit
def _solve(loss, n, strengths, smooth, offset, tol, max_steps) -> ConvexSolution:
    size = n.shape[0]
    eye = jnp.eye(size, dtype=n.dtype)
    labels = (1 - smooth) * eye + smooth / size
    data = _Data(n, jnp.sqrt(strengths[0] * strengths[1]), labels, offset)
    value, dual = _LOSSES[loss]

    def smooth_part(x, data):
        return jnp.sum(data.n * value(x / jnp.sqrt(data.n)[None], data)) / jnp.sum(data.n)

    # The Hessian of either loss in a column of X is at most 1/N.
    def step(x, data):
        total = jnp.sum(data.n)
        moved = x - total * jax.grad(smooth_part)(x, data)
        return spectral_map(_shrink, moved, total * data.weight)

    frozen = jax.lax.stop_gradient(data)
    loose = jnp.sqrt(jnp.finfo(n.dtype).eps)

    def merit(x):
        # The gap is of second order in the error of X, the dual norm of first order: ask for both.
        gap, dual_norm = _gap(value, dual, x, frozen)
        return jnp.maximum(gap, tol * (dual_norm - 1) / loose)

    best, steps = _accelerated(lambda x: step(x, frozen), merit, n, tol, max_steps)
    # The optimum is the fixed point of a step, from which it has its derivatives.
    matrix = fixed_point(step)(lambda _, best: best)(data, best)
    gap, dual_norm = _gap(value, dual, best, frozen)
    reached = steps >= max_steps
    result = choose(reached, RESULTS.nonlinear_max_steps_reached, RESULTS.gap_stagnation)
    result = choose(gap <= tol, RESULTS.successful, result)
    result = choose(jnp.isfinite(gap), result, RESULTS.nonfinite)
    total = smooth_part(matrix, data) + data.weight * jnp.sum(jnp.linalg.svd(matrix, compute_uv=False))
    logits = (matrix / jnp.sqrt(n)[None]).T
    peak = jnp.max(jnp.abs(jax.lax.stop_gradient(logits)), axis=1)
    return ConvexSolution(
        loss=total,
        gap=gap,
        logits=logits,
        matrix=matrix,
        dual_norm=dual_norm,
        collapsed=peak <= 1e2 * jnp.finfo(n.dtype).eps,
        result=result,
        stats={"num_steps": steps},
        _strengths=strengths,
        _root_counts=jnp.sqrt(n),
    )


def _gap(value, dual, x, data) -> tuple[Array, Array]:
    """Return the duality gap at `x`, and the norm of the gradient over the weight of the nuclear norm."""
    p, root = data.n / jnp.sum(data.n), jnp.sqrt(data.n)[None]
    z = x / root
    gradient = jax.grad(lambda z: jnp.sum(p * value(z, data)))(z) / root
    dual_norm = jnp.max(jnp.linalg.svd(gradient, compute_uv=False)) / data.weight
    # The gradient, shrunk until it is feasible, is a point of the dual problem.
    lower = jnp.sum(p * dual(z, 1 / jnp.maximum(dual_norm, 1), data))
    upper = jnp.sum(p * value(z, data)) + data.weight * jnp.sum(jnp.linalg.svd(x, compute_uv=False))
    return jnp.maximum(upper - lower, 0), dual_norm


class _State(eqx.Module):
    x: Array
    ahead: Array
    momentum: Array
    best: Array
    merit: Array
    waited: Array
    steps: Array


def _accelerated(
    step: Callable[[Array], Array], merit: Callable[[Array], Array], n: Array, tol: float, max_steps: int
) -> tuple[Array, Array]:
    """Run accelerated proximal gradients with restarts; return the point with the smallest merit, and the steps made."""
    zero, count = jnp.zeros((n.shape[0], n.shape[0]), n.dtype), jnp.zeros((), jnp.int32)
    per_check = 10

    def inner(_, carry):
        x, ahead, momentum = carry
        new = step(ahead)
        # Restart where the momentum points uphill.
        uphill = jnp.sum((ahead - new) * (new - x)) > 0
        grown = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        rate = jnp.where(uphill, 0, (momentum - 1) / grown)
        return new, new + rate * (new - x), jnp.where(uphill, 1, grown)

    def body(s: _State) -> _State:
        x, ahead, momentum = jax.lax.fori_loop(0, per_check, inner, (s.x, s.ahead, s.momentum))
        new = merit(x)
        better = new < s.merit
        best = jnp.where(better, x, s.best)
        waited = jnp.where(new < 0.99 * s.merit, 0, s.waited + 1)
        return _State(x, ahead, momentum, best, jnp.where(better, new, s.merit), waited, s.steps + per_check)

    def going(s: _State) -> Array:
        return (s.merit > tol) & (s.steps < max_steps) & (s.waited < 500)

    one = jnp.ones((), n.dtype)
    start = _State(zero, zero, one, zero, merit(zero), count, count)
    end = jax.lax.while_loop(going, body, start)
    return end.best, end.steps


def _ce_value(z, data):
    z = z + data.offset[:, None]
    return jax.nn.logsumexp(z, axis=0) - jnp.sum(data.labels * z, axis=0)


def _ce_dual(z, scale, data):
    slope = jax.nn.softmax(z + data.offset[:, None], axis=0) - data.labels
    mixed = scale * slope + data.labels
    return -jnp.sum(jax.scipy.special.xlogy(mixed, mixed), axis=0) + scale * (data.offset @ slope)


def _mse_value(z, data):
    return jnp.sum((z - data.labels) ** 2, axis=0) / 2


def _mse_dual(z, scale, data):
    slope = scale * (z - data.labels)
    return -jnp.sum(slope**2, axis=0) / 2 - jnp.sum(slope * data.labels, axis=0)


# Of the logits of the class means, by columns: the loss of each, and minus its conjugate at its scaled gradient.
_LOSSES = {"ce": (_ce_value, _ce_dual), "mse": (_mse_value, _mse_dual)}


def _shrink(s, theta):
    return jnp.maximum(s - theta, 0)


def _identity(s, theta):
    del theta
    return s
