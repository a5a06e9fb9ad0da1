from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Integer, Real

from ._check import known, require
from ._custom_types import FloatScalar, Within
from ._gram import add_gram, symmetric
from ._moments import Moments, accumulate, merge, reduce_axis
from ._product import product
from ._sketch import compress


_INVALID = (
    "The statistics are not of the data that was given: samples with labels out of range (neither a class nor -1, which "
    "marks padding) or with NaN or infinite features came in and were left out. Repair the data, or mask those samples."
)
_EMPTY = "Some classes have no samples, so they have no mean. Feed more data, or leave them out with `drop_empty()`."


class ClassStats(eqx.Module):
    r"""Hold counts, means and within-class scatter of labelled features, accumulated in one pass and mergeable.

    ```python
    import jax.numpy as jnp
    from neuralcollapse import ClassStats

    stats = ClassStats.init(num_classes=2, dim=3)
    stats = stats.update(jnp.eye(4, 3), jnp.array([0, 0, 1, -1]))  # -1 marks padding
    stats.counts  # [2, 1]
    stats.means()[0]  # [0.5, 0.5, 0]
    ```

    Each class mean is stored as its first sample, exactly, plus a small difference. So the scatter is right in float32 however
    deep the collapse is: to about $10^{-7}$ relative where the deviation within classes is $10^{-6}$ of the mean, at which
    $E[xx^\top] - \mu\mu^\top$ and Welford's updates have no digit left. One update costs $O(B d^2)$ for `B` samples, whatever
    the number of classes; only the rows of classes in the batch are touched.

    It is a pytree: carry it through `jax.jit` and `jax.lax.scan`, [`neuralcollapse.ClassStats.merge`][] what several passes
    have seen, or [`neuralcollapse.ClassStats.psum`][] over the devices of `jax.shard_map`. With many classes, donate it:
    `jax.jit(lambda s, x, y: s.update(x, y), donate_argnums=0)` spares copies of the means.

    **Attributes:**

    - `counts`: samples per class.
    - `anchor`: the first sample of each class.
    - `shift`: class mean minus anchor.
    - `spread`: per class, the sum of squared distances to the class mean.
    - `scatter`: what `within` keeps of the pooled within-class scatter matrix $\sum_i (h_i - \mu_{y_i})(\cdot)^\top$; of the
        matrix itself, the upper triangle.
    - `lost`: for `"low-rank"`, a bound on the spectral norm of what the sketch leaves out; else zero.
    - `invalid`: how many samples were left out for a label out of range, and for a NaN or infinite feature. Outside `jit`,
        [`neuralcollapse.ClassStats.update`][] raises at once; under `jit` they are counted, and reading raises.
    - `within`: `"full"` keeps the matrix, `"diag"` its diagonal, `"trace"` nothing but `spread`, `"low-rank"` a sketch.

    ??? cite "Reference"

        The sketch is Frequent Directions, arXiv:1501.01711.
    """

    counts: Int[Array, " k"]
    anchor: Float[Array, "k d"]
    shift: Float[Array, "k d"]
    spread: Float[Array, " k"]
    scatter: Float[Array, "..."]
    lost: FloatScalar
    invalid: Int[Array, "2"]
    within: Within = eqx.field(static=True)

    @staticmethod
    def init(
        num_classes: int,
        dim: int,
        within: Within = "full",
        *,
        rank: int | None = None,
        dtype: Any = None,
    ) -> "ClassStats":
        """Make empty statistics.

        **Arguments:**

        - `num_classes`: number of classes, at least two. Labels run from zero.
        - `dim`: number of features.
        - `within`: how much of the within-class covariance to keep. `"full"` takes `dim**2` numbers, `"diag"` `dim`,
            `"trace"` none, `"low-rank"` `rank * dim`. All keep the per-class variances and their sum exactly.
        - `rank`: rows of the sketch of `"low-rank"`.
        - `dtype`: `float32` or `float64`; JAX's default floating-point type if `None`.

        **Returns:**

        Statistics of no samples.

        **Raises:**

        `ValueError` for a number of classes below two, of features below one, or an unknown `within`.
        """
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2: collapse compares classes. Got {num_classes}.")
        if dim < 1:
            raise ValueError(f"`dim` must be at least 1, got {dim}.")
        if within not in ("full", "diag", "trace", "low-rank"):
            raise ValueError(f"`within` must be 'full', 'diag', 'trace' or 'low-rank', got {within!r}.")
        if (within == "low-rank") != (rank is not None):
            raise ValueError(f'`rank` goes with `within="low-rank"` and only with it; got {rank} with {within!r}.')
        if rank is not None and not 1 <= rank <= dim:
            raise ValueError(f"`rank` must be between 1 and `dim` = {dim}, got {rank}.")
        kind = np.dtype(jnp.result_type(float) if dtype is None else dtype)
        if kind not in (np.dtype("float32"), np.dtype("float64")):
            raise ValueError(
                f"`dtype` must be float32 or float64, got {kind}: features of less precision are promoted."
            )
        shape = {"full": (dim, dim), "diag": (dim,), "trace": (0,), "low-rank": (rank, dim)}[within]
        # Distinct arrays, since one buffer may not be donated twice.
        return ClassStats(
            counts=jnp.zeros(num_classes, jnp.result_type(int)),
            anchor=jnp.zeros((num_classes, dim), kind),
            shift=jnp.zeros((num_classes, dim), kind),
            spread=jnp.zeros(num_classes, kind),
            scatter=jnp.zeros(shape, kind),
            lost=jnp.zeros((), kind),
            invalid=jnp.zeros(2, jnp.result_type(int)),
            within=within,
        )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.anchor.shape[0]

    @property
    def dim(self) -> int:
        """Number of features."""
        return self.anchor.shape[1]

    @property
    def total(self) -> Int[Array, ""]:
        """Number of samples."""
        return jnp.sum(self.counts)

    def update(
        self,
        features: Real[ArrayLike, "b d"],
        labels: Integer[ArrayLike, " b"],
        mask: Bool[ArrayLike, " b"] | None = None,
    ) -> "ClassStats":
        """Take in a batch.

        **Arguments:**

        - `features`: one sample a row. Types of less precision than the statistics are promoted before anything else.
        - `labels`: integers in `[0, num_classes)`; `-1` marks padding.
        - `mask`: `False` marks padding, too. What padding holds, NaN included, does not matter.

        **Returns:**

        The new statistics; these stay as they are.

        **Raises:**

        `ValueError` for wrong shapes and, outside `jit`, for labels out of range and for NaN or infinite features. Under `jit`
        such samples are left out and counted in `invalid`, and whatever reads the statistics later raises.
        `TypeError` if the labels are no integers, or the features are float64 and the statistics float32.
        """
        x, y, live = self._batch(features, labels, mask)
        new = _update(self, x, y, live)
        if known(self.invalid, new.invalid):
            wrong = np.asarray(new.invalid - self.invalid)
            if wrong[0]:
                raise ValueError(
                    f"`labels` must lie in [0, {self.num_classes}) or be -1 for padding; {wrong[0]} of them do not."
                )
            if wrong[1]:
                raise ValueError(f"`features` must be finite; {wrong[1]} samples have NaN or infinite entries.")
        return new

    def _batch(self, features: Any, labels: Any, mask: Any) -> tuple[Array, Array, Array]:
        x, y = jnp.asarray(features), jnp.asarray(labels)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"`features` must have shape (batch, {self.dim}), got {x.shape}.")
        if y.shape != x.shape[:1]:
            raise ValueError(f"`labels` must have shape {x.shape[:1]}, one for each row of `features`; got {y.shape}.")
        if not jnp.issubdtype(y.dtype, jnp.integer):
            raise TypeError(f"`labels` must be integers, got dtype {y.dtype}: take the argmax of one-hot labels first.")
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise TypeError(f"`features` must be real, got dtype {x.dtype}.")
        if x.dtype == jnp.float64 and self.anchor.dtype == jnp.float32:
            raise TypeError(
                "`features` are float64 and the statistics float32: `ClassStats.init(..., dtype='float64')`."
            )
        live = jnp.ones(y.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
        if live.shape != y.shape:
            raise ValueError(f"`mask` must have shape {y.shape}, one for each row of `features`; got {live.shape}.")
        return x, y, live

    def merge(self, other: "ClassStats") -> "ClassStats":
        """Join two statistics of disjoint data. Associative and commutative up to rounding.

        **Arguments:**

        - `other`: statistics of the same classes, features and kind.

        **Returns:**

        The statistics of all the data.

        **Raises:**

        `ValueError` if they differ in classes, features, dtype or `within`.
        """
        ours, theirs = ((s.within, s.anchor.shape, s.scatter.shape, s.anchor.dtype.name) for s in (self, other))
        if ours != theirs:
            raise ValueError(f"`other` must be statistics of the same kind: {ours} and {theirs} do not merge.")
        return _merge(self, other)

    def psum(self, axis_name: Any) -> "ClassStats":
        """Join the statistics of all devices along a mapped axis, inside `jax.shard_map` or `jax.vmap(axis_name=...)`.

        **Arguments:**

        - `axis_name`: the axis, or a tuple of axes.

        **Returns:**

        The statistics of all the data, the same on every device.
        """
        merged, scatter, lost = reduce_axis(self._moments(), self.scatter, self.lost, self.within, axis_name)
        return self._of(merged, scatter, lost, jax.lax.psum(self.invalid, axis_name))

    def validated(self, *, nonempty: bool = True) -> "ClassStats":
        """Return these statistics, having made sure that they are of all the data that was given.

        **Arguments:**

        - `nonempty`: whether classes without samples are refused, too.

        **Raises:**

        `ValueError` if samples were left out under `jit` (see `invalid`), or a class is empty. Under `jit`: Equinox's run-time
        error.
        """
        out = ~jnp.any(self.invalid > 0)
        counts = require(self.counts, out, _INVALID, labels_out_of_range=self.invalid[0], not_finite=self.invalid[1])
        empty = jnp.sum(counts == 0)
        if nonempty:
            counts = require(counts, empty == 0, _EMPTY, number_of_empty_classes=empty)
        else:
            counts = require(counts, empty < self.num_classes, "There are no samples yet.")
        return eqx.tree_at(lambda s: s.counts, self, counts)

    def means(self, fill: int | float | None = None) -> Float[Array, "k d"]:
        """Return the class means, one a row.

        **Arguments:**

        - `fill`: what stands for the mean of a class without samples; `None` refuses those.

        **Returns:**

        The means. For differences of means use [`neuralcollapse.ClassStats.centred`][], which keeps the digits that the
        means lose to rounding when they have a large common offset.

        **Raises:**

        `ValueError` (under `jit`: Equinox's run-time error) if a class is empty and `fill` is `None`.
        """
        stats = self.validated(nonempty=fill is None)
        replacement = jnp.asarray(0.0 if fill is None else fill, self.anchor.dtype)
        return jnp.where((stats.counts == 0)[:, None], replacement, stats.anchor + stats.shift)

    def centred(self, weights: Float[Array, " k"] | None = None) -> Float[Array, "k d"]:
        r"""Return the class means minus a global mean $\sum_k w_k \mu_k$, from differences of anchors.

        **Arguments:**

        - `weights`: the $w_k$, of sum one; equal ones by default.

        **Returns:**

        The centred means, one a row.

        **Raises:**

        `ValueError` (under `jit`: Equinox's run-time error) if a class is empty.
        """
        stats = self.validated()
        # Multiplied by what is one: the checks hang on the counts.
        ones = (stats.counts > 0).astype(self.anchor.dtype)
        return stats._centred(ones / self.num_classes if weights is None else weights * ones)

    def _centred(self, weights: Float[Array, " k"]) -> Float[Array, "k d"]:
        # Relative to one class: a common offset then costs no digits.
        relative = (self.anchor - self.anchor[:1]) + (self.shift - self.shift[:1])
        return relative - (product(weights[None], relative))

    def proportions(self) -> Float[Array, " k"]:
        """Return each class's share of the samples."""
        return self.validated(nonempty=False)._proportions()

    def _proportions(self) -> Float[Array, " k"]:
        return self.counts.astype(self.anchor.dtype) / self._scale()

    def class_variances(self) -> Float[Array, " k"]:
        r"""Return $v_k = \frac{1}{n_k}\sum_{i \in k} \|h_i - \mu_k\|^2$, zero for empty classes and those of one sample."""
        return self.validated(nonempty=False)._class_variances()

    def _class_variances(self) -> Float[Array, " k"]:
        return self.spread / jnp.maximum(self.counts, 1).astype(self.spread.dtype)

    def within_trace(self) -> FloatScalar:
        r"""Return $\operatorname{tr} S_W$, the mean squared distance to the class means. Every kind of statistics has it."""
        return self.validated(nonempty=False)._within_trace()

    def _within_trace(self) -> FloatScalar:
        return jnp.sum(self.spread) / self._scale()

    def within_diagonal(self) -> Float[Array, " d"]:
        r"""Return the diagonal of $S_W$.

        **Raises:**

        `ValueError` if the statistics keep neither the matrix nor its diagonal.
        """
        stats = self.validated(nonempty=False)
        return stats.scatter / stats._scale() if self.within == "diag" else jnp.diagonal(stats._within_cov())

    def within_cov(self) -> Float[Array, "d d"]:
        r"""Return $S_W = \frac1N \sum_i (h_i - \mu_{y_i})(h_i - \mu_{y_i})^\top$.

        **Returns:**

        The matrix. From a `"low-rank"` sketch: an approximation with the exact trace, whose error in spectral norm is at
        most [`neuralcollapse.ClassStats.within_error`][].

        **Raises:**

        `ValueError` if the statistics keep only the trace or the diagonal.
        """
        return self.validated(nonempty=False)._within_cov()

    def _within_cov(self) -> Float[Array, "d d"]:
        if self.within == "full":
            return symmetric(self.scatter) / self._scale()
        if self.within == "low-rank":
            gram = product(self.scatter.T, self.scatter)
            return (gram + self._rest() * jnp.eye(self.dim, dtype=gram.dtype)) / self._scale()
        raise ValueError(
            f"These statistics keep only the {self.within} of the within-class covariance: start from "
            "`ClassStats.init(..., within='full')` or `'low-rank'`."
        )

    def within_error(self) -> FloatScalar:
        """Return a bound on the spectral norm of the error of `within_cov()`: zero but for `"low-rank"`, rounding apart."""
        return self.lost / self._scale()

    def _within_quadratic(self, vectors: Float[Array, "d r"]) -> Float[Array, " r"]:
        """Return u^T S_W u for the columns u."""
        if self.within != "low-rank":
            return jnp.sum(vectors * product(self._within_cov(), vectors), axis=0)
        inside = product(self.scatter, vectors)
        return (jnp.sum(inside**2, axis=0) + self._rest() * jnp.sum(vectors**2, axis=0)) / self._scale()

    def drop_empty(self) -> tuple["ClassStats", Int[np.ndarray, " kept"]]:
        """Leave out the classes without samples. Not under `jit`, since the shape depends on the data.

        **Returns:**

        The statistics of the other classes, and which those are: index the rows of a classifier with them.
        """
        kept = np.flatnonzero(np.asarray(self.counts))
        if len(kept) < 2:
            raise ValueError(f"At least two classes must have samples; {len(kept)} have.")
        rows = (self.counts, self.anchor, self.shift, self.spread)
        where = lambda s: (s.counts, s.anchor, s.shift, s.spread)
        return eqx.tree_at(where, self, tuple(row[kept] for row in rows)), kept

    def _rest(self) -> FloatScalar:
        # The sketch never exceeds the scatter, so this is what it lacks of the trace, per direction.
        return jnp.maximum(jnp.sum(self.spread) - jnp.sum(self.scatter**2), 0) / self.dim

    def _scale(self) -> FloatScalar:
        return jnp.maximum(self.total, 1).astype(self.anchor.dtype)

    def _moments(self) -> Moments:
        return Moments(self.counts, self.anchor, self.shift, self.spread)

    def _of(self, moments: Moments, scatter: Array, lost: Array, invalid: Array) -> "ClassStats":
        m = moments
        return ClassStats(m.counts, m.anchor, m.shift, m.spread, scatter, lost, invalid, self.within)


# Compiled, so that a batch outside `jit` costs one dispatch.
@eqx.filter_jit
def _update(stats: ClassStats, features: Array, labels: Array, live: Array) -> ClassStats:
    k = stats.num_classes
    live = live & (labels != -1)
    known_label = (labels >= 0) & (labels < k)
    finite = jnp.all(jnp.isfinite(features), axis=1)
    keep = live & known_label & finite
    wrong = jnp.stack([jnp.sum(live & ~known_label), jnp.sum(live & known_label & ~finite)])
    # Zeros, not products with the mask: 0 * NaN is NaN.
    x = jnp.where(keep[:, None], features, 0).astype(stats.anchor.dtype)
    # A negative index would wrap; the row after the last is dropped.
    y = jnp.where(keep, labels, k)
    moments, deviations = accumulate(stats._moments(), x, y.astype(jnp.int32))
    scatter, lost = _extend(stats.scatter, stats.lost, deviations, stats.within)
    return stats._of(moments, scatter, lost, stats.invalid + wrong.astype(stats.invalid.dtype))


@eqx.filter_jit
def _merge(a: ClassStats, b: ClassStats) -> ClassStats:
    moments, deviations = merge(a._moments(), b._moments())
    if a.within == "low-rank":
        deviations = jnp.concatenate([b.scatter, deviations])
        scatter, lost = _extend(a.scatter, a.lost + b.lost, deviations, a.within)
    else:
        scatter, lost = _extend(a.scatter + b.scatter, a.lost, deviations, a.within)
    return a._of(moments, scatter, lost, a.invalid + b.invalid)


def _extend(scatter: Array, lost: Array, deviations: Array, within: Within) -> tuple[Array, Array]:
    """Add the outer products of the rows of `deviations` to the scatter."""
    if within == "full":
        return add_gram(scatter, deviations), lost
    if within == "diag":
        return scatter + jnp.sum(deviations**2, axis=0), lost
    if within == "trace":
        return scatter, lost
    sketch, delta = compress(jnp.concatenate([scatter, deviations]), scatter.shape[0])
    return sketch, lost + delta
