import itertools
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._dictionaries.compose import Product
from .._dictionaries.dictionary import Fourier
from .._dictionaries.index_sets import index_products
from .._dictionaries.polynomials import Hermite
from .._factor.snapshots import Snapshots
from .base import System, _tensor, circle_distance, monte_carlo, snapshots


_ROWS = (2, 4, 6, 8, 10, 12)  # substeps of the modified midpoint rule that are extrapolated, to order 12


class Flow(eqx.Module):
    r"""The time-$\Delta t$ map of $\dot x=f(x)$, by fixed steps of order 12.

    Each step extrapolates the modified midpoint rule (Gragg, Bulirsch and Stoer). With 4 or more steps over the shortest
    time scale it is accurate to rounding.

    **Arguments:**

    - `field`: $f$, `[d]` to `[d]`.
    - `dt`: $\Delta t$.
    - `num_steps`: the number of steps.

    **Raises:** `ValueError` if `num_steps` is not positive.

    !!! Example

        ```python
        problems.Flow(lambda x: -x, 0.5, num_steps=2)(jnp.ones(1))
        ```
    """

    field: Callable
    dt: float = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)

    def __check_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"`num_steps` must be positive; got {self.num_steps}")

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Return the state a time `dt` later."""
        h = self.dt / self.num_steps
        step = lambda y, _: (_extrapolated(self.field, y, h), None)
        return jax.lax.scan(step, x, None, length=self.num_steps)[0]


def duffing(delta: float = 0.0, dt: float = 0.3, *, order: int = 3) -> System:
    r"""Follow $\ddot x=-\delta\dot x+x-x^3$ for a time $\Delta t$.

    For $\delta=0$ area is preserved, and the spectrum is the circle. For $\delta>0$ both wells $(\pm1,0)$ attract, and in
    their basins $\lambda=e^{\Delta t(m\lambda_1+n\bar\lambda_1)}$ with $\lambda_1=-\delta/2+i\sqrt{2-\delta^2/4}$.

    **Arguments:**

    - `delta`, `dt`: the damping $0\le\delta<2\sqrt2$ and the time step.
    - `order`: the lattice is listed for $m+n\le$ `order`.

    **Returns:** the system, without a dictionary: take [`koopman_verify.RBF`][], and snapshots from
    [`koopman_verify.problems.duffing_snapshots`][].

    **Raises:** `ValueError` for a damping out of its range.

    !!! Example

        ```python
        problems.duffing(delta=0.5).eigenvalues
        ```
    """
    if not 0 <= delta < 2 * math.sqrt(2):
        raise ValueError(f"`delta` must be in [0, 2 sqrt(2)), where the wells are foci or centres; got {delta}")
    one = complex(-delta / 2, math.sqrt(2 - delta**2 / 4))
    lattice = [m * one + n * one.conjugate() for s in range(order + 1) for n in range(s + 1) for m in (s - n,)]
    field = lambda x: jnp.stack([x[1], -delta * x[1] + x[0] - x[0] ** 3])
    return System(
        name="Duffing",
        map_fn=Flow(field, dt, num_steps=max(1, math.ceil(dt / 0.1))),
        measure_preserving=delta == 0,
        eigenvalues=jnp.asarray(np.exp(dt * np.array(lattice)), jnp.result_type(complex)) if delta > 0 else None,
        distance_fn=circle_distance if delta == 0 else None,
    )


def duffing_snapshots(
    num_initial: int = 10_000, num_steps: int = 5, *, key: PRNGKeyArray, delta: float = 0.0, dt: float = 0.3
) -> Snapshots:
    r"""Draw the data of the Duffing experiment of arXiv:2407.06312: short runs from uniform points of $[-2,2]^2$.

    **Arguments:**

    - `num_initial`, `num_steps`: $10^4$ initial points, and 5 steps of each, which make 50,000 pairs.
    - `key`: draws the initial points.
    - `delta`, `dt`: the damping (0 or 0.3 in the paper) and the time step.

    **Returns:** snapshots of kind `"iid"` for one step, else `"trajectory"`, as the states of a run depend on each other;
    those of one run lie together.

    !!! Example

        ```python
        problems.duffing_snapshots(100, key=jr.key(0)).num_snapshots  # 500
        ```
    """
    flow = duffing(delta, dt).map_fn
    start, _ = monte_carlo(num_initial, [-2.0, -2.0], [2.0, 2.0], key=key)
    states = eqx.filter_jit(_runs)(flow, start, num_steps + 1)
    x, y = states[:, :-1].reshape(-1, 2), states[:, 1:].reshape(-1, 2)
    return Snapshots(x, y, kind="iid" if num_steps == 1 else "trajectory")


def pendulum(
    dt: float = 1.0,
    degree: int = 15,
    *,
    length: float = 9.0,
    num_nodes: tuple[int, int] = (80, 160),
    scale: float = 1.0,
) -> System:
    r"""Follow $\ddot\theta=-\sin\theta$ for a time $\Delta t$: the spectrum is the circle, continuous but for 1.

    **Arguments:**

    - `dt`: the time step.
    - `degree`: the dictionary is the hyperbolic cross $(|k|+1)(n+1)\le$ `degree + 1` of $e^{ik\theta}$ and Hermite
        functions of the momentum.
    - `length`, `num_nodes`: momenta are nodes of the trapezoidal rule on `[-length, length]`; angles are equispaced.
    - `scale`: that of the Hermite functions.

    **Returns:** the system. `distance_fn` is $||z|-1|$. The frequencies of
    [`koopman_verify.problems.pendulum_frequency`][] say where its measures lie.

    !!! Example

        ```python
        problems.pendulum(0.5).distance_fn(0.9 + 0.0j)
        ```
    """
    k = np.arange(-degree, degree + 1)
    pairs = index_products([abs(k), range(degree + 1)], degree)
    angles = 2 * np.pi * np.arange(num_nodes[0]) / num_nodes[0]
    momenta, weights = np.linspace(-length, length, num_nodes[1]), np.full(num_nodes[1], 1 / (num_nodes[1] - 1))
    weights[[0, -1]] /= 2
    nodes, weights = _tensor([angles, momenta], [np.full(num_nodes[0], 1 / num_nodes[0]), weights])
    flow = Flow(lambda x: jnp.stack([x[1], -jnp.sin(x[0])]), dt, num_steps=max(1, math.ceil(dt / 0.125)))
    return System(
        name="pendulum",
        map_fn=flow,
        measure_preserving=True,
        dictionary=Product([Fourier(k), Hermite(degree, scale=scale)], [1, 1], pairs),
        snapshots=snapshots(flow, nodes, weights),
        distance_fn=circle_distance,
    )


@eqx.filter_jit
def pendulum_frequency(x: Float[Array, "2"]) -> Float[Array, ""]:
    r"""Return the angular frequency of the pendulum's orbit through a state $(\theta, p)$.

    With $m=(1+E)/2$, $E=p^2/2-\cos\theta$: libration ($m<1$) has $\omega=\pi/2K(\sqrt m)$, where
    $\sqrt m=\sin(\theta_{\max}/2)$; rotation ($m>1$) has $\omega=\pi\sqrt m/K(1/\sqrt m)$. The elliptic integral is
    $K(k)=\pi/2\,\mathrm{agm}(1,\sqrt{1-k^2})$.

    **Arguments:**

    - `x`: the state.

    **Returns:** the frequency, 0 on the separatrix.

    !!! Example

        ```python
        problems.pendulum_frequency(jnp.array([1.0, 0.0]))
        ```
    """
    m = (1 + x[1] ** 2 / 2 - jnp.cos(x[0])) / 2
    return jnp.where(m < 1, _agm(1 - m), 2 * jnp.sqrt(m) * _agm(1 - 1 / jnp.maximum(m, 1)))


def van_der_pol(mu: float = 0.2, dt: float = 0.3, *, order: int = 3) -> System:
    r"""Follow $\ddot x=\mu(1-x^2)\dot x-x$ for a time $\Delta t$.

    The limit cycle attracts: $\lambda\approx e^{\Delta t(-m\mu+ik(1-\mu^2/16))}$ for small $\mu$, to leading orders.

    **Arguments:**

    - `mu`, `dt`: the parameter and the time step.
    - `order`: eigenvalues are listed for $m\le$ `order`, $|k|\le$ `order`.

    **Returns:** the system. `eigenvalues` are approximations with an error of the next order of $\mu$.

    !!! Example

        ```python
        problems.van_der_pol(0.1).eigenvalues
        ```
    """
    m, k = np.meshgrid(np.arange(order + 1), np.arange(-order, order + 1), indexing="ij")
    lattice = np.exp(dt * (-m * mu + 1j * k * (1 - mu**2 / 16))).reshape(-1)
    field = lambda x: jnp.stack([x[1], mu * (1 - x[0] ** 2) * x[1] - x[0]])
    return System(
        name="van der Pol",
        map_fn=Flow(field, dt, num_steps=max(1, math.ceil(dt / 0.1))),
        eigenvalues=jnp.asarray(lattice, jnp.result_type(complex)),
    )


def lorenz(dt: float = 0.05, *, sigma: float = 10.0, rho: float = 28.0, beta: float = 8 / 3) -> System:
    r"""Follow the Lorenz equations for a time $\Delta t$; chaotic, and mixing.

    **Arguments:**

    - `dt`: the time step.
    - `sigma`, `rho`, `beta`: the parameters.

    **Returns:** the system; see [`koopman_verify.problems.trajectory`][]. Nothing about its spectrum is a closed form.

    !!! Example

        ```python
        states = problems.trajectory(problems.lorenz(0.05).map_fn, jnp.ones(3), 1000, discard=200)
        ```
    """
    field = lambda x: lorenz_field(x, sigma, rho, beta)
    return System(name="Lorenz", map_fn=Flow(field, dt, num_steps=max(1, math.ceil(dt / 0.02))))


def lorenz_field(
    x: Float[Array, "3"], sigma: float = 10.0, rho: float = 28.0, beta: float = 8 / 3
) -> Float[Array, "3"]:
    """Return the vector field of Lorenz (1963)."""
    return jnp.stack([sigma * (x[1] - x[0]), x[0] * (rho - x[2]) - x[1], x[0] * x[1] - beta * x[2]])


def rossler(dt: float = 0.05, *, a: float = 0.1, b: float = 0.1, c: float = 14.0) -> System:
    r"""Follow Rössler's equations for a time $\Delta t$; chaotic.

    **Arguments:**

    - `dt`: the time step.
    - `a`, `b`, `c`: the parameters.

    **Returns:** the system; see [`koopman_verify.problems.trajectory`][]. Nothing about its spectrum is a closed form.

    !!! Example

        ```python
        states = problems.trajectory(problems.rossler(0.05).map_fn, jnp.ones(3), 1000, discard=200)
        ```
    """
    field = lambda x: jnp.stack([-x[1] - x[2], x[0] + a * x[1], b + x[2] * (x[0] - c)])
    return System(name="Rössler", map_fn=Flow(field, dt, num_steps=max(1, math.ceil(dt / 0.02))))


def _extrapolated(field: Callable, x: Array, h: float) -> Array:
    """Return one step by the modified midpoint rule with 2, 4, ... substeps, extrapolated in the squared step."""
    rows = [_midpoint(field, x, h, n) for n in _ROWS]
    for k in range(1, len(_ROWS)):
        rows = [
            late + (late - early) / ((_ROWS[j + k] / _ROWS[j]) ** 2 - 1)
            for j, (early, late) in enumerate(itertools.pairwise(rows))
        ]
    return rows[0]


def _midpoint(field: Callable, x: Array, h: float, num: int) -> Array:
    s = h / num
    # The increment is what is extrapolated, so that rounding errors are relative to it and not to the state.
    step = lambda state, _: ((state[1], state[0] + 2 * s * field(x + state[1])), None)
    (_, increment), _ = jax.lax.scan(step, (jnp.zeros_like(x), s * field(x)), None, length=num - 1)
    return x + increment


def _runs(flow: Callable, start: Float[Array, "R d"], num: int) -> Float[Array, "R T d"]:
    follow = lambda x0: jax.lax.scan(lambda x, _: (flow(x), x), x0, None, length=num)[1]
    return jax.vmap(follow)(start)


def _agm(square: Array) -> Array:
    """Return the arithmetic-geometric mean of 1 and a root; it converges quadratically, so eight steps are plenty."""
    a, g = jnp.ones_like(square), jnp.sqrt(jnp.maximum(square, 0))
    for _ in range(8):
        a, g = (a + g) / 2, jnp.sqrt(a * g)
    return jnp.where(square > 0, a, jnp.zeros_like(a))
