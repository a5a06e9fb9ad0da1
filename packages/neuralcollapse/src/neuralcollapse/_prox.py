from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from implicit_core.implicit import argmin
from implicit_core.krylov import PCG
from jaxtyping import Array, Float, Int

from ._arguments import Scalar, finite, positive
from ._attenuation import collapsed_frame
from ._check import require
from ._results import RESULTS, choose
from ._statistics import ridge_classifier, sample_moments


class Prox(eqx.Module):
    r"""Features and classifier of the perturbation model: the minimum near given features.

    Everything but `result` and `stats` is differentiable with respect to the given features and the strengths.

    **Attributes:**

    - `features`: $H$, one row for each sample, `[N, d]`.
    - `W`: the classifier, `[K, d]`.
    - `value`: the objective at the minimum.
    - `gradient_norm`: the largest entry of the gradient with respect to the classifier, features eliminated.
    - `result`: how the minimisation ended.
    - `stats`: `num_steps`.
    """

    features: Float[Array, "N d"]
    W: Float[Array, "K d"]
    value: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    result: RESULTS
    stats: dict[str, Array]


def prox(
    H0: Float[Array, "N d"],
    labels: Int[Array, "..."],
    lam_W: Scalar,
    lam_H: Scalar,
    beta: Scalar,
    *,
    num_classes: int,
    tol: float | None = None,
    max_steps: int = 2000,
    throw: bool = True,
) -> Prox:
    r"""Minimise the loss with best classifier over features near given ones: a backward Euler step of length `1/beta`.

    $$\min_{W,H} \tfrac{1}{2N}\lVert WH - Y\rVert^2 + \tfrac{\lambda_W}{2K}\lVert W\rVert^2
    + \tfrac{\lambda_H}{2N}\lVert H\rVert^2 + \tfrac{\beta}{2N}\lVert H - H_0\rVert^2$$

    (the normalisation of Tirer et al., for any class sizes). For a given classifier the best features are explicit, so
    the search is over $W$ alone, and sees the samples only through class means and covariance. It starts at the best
    classifier of `H0`, by BFGS, and is finished by Newton's method.

    **Arguments:**

    - `H0`: features of an earlier layer, one row for each sample, `[N, d]`.
    - `labels`: their classes, `[N]`.
    - `lam_W`: the strength for the classifier, positive.
    - `lam_H`: the strength for the features, not negative.
    - `beta`: the strength of the link to `H0`, positive.
    - `num_classes`: $K$; every class must have a sample.
    - `tol`: on the largest entry of the gradient; `None` is `1e3 eps`.
    - `max_steps`: the most BFGS steps.
    - `throw`: raise where the tolerance is not reached; otherwise `result` says so.

    **Returns:**

    A [`neuralcollapse.perturb.Prox`][]. Derivatives are those of the implicit function theorem, by conjugate gradients.

    **Raises:**

    `ValueError` for labels out of range, an empty class, features that are not finite or strengths out of range.

    !!! Example

        ```python
        step = neuralcollapse.perturb.prox(features, labels, 1e-2, 1e-2, beta=1.0, num_classes=10)
        step.features
        ```

    ??? cite "Reference"

        Tirer, Huang, Niles-Weed, "Perturbation Analysis of Neural Collapse", arXiv:2210.16658, (4) and section 3.
    """
    h0 = finite(H0, "H0", 2)
    labels = _labels(labels, h0.shape[0], num_classes)
    dtype = h0.dtype
    strengths = (
        positive(lam_W, "lam_W", dtype),
        positive(lam_H, "lam_H", dtype, allow_zero=True),
        positive(beta, "beta", dtype),
    )
    out = _prox(
        h0, labels, strengths, num_classes, 1e3 * float(jnp.finfo(dtype).eps) if tol is None else tol, max_steps
    )
    if throw:
        out = out.result.error_if(out, out.result != RESULTS.successful)
    return out


def response(
    lam_W: Scalar,
    lam_H: Scalar,
    beta: Scalar,
    K: int,
    R: Float[Array, "d K"],
    dH0: Float[Array, "K n d"],
    *,
    solver: Any = None,
) -> Float[Array, "K n d"]:
    r"""Return the first-order response of collapsed features to a perturbation, by one matrix-free linear solve.

    It is $\beta (\nabla^2 L + \beta I)^{-1} \delta H_0$ with the reduced loss $L$ (classifier eliminated, scaled by
    $Kn$), which is the Schur complement of Theorem 4.1 of arXiv:2210.16658. The same without a solve is
    [`neuralcollapse.perturb.diagonal_response`][]; at other points, [`neuralcollapse.perturb.response_at`][].

    **Arguments:**

    - `lam_W`, `lam_H`, `beta`: as for [`neuralcollapse.perturb.attenuation`][].
    - `K`: the number of classes.
    - `R`: the frame of the class means, orthonormal columns, `[d, K]`.
    - `dH0`: the perturbation of every sample of every class, `[K, n, d]`.
    - `solver`: a Lineax solver for positive definite operators; `None` is conjugate gradients, to rounding.

    **Returns:**

    The perturbation of the features that remains, `[K, n, d]`.

    !!! Example

        ```python
        dH = neuralcollapse.perturb.response(0.5, 0.25, 1.0, 3, jnp.eye(6, 3), dH0)
        ```
    """
    change = finite(dH0, "dH0", 3)
    if R.shape[1] != K or change.shape[0] != K or change.shape[2] != R.shape[0]:
        raise ValueError(f"`R` must have shape (d, K) and `dH0` (K, n, d) for K = {K}; got {R.shape}, {change.shape}.")
    means, _ = collapsed_frame(R, lam_W, lam_H)
    n = change.shape[1]
    h = jnp.repeat(means, n, axis=0)
    labels = jnp.repeat(jnp.arange(K), n, total_repeat_length=K * n)
    flat = change.reshape(K * n, -1)
    return response_at(h, labels, flat, lam_W, lam_H, beta, num_classes=K, solver=solver).reshape(change.shape)


def response_at(
    H: Float[Array, "N d"],
    labels: Int[Array, "..."],
    dH0: Float[Array, "N d"],
    lam_W: Scalar,
    lam_H: Scalar,
    beta: Scalar,
    *,
    num_classes: int,
    solver: Any = None,
) -> Float[Array, "N d"]:
    r"""Return the first-order response of any features that are a [`neuralcollapse.perturb.prox`][], by one linear solve.

    **Arguments:**

    - `H`: the features of the prox, `[N, d]` (not those of the earlier layer).
    - `labels`, `lam_W`, `lam_H`, `beta`, `num_classes`: as for `prox`.
    - `dH0`: the perturbation of the earlier layer's features, `[N, d]`.
    - `solver`: a Lineax solver for positive definite operators; `None` is conjugate gradients, to rounding.

    **Returns:**

    The perturbation of `H`, `[N, d]`.
    """
    h, change = finite(H, "H", 2), finite(dH0, "dH0", 2)
    labels = _labels(labels, h.shape[0], num_classes)
    if change.shape != h.shape:
        raise ValueError(f"`dH0` must have the shape of `H`, {h.shape}; got {change.shape}.")
    dtype = h.dtype
    lam_W, lam_H = positive(lam_W, "lam_W", dtype), positive(lam_H, "lam_H", dtype, allow_zero=True)
    beta = positive(beta, "beta", dtype)
    if solver is None:
        eps = float(jnp.finfo(dtype).eps)
        solver = PCG(rtol=10 * eps, atol=0.0, mode="soft")
    return _respond(h, labels, change, (lam_W, lam_H, beta), num_classes, solver)


@eqx.filter_jit
def _respond(h, labels, change, strengths, num_classes, solver):
    lam_W, lam_H, beta = strengths
    target = jax.nn.one_hot(labels, num_classes, dtype=h.dtype)

    def gradient(h):
        # Of the loss with the classifier eliminated, times the number of samples.
        p, means, within = _shares(h, labels, num_classes)
        w = ridge_classifier(means, within, p, lam_W)
        return (h @ w.T - target) @ w + lam_H * h

    _, hessian = jax.linearize(gradient, h)
    operator = lx.FunctionLinearOperator(
        lambda v: hessian(v) + beta * v, jax.eval_shape(lambda: h), lx.positive_semidefinite_tag
    )
    return lx.linear_solve(operator, beta * change, solver).value


@eqx.filter_jit
def _prox(h0, labels, strengths, num_classes, tol, max_steps) -> Prox:
    _, lam_H, beta = strengths
    theta = (*_shares(h0, labels, num_classes), *strengths)
    frozen = jax.lax.stop_gradient(theta)
    start = ridge_classifier(frozen[1], frozen[2], frozen[0], frozen[3])
    eps = float(jnp.finfo(h0.dtype).eps)
    found = optx.minimise(
        reduced_objective, optx.BFGS(rtol=eps**0.6, atol=eps**0.75), start, frozen, max_steps=max_steps, throw=False
    )
    w = _newton(found.value, frozen)
    w = argmin(reduced_objective)(lambda _, w: w)(theta, w)
    value, gradient = jax.value_and_grad(reduced_objective)(jax.lax.stop_gradient(w), frozen)
    peak = jnp.max(jnp.abs(gradient))
    target = jax.nn.one_hot(labels, num_classes, dtype=h0.dtype)
    pull = w.T @ w + (lam_H + beta) * jnp.eye(h0.shape[1], dtype=h0.dtype)
    features = jnp.linalg.solve(pull, (target @ w + beta * h0).T).T
    result = choose(peak <= tol, RESULTS.successful, RESULTS.nonlinear_max_steps_reached)
    result = choose(jnp.isfinite(value), result, RESULTS.nonfinite)
    value = reduced_objective(w, theta)
    return Prox(features, w, value, peak, result, {"num_steps": found.stats["num_steps"]})


def reduced_objective(w: Array, theta: tuple[Array, ...]) -> Array:
    """Return the objective of the classifier with the features eliminated, from class statistics."""
    p, means, within, lam_W, lam_H, beta = theta
    size, dim = w.shape
    pull = w.T @ w + (lam_H + beta) * jnp.eye(dim, dtype=w.dtype)
    factor = jax.scipy.linalg.cho_factor(pull)
    drive = w + beta * means
    fitted = jnp.sum(p[:, None] * drive * jax.scipy.linalg.cho_solve(factor, drive.T).T)
    spread = jnp.trace(jax.scipy.linalg.cho_solve(factor, within))
    square = 1 + beta * (p @ jnp.sum(means**2, axis=1) + jnp.trace(within))
    return (square - fitted - beta**2 * spread + lam_W / size * jnp.sum(w**2)) / 2


def _newton(w: Array, theta: tuple[Array, ...]) -> Array:
    """Finish by Newton's method: BFGS stops at about half of the digits."""
    gradient = jax.grad(reduced_objective)

    def body(_, w):
        g, hessian = jax.linearize(lambda w: gradient(w, theta), w)
        operator = lx.FunctionLinearOperator(hessian, jax.eval_shape(lambda: w), lx.positive_semidefinite_tag)
        solver = PCG(rtol=float(jnp.finfo(w.dtype).eps) ** 0.5, atol=0.0, mode="soft")
        new = w - lx.linear_solve(operator, g, solver).value
        better = jnp.max(jnp.abs(gradient(new, theta))) < jnp.max(jnp.abs(g))
        return jnp.where(better, new, w)

    return jax.lax.fori_loop(0, 4, body, w)


def _shares(h, labels, num_classes):
    counts, means, within = sample_moments(h, labels, num_classes)
    return counts / h.shape[0], means, within


def _labels(labels, samples, num_classes) -> Array:
    labels = jnp.asarray(labels)
    if labels.shape != (samples,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"`labels` must be {samples} whole numbers; got {labels.dtype} of shape {labels.shape}.")
    if not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f"`num_classes` must be a whole number of at least two; got {num_classes!r}.")
    inside = jnp.all((labels >= 0) & (labels < num_classes))
    labels = require(labels, inside, f"`labels` must be at least 0 and below {num_classes}.")
    seen = jnp.zeros((num_classes,), bool).at[labels].set(True)
    return require(labels, jnp.all(seen), "Every class must have a sample: an empty class has no mean.")
