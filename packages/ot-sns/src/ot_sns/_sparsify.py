r"""Safe sparsification: keep the entries of the plan that matter, and the exact marginals.

With any set $\Omega$ of kept entries and the exact row and column sums on the diagonal, the
sparsified Hessian is positive semidefinite, because

$$z^\top H_\Omega z = \sum_\Omega P_{ij}(x_i + y_j)^2 + \sum_i \delta_i x_i^2 + \sum_j \delta'_j y_j^2$$

with $\delta, \delta' \ge 0$ the dropped masses; and $\|H - H_\Omega\|_2$ is at most the largest dropped
mass. (Using the sums of the *kept* entries instead makes it singular on every component.)
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from implicit_core.operators import SparseOperator
from jaxtyping import Array, Bool, Float, Int

from ._custom_types import BoolScalar, FloatScalar, IntScalar
from ._scaling import Point, Semidual


_WORD = 32
# The threshold `s * budget * min(r_i / m, b_j / n)` keeps the budget for certain at s = 1. Larger
# s nearly always does too and keeps far fewer entries, so the search starts there.
_LARGEST_FACTOR = 128.0


class Threshold(eqx.Module):
    """Which entries of the plan to keep: those above `factor * min(row, column)`."""

    row: Float[Array, " n"]
    column: Float[Array, " m"]
    factor: FloatScalar
    count: IntScalar
    within_budget: BoolScalar

    def mask(self, plan: Float[Array, "n m"]) -> Bool[Array, "n m"]:
        """Mark the entries to keep."""
        smallest = jnp.minimum(self.row[:, None], self.column[None, :])
        return plan > self.factor * smallest


def plan_of(semidual: Semidual, point: Point) -> Float[Array, "n m"]:
    """The plan $P$, to be fused into whatever reads it."""
    return point.u[:, None] * semidual.kernel * point.v[None, :]


def choose_threshold(semidual: Semidual, point: Point, budget: FloatScalar) -> Threshold:
    """Find a threshold that drops at most the fraction `budget` of every row and column.

    No sorting: a few passes over the matrix, each of which only counts and sums.
    """
    n, m = semidual.kernel.shape
    b = semidual.problem.b
    row, column = budget * point.row_sums / m, budget * b / n

    def measure(factor: FloatScalar) -> Threshold:
        plan = plan_of(semidual, point)
        keep = Threshold(row, column, factor, jnp.array(0), jnp.array(True)).mask(plan)
        kept = jnp.where(keep, plan, 0)
        dropped_rows = point.row_sums - jnp.sum(kept, axis=1)
        dropped_columns = b - jnp.sum(kept, axis=0)
        within = jnp.all(dropped_rows <= budget * point.row_sums)
        within &= jnp.all(dropped_columns <= budget * b)
        return Threshold(row, column, factor, jnp.sum(keep, dtype=jnp.int32), within)

    start = measure(jnp.asarray(_LARGEST_FACTOR, budget.dtype))
    return jax.lax.while_loop(
        lambda t: ~t.within_budget & (t.factor > 1),
        lambda t: measure(jnp.maximum(t.factor / 4, 1)),
        start,
    )


def fit_threshold(semidual: Semidual, point: Point, threshold: Threshold, capacity: int) -> Threshold:
    """Raise a threshold until at most `capacity` entries pass it, whatever the budget."""

    def raise_it(t: Threshold) -> Threshold:
        higher = Threshold(t.row, t.column, 2 * t.factor, t.count, jnp.array(False))
        count = jnp.sum(higher.mask(plan_of(semidual, point)), dtype=jnp.int32)
        return Threshold(t.row, t.column, higher.factor, count, jnp.array(False))

    return jax.lax.while_loop(lambda t: t.count > capacity, raise_it, threshold)


def extract(semidual: Semidual, point: Point, threshold: Threshold, capacity: int) -> SparseOperator:
    """Gather the plan's entries above a threshold into a sparse operator of static size."""
    n, m = semidual.kernel.shape
    keep = threshold.mask(plan_of(semidual, point))
    rows, columns, used = compact(keep, capacity)
    values = point.u[rows] * semidual.kernel[rows, columns] * point.v[columns]
    return SparseOperator(jnp.where(used, values, 0), rows, columns, (n, m))


def compact(mask: Bool[Array, "n m"], capacity: int) -> tuple[Int[Array, " k"], Int[Array, " k"], Bool[Array, " k"]]:
    """List the true entries of a mask, row by row, in `capacity` slots.

    `jnp.nonzero(size=...)` runs a cumulative sum over all `n * m` entries, which costs as much as
    a hundred matrix-vector products. Here 32 entries are packed in a word, and only the words are
    summed; the entry within a word is found by bisection on bit counts.

    **Returns:**

    Row indices, column indices and whether the slot is used. Unused slots hold valid indices.
    """
    n, m = mask.shape
    words_per_row = -(-m // _WORD)
    padded = jnp.pad(mask, ((0, 0), (0, words_per_row * _WORD - m)))
    bits = padded.reshape(n * words_per_row, _WORD).astype(jnp.uint32)
    place = jnp.arange(_WORD, dtype=jnp.uint32)
    words = jnp.sum(bits << place[None, :], axis=1, dtype=jnp.uint32)
    counts = jax.lax.population_count(words).astype(jnp.int32)
    ends = jnp.cumsum(counts)
    starts = ends - counts
    # Each non-empty word claims the slot at which it starts; the following slots inherit it.
    claim = jnp.where(counts > 0, starts, capacity)
    index = jnp.arange(words.size, dtype=jnp.int32)
    owner = jnp.zeros(capacity, jnp.int32).at[claim].max(index, mode="drop")
    owner = jax.lax.cummax(owner)
    slot = jnp.arange(capacity, dtype=jnp.int32)
    position = _position_of_set_bit(words[owner], slot - starts[owner])
    rows = owner // words_per_row
    columns = jnp.minimum((owner % words_per_row) * _WORD + position, m - 1)
    return rows, columns, slot < ends[-1]


def _position_of_set_bit(word: Array, rank: Int[Array, " k"]) -> Int[Array, " k"]:
    position = jnp.zeros_like(rank)
    for width in (16, 8, 4, 2, 1):
        low = (word >> position.astype(jnp.uint32)) & jnp.uint32((1 << width) - 1)
        below = jax.lax.population_count(low).astype(jnp.int32)
        skip = rank >= below
        rank = jnp.where(skip, rank - below, rank)
        position = jnp.where(skip, position + width, position)
    return position
