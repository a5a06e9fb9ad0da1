import abc
import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Inexact

from .._dictionaries.radial import SLOPES, mean_distance, radial


Rule: TypeAlias = Literal["mean", "norm", "median"]


class AbstractKernel(eqx.Module):
    r"""A positive semidefinite kernel $k(x,y)$, the inner product of a reproducing kernel Hilbert space.

    Kernels add and multiply: `Polynomial(20, d) * Laplacian(d)`. Every callable from two states `[d]` to a number works as
    a kernel; a complex one is Hermitian and linear in what `y` stands for, $k(x,y)=\langle k_x,k_y\rangle=k_y(x)$.

    !!! Example

        ```python
        kernels.gram(kernels.Gaussian(0.5), snapshots.x)
        ```
    """

    @abc.abstractmethod
    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Inexact[Array, ""]:
        """Return $k(x, y)$."""

    @abc.abstractmethod
    def supremum(self) -> Float[Array, ""] | None:
        """Return a bound on $k(x,x)$, or `None` if there is none."""

    @abc.abstractmethod
    def lipschitz(self) -> Float[Array, ""] | None:
        r"""Return a Lipschitz constant of $k(\cdot,y)$ for all $y$, or `None` if there is none or it is unknown."""

    def __add__(self, other: "AbstractKernel") -> "Sum":
        return Sum(self, other)

    def __mul__(self, other: "AbstractKernel") -> "Product":
        return Product(self, other)


class Gaussian(AbstractKernel):
    r"""$e^{-|x-y|^2/d^2}$.

    **Arguments:**

    - `scale`: the length $d>0$; see [`koopman_verify.kernels.bandwidth`][].

    !!! Example

        ```python
        kernels.Gaussian(kernels.bandwidth(snapshots.x, factor=0.9))
        ```
    """

    scale: Float[Array, ""]

    def __init__(self, scale: Any):
        self.scale = _positive("scale", scale)

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        """Return the kernel of two states."""
        return radial("gaussian", _square(x, y, self.scale))

    def supremum(self) -> Float[Array, ""]:
        """Return 1."""
        return jnp.ones_like(self.scale)

    def lipschitz(self) -> Float[Array, ""]:
        r"""Return $\sqrt{2/e}/d$."""
        return SLOPES["gaussian"] / self.scale


class Laplacian(AbstractKernel):
    r"""$e^{-|x-y|/d}$.

    **Arguments:**

    - `scale`: the length $d>0$.

    !!! Example

        ```python
        kernels.Laplacian(kernels.bandwidth(snapshots.x))
        ```
    """

    scale: Float[Array, ""]

    def __init__(self, scale: Any):
        self.scale = _positive("scale", scale)

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        """Return the kernel of two states."""
        return radial("laplacian", _square(x, y, self.scale))

    def supremum(self) -> Float[Array, ""]:
        """Return 1."""
        return jnp.ones_like(self.scale)

    def lipschitz(self) -> Float[Array, ""]:
        """Return $1/d$."""
        return SLOPES["laplacian"] / self.scale


class Lorentzian(AbstractKernel):
    r"""$1/(1+|x-y|^2/d^2)$.

    **Arguments:**

    - `scale`: the length $d>0$.

    !!! Example

        ```python
        kernels.Lorentzian(kernels.bandwidth(snapshots.x))
        ```
    """

    scale: Float[Array, ""]

    def __init__(self, scale: Any):
        self.scale = _positive("scale", scale)

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        """Return the kernel of two states."""
        return radial("lorentzian", _square(x, y, self.scale))

    def supremum(self) -> Float[Array, ""]:
        """Return 1."""
        return jnp.ones_like(self.scale)

    def lipschitz(self) -> Float[Array, ""]:
        r"""Return $9/(8\sqrt3d)$."""
        return SLOPES["lorentzian"] / self.scale


class Matern(AbstractKernel):
    r"""$\tfrac{2^{1-\nu}}{\Gamma(\nu)}r^\nu K_\nu(r)$, $r=\sqrt{2\nu}|x-y|/d$: a Sobolev space of order $\nu+\dim/2$.

    $\nu=\tfrac12,\tfrac32,\tfrac52$ have closed forms; others are integrals, by a rule (100 nodes for $\nu=2$) that is exact
    to rounding. The Duffing example of arXiv:2506.15782, $r^2K_2(r)$ with $r=6|x-y|$, is twice `Matern(1 / 3, nu=2.0)`.

    **Arguments:**

    - `scale`: the length $d>0$.
    - `nu`: the smoothness $\nu\ge\tfrac12$.

    **Raises:** `ValueError` if `nu` is less than a half.

    !!! Example

        ```python
        kernels.Matern(0.5, nu=2.5)
        ```
    """

    scale: Float[Array, ""]
    nu: float = eqx.field(static=True)

    def __init__(self, scale: Any, nu: float = 1.5):
        if not 0.5 <= nu < math.inf:
            raise ValueError(f"`nu` must be at least 0.5; got {nu}")
        self.scale, self.nu = _positive("scale", scale), float(nu)

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        """Return the kernel of two states."""
        square = _square(x, y, self.scale)
        if self.nu == 0.5:
            return radial("laplacian", square)
        if self.nu == 1.5:
            return radial("matern32", square)
        if self.nu == 2.5:
            return radial("matern52", square)
        # (1/Gamma(nu)) * integral of s^(nu-1) exp(-s - r^2/(4s)), s = e^u: the trapezoidal rule converges exponentially.
        left, right = -38 / self.nu, math.log(60 + 8 * self.nu)
        u = np.linspace(left, right, math.ceil(4 * (right - left)))
        log_weights = self.nu * u - np.exp(u) - math.lgamma(self.nu) + math.log(u[1] - u[0])
        decay = jnp.asarray(self.nu / 2 * np.exp(-u), square.dtype)
        return jnp.sum(jnp.exp(jnp.asarray(log_weights, square.dtype) - decay * square))

    def supremum(self) -> Float[Array, ""]:
        """Return 1."""
        return jnp.ones_like(self.scale)

    def lipschitz(self) -> Float[Array, ""] | None:
        """Return the largest slope for the closed forms, else `None`."""
        slope = {0.5: "laplacian", 1.5: "matern32", 2.5: "matern52"}.get(self.nu)
        return None if slope is None else SLOPES[slope] / self.scale


class Polynomial(AbstractKernel):
    r"""$(1+x\cdot y/d^2)^p$.

    **Arguments:**

    - `degree`: $p\ge1$.
    - `scale`: the length $d>0$; the published examples take the mean norm of the states.

    **Raises:** `ValueError` if `degree` is not positive.

    !!! Example

        ```python
        kernels.Polynomial(20, kernels.bandwidth(snapshots.x, "norm")) * kernels.Laplacian(kernels.bandwidth(snapshots.x))
        ```
    """

    scale: Float[Array, ""]
    degree: int = eqx.field(static=True)

    def __init__(self, degree: int, scale: Any = 1.0):
        if degree < 1:
            raise ValueError(f"`degree` must be positive; got {degree}")
        self.degree, self.scale = int(degree), _positive("scale", scale)

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        """Return the kernel of two states."""
        return (1 + x @ y / self.scale.astype(x.dtype) ** 2) ** self.degree

    def supremum(self) -> None:
        """Return `None`: it is unbounded."""
        return

    def lipschitz(self) -> None:
        """Return `None`."""
        return


class Sobolev(AbstractKernel):
    r"""$\prod_i\cosh(\min(x_i,y_i)-a)\cosh(b-\max(x_i,y_i))/\sinh(b-a)$: the space $H^1(a,b)$ with $\int fg+f'g'$.

    **Arguments:**

    - `lower`, `upper`: $a<b$, the interval of every coordinate.

    **Raises:** `ValueError` if `lower` is not below `upper`.

    !!! Example

        ```python
        kernels.Sobolev(-1.0, 0.0)  # for the Gauss map
        ```
    """

    lower: float = eqx.field(static=True)
    upper: float = eqx.field(static=True)

    def __check_init__(self):
        if not -math.inf < self.lower < self.upper < math.inf:
            raise ValueError(f"`lower` must be below `upper`; got {self.lower} and {self.upper}")

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        """Return the kernel of two states."""
        low, high = jnp.minimum(x, y) - self.lower, self.upper - jnp.maximum(x, y)
        return jnp.prod(jnp.cosh(low) * jnp.cosh(high) / math.sinh(self.upper - self.lower))

    def supremum(self) -> None:
        """Return `None`: the bound on the interval depends on the number of coordinates."""
        return

    def lipschitz(self) -> None:
        """Return `None`, for the same reason."""
        return


class Sum(AbstractKernel):
    """The sum of two kernels; write `first + second`.

    **Arguments:**

    - `first`, `second`: the kernels.

    !!! Example

        ```python
        kernels.Gaussian(0.5) + kernels.Laplacian(1.0)
        ```
    """

    first: AbstractKernel
    second: AbstractKernel

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Inexact[Array, ""]:
        """Return the kernel of two states."""
        return self.first(x, y) + self.second(x, y)

    def supremum(self) -> Float[Array, ""] | None:
        """Return the sum of the bounds."""
        a, b = self.first.supremum(), self.second.supremum()
        return None if a is None or b is None else a + b

    def lipschitz(self) -> Float[Array, ""] | None:
        """Return the sum of the constants."""
        a, b = self.first.lipschitz(), self.second.lipschitz()
        return None if a is None or b is None else a + b


class Product(AbstractKernel):
    """The product of two kernels; write `first * second`.

    **Arguments:**

    - `first`, `second`: the kernels.

    !!! Example

        ```python
        kernels.Polynomial(2) * kernels.Laplacian(1.0)
        ```
    """

    first: AbstractKernel
    second: AbstractKernel

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Inexact[Array, ""]:
        """Return the kernel of two states."""
        return self.first(x, y) * self.second(x, y)

    def supremum(self) -> Float[Array, ""] | None:
        """Return the product of the bounds."""
        a, b = self.first.supremum(), self.second.supremum()
        return None if a is None or b is None else a * b

    def lipschitz(self) -> Float[Array, ""] | None:
        """Return the constant of the product rule."""
        bounds = (self.first.supremum(), self.first.lipschitz(), self.second.supremum(), self.second.lipschitz())
        s, m, t, n = bounds
        return None if s is None or m is None or t is None or n is None else m * t + s * n


def gram(
    kernel: Callable, x: Float[Array, "M d"], y: Float[Array, "N d"] | None = None, *, block: int | None = None
) -> Inexact[Array, "M N"]:
    r"""Return the matrix $k(x_i,y_j)$.

    **Arguments:**

    - `kernel`: a kernel.
    - `x`, `y`: states; `y` is `x` if left out.
    - `block`: how many rows are computed at once; by default what keeps intermediate arrays below 64 MiB.

    **Returns:** the matrix `[M, N]`.

    !!! Example

        ```python
        kernels.gram(kernels.Gaussian(0.5), snapshots.x, snapshots.y)
        ```
    """
    if block is not None and block < 1:
        raise ValueError(f"`block` must be positive; got {block}")
    y = x if y is None else y
    rows = max(1, 2**26 // (8 * max(1, y.size))) if block is None else block
    return _gram(kernel, x, y, min(rows, len(x)))


def bandwidth(x: Float[Array, "M d"], rule: Rule = "mean", *, factor: float = 1.0) -> Float[Array, ""]:
    r"""Return a length scale of a cloud of states.

    **Arguments:**

    - `x`: states `[M, d]`.
    - `rule`: `"mean"`, the mean of $|x-\bar x|$ (with `factor=0.9` that of the published Gaussian kernels); `"norm"`, the
        mean of $|x|$ (of the polynomial kernels); `"median"`, the median of $|x_i-x_j|$, of at most 1000 of the states.
    - `factor`: what to multiply it by.

    **Returns:** the length.

    **Raises:** `ValueError` for an unknown rule.

    !!! Example

        ```python
        kernels.Gaussian(kernels.bandwidth(snapshots.x, factor=0.9))
        ```
    """
    if rule not in get_args(Rule):
        raise ValueError(f"`rule` must be one of {get_args(Rule)}; got {rule!r}")
    if x.ndim != 2:
        raise ValueError(f"`x` must hold states, [M, d]; got shape {list(x.shape)}")
    if rule == "mean":
        return factor * mean_distance(x)
    if rule == "norm":
        return factor * jnp.mean(jnp.linalg.norm(x, axis=1))
    some = x[:: max(1, math.ceil(len(x) / 1000))]
    i, j = np.triu_indices(len(some), 1)
    return factor * jnp.median(jnp.linalg.norm(some[i] - some[j], axis=1))


def pointwise_bound(kernel: Callable, norms: Float[Array, "*k"], x: Float[Array, " d"]) -> Float[Array, "*k"]:
    r"""Return $\lVert f\rVert\sqrt{k(x,x)}\ge|f(x)|$, which bounds a function at a point by its norm in the space.

    Applied to what an eigenfunction misses, $\lVert K^*g-\lambda g\rVert\le$ residual times norm, it makes a certificate
    in the norm one for every point. There is nothing alike in $L^2$.

    **Arguments:**

    - `kernel`: the kernel.
    - `norms`: norms $\lVert f\rVert$ in its space.
    - `x`: a state.

    **Returns:** bounds of the shape of `norms`.

    !!! Example

        ```python
        kernels.pointwise_bound(kernel, pairs.residuals, x)
        ```
    """
    return norms * jnp.sqrt(jnp.real(kernel(x, x)))


@eqx.filter_jit
def _gram(kernel: Callable, x: Array, y: Array, rows: int) -> Array:
    return jax.lax.map(lambda a: jax.vmap(lambda b: kernel(a, b))(y), x, batch_size=rows)


def _square(x: Array, y: Array, scale: Array) -> Array:
    return jnp.sum((x - y) ** 2) / scale.astype(x.dtype) ** 2


def _positive(name: str, value: Any) -> Array:
    array = jnp.asarray(value, None if eqx.is_inexact_array(value) else jnp.result_type(float))
    if array.shape != () or (not isinstance(array, Tracer) and not 0 < float(array) < math.inf):
        raise ValueError(f"`{name}` must be one positive number; got {value}")
    return array
