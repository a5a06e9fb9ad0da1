"""NC1: how much the features vary within the classes, relative to the distances between them."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._check import require
from ._class_stats import ClassStats
from ._convention import Convention, ConventionName, centred_means, weighted_means, within_trace
from ._custom_types import FloatScalar, IntScalar
from ._frames import squared_distances
from ._pairs import PairMoments, over_pairs
from ._product import product


COINCIDE = (
    "All class means coincide, so that there is nothing to measure the variability against. Likely causes: a dead or "
    "untrained network, or features taken at the wrong layer."
)


class PinvFactor(NamedTuple):
    """The rank of the between-class covariance S, and U with S^+ = U U^T."""

    rank: IntScalar
    vectors: Float[Array, "d r"]


def nc1_pinv(
    stats: ClassStats,
    *,
    convention: ConventionName | Convention = "papyan",
    scale: Literal["1/K", "none"] = "1/K",
    rtol: int | float | None = None,
) -> FloatScalar:
    r"""Return $\frac1K \operatorname{tr}(S_W S_B^+)$: zero at collapse (Papyan, Han and Donoho 2020).

    The pseudo-inverse comes from the singular values of the $K \times d$ matrix of centred means. Those of the $d \times d$
    matrix $S_B$ are their squares, of which float32 keeps half the digits.

    **Arguments:**

    - `stats`: statistics that keep the within-class covariance (`"full"` or `"low-rank"`).
    - `convention`: see [`neuralcollapse.Convention`][].
    - `scale`: `"none"` leaves the $1/K$ out, as the code of the paper does.
    - `rtol`: directions of the means with singular values below `rtol` times the largest are left out; by default rounding
        level, `eps * max(K, d)`.

    **Returns:**

    The metric.

    **Raises:**

    `ValueError` (under `jit`: Equinox's run-time error) if a class is empty or all means coincide, or for statistics that do
    not keep the covariance.
    """
    if scale not in ("1/K", "none"):
        raise ValueError(f"`scale` must be '1/K' or 'none', got {scale!r}.")
    if rtol is not None and not 0 <= rtol < 1:
        raise ValueError(f"`rtol` must be in [0, 1), got {rtol}.")
    convention = Convention.of(convention)
    stats = stats.validated()
    factor = pinv_factor(stats, convention, rtol)
    value = require(jnp.sum(stats._within_quadratic(factor.vectors)), factor.rank > 0, COINCIDE)
    return value / stats.num_classes if scale == "1/K" else value


def nc1_quotient(stats: ClassStats, *, convention: ConventionName | Convention = "papyan") -> FloatScalar:
    r"""Return $\operatorname{tr} S_W / \operatorname{tr} S_B$: zero at collapse (Tirer and Bruna 2022).

    **Arguments:**

    - `stats`: statistics of any kind.
    - `convention`: see [`neuralcollapse.Convention`][].

    **Raises:**

    `ValueError` (under `jit`: Equinox's run-time error) if a class is empty or all means coincide.
    """
    convention = Convention.of(convention)
    stats = stats.validated()
    return within_trace(stats, convention) / _between_trace(stats, convention)


def nc1_fisher(
    stats: ClassStats, *, convention: ConventionName | Convention = "weighted", rtol: int | float | None = None
) -> FloatScalar:
    r"""Return $\operatorname{tr}(S_W S_T^+)$ with $S_T = S_W + S_B$, between zero and the rank of $S_T$.

    Directions without class means count one each, so it does not vanish at collapse unless the features have collapsed to
    rounding level.

    **Arguments:**

    - `stats`: statistics that keep the within-class covariance.
    - `convention`: see [`neuralcollapse.Convention`][]. Only with `"weighted"` is $S_T$ the covariance of the samples.
    - `rtol`: directions with less than `rtol` times the largest variance are left out; by default `eps * d`.
    """
    convention = Convention.of(convention)
    stats = stats.validated()
    within = stats._within_cov()
    means = weighted_means(stats, convention)
    total = within + product(means.T, means)
    values, vectors = jnp.linalg.eigh(total)
    cut = jnp.finfo(values.dtype).eps * stats.dim if rtol is None else rtol
    kept = values > cut * values[-1]
    return jnp.sum(jnp.where(kept, stats._within_quadratic(vectors) / jnp.where(kept, values, 1), 0))


def cdnv(stats: ClassStats, *, exponent: int | float = 1) -> PairMoments:
    r"""Return mean, variance and maximum over pairs of classes of $\frac{v_k + v_l}{2\|\mu_k - \mu_l\|^{2e}}$.

    The class-distance normalised variance, zero at collapse. Statistics of any kind will do; above some size the distances
    are taken from products, and lose digits where two means are much closer to each other than all are on average.

    **Arguments:**

    - `stats`: the statistics.
    - `exponent`: the $e$; 1 as defined.

    **Returns:**

    `.mean`, `.variance` and `.maximum`. Infinite if two classes with some variance have the same mean.

    ??? cite "Reference"

        Galanti, György and Hutter, On the Role of Neural Collapse in Transfer Learning, arXiv:2112.15121.
    """
    stats = stats.validated()
    return pairwise_variability(stats, centred_means(stats, Convention()), exponent)


def class_variability(stats: ClassStats, *, convention: ConventionName | Convention = "papyan") -> Float[Array, " k"]:
    r"""Return $v_k / \operatorname{tr} S_B$ for each class: which classes have collapsed, and which not.

    **Arguments:**

    - `stats`: statistics of any kind.
    - `convention`: see [`neuralcollapse.Convention`][].
    """
    stats = stats.validated()
    return stats._class_variances() / _between_trace(stats, Convention.of(convention))


def pinv_factor(stats: ClassStats, convention: Convention, rtol: int | float | None) -> PinvFactor:
    """Factor the pseudo-inverse of the between-class covariance A^T A."""
    a = weighted_means(stats, convention)
    k, d = a.shape
    cut = float(jnp.finfo(a.dtype).eps) * max(k, d) if rtol is None else float(rtol)
    if k - 1 < d:
        return _by_svd(a, k - 1, cut)
    r = jnp.linalg.qr(a, mode="r")
    # A zero on the diagonal gives an infinite inverse, which is refused below.
    inverse = jax.scipy.linalg.solve_triangular(r, jnp.eye(d, dtype=r.dtype))
    # The smallest singular value is at least 1/||R^{-1}||_F, the largest at most ||R||_F. If even these would be kept all
    # are, and R^{-1} is the factor: a singular value decomposition would take most of the time of a report.
    full = cut * jnp.sqrt(jnp.sum(r**2)) * jnp.sqrt(jnp.sum(inverse**2)) < 1
    return jax.lax.cond(full, lambda: PinvFactor(jnp.array(d), inverse), lambda: _by_svd(r, d, cut))


def _by_svd(a: Float[Array, "m d"], r: int, cut: float) -> PinvFactor:
    _, values, vectors = jnp.linalg.svd(a, full_matrices=False)
    # Centred vectors are linearly dependent: beyond `r` a singular value is rounding whatever its size.
    values = values[:r]
    kept = values > cut * values[0]
    scale = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    return PinvFactor(jnp.sum(kept), vectors[:r].T * scale[None])


def pairwise_variability(stats: ClassStats, means: Float[Array, "k d"], exponent: int | float = 1) -> PairMoments:
    """Return the moments of the class-distance normalised variance."""

    def value(some, every):
        (x, v), (y, w) = some, every
        top = (v[:, None] + w[None]) / 2
        # Nothing over nothing: two classes that are one and the same point have no variability.
        return jnp.where(top > 0, top / squared_distances(x, y) ** exponent, 0)

    return over_pairs(value, (means, stats._class_variances()), stats.num_classes)


def _between_trace(stats: ClassStats, convention: Convention) -> FloatScalar:
    trace = jnp.sum(weighted_means(stats, convention) ** 2)
    return require(trace, trace > 0, COINCIDE)
