from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from .dictionary import AbstractDictionary, one_state
from .index_sets import IndexSet, index_set as _index_set, product_bounds, tensor_values


class Hermite(AbstractDictionary):
    r"""Hermite functions, orthonormal in $L^2(\mathbb{R}^d)$.

    In one dimension $\psi_n(x) = s^{-1/2} h_n((x - c)/s)$ with $h_n(t) = H_n(t) e^{-t^2/2} / \sqrt{2^n n! \sqrt\pi}$, from
    their three-term recurrence with a running scale, which neither overflows nor underflows; products in more.

    **Arguments:**

    - `degree`: the highest degree.
    - `dimension`: the dimension $d$ of the state.
    - `centre`, `scale`: $c$ and $s > 0$, numbers or one for each coordinate.
    - `index_set`: which products of one-dimensional functions to take; see [`koopman_verify.index_set`][].

    **Raises:** `ValueError` if an argument is out of its range.

    !!! Example

        ```python
        Hermite(8, dimension=2, scale=0.7)(jnp.array([0.3, -1.0]))
        ```
    """

    indices: Int[Array, "N d"]
    centre: Float[Array, " d"]
    scale: Float[Array, " d"]
    degree: int = eqx.field(static=True)

    def __init__(
        self,
        degree: int,
        dimension: int = 1,
        *,
        centre: Any = 0.0,
        scale: Any = 1.0,
        index_set: IndexSet = "total",
    ):
        self.indices = _index_set(dimension, degree, index_set)
        self.centre = _coordinates("centre", centre, dimension)
        self.scale = _coordinates("scale", scale, dimension)
        self.degree = degree
        _check_positive("scale", self.scale)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " N"]:
        """Return the functions at one state."""
        x = one_state(x, len(self.centre))
        centre, scale = self.centre.astype(x.dtype), self.scale.astype(x.dtype)
        t = (x - centre) / scale
        n = np.arange(self.degree, dtype=np.float64)
        table = _three_term(t, np.sqrt(2 / (n + 1)), np.sqrt(n / (n + 1)), -(t**2) / 2)
        return tensor_values(table * np.pi**-0.25 / jnp.sqrt(scale)[:, None], self.indices)

    def supremum(self) -> Float[Array, " N"]:
        r"""Return Cramér's bound in Indritz' form, $|h_n| \le \pi^{-1/4}$ for every $n$."""
        return jnp.full(len(self.indices), jnp.prod(np.pi**-0.25 / jnp.sqrt(self.scale)))

    def lipschitz(self) -> Float[Array, " N"]:
        r"""Return the bound from $h_n' = \sqrt{n/2}\,h_{n-1} - \sqrt{(n+1)/2}\,h_{n+1}$."""
        n = self.indices.astype(self.scale.dtype)
        sup = jnp.broadcast_to((np.pi**-0.25 / jnp.sqrt(self.scale))[None], n.shape)
        return product_bounds(sup, sup * (jnp.sqrt(n / 2) + jnp.sqrt((n + 1) / 2)) / self.scale[None])


class Legendre(AbstractDictionary):
    r"""Legendre polynomials, orthonormal for the uniform probability measure of a box.

    $\psi_n(x) = \sqrt{2n+1}\,P_n(t)$, where $t$ maps the box to $[-1, 1]^d$; products in more than one dimension. Outside the
    box a function takes its value at the nearest point of the box, so that its bounds hold everywhere.

    **Arguments:**

    - `degree`: the highest degree.
    - `lower`, `upper`: the corners of the box, numbers for an interval, arrays `[d]` for a box.
    - `index_set`: which products of one-dimensional functions to take; see [`koopman_verify.index_set`][].

    **Raises:** `ValueError` if an argument is out of its range.

    !!! Example

        ```python
        Legendre(40, -1.0, 0.0)(jnp.array([-0.3]))
        ```
    """

    indices: Int[Array, "N d"]
    lower: Float[Array, " d"]
    upper: Float[Array, " d"]
    degree: int = eqx.field(static=True)

    def __init__(self, degree: int, lower: Any = -1.0, upper: Any = 1.0, *, index_set: IndexSet = "total"):
        self.lower, self.upper = _box(lower, upper)
        self.indices = _index_set(len(self.lower), degree, index_set)
        self.degree = degree

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " N"]:
        """Return the polynomials at one state."""
        x = one_state(x, len(self.lower))
        n = np.arange(self.degree, dtype=np.float64)
        table = _three_term(_to_cube(x, self.lower, self.upper), (2 * n + 1) / (n + 1), n / (n + 1))
        norm = np.sqrt(2 * np.arange(self.degree + 1) + 1)
        return tensor_values(table * jnp.asarray(norm, x.dtype)[None], self.indices)

    def supremum(self) -> Float[Array, " N"]:
        r"""Return $\prod_i\sqrt{2n_i+1}$, attained at a corner."""
        return jnp.prod(jnp.sqrt(2 * self.indices.astype(self.lower.dtype) + 1), axis=1)

    def lipschitz(self) -> Float[Array, " N"]:
        r"""Return the bound from $|P_n'| \le n(n+1)/2$, which is attained in one dimension."""
        n = self.indices.astype(self.lower.dtype)
        sup = jnp.sqrt(2 * n + 1)
        return product_bounds(sup, sup * n * (n + 1) / (self.upper - self.lower)[None])


class Chebyshev(AbstractDictionary):
    r"""Chebyshev polynomials, orthonormal for the arcsine probability measure of a box.

    $\psi_0 = 1$, $\psi_n(x) = \sqrt2\,T_n(t)$, where $t$ maps the box to $[-1, 1]^d$; products in more than one dimension.
    Outside the box a function takes its value at the nearest point of the box, so that its bounds hold everywhere.

    **Arguments:**

    - `degree`: the highest degree.
    - `lower`, `upper`: the corners of the box, numbers for an interval, arrays `[d]` for a box.
    - `index_set`: which products of one-dimensional functions to take; see [`koopman_verify.index_set`][].

    **Raises:** `ValueError` if an argument is out of its range.

    !!! Example

        ```python
        Chebyshev(10, [-2.0, -2.0], [2.0, 2.0])(jnp.array([0.3, -1.0]))
        ```
    """

    indices: Int[Array, "N d"]
    lower: Float[Array, " d"]
    upper: Float[Array, " d"]
    degree: int = eqx.field(static=True)

    def __init__(self, degree: int, lower: Any = -1.0, upper: Any = 1.0, *, index_set: IndexSet = "total"):
        self.lower, self.upper = _box(lower, upper)
        self.indices = _index_set(len(self.lower), degree, index_set)
        self.degree = degree

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " N"]:
        """Return the polynomials at one state."""
        x = one_state(x, len(self.lower))
        n = np.arange(self.degree)
        table = _three_term(_to_cube(x, self.lower, self.upper), np.where(n == 0, 1.0, 2.0), np.where(n == 0, 0.0, 1.0))
        norm = np.where(np.arange(self.degree + 1) == 0, 1.0, np.sqrt(2.0))
        return tensor_values(table * jnp.asarray(norm, x.dtype)[None], self.indices)

    def supremum(self) -> Float[Array, " N"]:
        r"""Return $\sqrt2$ to the number of factors that are not constant."""
        return jnp.prod(_chebyshev_norm(self.indices, self.lower.dtype), axis=1)

    def lipschitz(self) -> Float[Array, " N"]:
        r"""Return the bound from $|T_n'| \le n^2$, which is attained in one dimension."""
        n = self.indices.astype(self.lower.dtype)
        sup = _chebyshev_norm(self.indices, self.lower.dtype)
        return product_bounds(sup, sup * n**2 * 2 / (self.upper - self.lower)[None])


class Monomials(AbstractDictionary):
    r"""Monomials $\psi_n(x) = \prod_i ((x_i - c_i)/s_i)^{n_i}$.

    Under a linear map they span an invariant space, so that EDMD is exact there. They are ill-conditioned for high degree:
    prefer [`koopman_verify.Legendre`][] on a box.

    **Arguments:**

    - `dimension`: the dimension $d$ of the state.
    - `degree`: the highest degree.
    - `index_set`: which monomials to take; see [`koopman_verify.index_set`][].
    - `centre`, `scale`: $c$ and $s > 0$, numbers or one for each coordinate.

    **Raises:** `ValueError` if an argument is out of its range.

    !!! Example

        ```python
        Monomials(2, 3)(jnp.array([0.3, -1.0]))
        ```
    """

    indices: Int[Array, "N d"]
    centre: Float[Array, " d"]
    scale: Float[Array, " d"]
    degree: int = eqx.field(static=True)

    def __init__(
        self, dimension: int, degree: int, index_set: IndexSet = "total", *, centre: Any = 0.0, scale: Any = 1.0
    ):
        self.indices = _index_set(dimension, degree, index_set)
        self.centre = _coordinates("centre", centre, dimension)
        self.scale = _coordinates("scale", scale, dimension)
        self.degree = degree
        _check_positive("scale", self.scale)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " N"]:
        """Return the monomials at one state."""
        x = one_state(x, len(self.centre))
        t = (x - self.centre.astype(x.dtype)) / self.scale.astype(x.dtype)
        steps = jnp.concatenate([jnp.ones_like(t)[:, None], jnp.tile(t[:, None], self.degree)], axis=1)
        return tensor_values(jnp.cumprod(steps, axis=1), self.indices)

    def supremum(self) -> None:
        """Return `None`: they are unbounded."""
        return

    def lipschitz(self) -> None:
        """Return `None`: all but the linear ones have no Lipschitz constant."""
        return


def _three_term(t: Float[Array, " d"], a: np.ndarray, c: np.ndarray, log_start: Array | None = None) -> Array:
    """Return `p_0 .. p_n` of `p_{k+1} = a_k t p_k - c_k p_{k-1}`, `p_0 = exp(log_start)`, as a table `[d, n + 1]`."""
    ones = jnp.ones_like(t)
    limit = jnp.asarray(1e10, t.dtype)

    def step(carry: tuple[Array, Array, Array], coefficients: tuple[Array, Array]) -> tuple[Any, Array]:
        before, p, log_scale = carry
        after = coefficients[0] * t * p - coefficients[1] * before
        # The running scale is a constant to derivatives: it is divided out of the values and put back by the exponential.
        size = jax.lax.stop_gradient(jnp.abs(after))
        size = jnp.where(size > limit, size, jnp.ones_like(size))
        log_scale = log_scale + jnp.log(size)
        after, p = after / size, p / size
        return (p, after, log_scale), after * jnp.exp(log_scale)

    log_scale = jnp.zeros_like(t) if log_start is None else log_start
    xs = (jnp.asarray(a, t.dtype), jnp.asarray(c, t.dtype))
    _, rest = jax.lax.scan(step, (jnp.zeros_like(t), ones, log_scale), xs)
    return jnp.concatenate([jnp.exp(log_scale)[None], rest]).T


def _to_cube(x: Array, lower: Array, upper: Array) -> Array:
    lower, upper = lower.astype(x.dtype), upper.astype(x.dtype)
    return jnp.clip((2 * x - lower - upper) / (upper - lower), -1, 1)


def _chebyshev_norm(indices: Array, dtype: Any) -> Array:
    return jnp.where(indices == 0, 1.0, 2.0**0.5).astype(dtype)


def _coordinates(name: str, value: Any, dimension: int) -> Array:
    array = jnp.asarray(value, jnp.result_type(float))
    if array.ndim > 1 or array.size not in (1, dimension):
        raise ValueError(f"`{name}` must be a number or have shape [{dimension}]; got shape {list(array.shape)}")
    return jnp.broadcast_to(array.reshape(-1), (dimension,))


def _check_positive(name: str, value: Array) -> None:
    if not isinstance(value, Tracer) and not bool((value > 0).all()):
        raise ValueError(f"`{name}` must be positive; got {value}")


def _box(lower: Any, upper: Any) -> tuple[Array, Array]:
    dimension = max(np.size(lower), np.size(upper))
    low, high = _coordinates("lower", lower, dimension), _coordinates("upper", upper, dimension)
    if not isinstance(low, Tracer) and not isinstance(high, Tracer) and not bool((low < high).all()):
        raise ValueError(f"`lower` must be below `upper`; got {low} and {high}")
    return low, high
