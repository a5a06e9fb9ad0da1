import functools as ft
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from ._check import require
from ._class_stats import ClassStats
from ._custom_types import FloatScalar
from ._product import product


class GOFReport(eqx.Module):
    r"""Hold how far a linear head is from the general orthogonal frame that theory predicts.

    The distances compare matrices divided by their norms, as the literature does, and cannot see a wrong scale. The errors
    are relative to the prediction, $\|G - T\|_F/\|T\|_F$, and can.

    **Attributes:**

    - `nc2_w`, `nc2_h`, `nc3_wh`, `nc3_dual`: normalised distances of the classifier's Gram matrix, the means' Gram matrix, the
        logits of the means, and the classifier itself, from their predictions.
    - `error_w`, `error_h`, `error_wh`, `error_dual`: the same as relative errors.
    - `logits`: each class's own logit, as measured on its mean.
    - `predicted_logits`: as predicted.
    - `classifier_lengths`, `predicted_classifier_lengths`: squared lengths of the rows of the classifier.
    - `mean_lengths`, `predicted_mean_lengths`: squared lengths of the class means.
    - `collapsed`: classes that are predicted to be given up (minority collapse).
    """

    nc2_w: FloatScalar
    nc2_h: FloatScalar
    nc3_wh: FloatScalar
    nc3_dual: FloatScalar
    error_w: FloatScalar
    error_h: FloatScalar
    error_wh: FloatScalar
    error_dual: FloatScalar
    logits: Float[Array, " k"]
    predicted_logits: Float[Array, " k"]
    classifier_lengths: Float[Array, " k"]
    predicted_classifier_lengths: Float[Array, " k"]
    mean_lengths: Float[Array, " k"]
    predicted_mean_lengths: Float[Array, " k"]
    collapsed: Bool[Array, " k"]


def gof_report(
    stats: ClassStats,
    weights: Sequence[Float[ArrayLike, "_ _"]],
    predicted_logits: Float[ArrayLike, " k"],
    *,
    lam_H: int | float,
) -> GOFReport:
    r"""Compare a bias-free linear head, trained with squared loss, with the optimum for its class sizes.

    With own-class logits $q_k$ the optimum has, for the product $W = W_M \cdots W_1$ and class means $\bar H$ that are not
    centred,

    $$\bar H^\top \bar H = \operatorname{diag}\frac{q_k(1 - q_k)}{N\lambda_H},\quad W\bar H = \operatorname{diag} q_k,\quad
    WW^\top = \operatorname{diag}\frac{N\lambda_H q_k}{1 - q_k},\quad
    W = \operatorname{diag}\Bigl(\frac{N\lambda_H}{1 - q_k}\Bigr)\bar H^\top.$$

    **Arguments:**

    - `stats`: statistics of the features that enter $W_1$, of any kind.
    - `weights`: $[W_1, \ldots, W_M]$, first layer first, each of shape `(out, in)`.
    - `predicted_logits`: the $q_k$, in $[0, 1)$: `sigma / sqrt(counts)` of a solution of the deep linear model.
    - `lam_H`: the strength of the regularisation of the features in $\frac{\lambda_H}{2}\|H\|^2$.

    **Returns:**

    A [`neuralcollapse.metrics.GOFReport`][].

    **Raises:**

    `ValueError` if the shapes do not fit, a class is empty, or every class is predicted to collapse.

    ??? cite "Reference"

        Dang et al., Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data, arXiv:2301.00437.
    """
    if not lam_H > 0:
        raise ValueError(f"`lam_H` must be positive: without, the features have no optimal length. Got {lam_H}.")
    stats = stats.validated()
    dtype = stats.anchor.dtype
    w, means = product_of(weights, stats), stats.anchor + stats.shift
    q = jnp.asarray(predicted_logits).astype(dtype)
    if q.shape != (stats.num_classes,):
        raise ValueError(f"`predicted_logits` must have shape ({stats.num_classes},), one a class; got {q.shape}.")
    good = jnp.all((q >= 0) & (q < 1)) & jnp.any(q > 0)
    q = require(q, good, "`predicted_logits` must lie in [0, 1) and not all be zero.", predicted_logits=q)
    scale = stats.total.astype(dtype) * jnp.asarray(lam_H, dtype)
    lengths_w, lengths_h, dual = scale * q / (1 - q), q * (1 - q) / scale, scale / (1 - q)
    gram_w, gram_h, logits = product(w, w.T), product(means, means.T), product(means, w.T).T
    targets = ((gram_w, jnp.diag(lengths_w)), (gram_h, jnp.diag(lengths_h)), (logits, jnp.diag(q)))
    # Where a class has collapsed both sides of the last relation vanish; the factor in it means nothing.
    pairs = (*targets, (w, jnp.where(q > 0, dual, 0)[:, None] * means))
    return GOFReport(
        *(_normalised(g, t) for g, t in pairs),
        *(_norm(g - t) / _norm(t) for g, t in pairs),
        logits=jnp.diagonal(logits),
        predicted_logits=q,
        classifier_lengths=jnp.diagonal(gram_w),
        predicted_classifier_lengths=lengths_w,
        mean_lengths=jnp.diagonal(gram_h),
        predicted_mean_lengths=lengths_h,
        collapsed=q == 0,
    )


def product_of(weights: Sequence, stats: ClassStats) -> Float[Array, "k d"]:
    """Return the product of the layers of a linear head, checked against the statistics of what enters it."""
    matrices = [jnp.asarray(w) for w in weights]
    sizes = [stats.dim, *(w.shape[0] for w in matrices)]
    shapes = [w.shape for w in matrices]
    if not matrices or shapes != list(zip(sizes[1:], sizes, strict=False)) or sizes[-1] != stats.num_classes:
        raise ValueError(
            f"`weights` must be matrices of shapes (out, in), first layer first, from {stats.dim} features to "
            f"{stats.num_classes} classes; got {shapes}."
        )
    return ft.reduce(lambda above, w: product(w, above), [w.astype(stats.anchor.dtype) for w in matrices])


def _norm(x: Array) -> FloatScalar:
    return jnp.sqrt(jnp.sum(x**2))


def _normalised(g: Array, t: Array) -> FloatScalar:
    norm = _norm(g)
    # A network that has collapsed altogether: the zero matrix is at distance one.
    return _norm(g / jnp.where(norm > 0, norm, 1) - t / _norm(t))
