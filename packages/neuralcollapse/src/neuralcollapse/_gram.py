"""Sums of outer products, kept as their upper triangle: the other half of the work would be a copy."""

import itertools

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._product import product


# Below, one product is faster than several; above, eight leave little of the half to gain.
_BLOCK = 128
_MOST = 8


def add_gram(upper: Float[Array, "d d"], rows: Float[Array, "m d"]) -> Float[Array, "d d"]:
    """Add the outer products of the rows, in block rows from the diagonal on. What is left of the diagonal has no meaning."""
    d = rows.shape[1]
    blocks = max(1, min(d // _BLOCK, _MOST))
    edges = [round(i * d / blocks) for i in range(blocks + 1)]
    for start, stop in itertools.pairwise(edges):
        upper = upper.at[start:stop, start:].add(product(rows[:, start:stop].T, rows[:, start:]))
    return upper


def symmetric(upper: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Return the whole matrix."""
    return jnp.triu(upper) + jnp.triu(upper, 1).T
