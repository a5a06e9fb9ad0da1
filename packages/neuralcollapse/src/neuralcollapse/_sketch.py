"""Frequent Directions: the covariance of a stream in `rank` rows, with a bound on what was left out."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._custom_types import FloatScalar
from ._product import product


def compress(rows: Float[Array, "m d"], rank: int) -> tuple[Float[Array, "rank d"], FloatScalar]:
    r"""Return $B$ of `rank` rows and $\delta$ with $0 \preceq A^\top A - B^\top B \preceq \delta I$, for the rows $A$.

    One shrinking step of Frequent Directions (Algorithm 2 of arXiv:1501.01711). The squared singular values are taken from
    the smaller Gram matrix: what its rounding loses is of the size of the rounding of $A^\top A$ itself.
    """
    m, d = rows.shape
    if m <= rank:
        return jnp.zeros((rank, d), rows.dtype).at[:m].set(rows), jnp.zeros((), rows.dtype)
    if m <= d:
        gram = product(rows, rows.T)
    else:
        gram = product(rows.T, rows)
    squares, vectors = jnp.linalg.eigh(gram)
    squares, vectors = jnp.maximum(squares[::-1], 0), vectors[:, ::-1]
    kept = min(rank, len(squares))
    delta = squares[rank] if len(squares) > rank else jnp.zeros((), rows.dtype)
    top, vectors = squares[:kept], vectors[:, :kept]
    shrunk = jnp.maximum(top - delta, 0)
    if m <= d:
        # A row of the sketch is sqrt(shrunk) v^T with v^T = u^T A / sqrt(square).
        scale = jnp.sqrt(shrunk / jnp.where(top > 0, top, 1))
        sketch = scale[:, None] * product(vectors.T, rows)
    else:
        sketch = jnp.sqrt(shrunk)[:, None] * vectors.T
    return jnp.zeros((rank, d), rows.dtype).at[:kept].set(sketch), delta
