r"""Safe sparsification: keep the entries of the plan that matter, and the exact marginals.

With any set $\Omega$ of kept entries and the exact row and column sums on the diagonal, the
sparsified Hessian is positive semidefinite, because

$$z^\top H_\Omega z = \sum_\Omega P_{ij}(x_i + y_j)^2 + \sum_i \delta_i x_i^2 + \sum_j \delta'_j y_j^2$$

with $\delta, \delta' \ge 0$ the dropped masses; and $\|H - H_\Omega\|_2$ is at most the largest dropped
mass. (Using the sums of the *kept* entries instead makes it singular on every component.)
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from implicit_core.operators import SparseOperator
from jaxtyping import Array, Bool, Float, Int

from ._custom_types import BoolScalar, FloatScalar, IntScalar
from ._scaling import Point, Semidual


_WORD = 32
# The threshold `factor * budget * min(r_i / m, b_j / n)` keeps the budget for certain at a factor of
# one. A larger one usually does too and keeps far fewer entries, so the search starts there.
_FIRST_FACTOR = 32.0
_CHUNKS = 16


class Sparsified(eqx.Module):
    """The entries of a plan above a threshold, in as many slots as there is room for.

    Products visit only the chunks of slots that are used, so room costs memory but no time.
    """

    plan: SparseOperator
    factor: FloatScalar
    count: IntScalar
    within_budget: BoolScalar

    def mv(self, x: Float[Array, " m"]) -> Float[Array, " n"]:
        """Multiply by the kept entries."""
        return self._sum_over_chunks(lambda plan: plan.mv(x), self.plan.shape[0])

    def transpose_mv(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """Multiply by the transpose of the kept entries."""
        return self._sum_over_chunks(lambda plan: plan.T.mv(x), self.plan.shape[1])

    def _sum_over_chunks(self, product: Callable[[SparseOperator], Array], size: int) -> Array:
        plan = self.plan
        chunk = plan.values.size // _CHUNKS

        def add(i: IntScalar, total: Array) -> Array:
            values, rows, cols = (
                jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk) for x in (plan.values, plan.rows, plan.cols)
            )
            return total + product(SparseOperator(values, rows, cols, plan.shape))

        used = jnp.minimum((self.count + chunk - 1) // chunk, _CHUNKS)
        return jax.lax.fori_loop(0, used, add, jnp.zeros(size, plan.values.dtype))


def sparsify(semidual: Semidual, point: Point, budget: FloatScalar, capacity: int, *, must_fit: bool) -> Sparsified:
    """Keep what matters of the plan, dropping at most the fraction `budget` of a row's or a column's mass.

    There is no sorting: each trial is one pass over the matrix, and the kept entries themselves tell what was dropped.

    **Arguments:**

    - `semidual`, `point`: the plan.
    - `budget`: the fraction.
    - `capacity`: how many entries there is room for. If the budget needs more, the result has `count > capacity` and
        is incomplete; unless `must_fit`, which raises the threshold until it fits and the budget is exceeded.
    """
    n, m = semidual.kernel.shape
    b = semidual.problem.b
    slots = -(-capacity // _CHUNKS) * _CHUNKS

    def trial(factor: FloatScalar) -> Sparsified:
        row, column = factor * budget * point.row_sums / m, factor * budget * b / n
        plan = point.u[:, None] * semidual.kernel * point.v[None, :]
        keep = plan > jnp.minimum(row[:, None], column[None, :])
        rows, columns, count = compact(keep, slots)
        values = point.u[rows] * semidual.kernel[rows, columns] * point.v[columns]
        used = jnp.arange(slots, dtype=count.dtype) < count
        operator = SparseOperator(jnp.where(used, values, 0), rows, columns, (n, m))
        kept = Sparsified(operator, factor, count, jnp.array(False))
        within = jnp.all(kept.mv(jnp.ones_like(b)) >= (1 - budget) * point.row_sums)
        within &= jnp.all(kept.transpose_mv(jnp.ones_like(row)) >= (1 - budget) * b)
        return Sparsified(operator, factor, count, within)

    def too_coarse(kept: Sparsified) -> BoolScalar:
        return ~kept.within_budget & (kept.count <= capacity) & (kept.factor > 1)

    first = trial(jnp.asarray(_FIRST_FACTOR, budget.dtype))
    kept = jax.lax.while_loop(too_coarse, lambda s: trial(s.factor / 4), first)
    if must_fit:
        kept = jax.lax.while_loop(lambda s: s.count > capacity, lambda s: trial(2 * s.factor), kept)
    return kept


def compact(mask: Bool[Array, "n m"], capacity: int) -> tuple[Int[Array, " k"], Int[Array, " k"], IntScalar]:
    """List the true entries of a mask, row by row, in `capacity` slots.

    `jnp.nonzero(size=...)` runs a cumulative sum over all `n * m` entries, which costs as much as
    a hundred matrix-vector products. Here 32 entries are packed in a word, and only the words are
    summed; the entry within a word is found by bisection on bit counts.

    **Returns:**

    Row indices, column indices and how many entries are true. Slots beyond that hold valid indices; where there are
    more true entries than slots, the last ones are missing.
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
    return rows, columns, ends[-1]


def _position_of_set_bit(word: Array, rank: Int[Array, " k"]) -> Int[Array, " k"]:
    position = jnp.zeros_like(rank)
    for width in (16, 8, 4, 2, 1):
        low = (word >> position.astype(jnp.uint32)) & jnp.uint32((1 << width) - 1)
        below = jax.lax.population_count(low).astype(jnp.int32)
        skip = rank >= below
        rank = jnp.where(skip, rank - below, rank)
        position = jnp.where(skip, position + width, position)
    return position
