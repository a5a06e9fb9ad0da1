from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ._check import known, require
from ._class_stats import ClassStats
from ._convention import Convention, ConventionName, centred_means, global_mean, weighted_means, within_trace
from ._custom_types import FloatScalar, IntScalar
from ._duality import alignments, classifier, duality_gap, offset, offset_norm
from ._frames import angle_excess, cosines, etf_floor, etf_target, of_target
from ._ncc import NCCStats
from ._pairs import frame_distance
from ._product import product
from ._variability import COINCIDE, pairwise_variability, pinv_factor


class Report(eqx.Module):
    r"""Hold every collapse metric of one layer. All but the last group are zero at full collapse.

    What could not be measured is `None`: what needs a classifier, where none was given; `nc1_pinv`, where the statistics do not
    keep the covariance; the last group, without a second pass. `.to_dict()` leaves those out.

    **Attributes:**

    - `nc1_pinv`: $\frac1K\operatorname{tr}(S_W S_B^+)$.
    - `nc1_quotient`: $\operatorname{tr} S_W/\operatorname{tr} S_B$.
    - `cdnv`, `cdnv_max`: class-distance normalised variance, mean and maximum over pairs.
    - `equinorm`, `equiangular`, `max_equiangle`, `etf_distance`: of the centred class means.
    - `of_distance`: of the class means that are not centred, from an orthogonal frame (for models without bias).
    - `weight_equinorm`, `weight_equiangular`, `weight_max_equiangle`, `weight_etf_distance`, `weight_of_distance`: of the
        classifier.
    - `self_duality`: squared distance of classifier and centred means, normalised.
    - `duality_etf`, `duality_of`: their product, against a simplex and against an orthogonal frame.
    - `uniform_duality`: variance over classes of $w_k^\top m_k$.
    - `bias_alignment`: $\|W\mu_G + b\|$.
    - `mean_errors`: share of classes whose mean, as a sample, the classifier with its bias gets wrong.
    - `ncc_mismatch`: share of samples on which classifier and nearest class centre differ.
    - `ncc_accuracy`, `accuracy`: shares of samples that the nearest centre, and the classifier, get right.
    - `within_trace`, `between_trace`: $\operatorname{tr} S_W$ and $\operatorname{tr} S_B$.
    - `rank`: number of directions in which the class means differ, rounding apart.
    - `etf_floor`: the least `etf_distance` that means of this dimension can have; positive if $K > d + 1$, where there is no
        simplex frame (then see [`neuralcollapse.metrics.gnc2`][]).
    - `convention`: the [`neuralcollapse.Convention`][] in use.
    """

    nc1_pinv: FloatScalar | None
    nc1_quotient: FloatScalar
    cdnv: FloatScalar
    cdnv_max: FloatScalar
    equinorm: FloatScalar
    equiangular: FloatScalar
    max_equiangle: FloatScalar
    etf_distance: FloatScalar
    of_distance: FloatScalar
    within_trace: FloatScalar
    between_trace: FloatScalar
    rank: IntScalar
    weight_equinorm: FloatScalar | None = None
    weight_equiangular: FloatScalar | None = None
    weight_max_equiangle: FloatScalar | None = None
    weight_etf_distance: FloatScalar | None = None
    weight_of_distance: FloatScalar | None = None
    self_duality: FloatScalar | None = None
    duality_etf: FloatScalar | None = None
    duality_of: FloatScalar | None = None
    uniform_duality: FloatScalar | None = None
    bias_alignment: FloatScalar | None = None
    mean_errors: FloatScalar | None = None
    ncc_mismatch: FloatScalar | None = None
    ncc_accuracy: FloatScalar | None = None
    accuracy: FloatScalar | None = None
    etf_floor: float = eqx.field(static=True, default=0.0)
    convention: Convention = eqx.field(default_factory=Convention)

    def to_arrays(self) -> dict[str, Array]:
        """Return the measured numbers by name, without those that are `None`."""
        names = (name for name in self.__dataclass_fields__ if name not in ("etf_floor", "convention"))
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def to_dict(self) -> dict[str, float]:
        """Return the numbers by name, as Python's, without those that are `None`. Not under `jit`."""
        return {name: float(value) for name, value in self.to_arrays().items()} | {"etf_floor": self.etf_floor}


def report(
    stats: ClassStats,
    weight: Float[ArrayLike, "k d"] | None = None,
    bias: Float[ArrayLike, " k"] | None = None,
    *,
    convention: ConventionName | Convention = "papyan",
    ncc: NCCStats | None = None,
    empty: Literal["raise", "drop"] = "raise",
) -> Report:
    """Measure the collapse of one layer.

    ```python
    from neuralcollapse import metrics

    m = metrics.report(stats, weight=head.weight, bias=head.bias, convention="papyan")
    m.nc1_pinv, m.etf_distance, m.self_duality
    ```

    **Arguments:**

    - `stats`: statistics of the features that enter the classifier.
    - `weight`: the classifier, one row a class; `None` measures the features only.
    - `bias`: its bias; `None` is a classifier without.
    - `convention`: see [`neuralcollapse.Convention`][].
    - `ncc`: the counts of a second pass, for the metrics over samples.
    - `empty`: what to do about classes without samples: refuse them, or leave them and their classifiers out. Leaving them out
        is not possible under `jit`.

    **Returns:**

    A [`neuralcollapse.metrics.Report`][]. A class of one sample has variance zero. If the features have no variance within
    classes, NC1 is exactly zero. If two classes with some variance have the same mean, `cdnv` is infinite.

    **Raises:**

    `ValueError` (under `jit`: Equinox's run-time error) if a class is empty, all class means coincide, `weight` is all zero, or
    samples were left out of the statistics as invalid.
    """
    kind = Convention.of(convention)
    if empty not in ("raise", "drop"):
        raise ValueError(f"`empty` must be 'raise' or 'drop', got {empty!r}.")
    if weight is None and bias is not None:
        raise ValueError("`bias` without `weight`: give both.")
    w = None if weight is None else classifier(stats, weight)
    b = None if weight is None else offset(stats, bias)
    if w is not None:
        w = require(w, jnp.any(w != 0), "`weight` is all zero: it has no geometry.")
    if empty == "drop":
        if not known(stats.counts):
            raise ValueError("`empty='drop'` is not possible under `jit`: the shapes would depend on the data.")
        stats, kept = stats.validated(nonempty=False).drop_empty()
        w, b = (None if x is None else x[kept] for x in (w, b))
    stats = stats.validated()
    numbers = _of_features(stats, kind)
    numbers["between_trace"] = require(numbers["between_trace"], numbers["between_trace"] > 0, COINCIDE)
    if w is not None and b is not None:
        numbers |= _of_classifier(stats, w, b, kind)
    if ncc is not None:
        numbers |= dict(ncc_mismatch=ncc.mismatch(), ncc_accuracy=ncc.ncc_accuracy(), accuracy=ncc.accuracy())
    return Report(**numbers, etf_floor=etf_floor(stats.num_classes, stats.dim), convention=kind)


# Two programs, because one that holds the tables of both takes half as long again.
@eqx.filter_jit
def _of_features(stats: ClassStats, convention: Convention) -> dict[str, Any]:
    means, origin = centred_means(stats, convention), global_mean(stats, convention)
    factor = pinv_factor(stats, convention, None)
    keeps = stats.within in ("full", "low-rank")
    pinv = jnp.sum(stats._within_quadratic(factor.vectors)) / stats.num_classes if keeps else None
    spread = within_trace(stats, convention)
    between = jnp.sum(weighted_means(stats, convention) ** 2)
    pairs = pairwise_variability(stats, means)
    # (m_k + o)^T (m_l + o) without another product of matrices.
    lift = product(means, origin) + jnp.sum(origin**2) / 2
    return {
        "nc1_pinv": pinv,
        "nc1_quotient": spread / between,
        "cdnv": pairs.mean,
        "cdnv_max": pairs.maximum,
        **_angles(means),
        "of_distance": frame_distance(means, means, *of_target(means), left=lift, right=lift),
        "within_trace": spread,
        "between_trace": between,
        "rank": factor.rank,
    }


def _angles(x: Array) -> dict[str, Any]:
    return {
        "equinorm": _relative_spread(x),
        "equiangular": jnp.sqrt(cosines(x).variance),
        "max_equiangle": angle_excess(x).mean,
        "etf_distance": frame_distance(x, x, *etf_target(x)),
    }


def _relative_spread(x: Array) -> Array:
    norms = jnp.sqrt(jnp.sum(x**2, axis=1))
    return jnp.std(norms) / jnp.mean(norms)


@eqx.filter_jit
def _of_classifier(stats: ClassStats, w: Array, b: Array, convention: Convention) -> dict[str, Any]:
    means, origin = centred_means(stats, convention), global_mean(stats, convention)
    at_origin = product(w, origin)
    chosen = jnp.argmax(product(w, means.T) + (at_origin + b)[:, None], axis=0)
    return {
        **{f"weight_{name}": value for name, value in _angles(w).items()},
        "weight_of_distance": frame_distance(w, w, *of_target(w)),
        "self_duality": duality_gap(w, means),
        "duality_etf": frame_distance(w, means, *etf_target(w)),
        "duality_of": frame_distance(w, means, *of_target(w), left=at_origin),
        "uniform_duality": jnp.var(alignments(w, means, cosine=False)),
        "bias_alignment": offset_norm(w, b, origin),
        "mean_errors": jnp.mean((chosen != jnp.arange(len(chosen))).astype(w.dtype)),
    }
