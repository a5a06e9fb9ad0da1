from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from .._factor.snapshots import Kind, Snapshots


class System(eqx.Module):
    r"""A map whose spectrum is known, with a dictionary and snapshots on which the answer is exact.

    **Attributes:**

    - `name`: what it is called in the documentation.
    - `map_fn`: the map $F$, `[d]` to `[d]`.
    - `measure_preserving`: whether $F$ preserves the measure of the snapshots.
    - `dictionary`, `snapshots`: a choice for which the answers below hold; `None` where there is no canonical one.
    - `eigenvalues`: exact eigenvalues `[k]`, of EDMD where the choice above makes it exact, else of the operator.
    - `residuals`: the exact residuals `[k]` of those EDMD eigenpairs, where known.
    - `distance_fn`: $z\mapsto\sigma_{\inf}(K-z)$, or `None`. For a normal operator it is the distance from the spectrum.
    - `h_fn`: $z\mapsto h_N(z)$ for `dictionary`, or `None`.

    !!! Example

        ```python
        from koopman_verify import problems

        system = problems.rotation(1.0)
        factor = koopman_verify.factor(system.dictionary, system.snapshots)
        ```
    """

    name: str = eqx.field(static=True)
    map_fn: Any
    measure_preserving: bool = eqx.field(static=True, default=False)
    # `Any`, as what a system lacks is `None` and users know which one they asked for.
    dictionary: Any = None
    snapshots: Any = None
    eigenvalues: Any = None
    residuals: Any = None
    distance_fn: Any = None
    h_fn: Any = None

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Return $F(x)$."""
        return self.map_fn(x)


class SpectralProblem(eqx.Module):
    r"""An operator as a matrix, a vector, and the density of its spectral measure.

    **Attributes:**

    - `name`: what it is called in the documentation.
    - `operator`, `vector`: a matrix and $g$, in an orthonormal basis.
    - `density_fn`: the density, of the angle $\theta$ for a unitary operator, of the real line for a self-adjoint one.
    - `moment_fn`: $n\mapsto\langle K^ng,g\rangle$.

    !!! Example

        ```python
        problems.rogers_szego(0.95).density_fn(jnp.linspace(-jnp.pi, jnp.pi, 9))
        ```
    """

    name: str = eqx.field(static=True)
    operator: Inexact[Array, "n n"]
    vector: Inexact[Array, " n"]
    density_fn: Callable
    moment_fn: Callable


def snapshots(
    map_fn: Callable, nodes: Float[Array, "M d"], weights: Float[Array, " M"] | None = None, kind: Kind = "quadrature"
) -> Snapshots:
    """Apply a map to the nodes of a rule.

    **Arguments:**

    - `map_fn`: the map, `[d]` to `[d]`.
    - `nodes`, `weights`: a rule, for example from [`koopman_verify.problems.gauss_legendre`][].
    - `kind`: what the snapshots are.

    **Returns:** snapshots.

    !!! Example

        ```python
        problems.snapshots(problems.gauss_map().map_fn, *problems.gauss_legendre(40, -1.0, 0.0))
        ```
    """
    return Snapshots(nodes, eqx.filter_jit(_push)(map_fn, nodes), weights, kind)


def trajectory(map_fn: Callable, x0: Float[Array, " d"], num: int, *, discard: int = 0) -> Float[Array, "T d"]:
    """Return `num` consecutive states of a map, of which `x0` is the first if `discard` is 0.

    **Arguments:**

    - `map_fn`: the map, `[d]` to `[d]`.
    - `x0`: the initial state.
    - `num`: how many states to return.
    - `discard`: how many states to leave out at the start.

    **Returns:** states `[num, d]`, for `Snapshots.from_trajectory`.

    !!! Example

        ```python
        Snapshots.from_trajectory(problems.trajectory(problems.lorenz(0.05).map_fn, jnp.ones(3), 10_000))
        ```
    """
    return eqx.filter_jit(_orbit)(map_fn, x0, num + discard)[discard:]


def equispaced(num: int, dimension: int = 1, *, period: float = 2 * np.pi) -> tuple[Array, Array]:
    """Return equispaced nodes of a torus, `num` in each dimension: exact for frequencies below `num`.

    **Arguments:**

    - `num`: nodes in each dimension.
    - `dimension`, `period`: those of the torus.

    **Returns:** nodes `[num**dimension, dimension]` and weights of sum one.

    !!! Example

        ```python
        x, weights = problems.equispaced(64)
        ```
    """
    t, w = np.arange(num) * (period / num), np.full(num, 1 / num)
    return _tensor([t] * dimension, [w] * dimension)


def gauss_legendre(num: int, lower: Any = -1.0, upper: Any = 1.0) -> tuple[Array, Array]:
    """Return Gauss-Legendre nodes of a box, `num` in each dimension: exact for degrees below `2 * num`.

    **Arguments:**

    - `num`: nodes in each dimension.
    - `lower`, `upper`: the corners of the box, numbers or `[d]`.

    **Returns:** nodes `[num**d, d]` and weights of sum one.

    !!! Example

        ```python
        x, weights = problems.gauss_legendre(40, -1.0, 0.0)
        ```
    """
    t, w = np.polynomial.legendre.leggauss(num)
    return _boxed(t, w / 2, lower, upper)


def trapezoid(num: int, lower: Any, upper: Any) -> tuple[Array, Array]:
    """Return the trapezoidal rule of a box, `num` nodes in each dimension.

    For functions that vanish at both ends with all their derivatives it converges exponentially.

    **Arguments:**

    - `num`: nodes in each dimension, at least 2.
    - `lower`, `upper`: the corners of the box, numbers or `[d]`.

    **Returns:** nodes `[num**d, d]` and weights of sum one.

    !!! Example

        ```python
        x, weights = problems.trapezoid(160, -9.0, 9.0)
        ```
    """
    w = np.full(num, 1 / (num - 1))
    w[[0, -1]] /= 2
    return _boxed(np.linspace(-1, 1, num), w, lower, upper)


def monte_carlo(num: int, lower: Any, upper: Any, *, key: PRNGKeyArray) -> tuple[Array, None]:
    """Draw `num` states independently and uniformly from a box.

    **Arguments:**

    - `num`: how many.
    - `lower`, `upper`: the corners of the box, numbers or `[d]`.
    - `key`: draws them.

    **Returns:** states `[num, d]` and `None`, which stands for equal weights.

    !!! Example

        ```python
        x, weights = problems.monte_carlo(1000, [-2.0, -2.0], [2.0, 2.0], key=jr.key(0))
        ```
    """
    low, high = (jnp.atleast_1d(jnp.asarray(v, jnp.result_type(float))) for v in (lower, upper))
    return jr.uniform(key, (num, len(low)), low.dtype, low[None], high[None]), None


def circle_distance(z: Any) -> Float[Array, "..."]:
    """Return the distance from the unit circle."""
    return jnp.abs(jnp.abs(z) - 1)


def _push(map_fn: Callable, x: Array) -> Array:
    return jax.vmap(map_fn)(x)


def _orbit(map_fn: Callable, x0: Array, num: int) -> Array:
    return jax.lax.scan(lambda x, _: (map_fn(x), x), x0, None, length=num)[1]


def _boxed(t: np.ndarray, w: np.ndarray, lower: Any, upper: Any) -> tuple[Array, Array]:
    low, high = np.broadcast_arrays(np.atleast_1d(lower), np.atleast_1d(upper))
    return _tensor([(a + b) / 2 + (b - a) / 2 * t for a, b in zip(low, high, strict=True)], [w] * len(low))


def _tensor(nodes: list[np.ndarray], weights: list[np.ndarray]) -> tuple[Array, Array]:
    points = np.stack(np.meshgrid(*nodes, indexing="ij"), -1).reshape(-1, len(nodes))
    products = np.prod(np.stack(np.meshgrid(*weights, indexing="ij"), -1).reshape(-1, len(nodes)), axis=1)
    dtype = jnp.result_type(float)
    return jnp.asarray(points, dtype), jnp.asarray(products, dtype)
