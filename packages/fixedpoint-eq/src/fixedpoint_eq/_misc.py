from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array


def tree_where(pred: Array, x: Any, y: Any) -> Any:
    """Return `x` where the scalar, or the vector of one per sample, holds, else `y`."""
    return jtu.tree_map(lambda a, b: jnp.where(pred.reshape(pred.shape + (1,) * (jnp.ndim(a) - pred.ndim)), a, b), x, y)


def tree_sub(x: Any, y: Any) -> Any:
    """Return `x - y`."""
    return jtu.tree_map(jnp.subtract, x, y)


def stack_like(y: Any, size: int) -> Any:
    """Return a history of `size` zero vectors: leaves with a leading axis."""
    return jtu.tree_map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), y)


def stack_put(stack: Any, y: Any, hit: Array) -> Any:
    """Return the history with `y` in the place where `hit` holds."""

    # A select, not a scatter: a batch has a place of its own for each sample, and a scatter there is slow.
    def put(old, new):
        return jnp.where(hit.reshape(hit.shape + (1,) * new.ndim), new[None], old)

    return jtu.tree_map(put, stack, y)
