"""NC3 to NC5: how the classifier relates to the class means. Classifiers and means are rows of `K x d` matrices."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ._check import matrix, require
from ._class_stats import ClassStats
from ._convention import Convention, ConventionName, centred_means, global_mean
from ._custom_types import FloatScalar
from ._frames import etf_target, of_target
from ._pairs import frame_distance
from ._product import product


def self_duality(
    stats: ClassStats,
    weight: Float[ArrayLike, "k d"],
    *,
    convention: ConventionName | Convention = "papyan",
    squared: bool = True,
) -> FloatScalar:
    r"""Return $\left\|\frac{W}{\|W\|_F} - \frac{M}{\|M\|_F}\right\|_F^2$ for centred means $M$: zero where they are aligned.

    **Arguments:**

    - `stats`: statistics of any kind of the features that enter the classifier.
    - `weight`: the classifier, one row a class.
    - `convention`: see [`neuralcollapse.Convention`][].
    - `squared`: `False` returns the norm, as the code of arXiv:2301.00437 does.
    """
    stats = stats.validated()
    value = duality_gap(classifier(stats, weight), centred_means(stats, Convention.of(convention)))
    value = require(value, jnp.isfinite(value), UNDEFINED)
    return value if squared else jnp.sqrt(value)


def duality_etf(
    stats: ClassStats, weight: Float[ArrayLike, "k d"], *, convention: ConventionName | Convention = "papyan"
) -> FloatScalar:
    r"""Return the distance of $WM^\top/\|WM^\top\|_F$ from the simplex frame's Gram matrix (Zhu et al. 2021).

    **Arguments:**

    - `stats`: statistics of any kind of the features that enter the classifier.
    - `weight`: the classifier, one row a class.
    - `convention`: see [`neuralcollapse.Convention`][].
    """
    stats = stats.validated()
    w, means = classifier(stats, weight), centred_means(stats, Convention.of(convention))
    value = frame_distance(w, means, *etf_target(w))
    return require(value, jnp.isfinite(value), UNDEFINED)


def duality_of(stats: ClassStats, weight: Float[ArrayLike, "k d"]) -> FloatScalar:
    r"""Return the same for a model without bias: means that are not centred, and an orthogonal frame, $I/\sqrt K$."""
    stats = stats.validated()
    w = classifier(stats, weight)
    value = frame_distance(w, stats.anchor + stats.shift, *of_target(w))
    return require(value, jnp.isfinite(value), UNDEFINED)


def uniform_duality(
    stats: ClassStats,
    weight: Float[ArrayLike, "k d"],
    *,
    convention: ConventionName | Convention = "papyan",
    cosine: bool = False,
) -> FloatScalar:
    r"""Return the variance over classes of $w_k^\top m_k$: zero where all classes are aligned alike ("UNC3").

    **Arguments:**

    - `stats`: statistics of any kind of the features that enter the classifier.
    - `weight`: the classifier, one row a class.
    - `convention`: see [`neuralcollapse.Convention`][].
    - `cosine`: take the cosines in place of the products.

    ??? cite "Reference"

        Wu and Papyan, Linguistic Collapse: Neural Collapse in (Large) Language Models, arXiv:2405.17767.
    """
    stats = stats.validated()
    w, means = classifier(stats, weight), centred_means(stats, Convention.of(convention))
    return jnp.var(alignments(w, means, cosine))


def bias_alignment(
    stats: ClassStats,
    weight: Float[ArrayLike, "k d"],
    bias: Float[ArrayLike, " k"] | None = None,
    *,
    convention: ConventionName | Convention = "papyan",
) -> FloatScalar:
    r"""Return $\|W \mu_G + b\|_2$: zero where the bias takes the global mean away, as it does at collapse (Zhu et al. 2021).

    **Arguments:**

    - `stats`: statistics of any kind of the features that enter the classifier.
    - `weight`: the classifier, one row a class.
    - `bias`: its bias; `None` is a classifier without.
    - `convention`: see [`neuralcollapse.Convention`][].
    """
    stats = stats.validated()
    return offset_norm(classifier(stats, weight), offset(stats, bias), global_mean(stats, Convention.of(convention)))


def ood_orthogonality(stats: ClassStats, ood_mean: Float[ArrayLike, " d"]) -> FloatScalar:
    r"""Return the mean over classes of $|\cos(\mu_k, \mu_G^{\mathrm{OOD}})|$: zero at "NC5".

    **Arguments:**

    - `stats`: statistics of any kind of the training data.
    - `ood_mean`: the mean of the features of data from elsewhere.

    ??? cite "Reference"

        Ammar et al., NECO: Neural Collapse Based Out-of-Distribution Detection, arXiv:2310.06823.
    """
    stats = stats.validated()
    mean = jnp.asarray(ood_mean).astype(stats.anchor.dtype)
    if mean.shape != (stats.dim,):
        raise ValueError(f"`ood_mean` must have shape ({stats.dim},), got {mean.shape}.")
    good = jnp.all(jnp.isfinite(mean)) & jnp.any(mean != 0)
    mean = require(mean, good, "`ood_mean` must be finite and not zero.")
    means = stats.anchor + stats.shift
    return jnp.mean(jnp.abs(alignments(jnp.broadcast_to(mean, means.shape), means, cosine=True)))


UNDEFINED = "`weight` or the class means are all zero, so that their alignment is not defined."


def classifier(stats: ClassStats, weight: Any) -> Float[Array, "k d"]:
    """Return the classifier in the dtype of the statistics, or refuse it."""
    w = matrix(weight, "weight", stats.num_classes, stats.dim, "one row a class")
    w = w.astype(stats.anchor.dtype)
    return require(w, jnp.all(jnp.isfinite(w)), "`weight` must be finite.")


def offset(stats: ClassStats, bias: Any) -> Float[Array, " k"]:
    """Return the bias in the dtype of the statistics, zeros where there is none, or refuse it."""
    if bias is None:
        return jnp.zeros(stats.num_classes, stats.anchor.dtype)
    b = jnp.asarray(bias)
    if b.shape != (stats.num_classes,):
        raise ValueError(f"`bias` must have shape ({stats.num_classes},), one entry a class; got {b.shape}.")
    b = b.astype(stats.anchor.dtype)
    return require(b, jnp.all(jnp.isfinite(b)), "`bias` must be finite.")


def duality_gap(w: Float[Array, "k d"], means: Float[Array, "k d"]) -> FloatScalar:
    """Return the squared distance of the two, each over its Frobenius norm."""
    return jnp.sum((w / jnp.sqrt(jnp.sum(w**2)) - means / jnp.sqrt(jnp.sum(means**2))) ** 2)


def alignments(w: Float[Array, "k d"], means: Float[Array, "k d"], cosine: bool) -> Float[Array, " k"]:
    """Return the products, or cosines, of the rows. A zero row has cosine 0."""
    products = jnp.sum(w * means, axis=1)
    if not cosine:
        return products
    lengths = jnp.sqrt(jnp.sum(w**2, axis=1)) * jnp.sqrt(jnp.sum(means**2, axis=1))
    return products / jnp.where(lengths > 0, lengths, 1)


def offset_norm(w: Float[Array, "k d"], b: Float[Array, " k"], mean: Float[Array, " d"]) -> FloatScalar:
    """Return |W mean + b|."""
    return jnp.sqrt(jnp.sum((product(w, mean) + b) ** 2))
