"""Means, variances and maxima over all pairs of classes, in row tiles: K x K numbers at once only where those are few."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._custom_types import FloatScalar
from ._product import product


_TILE = 4096


class PairMoments(NamedTuple):
    """Mean, variance and maximum of a symmetric function over the K(K-1)/2 pairs of classes."""

    mean: FloatScalar
    variance: FloatScalar
    maximum: FloatScalar


def over_pairs(fn: Callable[[Any, Any], Array], rows: Any, num: int) -> PairMoments:
    """Reduce `fn(some_rows, all_rows)`, a block of the symmetric K x K table, over the entries off the diagonal."""

    def reduce(table: Array, off: Array):
        count = jnp.sum(off).astype(table.dtype)
        mean = jnp.sum(jnp.where(off, table, 0)) / jnp.maximum(count, 1)
        squares = jnp.sum(jnp.where(off, (table - mean) ** 2, 0))
        return count, mean, squares, jnp.max(jnp.where(off, table, -jnp.inf))

    counts, means, squares, maxima = _over_tiles(fn, rows, num, lambda t, i, j: reduce(t, (i != j) & (i < num)))
    total = jnp.sum(counts)
    mean = jnp.sum(counts * means) / total
    # Tiles are joined as samples are, so that no digits cancel.
    variance = jnp.sum(squares + counts * jnp.where(counts > 0, means - mean, 0) ** 2) / total
    return PairMoments(mean, variance, jnp.max(maxima))


def frame_distance(
    a: Float[Array, "k d"],
    b: Float[Array, "k d"],
    diagonal: Float[Array, " k"],
    constant: float,
    *,
    left: Float[Array, " k"] | None = None,
    right: Float[Array, " k"] | None = None,
) -> FloatScalar:
    """Return ||G/||G|| - T|| in Frobenius norm, with G = a b^T + left 1^T + 1 right^T and T = diag(diagonal) + constant."""
    k = a.shape[0]
    zero = jnp.zeros(k, a.dtype)
    rows = (a, b, zero if left is None else left, zero if right is None else right)

    def block(some, every):
        return product(some[0], every[1].T) + some[2][:, None] + every[3][None]

    def squared(table, i, j):
        del j
        return jnp.sum(jnp.where(i < k, table, 0) ** 2)

    norm = jnp.sqrt(jnp.sum(_over_tiles(block, rows, k, squared)))
    # A product that vanishes counts as the zero matrix, which is at distance one.
    scale = jnp.where(norm > 0, norm, 1)

    def apart(table, i, j):
        target = jnp.where(i == j, diagonal[None], 0) + jnp.asarray(constant, table.dtype)
        return jnp.sum(jnp.where(i < k, table / scale - target, 0) ** 2)

    # Entry by entry: 2 - 2 <G, T>/||G|| would lose all digits near the frame.
    return jnp.sqrt(jnp.sum(_over_tiles(block, rows, k, apart)))


def _over_tiles(fn: Any, rows: Any, num: int, reduce: Any) -> Any:
    columns = jnp.arange(num)[None]
    if num <= _TILE:
        outs = reduce(fn(rows, rows), columns.T, columns)
        return jax.tree.map(lambda x: x[None], outs)
    tiles = -(-num // _TILE)

    def one(start):
        index = start + jnp.arange(_TILE)
        # Rows past the end are copies of the last; `reduce` knows them by their index.
        some = jax.tree.map(lambda x: x[jnp.minimum(index, num - 1)], rows)
        return reduce(fn(some, rows), index[:, None], columns)

    return jax.lax.map(one, _TILE * jnp.arange(tiles))
