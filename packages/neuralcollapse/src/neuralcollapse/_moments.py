"""Anchored class means and sums of squares: how batches, statistics and devices are joined."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._custom_types import Within
from ._gram import add_gram
from ._product import product
from ._sketch import compress


# Up to here sums by class are products with a one-hot matrix: faster than scatters, and deterministic on a GPU.
_ONE_HOT = 128


class Moments(NamedTuple):
    """Per class: count, first sample, mean minus first sample, sum of squared distances to the mean."""

    counts: Int[Array, " k"]
    anchor: Float[Array, "k d"]
    shift: Float[Array, "k d"]
    spread: Float[Array, " k"]


def accumulate(m: Moments, x: Float[Array, "b d"], y: Int[Array, " b"]) -> tuple[Moments, Float[Array, "b d"]]:
    """Return the moments with a batch in them, and the rows whose outer products the within-class scatter grows by.

    Samples with label `k` are dropped. The means of the batch and the old ones are joined by the update of Chan, Golub and
    LeVeque, in coordinates relative to each class's first sample: the differences are exact where the features agree to a
    factor of two, so the rounding is relative to the spread within the class, not to its mean.
    """
    k, b = m.counts.shape[0], x.shape[0]
    if k <= b:
        rows, index = jnp.arange(k, dtype=y.dtype), y
    else:
        rows, index = jnp.unique(y, size=b, fill_value=k, return_inverse=True)
        # Those to drop share a slot of their own, whatever slot they came to.
        index = jnp.where(y == k, b, index).astype(y.dtype)
    old = Moments(*(a.at[rows].get(mode="fill", fill_value=0) for a in m)) if k > b else m
    seen, kept = len(rows), y < k
    first = jax.ops.segment_min(jnp.arange(b, dtype=y.dtype), index, num_segments=seen)
    batch = _sum_by(jnp.ones((b, 1), old.spread.dtype), index, seen)[:, 0]
    # Of less than 2^24 samples, so exact.
    added = jnp.round(batch).astype(old.counts.dtype)
    start = (old.counts == 0) & (added > 0)
    anchor = jnp.where(start[:, None], x[jnp.clip(first, 0, b - 1)], old.anchor)
    relative = jnp.where(kept[:, None], x - anchor[jnp.clip(index, 0, seen - 1)], 0)
    means = _sum_by(relative, index, seen) / jnp.maximum(batch, 1)[:, None]
    n = old.counts.astype(batch.dtype)
    total = jnp.maximum(n + batch, 1)
    delta = jnp.where((batch > 0)[:, None], means - old.shift, 0)
    # The scatter grows by that of the residuals r_i of the batch, whose sum is zero, and n b / (n + b) delta delta^T, with b
    # samples of the class. Both at once: by the outer products of r_i + sqrt(n / (n + b)) delta.
    centre = means - jnp.sqrt(n / total)[:, None] * delta
    deviations = jnp.where(kept[:, None], relative - centre[jnp.clip(index, 0, seen - 1)], 0)
    spread = _sum_by(jnp.sum(deviations**2, axis=1, keepdims=True), index, seen)[:, 0]
    gain = Moments(added, anchor, delta * (batch / total)[:, None], spread)
    if k <= b:
        joined = Moments(m.counts + added, anchor, m.shift + gain.shift, m.spread + gain.spread)
    else:
        joined = Moments(
            m.counts.at[rows].add(added, mode="drop"),
            m.anchor.at[rows].set(anchor, mode="drop"),
            m.shift.at[rows].add(gain.shift, mode="drop"),
            m.spread.at[rows].add(gain.spread, mode="drop"),
        )
    return joined, deviations


def merge(a: Moments, b: Moments) -> tuple[Moments, Float[Array, "k d"]]:
    """Return the moments of both, and the rows whose outer products the joint scatter has beyond the sum of the two."""
    have = (a.counts > 0)[:, None]
    anchor = jnp.where(have, a.anchor, b.anchor)
    both = ((a.counts > 0) & (b.counts > 0))[:, None]
    delta = jnp.where(both, (b.anchor - a.anchor) + (b.shift - a.shift), 0)
    n, extra = a.counts.astype(anchor.dtype), b.counts.astype(anchor.dtype)
    share = extra / jnp.maximum(n + extra, 1)
    weight = n * share
    shift = jnp.where(have, a.shift + share[:, None] * delta, b.shift)
    spread = a.spread + b.spread + weight * jnp.sum(delta**2, axis=1)
    return Moments(a.counts + b.counts, anchor, shift, spread), jnp.sqrt(weight)[:, None] * delta


def reduce_axis(m: Moments, scatter: Array, lost: Array, within: Within, axis: Any) -> tuple[Moments, Array, Array]:
    """Join the moments and scatters of all devices along a mapped axis. A sum of means or scatters would be wrong."""
    me, size = jax.lax.axis_index(axis), jax.lax.psum(1, axis)
    counts = jax.lax.psum(m.counts, axis)
    owner = jax.lax.pmin(jnp.where(m.counts > 0, me, size), axis)
    # Exactly one term is not zero: a broadcast.
    anchor = jax.lax.psum(jnp.where((owner == me)[:, None], m.anchor, 0), axis)
    n = m.counts.astype(anchor.dtype)
    shift = jnp.where((n > 0)[:, None], (m.anchor - anchor) + m.shift, 0)
    mean = jax.lax.psum(n[:, None] * shift, axis) / jnp.maximum(counts, 1).astype(anchor.dtype)[:, None]
    apart = jnp.where((n > 0)[:, None], shift - mean, 0)
    spread = jax.lax.psum(m.spread + n * jnp.sum(apart**2, axis=1), axis)
    joined = Moments(counts, anchor, mean, spread)
    deviations = jnp.sqrt(n)[:, None] * apart
    if within == "full":
        return joined, jax.lax.psum(add_gram(scatter, deviations), axis), lost
    if within == "diag":
        return joined, jax.lax.psum(scatter + jnp.sum(deviations**2, axis=0), axis), lost
    if within == "trace":
        return joined, scatter, lost
    sketch, delta = compress(jnp.concatenate([scatter, deviations]), scatter.shape[0])
    # A sum of blocks rather than a gather: its result is known to be the same on every device.
    blocks = jax.lax.psum(jnp.zeros((size, *sketch.shape), sketch.dtype).at[me].set(sketch), axis)
    sketch, last = compress(blocks.reshape(-1, sketch.shape[1]), scatter.shape[0])
    return joined, sketch, jax.lax.psum(lost + delta, axis) + last


def _sum_by(x: Float[Array, "b c"], index: Int[Array, " b"], num: int) -> Float[Array, "num c"]:
    if num <= _ONE_HOT:
        chosen = (index[None] == jnp.arange(num, dtype=index.dtype)[:, None]).astype(x.dtype)
        return product(chosen, x)
    return jax.ops.segment_sum(x, index, num_segments=num)
