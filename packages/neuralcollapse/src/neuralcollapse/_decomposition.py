from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import ArrayLike, Float

from ._check import require
from ._class_stats import ClassStats
from ._custom_types import FloatScalar
from ._duality import classifier, offset
from ._product import product


class MSEDecomposition(NamedTuple):
    """The squared loss of a linear classifier, split by what causes it.

    **Attributes:**

    - `nc1`: what the variability within classes costs the best classifier on these features.
    - `nc23`: what the class means cost it.
    - `perp`: by how much the classifier is worse than the best one: the distance to the central path.
    - `total`: their sum, the regularised loss.
    """

    nc1: FloatScalar
    nc23: FloatScalar
    perp: FloatScalar
    total: FloatScalar


def mse_decomposition(
    stats: ClassStats,
    weight: Float[ArrayLike, "k d"],
    bias: Float[ArrayLike, " k"] | None = None,
    *,
    lam: int | float,
) -> MSEDecomposition:
    r"""Split $\frac{1}{2N}\|WH + b1^\top - Y\|^2 + \frac\lambda2(\|W\|^2 + \|b\|^2)$ into the parts of Han et al., exactly.

    For one-hot targets and any class sizes, from the statistics alone. With $\tilde h = [h; 1]$, $\tilde M$ the means,
    $A = \tilde M \operatorname{diag}(p) \tilde M^\top + \tilde S_W + \lambda I$ and the best classifier
    $W_{LS} = \operatorname{diag}(p) \tilde M^\top A^{-1}$,

    $$L_{NC1} = \tfrac12 \operatorname{tr} W_{LS}(\tilde S_W + \lambda I)W_{LS}^\top,\quad
    L_{NC2/3} = \tfrac12 \sum_k p_k \|W_{LS}\tilde\mu_k - e_k\|^2,\quad
    L_\perp = \tfrac12 \operatorname{tr} (\tilde W - W_{LS}) A (\tilde W - W_{LS})^\top.$$

    **Arguments:**

    - `stats`: statistics that keep the within-class covariance.
    - `weight`: the classifier, one row a class.
    - `bias`: its bias; `None` is a classifier without, and then the best one has none either.
    - `lam`: the strength of the regularisation, positive.

    **Returns:**

    The three parts and their sum.

    ??? cite "Reference"

        Han, Papyan and Donoho, Neural Collapse Under MSE Loss: Proximity to and Dynamics on the Central Path,
        arXiv:2106.02073.
    """
    if not lam > 0:
        raise ValueError(f"`lam` must be positive, or the best classifier need not be unique; got {lam}.")
    stats = stats.validated()
    w, p = classifier(stats, weight), stats._proportions()
    means, within = stats.anchor + stats.shift, stats._within_cov()
    if bias is not None:
        w = jnp.concatenate([w, offset(stats, bias)[:, None]], axis=1)
        means = jnp.concatenate([means, jnp.ones_like(means[:, :1])], axis=1)
        within = jnp.pad(within, (0, 1))
    ridge = within + jnp.asarray(lam, within.dtype) * jnp.eye(within.shape[0], dtype=within.dtype)
    weighted = p[:, None] * means
    a = product(means.T, weighted) + ridge
    operator = lx.MatrixLinearOperator(a, lx.positive_semidefinite_tag)
    best = jax.vmap(lambda row: lx.linear_solve(operator, row, lx.Cholesky(), throw=False).value)(weighted)
    errors = product(means, best.T) - jnp.eye(stats.num_classes, dtype=means.dtype)
    apart = w - best
    nc1 = jnp.sum(product(best, ridge) * best) / 2
    nc23 = jnp.sum(p * jnp.sum(errors**2, axis=1)) / 2
    perp = jnp.sum(product(apart, a) * apart) / 2
    total = nc1 + nc23 + perp
    total = require(
        total, jnp.isfinite(total), "The decomposition is not finite: `lam` is too small for this precision."
    )
    return MSEDecomposition(nc1, nc23, perp, total)
