import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Inexact, PyTree


def stop_gradient(tree: Any) -> Any:
    """Return `tree` with the derivatives of all its arrays stopped; what is not an array is passed on.

    **Arguments:**

    - `tree`: any pytree, an operator or another module as well.

    **Returns:**

    A pytree of that structure.

    !!! Example

        ```python
        operator = stop_gradient(operator)
        ```
    """
    dynamic, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(dynamic), static)


def same_structure(x: Any, y: Any) -> bool:
    """Whether two pytrees agree in structure, shapes and dtypes."""
    leaves_x, treedef_x = jtu.tree_flatten(x)
    leaves_y, treedef_y = jtu.tree_flatten(y)
    return treedef_x == treedef_y and all(
        a.shape == b.shape and a.dtype == b.dtype for a, b in zip(leaves_x, leaves_y, strict=True)
    )


def real_dtype(tree: Any) -> np.dtype:
    """Return the widest real floating dtype among the leaves: that of norms and inner products.

    **Arguments:**

    - `tree`: a pytree of real or complex arrays, of several precisions if need be.

    **Returns:**

    A NumPy dtype.

    **Raises:**

    `ValueError` if there is no leaf.

    !!! Example

        ```python
        real_dtype([jnp.ones(2, jnp.float32), jnp.ones(2, complex)])  # float64
        ```
    """
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


def tree_norm(x: Any) -> Float[Array, ""]:
    """Return the 2-norm over all leaves.

    **Arguments:**

    - `x`: a pytree of real or complex arrays.

    **Returns:**

    A real scalar, of the widest floating dtype among the leaves. It is not scaled against overflow.

    !!! Example

        ```python
        tree_norm({"a": jnp.array([3.0, 4.0j])})  # 5.0
        ```
    """
    return jnp.sqrt(tree_dot(x, x))


def tree_axpy(alpha: Inexact[ArrayLike, ""] | int, x: Any, y: Any) -> Any:
    """Return `alpha x + y`, leaf by leaf in each leaf's own dtype.

    **Arguments:**

    - `alpha`: a scalar.
    - `x`, `y`: pytrees of one structure, shapes and dtypes.

    **Returns:**

    A pytree of that structure.

    !!! Example

        ```python
        tree_axpy(2.0, {"a": jnp.ones(2)}, {"a": jnp.arange(2.0)})  # {"a": [2.0, 3.0]}
        ```
    """
    return jtu.tree_map(lambda a, b: jnp.asarray(alpha).astype(a.dtype) * a + b, x, y)


def tree_scale(alpha: Float[Array, ""], x: Any) -> Any:
    """Return `alpha x`, leaf by leaf in each leaf's own dtype."""
    return jtu.tree_map(lambda leaf: alpha.astype(leaf.dtype) * leaf, x)


def scale_of(b: Any, dot: Callable[[Any, Any], Array]) -> Float[Array, ""]:
    """Return a power of two near the size of `b`, and one where `b` is zero.

    Powers of two make scaling exact, so the iterates for `b` and for `2**k b` have the same digits.
    """
    dtype = real_dtype(b)
    finfo = jnp.finfo(dtype)
    if dot is tree_dot:
        peaks = [jnp.max(jnp.abs(leaf), initial=0).astype(dtype) for leaf in jtu.tree_leaves(b)]
        size = jnp.max(jnp.stack(peaks))
    else:
        # All that is known of `dot` is that it sums over every shard. Square roots keep the products in range, and
        # their sum is the 1-norm of `b`.
        roots = jtu.tree_map(lambda leaf: jnp.sqrt(jnp.abs(leaf)), b)
        size = dot(roots, roots).astype(dtype)
    size = jnp.where((size > 0) & (size <= finfo.max), size, 1)
    # Clearing the mantissa leaves the power of two. Both it and its inverse must be normal numbers.
    # (NumPy before 2 makes the product of a float32 scalar and an integer a float64.)
    smallest = 16 * float(finfo.tiny)
    size = jnp.clip(size, smallest, 1 / smallest)
    integer = jnp.dtype(f"int{finfo.bits}")
    mask = np.array(-1 << finfo.nmant, integer)
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(size, integer) & mask, dtype)


def stack_dot(V: Any, w: Any) -> Inexact[Array, " k"]:
    r"""Return the inner products $\langle v_i, w\rangle = \sum_j \overline{v_{ij}} w_j$ with vectors $v_i$ in a stack.

    Complex if every leaf is. Where only some are, the vectors are those of a real space, and so are the products.

    **Arguments:**

    - `V`: the vectors, along a leading axis of every leaf.
    - `w`: a vector.

    **Returns:**

    One number for each of the vectors.

    !!! Example

        ```python
        stack_dot(jnp.eye(3)[:2], jnp.arange(3.0))  # [0.0, 1.0]
        ```
    """
    leaves = jtu.tree_leaves(w)
    real = real_dtype(w)
    dtype = np.result_type(real, np.complex64) if all(map(jnp.iscomplexobj, leaves)) else real

    def leaf_dot(v, leaf):
        axes = tuple(range(leaf.ndim))
        contract = ((tuple(a + 1 for a in axes), axes), ((), ()))
        out = jax.lax.dot_general(jnp.conj(v), leaf, contract, precision=jax.lax.Precision.HIGHEST)
        return (out if jnp.issubdtype(dtype, jnp.complexfloating) else jnp.real(out)).astype(dtype)

    return ft.reduce(jnp.add, map(leaf_dot, jtu.tree_leaves(V), leaves))


def stack_combine(weights: Inexact[Array, "... k"], V: Any) -> Any:
    r"""Return the combination $\sum_i a_i v_i$ of the vectors $v_i$ in a stack.

    **Arguments:**

    - `weights`: $a$. With leading axes, as many combinations.
    - `V`: the vectors, along a leading axis of every leaf.

    **Returns:**

    A vector, of the dtypes of `V`, with the leading axes of the weights.

    !!! Example

        ```python
        stack_combine(jnp.array([2.0, 3.0]), jnp.eye(3)[:2])  # [2.0, 3.0, 0.0]
        ```
    """
    combine = ft.partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST)
    return jtu.tree_map(lambda v: combine(weights.astype(v.dtype), v), V)
