import functools as ft
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree


def real_dtype(tree: Any) -> np.dtype:
    """Return the widest real floating dtype among the leaves: that of norms and inner products."""
    leaves = jtu.tree_leaves(tree)
    if not leaves:
        raise ValueError("expected a pytree with at least one array; got one without leaves")
    # NumPy's promotion, because JAX's raises on mixed leaves under `jax_numpy_dtype_promotion="strict"`.
    return np.result_type(*(jnp.finfo(leaf.dtype).dtype for leaf in leaves))


def tree_dot(x: PyTree[Inexact[Array, "..."]], y: PyTree[Inexact[Array, "..."]]) -> Float[Array, ""]:
    r"""Return the real inner product $\operatorname{Re}\sum_i \overline{x_i} y_i$ over all leaves.

    **Arguments:**

    - `x`, `y`: pytrees of one structure, with real or complex arrays.

    **Returns:**

    A real scalar, of the widest floating dtype among the leaves.

    **Raises:**

    `ValueError` if the structures differ or there is no leaf.

    !!! Example

        ```python
        tree_dot({"a": jnp.ones(2)}, {"a": jnp.arange(2.0)})  # 1.0
        ```
    """
    dtype = real_dtype(x)

    def leaf_dot(a, b):
        # Contract all axes at once: a reshape to one axis would gather an array that is sharded on a later one.
        axes = tuple(range(a.ndim))
        out = jax.lax.dot_general(jnp.conj(a), b, ((axes, axes), ((), ())), precision=jax.lax.Precision.HIGHEST)
        return jnp.real(out).astype(dtype)

    return ft.reduce(jnp.add, jtu.tree_leaves(jtu.tree_map(leaf_dot, x, y)))


def tree_axpy(alpha: Float[Array, ""], x: Any, y: Any) -> Any:
    """Return `alpha x + y`, leaf by leaf in each leaf's own dtype."""
    return jtu.tree_map(lambda a, b: alpha.astype(a.dtype) * a + b, x, y)


def tree_scale(alpha: Float[Array, ""], x: Any) -> Any:
    """Return `alpha x`, leaf by leaf in each leaf's own dtype."""
    return jtu.tree_map(lambda leaf: alpha.astype(leaf.dtype) * leaf, x)
