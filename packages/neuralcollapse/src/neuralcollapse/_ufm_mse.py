import functools as ft
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ._arguments import Counts, Scalar, check_depth, class_counts, equal_counts, finite, positive
from ._spectral import left_gram, spectral_map
from ._ufm_minimiser import Minimiser, factor_minimiser
from ._ufm_scalar import fraction_of_log, log_ratio, mode_penalty, mode_value, spinodal, threshold


# One of two words, or the strength of its own L2 term.
Bias: TypeAlias = Literal["none", "free"] | Scalar
Widths: TypeAlias = int | Sequence[int] | None


class MSESolution(eqx.Module):
    r"""The global minimum of a deep linear unconstrained-features model with squared loss, in closed form.

    Modes are the singular values of the product $Z = W_M \cdots W_1 H$. Without bias mode $k$ is class $k$, in the
    order of `counts`; otherwise modes come in the order of `tau`. Everything but the masks is differentiable with
    respect to the class sizes and regularisation strengths (for models without bias also to second order), on either side of a threshold; derivatives of a collapsed mode are zero.

    **Attributes:**

    - `sigma`: the singular values of the product at the minimum, `[modes]`.
    - `tau`: those of the target, `[modes]`.
    - `loss`: the value of the objective at the global minimum.
    - `collapsed`: which modes are exactly zero, `[modes]`.
    - `metastable`: which modes are zero at the global minimum but have a nonzero local one, `[modes]`.
    - `ratio`: $q/\theta_M$ for each mode: how much of the way to collapse; at least one where collapsed.
    - `n_crit`: the class size up to and including which a class collapses (for other biases and targets: $\tau^2$).
    - `cut`: which modes the widths do not let through, `[modes]`.
    """

    sigma: Float[Array, " modes"]
    tau: Float[Array, " modes"]
    loss: Float[Array, ""]
    collapsed: Bool[Array, " modes"]
    metastable: Bool[Array, " modes"]
    ratio: Float[Array, " modes"]
    n_crit: Float[Array, ""]
    cut: Bool[Array, " modes"]
    _problem: "_Problem"
    _strengths: Float[Array, " factors"]

    @property
    def depth(self) -> int:
        """The number of weight matrices."""
        return self._problem.depth

    @property
    def threshold(self) -> float:
        r"""The ratio $\theta_M$ at which a mode collapses, see [`neuralcollapse.ufm.threshold`][]."""
        return threshold(self._problem.depth)

    @property
    def logits(self) -> Float[Array, "columns classes"]:
        """The logits at the minimum, bias included: one row for each class (or sample, if targets were given)."""
        z = self._map(None).T / self._problem.scale[:, None]
        return z + self.bias[None]

    @property
    def bias(self) -> Float[Array, " classes"]:
        """The bias of the last layer at the minimum; zero in a model without one."""
        problem = self._problem
        residual = (problem.sums() - self._map(None).T * problem.scale[:, None]).sum(0) / problem.total
        return 0 * residual if problem.shrink is None else residual * problem.shrink

    @property
    def gram_means(self) -> Float[Array, "columns columns"]:
        r"""The inner products $\bar H^\top \bar H$ of the class means (of the features, if targets were given)."""
        scale = self._problem.scale
        return self._map("right") / (scale[:, None] * scale[None])

    @property
    def gram_classifier(self) -> Float[Array, "classes classes"]:
        r"""The inner products $(W_M \cdots W_1)(W_M \cdots W_1)^\top$ of the end-to-end classifier's rows."""
        return self._map("left")

    @property
    def gram_last(self) -> Float[Array, "classes classes"]:
        r"""The inner products $W_M W_M^\top$ of the rows of the last weight matrix."""
        return self._map("last")

    @property
    def strengths(self) -> Float[Array, " factors"]:
        r"""The strengths of the regularisation of the factors $H, W_1, \dots, W_M$."""
        return self._strengths

    @property
    def penalties(self) -> Float[Array, " factors"]:
        r"""The terms $\tfrac{\lambda_H}{2}\lVert H\rVert^2, \tfrac{\lambda_m}{2}\lVert W_m\rVert^2$ of `loss`: all equal."""
        return self._strengths / 2 * jnp.sum(self._factor_values() ** 2, axis=1)

    def construct(self, key: PRNGKeyArray) -> Minimiser:
        """Return factors that attain the minimum, in a random rotation of every hidden space.

        **Arguments:**

        - `key`: draws the rotations.

        **Returns:**

        A [`neuralcollapse.ufm.Minimiser`][].
        """
        problem = self._problem
        u, v = problem.vectors()
        kept = jnp.argsort(self.cut, stable=True)[: min(problem.widths)]
        bias = None if problem.shrink is None else self.bias
        factors = self._factor_values()[:, kept]
        return factor_minimiser(u[:, kept], v[:, kept] / problem.scale[:, None], factors, problem.widths, bias, key)

    def objective(self, point: Minimiser) -> Float[Array, ""]:
        """Return the value of the objective at any point, for comparison with `loss`."""
        problem = self._problem
        size = problem.scale**2
        error = point.logits - problem.sums() / size[:, None]
        # Within a class (of `size` samples) targets are equal; the features are the class means.
        fit = jnp.sum(size[:, None] * error**2) / (2 * problem.total)
        squares = [jnp.sum(size[:, None] * point.features**2), *(jnp.sum(w**2) for w in point.weights)]
        value = fit + jnp.sum(self._strengths * jnp.stack(squares)) / 2
        if problem.lam_b is None or point.bias is None:
            return value
        return value + problem.lam_b / 2 * jnp.sum(point.bias**2)

    def _factor_values(self) -> Float[Array, "factors modes"]:
        count = self._strengths.shape[0]
        log_g = jnp.sum(jnp.log(self._strengths)) / count
        alive = self.sigma > 0
        size = jnp.exp(
            (log_g - jnp.log(self._strengths))[:, None] / 2 + jnp.log(_safe(self.sigma, alive))[None] / count
        )
        return jnp.where(alive[None], size, 0)

    def _map(self, which: str | None) -> Array:
        return _mapped(self._problem, self.tau, self.cut, self._strengths, which)


class _Problem(eqx.Module):
    """The target matrix of class sums, and what is needed to speak about its singular vectors."""

    matrix: Float[Array, "classes classes"] | None  # whose singular vectors are to be differentiated through
    left: Float[Array, "classes modes"] | None
    right: Float[Array, "columns modes"] | None
    given: Float[Array, "classes columns"] | None  # targets; their singular vectors are never differentiated
    weight: Float[Array, " modes"]
    target: Float[Array, "columns classes"] | None  # one-hot columns are not stored
    scale: Float[Array, " columns"]  # the square root of the samples in a column
    total: Float[Array, ""]
    shrink: Float[Array, ""] | None  # none in a model without bias
    lam_b: Float[Array, ""] | None
    depth: int = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True)

    def sums(self) -> Array:
        """Return the sums of the targets of every column's samples."""
        return jnp.diag(self.scale**2) if self.target is None else self.target

    def vectors(self) -> tuple[Array, Array]:
        if self.matrix is not None:
            u, _, vt = _vectors(self.matrix)
            return u, vt.T
        if self.given is not None:
            u, _, vt = _vectors(self.given, full_matrices=False)
            return u, vt.T
        eye = jnp.eye(self.scale.shape[0], dtype=self.scale.dtype)
        return eye if self.left is None else self.left, eye if self.right is None else self.right


def solve_mse(
    counts: Counts, depth: int, lam_W: Any, lam_H: Scalar, bias: Bias = "none", widths: Widths = None
) -> MSESolution:
    r"""Solve a deep linear unconstrained-features model with squared loss: its global minimum, in closed form.

    $$\min \tfrac{1}{2N}\lVert W_M \cdots W_1 H + b 1^\top - Y\rVert_F^2
    + \sum_m \tfrac{\lambda_m}{2}\lVert W_m\rVert_F^2 + \tfrac{\lambda_H}{2}\lVert H\rVert_F^2$$

    over all factors, for any class sizes (this is the "sample-mean" normalisation, see
    [`neuralcollapse.ufm.from_tirer`][]). The least penalty of a product is a Schatten quasi-norm of it; by von
    Neumann's trace inequality the product has the singular vectors of the target, and each singular value solves a
    scalar problem, [`neuralcollapse.ufm.fitted_fraction`][]. A class of at most `n_crit` samples collapses to zero.

    **Arguments:**

    - `counts`: the class sizes, `[K]`; may be traced and differentiated, and need not be whole.
    - `depth`: the number $M$ of weight matrices.
    - `lam_W`: the strength for the weights: a scalar, or one for each of $W_1, \dots, W_M$.
    - `lam_H`: the strength for the features.
    - `bias`: `"none"`, `"free"` (not regularised), or the strength of an L2 term on the bias, for equal class sizes.
    - `widths`: the dimensions of $H$ and of the hidden layers: one number for all, or $M$ of them. If any is below the
        number of modes, only the strongest are kept (which of several equal ones is then a convention: the first).
        `None` is `K` everywhere.

    **Returns:**

    A [`neuralcollapse.ufm.MSESolution`][].

    **Raises:**

    `ValueError` for an empty class, fewer than two classes, strengths that are not positive (with one of them zero the
    infimum is not attained), or a regularised bias with unequal classes. Where such a value is traced, the error is
    Equinox's at run time. `TypeError` for dtypes below float32.

    !!! Example

        ```python
        solution = neuralcollapse.ufm.solve_mse([200, 100, 50, 50], 3, 5e-4, 5e-4)
        solution.loss  # 0.01221840037
        ```

    ??? cite "Reference"

        Dang et al., "Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data", arXiv:2301.00437.
        The regularised bias, general widths and the derivatives are not in it.
    """
    check_depth(depth)
    n = class_counts(counts)
    size = n.shape[0]
    total, root = jnp.sum(n), jnp.sqrt(n)
    ones = jnp.ones_like(n)
    common: dict[str, Any] = dict(target=None, scale=root, total=total, depth=depth)
    common["widths"] = _widths(widths, depth, size)
    if isinstance(bias, str):
        if bias == "none":
            problem = _Problem(None, None, None, None, ones, shrink=None, lam_b=None, **common)
            return _solve(problem, root, lam_W, lam_H)
        if bias == "free":
            matrix = jnp.diag(root) - n[:, None] * root[None] / total
            problem = _Problem(matrix, None, None, None, ones, shrink=ones[0], lam_b=None, **common)
            return _solve(problem, jnp.linalg.svd(matrix, compute_uv=False), lam_W, lam_H)
        raise ValueError(f'`bias` must be "none", "free" or a positive strength; got {bias!r}.')
    lam_b = positive(bias, "bias", n.dtype)
    equal_counts(n, "The minimum with a regularised bias")
    # The all-ones direction is the only one in which a bias can help; there the loss counts for this much less.
    weight = ones.at[0].set(lam_b / (1 + lam_b))
    basis = jnp.asarray(_ones_first(size), n.dtype)
    problem = _Problem(None, basis, basis, None, weight, shrink=1 / (1 + lam_b), lam_b=lam_b, **common)
    return _solve(problem, root, lam_W, lam_H)


def solve_mse_targets(
    targets: Float[Array, "N K"],
    depth: int,
    lam_W: Any,
    lam_H: Scalar,
    bias: Literal["none", "free"] = "none",
    widths: Widths = None,
) -> MSESolution:
    r"""Solve the model of [`neuralcollapse.ufm.solve_mse`][] for any targets: soft labels, smoothing, regression.

    **Arguments:**

    - `targets`: one row for each sample, `[N, K]`.
    - `depth`, `lam_W`, `lam_H`, `widths`: as for `solve_mse`.
    - `bias`: `"none"` or `"free"`.

    **Returns:**

    A [`neuralcollapse.ufm.MSESolution`][], with samples in the place of classes. `sigma` and `loss` are differentiable;
    asking for a derivative of the geometry raises.

    **Raises:**

    `ValueError` as `solve_mse`, and if a target is not finite.

    !!! Example

        ```python
        smooth = 0.9 * jax.nn.one_hot(labels, 10) + 0.01
        neuralcollapse.ufm.solve_mse_targets(smooth, 2, 1e-4, 1e-4).sigma
        ```
    """
    check_depth(depth)
    y = finite(targets, "targets", 2)
    samples, size = y.shape
    if bias not in ("none", "free"):
        raise ValueError(f'`bias` must be "none" or "free" for given targets; got {bias!r}.')
    one = jnp.ones((), y.dtype)
    matrix = (y - jnp.mean(y, axis=0, keepdims=True) if bias == "free" else y).T
    tau = jnp.linalg.svd(matrix, compute_uv=False)
    problem = _Problem(
        matrix=None,
        left=None,
        right=None,
        given=matrix,
        weight=jnp.ones_like(tau),
        target=y,
        scale=jnp.ones((samples,), y.dtype),
        total=samples * one,
        shrink=one if bias == "free" else None,
        lam_b=None,
        depth=depth,
        widths=_widths(widths, depth, size),
    )
    return _solve(problem, tau, lam_W, lam_H)


def from_tirer(lam_W: Scalar, lam_H: Scalar, num_classes: int, class_size: Scalar) -> tuple[Array, Array]:
    r"""Convert strengths in the normalisation of Tirer et al. to those of [`neuralcollapse.ufm.solve_mse`][].

    Theirs is $\tfrac{1}{2Kn}\lVert WH-Y\rVert^2 + \tfrac{\lambda_W}{2K}\lVert W\rVert^2 +
    \tfrac{\lambda_H}{2Kn}\lVert H\rVert^2$, which `neuralcollapse.perturb` and `neuralcollapse.central_path` use.

    **Arguments:**

    - `lam_W`, `lam_H`: strengths in that normalisation.
    - `num_classes`, `class_size`: $K$ and $n$.

    **Returns:**

    `(lam_W / K, lam_H / (K n))`.

    !!! Example

        ```python
        neuralcollapse.ufm.from_tirer(0.4, 0.8, 4, 10)  # (0.1, 0.02)
        ```
    """
    return jnp.asarray(lam_W) / num_classes, jnp.asarray(lam_H) / (num_classes * jnp.asarray(class_size))


def _solve(problem: _Problem, tau: Array, lam_W: Any, lam_H: Scalar) -> MSESolution:
    return _minimum(problem, tau, strengths(lam_W, lam_H, problem.depth, tau.dtype))


@eqx.filter_jit
def _minimum(problem: _Problem, tau: Array, strengths: Array) -> MSESolution:
    depth, dtype = problem.depth, tau.dtype
    log_product = jnp.sum(jnp.log(strengths))
    # A mode of weight w is one of a problem with N/w samples.
    total = problem.total / problem.weight
    log_q = log_ratio(tau, total, log_product, depth)
    sigma = tau * fraction_of_log(log_q, depth)
    gain = mode_value(0 * tau, tau, total, log_product, depth) - mode_value(sigma, tau, total, log_product, depth)
    cut = jnp.zeros(tau.shape, bool)
    rank = min(problem.widths)
    if rank < tau.shape[0]:
        order = jnp.argsort(-jax.lax.stop_gradient(gain), stable=True)
        cut = cut.at[order[rank:]].set(True)
    sigma = jnp.where(cut, 0, sigma)
    limits = jnp.log(jnp.asarray(threshold(depth), dtype)), jnp.log(jnp.asarray(spinodal(depth), dtype))
    log_b = log_ratio(jnp.ones_like(problem.total), problem.total, log_product, depth)
    return MSESolution(
        sigma=sigma,
        tau=tau,
        loss=jnp.sum(mode_value(sigma, tau, total, log_product, depth)),
        collapsed=sigma <= 0,
        metastable=(log_q >= limits[0]) & (log_q < limits[1]),
        ratio=jnp.exp(log_q - limits[0]),
        n_crit=jnp.exp(log_b - limits[0]),
        cut=cut,
        _problem=problem,
        _strengths=strengths,
    )


@eqx.filter_jit
def _mapped(problem: _Problem, tau: Array, cut: Array, strengths: Array, which: str | None) -> Array:
    """Return the product (`which=None`) or a Gram matrix of the factors, in the frame of the target."""
    shared: dict[str, Array] = dict(
        kept=jnp.logical_not(cut).astype(tau.dtype), total=problem.total, log=jnp.log(strengths)
    )
    fn = _mode_function(problem.depth, which)
    if problem.matrix is None:
        u, v = problem.vectors()
        value = fn(tau, {**shared, "weight": problem.weight})
        left, right = (v if which == "right" else u), (v if which in (None, "right") else u)
        return (left * value[None]) @ right.T
    theta = {**shared, "weight": jnp.ones_like(tau)}
    if which is None:
        return spectral_map(fn, problem.matrix, theta)
    return left_gram(fn, problem.matrix.T if which == "right" else problem.matrix, theta)


def strengths(lam_W: Any, lam_H: Scalar, depth: int, dtype: Any) -> Float[Array, " factors"]:
    """Return the strengths of H, W_1, ..., W_M, checked."""
    weights = jnp.asarray(lam_W, dtype)
    if weights.shape not in ((), (depth,)):
        raise ValueError(f"`lam_W` must be a scalar or one strength for each of {depth} weights; got {weights.shape}.")
    each = [positive(w, "lam_W", dtype) for w in jnp.broadcast_to(weights, (depth,))]
    return jnp.stack([positive(lam_H, "lam_H", dtype), *each])


def _widths(widths: Widths, depth: int, size: int) -> tuple[int, ...]:
    if widths is None:
        widths = size
    each = (widths,) * depth if isinstance(widths, int) else tuple(widths)
    if len(each) != depth or not all(isinstance(w, int) and w >= 1 for w in each):
        raise ValueError(
            f"`widths` must be one positive dimension, or {depth} of them (of the features and of each hidden layer); "
            f"got {widths!r}."
        )
    return each


@ft.cache
def _ones_first(size: int) -> np.ndarray:
    """Return an orthonormal basis whose first vector has equal entries."""
    frame = np.concatenate([np.ones((size, 1)), np.eye(size)[:, : size - 1]], axis=1)
    return np.linalg.qr(frame)[0]


@ft.cache
def _mode_function(depth: int, which: str | None):
    # Cached, so that each is one function object: they are static arguments of rules for derivatives.
    return ft.partial(_value_of_mode, depth, which)


def _value_of_mode(depth: int, which: str | None, tau: Array, theta: dict[str, Array]) -> Array:
    total, log = theta["total"] / theta["weight"], theta["log"]
    log_product = jnp.sum(log)
    sigma = theta["kept"] * tau * fraction_of_log(log_ratio(tau, total, log_product, depth), depth)
    if which is None:
        return sigma
    # The penalty is (M+1)/2 times lam_i t_i^2 for every factor i.
    share = mode_penalty(sigma, log_product, depth) * 2 / (depth + 1)
    if which == "right":
        return share / jnp.exp(log[0])
    if which == "last":
        return share / jnp.exp(log[-1])
    alive = sigma > 0
    return jnp.where(alive, sigma**2 * jnp.exp(log[0]) / _safe(share, alive), 0)


def _vectors(matrix, full_matrices=True):
    return eqxi.nondifferentiable(
        jnp.linalg.svd(matrix, full_matrices=full_matrices),
        msg="This quantity depends on singular vectors, which are not differentiable at ties.",
    )


def _safe(x, ok):
    return jnp.where(ok, x, 1)
