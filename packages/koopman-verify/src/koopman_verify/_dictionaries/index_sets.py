from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


IndexSet: TypeAlias = Literal["total", "hyperbolic", "tensor"]


def index_set(dimension: int, degree: int, kind: IndexSet = "total") -> Int[Array, "N d"]:
    r"""Return the multi-indices $n \in \mathbb{N}^d$ of a set of tensor products.

    **Arguments:**

    - `dimension`, `degree`: the number $d$ of factors, and the highest degree $D$ of one.
    - `kind`: `"total"`, $\sum_i n_i \le D$; `"hyperbolic"`, $\prod_i (n_i + 1) \le D + 1$; `"tensor"`, $n_i \le D$.

    **Returns:** the indices `[N, d]`, the constant first. A set of the same kind and a lower degree is a leading part of
    it, so that dictionaries of rising degree are nested.

    **Raises:** `ValueError` if an argument is out of its range.

    !!! Example

        ```python
        index_set(2, 1)  # [[0, 0], [1, 0], [0, 1]]
        ```
    """
    if kind not in get_args(IndexSet):
        raise ValueError(f"`index_set` must be one of {get_args(IndexSet)}; got {kind!r}")
    if dimension < 1 or degree < 0:
        raise ValueError(f"`dimension` must be at least 1 and `degree` at least 0; got {dimension} and {degree}")
    found = list(_indices(dimension, kind, degree + 1 if kind == "hyperbolic" else degree))
    found.sort(key=lambda n: (_level(n, kind), [-k for k in n]))
    return jnp.asarray(np.array(found, np.int32))


def index_products(orders: Sequence[object], degree: int, kind: IndexSet = "hyperbolic") -> Int[Array, "N k"]:
    r"""Return which functions of several dictionaries to multiply, given the order of each function.

    **Arguments:**

    - `orders`: for each dictionary, the order of each of its functions, for example `abs(k)` for `Fourier`.
    - `degree`, `kind`: a product is kept if its orders are in the index set of this degree; see
        [`koopman_verify.index_set`][].

    **Returns:** positions `[N, k]` for [`koopman_verify.Product`][].

    **Raises:** `ValueError` if an argument is out of its range.

    !!! Example

        ```python
        index_products([abs(np.arange(-3, 4)), range(4)], degree=3)
        ```
    """
    if kind not in get_args(IndexSet):
        raise ValueError(f"`index_set` must be one of {get_args(IndexSet)}; got {kind!r}")
    ranks = [np.asarray(o, int) for o in orders]
    if not ranks or any(r.ndim != 1 or r.size == 0 or r.min() < 0 for r in ranks):
        raise ValueError("`orders` must hold a list of integers that are at least 0 for each dictionary")
    grid = np.stack(np.meshgrid(*[np.arange(len(r)) for r in ranks], indexing="ij"), -1).reshape(-1, len(ranks))
    level = np.array([_level([int(r[i]) for r, i in zip(ranks, row, strict=True)], kind) for row in grid])
    keep = level <= (degree + 1 if kind == "hyperbolic" else degree)
    if not keep.any():
        raise ValueError(f"no product has a degree of at most {degree}")
    order = np.argsort(level[keep], kind="stable")
    return jnp.asarray(grid[keep][order].astype(np.int32))


def tensor_values(table: Array, indices: Int[Array, "N d"]) -> Array:
    """Multiply one function of each coordinate: `table[i, n]` is function `n` of coordinate `i`."""
    return jnp.prod(table[jnp.arange(table.shape[0]), indices], axis=1)


def product_bounds(supremum: Float[Array, "N d"], lipschitz: Float[Array, "N d"]) -> Float[Array, " N"]:
    r"""Return Lipschitz constants of products in separate coordinates, $|\nabla\prod f_i|^2 \le \sum_i (L_i \prod_{j\ne i} S_j)^2$."""
    return jnp.prod(supremum, axis=1) * jnp.linalg.norm(lipschitz / supremum, axis=1)


def _level(n: Sequence[int], kind: IndexSet) -> int:
    if kind == "total":
        return int(sum(n))
    return int(np.prod([int(k) + 1 for k in n])) if kind == "hyperbolic" else int(max(n))


def _indices(dimension: int, kind: IndexSet, budget: int) -> Iterator[tuple[int, ...]]:
    """Enumerate by recursion: a high-dimensional box would not fit in memory."""
    if dimension == 0:
        yield ()
        return
    for k in range(budget if kind == "hyperbolic" else budget + 1):
        left = {"total": budget - k, "hyperbolic": budget // (k + 1), "tensor": budget}[kind]
        for rest in _indices(dimension - 1, kind, left):
            yield (k, *rest)
