from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Inexact, Int

from .dictionary import AbstractDictionary
from .index_sets import product_bounds


class Constant(AbstractDictionary):
    """The constant function 1, to join to others with [`koopman_verify.Concatenate`][].

    !!! Example

        ```python
        Concatenate([Constant(), RBF(centres)])
        ```
    """

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "1"]:
        """Return 1."""
        return jnp.ones(1, x.dtype)

    def supremum(self) -> Float[Array, "1"]:
        """Return 1."""
        return jnp.ones(1)

    def lipschitz(self) -> Float[Array, "1"]:
        """Return 0."""
        return jnp.zeros(1)


class Concatenate(AbstractDictionary):
    """All functions of several dictionaries, one after the other.

    **Arguments:**

    - `parts`: dictionaries on the same states. Plain callables are allowed; then the bounds are unknown.

    **Raises:** `ValueError` if there are none.

    !!! Example

        ```python
        Concatenate([Monomials(2, 1), RBF(centres)])
        ```
    """

    parts: tuple[Callable, ...]

    def __init__(self, parts: Sequence[Callable]):
        self.parts = tuple(parts)
        if not self.parts:
            raise ValueError("`parts` must hold at least one dictionary")

    def __call__(self, x: Float[Array, " d"]) -> Inexact[Array, " N"]:
        """Return the values of every part."""
        return jnp.concatenate(_one_dtype([part(x) for part in self.parts]))

    def supremum(self) -> Float[Array, " N"] | None:
        """Return the bounds of the parts, or `None` if one is unknown."""
        return _join([_bound(part, "supremum") for part in self.parts])

    def lipschitz(self) -> Float[Array, " N"] | None:
        """Return the constants of the parts, or `None` if one is unknown."""
        return _join([_bound(part, "lipschitz") for part in self.parts])


class Product(AbstractDictionary):
    r"""Products of functions of separate coordinates, $\psi_n(x) = \prod_i \psi^{(i)}_{n_i}(x^{(i)})$.

    **Arguments:**

    - `factors`: dictionaries, each of its own group of coordinates.
    - `dimensions`: the number of coordinates of each group, in the order in which the state holds them.
    - `indices`: which functions to multiply, `[N, len(factors)]`, from [`koopman_verify.index_products`][];
        by default all combinations, the last factor running fastest.

    **Raises:** `ValueError` if the lengths do not fit.

    !!! Example

        ```python
        k = np.arange(-8, 9)
        pairs = index_products([abs(k), range(9)], degree=8)
        Product([Fourier(k), Hermite(8)], [1, 1], pairs)
        ```
    """

    factors: tuple[Callable, ...]
    indices: Int[Array, "N k"] | None
    dimensions: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, factors: Sequence[Callable], dimensions: Sequence[int], indices: Any = None):
        self.factors, self.dimensions = tuple(factors), tuple(int(d) for d in dimensions)
        if len(self.factors) != len(self.dimensions) or not self.factors or min(self.dimensions) < 1:
            raise ValueError(
                "`dimensions` must hold one positive number for each of `factors`; got "
                f"{self.dimensions} for {len(self.factors)} factors"
            )
        self.indices = None if indices is None else jnp.asarray(indices, jnp.int32)
        if self.indices is not None and (self.indices.ndim != 2 or self.indices.shape[1] != len(self.factors)):
            raise ValueError(f"`indices` must have shape [N, {len(self.factors)}]; got {list(self.indices.shape)}")
        if self.indices is not None and not isinstance(self.indices, Tracer):
            # JAX clamps what is out of range, which would be another function without a word.
            sizes = [_size(f, d) for f, d in zip(self.factors, self.dimensions, strict=True)]
            array = np.asarray(self.indices)
            if (array < 0).any() or (array >= np.array(sizes)).any():
                raise ValueError(f"`indices` must be in 0 .. size - 1 for factors of the sizes {sizes}")

    def __call__(self, x: Float[Array, " d"]) -> Inexact[Array, " N"]:
        """Return the products at one state."""
        if len(x) != sum(self.dimensions):
            raise ValueError(
                f"the state must have {sum(self.dimensions)} coordinates, as `dimensions` says; got {len(x)}"
            )
        groups = jnp.split(x, np.cumsum(self.dimensions)[:-1])
        values = _one_dtype([f(g) for f, g in zip(self.factors, groups, strict=True)])
        return jnp.prod(self._rows(values), axis=1)

    def supremum(self) -> Float[Array, " N"] | None:
        """Return the products of the bounds, or `None` if one is unknown."""
        sup = [_bound(f, "supremum") for f in self.factors]
        return None if any(s is None for s in sup) else jnp.prod(self._rows(sup), axis=1)

    def lipschitz(self) -> Float[Array, " N"] | None:
        r"""Return the constants from $|\nabla\prod f_i|^2 \le \sum_i (L_i \prod_{j\ne i} S_j)^2$, or `None`."""
        sup, lip = ([_bound(f, name) for f in self.factors] for name in ("supremum", "lipschitz"))
        if any(b is None for b in (*sup, *lip)):
            return None
        return product_bounds(self._rows(sup), self._rows(lip))

    def _rows(self, values: list[Any]) -> Array:
        """Return, for each product, the entries that belong to it."""
        indices = self.indices
        if indices is None:
            grids = np.meshgrid(*[np.arange(len(v)) for v in values], indexing="ij")
            indices = jnp.asarray(np.stack(grids, -1).reshape(-1, len(values)))
        return jnp.stack([v[indices[:, i]] for i, v in enumerate(values)], axis=1)


class Delay(AbstractDictionary):
    """Functions of each state in an embedding by delays.

    States are embedded by `Snapshots.from_trajectory(delays=...)`. A constant in `base` would occur once for each delay:
    leave it out, and join one [`koopman_verify.Constant`][].

    **Arguments:**

    - `base`: a dictionary on one state.
    - `num_delays`: the number of states in an embedded one.

    **Raises:** `ValueError` if `num_delays` is not positive.

    !!! Example

        ```python
        Delay(lambda x: x[:1], num_delays=20)
        ```
    """

    base: Callable
    num_delays: int = eqx.field(static=True)

    def __init__(self, base: Callable, num_delays: int):
        if num_delays < 1:
            raise ValueError(f"`num_delays` must be positive; got {num_delays}")
        self.base, self.num_delays = base, num_delays

    def __call__(self, x: Float[Array, " d"]) -> Inexact[Array, " N"]:
        """Return the functions of every delayed state, the oldest first."""
        if len(x) % self.num_delays:
            raise ValueError(f"the state must hold {self.num_delays} delayed ones; got {len(x)} coordinates")
        return jax.vmap(self.base)(x.reshape(self.num_delays, -1)).reshape(-1)

    def supremum(self) -> Float[Array, " N"] | None:
        """Return the bounds of `base`, once for each delay."""
        return _join([_bound(self.base, "supremum")] * self.num_delays)

    def lipschitz(self) -> Float[Array, " N"] | None:
        """Return the constants of `base`, once for each delay."""
        return _join([_bound(self.base, "lipschitz")] * self.num_delays)


def _bound(part: Callable, name: str) -> Array | None:
    return getattr(part, name)() if isinstance(part, AbstractDictionary) else None


def _join(bounds: list[Array | None]) -> Array | None:
    known = [b for b in bounds if b is not None]
    return jnp.concatenate(_one_dtype(known)) if len(known) == len(bounds) else None


def _one_dtype(arrays: list[Array]) -> list[Array]:
    # NumPy's rule: real and complex parts are joined on purpose, which strict promotion in JAX refuses.
    dtype = np.result_type(*[a.dtype for a in arrays])
    return [a.astype(dtype) for a in arrays]


def _size(factor: Callable, dimension: int) -> int:
    return jax.eval_shape(factor, jax.ShapeDtypeStruct((dimension,), jnp.result_type(float))).shape[0]
