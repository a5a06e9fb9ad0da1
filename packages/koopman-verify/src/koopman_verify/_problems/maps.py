import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from .._dictionaries.dictionary import Fourier
from .._dictionaries.hats import Hats
from .._dictionaries.polynomials import Legendre, Monomials
from .base import SpectralProblem, System, circle_distance, equispaced, gauss_legendre, snapshots


def rotation(angle: float, degree: int = 8, *, num_nodes: int | None = None) -> System:
    r"""Rotate the circle by an angle, observed by its characters: $\lambda_k = e^{ik a}$ with residual 0.

    **Arguments:**

    - `angle`: $a$. The spectrum is the whole circle unless $a/2\pi$ is rational; whether a float is, only the user knows,
        so there is no `distance_fn`.
    - `degree`: the dictionary is $e^{ikx}$, $|k|\le$ `degree`.
    - `num_nodes`: equispaced nodes, more than `2 * degree`; by default four times the dictionary's size.

    **Returns:** the system. `h_fn` is $\min_k|z-e^{ika}|$.

    !!! Example

        ```python
        problems.rotation(1.0).eigenvalues
        ```
    """
    k = np.arange(-degree, degree + 1)
    move = lambda x: jnp.mod(x + angle, 2 * math.pi)
    eigenvalues = jnp.asarray(np.exp(1j * angle * k), jnp.result_type(complex))
    return System(
        name="rotation",
        map_fn=move,
        measure_preserving=True,
        dictionary=Fourier(k),
        snapshots=snapshots(move, *equispaced(4 * len(k) if num_nodes is None else num_nodes)),
        eigenvalues=eigenvalues,
        residuals=jnp.zeros(len(k)),
        h_fn=_nearest(eigenvalues),
    )


def golden_rotation(degree: int = 8) -> System:
    r"""Rotate the circle by $\pi(\sqrt5-1)$, whose spectrum is the whole circle.

    **Arguments:**

    - `degree`: the dictionary is $e^{ikx}$, $|k|\le$ `degree`.

    **Returns:** the system. `distance_fn` is $||z|-1|$.

    !!! Example

        ```python
        problems.golden_rotation(20).distance_fn(0.5 + 0.0j)
        ```
    """
    system = rotation(math.pi * (math.sqrt(5) - 1), degree)
    return _replace(system, name="golden rotation", distance_fn=circle_distance)


def rational_rotation(p: int, q: int, num: int, *, key: PRNGKeyArray, num_nodes: int = 3000) -> System:
    r"""Rotate the circle by $2\pi p/q$, observed by hat functions with random nodes.

    The spectrum is the $q$-th roots of one. EDMD has false eigenvalues as far as 0.9 from them.

    **Arguments:**

    - `p`, `q`: without a common factor.
    - `num`: the number of hat functions.
    - `key`: draws their nodes.
    - `num_nodes`: equispaced nodes of the quadrature, which is not exact for hats: the error is of order
        `num_nodes**-2`.

    **Returns:** the system. `distance_fn` is the distance from the roots.

    **Raises:** `ValueError` if `p` and `q` have a common factor.

    !!! Example

        ```python
        problems.rational_rotation(1, 3, 40, key=jr.key(0))
        ```
    """
    if q < 1 or math.gcd(p, q) != 1:
        raise ValueError(f"`p` and `q` must have no common factor, and `q` be positive; got {p} and {q}")
    move = lambda x: jnp.mod(x + 2 * math.pi * p / q, 2 * math.pi)
    roots = jnp.asarray(np.exp(2j * np.pi * np.arange(q) / q), jnp.result_type(complex))
    return System(
        name="rational rotation",
        map_fn=move,
        measure_preserving=True,
        dictionary=Hats.random(num, key=key),
        snapshots=snapshots(move, *equispaced(num_nodes)),
        eigenvalues=roots,
        distance_fn=_nearest(roots),
    )


def doubling(num: int = 8) -> System:
    r"""Double an angle, observed by one orbit of characters, $e^{i2^jx}$, $j<m$.

    $A$ is nilpotent: every EDMD eigenvalue is 0 with residual 1, although the computed ones of so defective a matrix can
    be $10^{-2}$ off. $h_m(z)=\sqrt{1+|z|^2-2|z|\cos(\pi/(m+1))}$; the spectrum is the closed disc, the approximate point
    spectrum the circle.

    **Arguments:**

    - `num`: the number $m$ of functions. Angles lose $\log_2$ of the frequency in digits.

    **Returns:** the system.

    !!! Example

        ```python
        problems.doubling(8).h_fn(0.5j)
        ```
    """
    frequencies = 2 ** np.arange(num + 1)
    move = lambda x: jnp.mod(2 * x, 2 * math.pi)
    nodes = _lattice(frequencies[:, None])
    return _orbit_system("doubling map", move, Fourier(frequencies[:-1]), nodes, None, num)


def tent(num: int = 8) -> System:
    r"""Apply the tent map $1-|2x-1|$ of $[0,1]$, observed by $\sqrt2\cos(2^j\pi x)$: as `doubling`.

    **Arguments:**

    - `num`: the number of functions.

    **Returns:** the system.

    !!! Example

        ```python
        problems.tent(6).snapshots.num_snapshots
        ```
    """
    move = lambda x: 1 - jnp.abs(2 * x - 1)
    # The midpoint rule is exact for cos(k pi x), k < 2 M.
    nodes = (np.arange(2 ** (num + 1)) + 0.5)[:, None] / 2 ** (num + 1)
    return _orbit_system("tent map", move, lambda x: _cosines(math.pi * x[0], num), nodes, None, num)


def logistic(num: int = 8) -> System:
    r"""Apply the logistic map $4x(1-x)$, observed by Chebyshev polynomials $\sqrt2\,T_{2^j}(1-2x)$: as `doubling`.

    The measure is the invariant one, $dx/(\pi\sqrt{x(1-x)})$.

    **Arguments:**

    - `num`: the number of functions.

    **Returns:** the system.

    !!! Example

        ```python
        problems.logistic(6).map_fn(jnp.array([0.3]))
        ```
    """
    move = lambda x: 4 * x * (1 - x)
    angles = np.pi * (np.arange(2 ** (num + 1)) + 0.5)[:, None] / 2 ** (num + 1)
    observe = lambda x: _cosines(2 * jnp.arcsin(jnp.sqrt(jnp.clip(x[0], 0, 1))), num)
    return _orbit_system("logistic map", move, observe, np.sin(angles / 2) ** 2, None, num)


def cat(num: int = 6) -> System:
    r"""Apply Arnold's cat map $(2x+y, x+y)$, observed by one orbit of characters from $e^{ix}$: as `doubling`.

    It is invertible, so that the spectrum is the circle.

    **Arguments:**

    - `num`: the number of functions.

    **Returns:** the system. `distance_fn` is $||z|-1|$.

    !!! Example

        ```python
        problems.cat(6).dictionary.frequencies
        ```
    """
    matrix = np.array([[2, 1], [1, 1]])
    orbit = [np.array([1, 0])]
    for _ in range(num):
        orbit.append(matrix.T @ orbit[-1])
    frequencies = np.stack(orbit)
    move = lambda x: jnp.mod(jnp.stack([2 * x[0] + x[1], x[0] + x[1]]), 2 * math.pi)
    return _orbit_system("cat map", move, Fourier(frequencies[:-1]), _lattice(frequencies), circle_distance, num)


def cat_density(num: int = 6) -> SpectralProblem:
    r"""Return $g=e_0+\tfrac12e_1$ on the orbit of `cat`, with the spectral density $(1.25+\cos\theta)/2\pi$.

    **Arguments:**

    - `num`: the number of functions; moments from order `num - 1` on need more than the matrix holds.

    **Returns:** the compression (a shift), the coefficients of $g$, density and moments 1.25, 0.5, 0, ...

    !!! Example

        ```python
        problems.cat_density().moment_fn(jnp.arange(4))
        ```
    """
    vector = np.zeros(num)
    vector[:2] = 1.0, 0.5
    return SpectralProblem(
        name="one orbit of the cat map",
        operator=jnp.asarray(np.eye(num, k=-1), jnp.result_type(float)),
        vector=jnp.asarray(vector, jnp.result_type(float)),
        density_fn=lambda theta: (1.25 + jnp.cos(theta)) / (2 * math.pi),
        moment_fn=lambda n: jnp.where(n == 0, 1.25, jnp.where(jnp.abs(n) == 1, 0.5, 0.0)),
    )


def blaschke(num: int = 16, radius: float = 1.0, a: float = 0.5, *, num_nodes: int = 512) -> System:
    r"""Apply the Blaschke product $z(z-a)/(1-az)$, observed by $(z/r)^k$, $k<N$, on the circle $|z|=r$.

    EDMD has the eigenvalues $(-a)^k$ for every $r$ and $N$. On $r=1$ the operator is an isometry and their residuals are
    $\sqrt{1-a^{2k}}$: they are no spectrum there. For $r<1$ (a Hardy space) the residuals go to zero with $N$. What the
    spectrum is depends on the space.

    **Arguments:**

    - `num`: the number $N$ of functions.
    - `radius`, `a`: $r\le1$ and $0<a<1$.
    - `num_nodes`: equispaced nodes on the circle; their error is of order $\max(a, r)$ to that power.

    **Returns:** the system; the state is $(\mathrm{Re}\,z, \mathrm{Im}\,z)$. `residuals` are known for $r=1$.

    !!! Example

        ```python
        problems.blaschke(16, radius=0.6).eigenvalues
        ```
    """

    def move(x: Float[Array, " d"]) -> Float[Array, " d"]:
        z = jax.lax.complex(x[0], x[1])
        image = z * (z - a) / (1 - a * z)
        return jnp.stack([image.real, image.imag])

    def powers(x: Float[Array, " d"]) -> Complex[Array, " N"]:
        z = jax.lax.complex(x[0], x[1]) / radius
        return jnp.cumprod(jnp.concatenate([jnp.ones_like(z)[None], jnp.broadcast_to(z, num - 1)]))

    theta = 2 * np.pi * np.arange(num_nodes) / num_nodes
    nodes = jnp.asarray(radius * np.stack([np.cos(theta), np.sin(theta)], axis=1), jnp.result_type(float))
    eigenvalues = (-a) ** np.arange(num)
    return System(
        name="Blaschke product",
        map_fn=move,
        measure_preserving=radius == 1.0,
        dictionary=powers,
        snapshots=snapshots(move, nodes),
        eigenvalues=jnp.asarray(eigenvalues, jnp.result_type(complex)),
        residuals=jnp.asarray(np.sqrt(1 - eigenvalues**2), jnp.result_type(float)) if radius == 1.0 else None,
    )


def linear(matrix: Any, degree: int = 3) -> System:
    r"""Apply a linear map, observed by monomials: all products $\prod_i\lambda_i^{n_i}$ with residual 0.

    **Arguments:**

    - `matrix`: `[d, d]`, real.
    - `degree`: the highest total degree.

    **Returns:** the system, on Gauss-Legendre nodes of $[-1,1]^d$.

    !!! Example

        ```python
        problems.linear([[0.9, 0.2], [0.0, 0.5]]).eigenvalues
        ```
    """
    a = np.asarray(matrix, float)
    if a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise ValueError(f"`matrix` must have shape [d, d]; got {list(a.shape)}")
    dictionary = Monomials(len(a), degree)
    lam = np.linalg.eigvals(a).astype(complex)
    products = np.prod(lam[None] ** np.asarray(dictionary.indices), axis=1)
    move = lambda x: jnp.asarray(a, x.dtype) @ x
    return System(
        name="linear map",
        map_fn=move,
        dictionary=dictionary,
        snapshots=snapshots(move, *gauss_legendre(degree + 2, [-1.0] * len(a), [1.0] * len(a))),
        eigenvalues=jnp.asarray(products, jnp.result_type(complex)),
        residuals=jnp.zeros(len(products)),
    )


def gauss_map(degree: int = 39, *, num_nodes: int = 200, num_eigenvalues: int = 8) -> System:
    r"""Apply $e^{-2x^2}-1-e^{-2}$ on $[-1,0]$, observed by Legendre polynomials on Gauss nodes.

    The fixed point $-1$ has the multiplier $\mu=4e^{-2}=0.54134$, so that in spaces of analytic functions the
    eigenvalues are $\mu^k$. On $L^2$ powers of the Koenigs function fill the disc $|z|<\mu^{-1/2}$ with eigenvalues: only
    pseudospectra mean something.

    **Arguments:**

    - `degree`: the highest degree.
    - `num_nodes`: Gauss nodes.
    - `num_eigenvalues`: how many of the $\mu^k$ to list.

    **Returns:** the system. `eigenvalues` are those of the analytic spaces.

    !!! Example

        ```python
        problems.gauss_map().eigenvalues
        ```
    """
    shift = 1 + math.exp(-2)
    move = lambda x: jnp.exp(-2 * x**2) - shift
    mu = 4 * math.exp(-2)
    return System(
        name="Gauss map",
        map_fn=move,
        dictionary=Legendre(degree, -1.0, 0.0),
        snapshots=snapshots(move, *gauss_legendre(num_nodes, -1.0, 0.0)),
        eigenvalues=jnp.asarray(mu ** np.arange(num_eigenvalues), jnp.result_type(complex)),
    )


def _orbit_system(
    name: str, move: Callable, observe: Callable, nodes: np.ndarray, distance: Callable | None, num: int
) -> System:
    def h(z: Any) -> Float[Array, "..."]:
        r = jnp.abs(z)
        return jnp.sqrt(1 + r**2 - 2 * r * math.cos(math.pi / (num + 1)))

    return System(
        name=name,
        map_fn=move,
        measure_preserving=True,
        dictionary=observe,
        snapshots=snapshots(move, jnp.asarray(nodes, jnp.result_type(float))),
        eigenvalues=jnp.zeros(num, jnp.result_type(complex)),
        residuals=jnp.ones(num),
        # sigma_inf(K - z) of an isometry that is a one-sided shift (or unitary with the circle for spectrum).
        distance_fn=circle_distance if distance is None else distance,
        h_fn=h,
    )


def _cosines(angle: Array, num: int) -> Array:
    return math.sqrt(2) * jnp.cos(angle * jnp.asarray(2.0 ** np.arange(num), angle.dtype))


def _nearest(points: Array) -> Callable:
    return lambda z: jnp.min(jnp.abs(jnp.asarray(z)[..., None] - points.reshape((1,) * jnp.ndim(z) + (-1,))), axis=-1)


def _replace(system: System, **changes: Any) -> System:
    names = system.__dataclass_fields__
    return System(**({name: getattr(system, name) for name in names} | changes))


def _lattice(frequencies: np.ndarray) -> np.ndarray:
    """Return a rank-one lattice of the torus that tells all these frequencies apart, so that their integrals are exact."""
    d = frequencies.shape[1]
    for num in itertools.count(max(32, 4 * len(frequencies)) + 1, 2):
        for g in range(1, 2 if d == 1 else num):
            generator = np.array([pow(g, i, num) for i in range(d)])
            if len(np.unique((frequencies % num) @ generator % num)) == len(frequencies):
                return 2 * np.pi * (np.arange(num)[:, None] * generator[None] % num) / num
    raise AssertionError("a lattice exists for every finite set of frequencies")
