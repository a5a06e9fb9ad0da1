from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Integer, Real

from ._check import known, matrix, require
from ._class_stats import ClassStats
from ._custom_types import FloatScalar
from ._product import product


class NCCStats(eqx.Module):
    r"""Count where a classifier and the nearest class centre agree: NC4, in a pass of its own after the means are known.

    ```python
    ncc = neuralcollapse.NCCStats.init(stats, weight, bias)
    for x, y in batches:
        ncc = ncc.update(features_fn(x), y)
    ncc.mismatch()  # share of samples where argmax(W h + b) is not the nearest centre
    ```

    Distances are taken relative to the mean of the centres, $-2\langle h - \mu_G, \mu_k - \mu_G\rangle + \|\mu_k - \mu_G\|^2$,
    so that a common offset costs no digits. Ties go to the lower class.

    **Attributes:**

    - `centres`: class means minus their mean.
    - `origin`: their mean.
    - `weight`: the classifier.
    - `bias`: its bias, zero for a classifier without.
    - `counts`: how many samples there were; how many with the classifier and the centre apart, and how many on which the
        centre, and the classifier, gave the label.
    - `invalid`: samples left out under `jit` for a label out of range or features that are not finite.
    """

    centres: Float[Array, "k d"]
    origin: Float[Array, " d"]
    weight: Float[Array, "k d"]
    bias: Float[Array, " k"]
    counts: Int[Array, "4"]
    invalid: Int[Array, "2"]

    @staticmethod
    def init(
        means: ClassStats | Float[ArrayLike, "k d"],
        weight: Float[ArrayLike, "k d"],
        bias: Float[ArrayLike, " k"] | None = None,
    ) -> "NCCStats":
        """Start counting.

        **Arguments:**

        - `means`: the statistics of the first pass, or a matrix of class means, one a row.
        - `weight`: the classifier, one row a class.
        - `bias`: its bias; `None` is a classifier without.

        **Raises:**

        `ValueError` if the shapes do not fit or a class is empty.
        """
        if isinstance(means, ClassStats):
            centres, first = means.centred(), means.means()
        else:
            first = jnp.asarray(means)
            if first.ndim != 2:
                raise ValueError(f"`means` must be a matrix, one row a class; got shape {first.shape}.")
            first = matrix(first, "means", first.shape[0], first.shape[1], "one row a class")
            relative = first - first[:1]
            centres = relative - jnp.mean(relative, axis=0)[None]
        k, d = first.shape
        w = matrix(weight, "weight", k, d, "one row a class, as the means have").astype(first.dtype)
        b = jnp.zeros(len(first), first.dtype) if bias is None else jnp.asarray(bias).astype(first.dtype)
        if b.shape != first.shape[:1]:
            raise ValueError(f"`bias` must have shape {first.shape[:1]}, one entry a class; got {b.shape}.")
        finite = jnp.all(jnp.isfinite(first)) & jnp.all(jnp.isfinite(w)) & jnp.all(jnp.isfinite(b))
        centres = require(centres, finite, "`means`, `weight` and `bias` must be finite.")
        count = jnp.result_type(int)
        return NCCStats(centres, jnp.mean(first, axis=0), w, b, jnp.zeros(4, count), jnp.zeros(2, count))

    def update(
        self,
        features: Real[ArrayLike, "b d"],
        labels: Integer[ArrayLike, " b"],
        mask: Bool[ArrayLike, " b"] | None = None,
    ) -> "NCCStats":
        """Take in a batch, as [`neuralcollapse.ClassStats.update`][] does.

        **Arguments:**

        - `features`: one sample a row.
        - `labels`: integers in `[0, num_classes)`; `-1` marks padding.
        - `mask`: `False` marks padding, too.

        **Raises:**

        `ValueError` for wrong shapes and, outside `jit`, labels out of range and features that are not finite.
        """
        x, y = jnp.asarray(features), jnp.asarray(labels)
        live = jnp.ones(y.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
        k, d = self.centres.shape
        if x.ndim != 2 or x.shape[1] != d or y.shape != x.shape[:1] or live.shape != y.shape:
            raise ValueError(
                f"`features` must have shape (batch, {d}), `labels` and `mask` (batch,); "
                f"got {x.shape}, {y.shape} and {live.shape}."
            )
        if not jnp.issubdtype(y.dtype, jnp.integer):
            raise TypeError(f"`labels` must be integers, got dtype {y.dtype}.")
        counted, wrong = _count(self, x, y, live)
        new = eqx.tree_at(lambda s: (s.counts, s.invalid), self, (self.counts + counted, self.invalid + wrong))
        if known(new.invalid) and np.any(np.asarray(wrong)):
            labels_wrong, features_wrong = np.asarray(wrong).tolist()
            raise ValueError(
                f"`labels` must lie in [0, {k}) or be -1 for padding, and `features` must be finite; {labels_wrong} labels "
                f"and {features_wrong} samples are not."
            )
        return new

    def merge(self, other: "NCCStats") -> "NCCStats":
        """Join the counts of disjoint data under the same means and classifier."""
        where = lambda s: (s.counts, s.invalid)
        return eqx.tree_at(where, self, (self.counts + other.counts, self.invalid + other.invalid))

    def psum(self, axis_name: Any) -> "NCCStats":
        """Join the counts of all devices along a mapped axis."""
        where = lambda s: (s.counts, s.invalid)
        return eqx.tree_at(where, self, jax.lax.psum(where(self), axis_name))

    def mismatch(self) -> FloatScalar:
        """Return the share of samples on which the classifier is not the nearest class centre: zero at collapse."""
        return self._share(1)

    def ncc_accuracy(self) -> FloatScalar:
        """Return the share of samples whose nearest class centre is that of their class."""
        return self._share(2)

    def accuracy(self) -> FloatScalar:
        """Return the share of samples that the classifier gets right."""
        return self._share(3)

    def _share(self, i: int) -> FloatScalar:
        counts = require(self.counts, self.counts[0] > 0, "No samples have been counted yet.")
        good = jnp.all(self.invalid == 0)
        counts = require(counts, good, "Samples with labels out of range or features that are not finite came in.")
        return counts[i].astype(self.centres.dtype) / counts[0].astype(self.centres.dtype)


@eqx.filter_jit
def _count(ncc: NCCStats, x: Array, y: Array, live: Array) -> tuple[Array, Array]:
    k, dtype = ncc.centres.shape[0], ncc.centres.dtype
    y = y.astype(ncc.counts.dtype)
    live = live & (y != -1)
    known_label, finite = (y >= 0) & (y < k), jnp.all(jnp.isfinite(x), axis=1)
    keep = live & known_label & finite
    h = jnp.where(keep[:, None], x, 0).astype(dtype)
    squares = jnp.sum(ncc.centres**2, axis=1)
    nearest = jnp.argmin(squares[None] - 2 * product(h - ncc.origin[None], ncc.centres.T), axis=1).astype(y.dtype)
    chosen = jnp.argmax(product(h, ncc.weight.T) + ncc.bias[None], axis=1).astype(y.dtype)
    hits = (keep, keep & (nearest != chosen), keep & (nearest == y), keep & (chosen == y))
    wrong = (live & ~known_label, live & known_label & ~finite)
    hits, wrong = (jnp.stack([jnp.sum(z).astype(ncc.counts.dtype) for z in group]) for group in (hits, wrong))
    return hits, wrong
