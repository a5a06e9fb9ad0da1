from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from implicit_core.krylov import tree_dot
from jaxtyping import Array, Float, Inexact, PyTree


def two_norm(x: PyTree[Inexact[Array, "..."]]) -> Float[Array, ""]:
    """Return the 2-norm over all leaves, which may be real and complex and of several precisions."""
    return jnp.sqrt(tree_dot(x, x))


def real_dtype(tree: Any) -> np.dtype:
    """Return the widest real floating dtype among the leaves."""
    # NumPy's promotion, because JAX's raises on mixed leaves under `jax_numpy_dtype_promotion="strict"`.
    return np.result_type(*(jnp.finfo(leaf.dtype).dtype for leaf in jtu.tree_leaves(tree)))


def scalar_dtype(tree: Any) -> np.dtype:
    """Return the dtype of the scalars of the space: complex only if every leaf is."""
    real = real_dtype(tree)
    return np.result_type(real, np.complex64) if all(map(jnp.iscomplexobj, jtu.tree_leaves(tree))) else real


def stop_gradient(tree: Any) -> Any:
    """Return `tree` with the derivatives of all its arrays stopped; what is not an array is passed on."""
    dynamic, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(dynamic), static)


def tree_where(pred: Array, x: Any, y: Any) -> Any:
    """Return `x` where the scalar, or the vector of one per sample, holds, else `y`."""
    return jtu.tree_map(lambda a, b: jnp.where(pred.reshape(pred.shape + (1,) * (jnp.ndim(a) - pred.ndim)), a, b), x, y)


def tree_sub(x: Any, y: Any) -> Any:
    """Return `x - y`."""
    return jtu.tree_map(jnp.subtract, x, y)


def tree_axpy(alpha: Any, x: Any, y: Any) -> Any:
    """Return `alpha x + y`, leaf by leaf in each leaf's own dtype."""
    return jtu.tree_map(lambda a, b: jnp.asarray(alpha).astype(a.dtype) * a + b, x, y)


def stack_like(y: Any, size: int) -> Any:
    """Return a history of `size` zero vectors: leaves with a leading axis."""
    return jtu.tree_map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), y)


def stack_put(stack: Any, y: Any, hit: Array) -> Any:
    """Return the history with `y` in the place where `hit` holds."""

    # A select, not a scatter: a batch has a place of its own for each sample, and a scatter there is slow.
    def put(old, new):
        return jnp.where(hit.reshape(hit.shape + (1,) * new.ndim), new[None], old)

    return jtu.tree_map(put, stack, y)


def stack_dot(stack: Any, y: Any) -> Inexact[Array, " m"]:
    """Return the inner products, antilinear in the history, of each of its vectors with `y`."""
    dtype = scalar_dtype(y)
    whole = jnp.issubdtype(dtype, jnp.complexfloating)
    total = jnp.zeros(jtu.tree_leaves(stack)[0].shape[0], dtype)
    for v, leaf in zip(jtu.tree_leaves(stack), jtu.tree_leaves(y), strict=True):
        axes = tuple(range(leaf.ndim))
        contract = ((tuple(a + 1 for a in axes), axes), ((), ()))
        out = jax.lax.dot_general(jnp.conj(v), leaf, contract, precision=jax.lax.Precision.HIGHEST)
        total += (out if whole else jnp.real(out)).astype(dtype)
    return total


def stack_combine(weights: Inexact[Array, " m"], stack: Any) -> Any:
    """Return the sum of the vectors of the history with these weights."""

    def leaf(v):
        return jax.lax.dot_general(
            weights.astype(v.dtype), v, (((0,), (0,)), ((), ())), precision=jax.lax.Precision.HIGHEST
        )

    return jtu.tree_map(leaf, stack)
