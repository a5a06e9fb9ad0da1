"""KV-4: the undamped pendulum, whose spectral measure is known from action-angle coordinates.

Run `python -m benchmarks.pendulum --help`. The time step is 1/2 and the dictionary the hyperbolic cross of Fourier times
Hermite functions of arXiv:2111.14889, on a trapezoidal grid. Reported, as rows of a JSON list:

- the smallest residuals h_N at the four angles of that paper, against its replica's figures;
- how many eigenvalues of the compression are more than 0.1 off the circle, and the least residual among those;
- the smoothed spectral measure of an observable against the exactly smoothed truth, and against the density itself;
- wave packets against the exact ones, with their residuals.
"""

import argparse
import json
import pathlib
import sys
import time
from typing import Any

import jax


jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import koopman_verify as kv
import numpy as np
from koopman_verify.measures import circle_density
from scipy.special import ellipj, ellipk


STEP = 0.5
HALF_WIDTH = 9.0  # of the velocities
ANGLES = np.array([0.4932, 0.9765, 1.4452, 1.8951])
PUBLISHED = {64: (0.048, 0.138, 0.265, 0.341), 152: (0.028, 0.074, 0.163, 0.256)}


def flow(x: jax.Array, substeps: int = 100) -> jax.Array:
    """Move states (angle, velocity) by one step of the pendulum, by Runge and Kutta's method of fourth order."""
    h = STEP / substeps
    field = lambda s: jnp.stack([s[:, 1], -jnp.sin(s[:, 0])], axis=1)

    def step(s: jax.Array, _: None) -> tuple[jax.Array, None]:
        a = field(s)
        b = field(s + h / 2 * a)
        c = field(s + h / 2 * b)
        d = field(s + h * c)
        return s + h / 6 * (a + 2 * b + 2 * c + d), None

    return jax.lax.scan(step, x, None, length=substeps)[0]


def snapshots(num_angles: int, num_velocities: int) -> kv.Snapshots:
    """Return the nodes of the trapezoidal rule, and where they go."""
    angle = 2 * np.pi * np.arange(num_angles) / num_angles - np.pi
    velocity = np.linspace(-HALF_WIDTH, HALF_WIDTH, num_velocities)
    x = np.stack(np.meshgrid(angle, velocity, indexing="ij"), -1).reshape(-1, 2)
    weight = 2 * np.pi / num_angles * (velocity[1] - velocity[0])
    return kv.Snapshots(x, jax.jit(flow)(jnp.asarray(x)), np.full(len(x), weight), kind="quadrature")


def dictionary(order: int) -> kv.Product:
    """Return e^{ikx} times the Hermite function of degree l, for max(|k|, 1) (l + 1) at most `order`."""
    k = np.arange(-order, order + 1)
    pairs = [(i, level) for i in range(len(k)) for level in range(order) if max(abs(k[i]), 1) * (level + 1) <= order]
    return kv.Product([kv.Fourier(k), kv.Hermite(order - 1)], [1, 1], np.array(pairs, np.int32))


def observable(functions: kv.Product) -> np.ndarray:
    """Return the coefficients of the product of (1 + cos x) with the first Hermite function, as far as they are there."""
    k = np.asarray(functions.factors[0].frequencies)[:, 0]
    index = np.asarray(functions.indices)
    values = {0: 1.0, 1: 0.5, -1: 0.5}
    return np.array([values.get(int(k[i]), 0.0) if level == 1 else 0.0 for i, level in index])


def orbits(num_moduli: int, num_times: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return states on closed orbits [k, t, 2], the measure of each orbit's points, and the orbits' frequencies.

    With energy 2 k^2 - 1 the measure dx dv is 4 k dk dt. Libration: k < 1; rotation in either sense: k > 1.
    """
    nodes, weights = np.polynomial.legendre.leggauss(num_moduli)
    nodes, weights = (nodes + 1) / 2, weights / 2
    # Frequencies vanish at k = 1 like the reciprocal of a logarithm: nodes gather there.
    below, above = 1 - nodes**3, 1 + (HALF_WIDTH / 2 - 1) * nodes**3
    states, measures, frequencies = [], [], []
    turn = np.arange(num_times) / num_times
    for k, slope in zip(below, 3 * nodes**2 * weights, strict=True):
        quarter = ellipk(k**2)
        sn, cn, dn, _ = ellipj(4 * quarter * turn, k**2)
        states.append(np.stack([2 * np.arctan2(k * sn, dn), 2 * k * cn], -1))
        measures.append(4 * k * slope * 4 * quarter / num_times)
        frequencies.append(np.pi / (2 * quarter))
    for k, slope in zip(above, 3 * (HALF_WIDTH / 2 - 1) * nodes**2 * weights, strict=True):
        quarter = ellipk(1 / k**2)
        sn, cn, dn, _ = ellipj(2 * quarter * turn, 1 / k**2)
        for sign in (1, -1):
            states.append(sign * np.stack([2 * np.arctan2(sn, cn), 2 * k * dn], -1))
            measures.append(4 * k * slope * 2 * quarter / k / num_times)
            frequencies.append(np.pi * k / quarter)
    return np.array(states), np.array(measures), np.array(frequencies)


class Truth:
    """The observable's Fourier coefficients along closed orbits: its spectral measure, and exact wave packets."""

    def __init__(self, num_moduli: int, num_times: int):
        self.states, self.measures, frequencies = orbits(num_moduli, num_times)
        self.harmonics = np.fft.fft(g(self.states), axis=1) / num_times
        n = np.fft.fftfreq(num_times, 1 / num_times)
        self.phases = frequencies[:, None] * n[None] * STEP
        self.masses = np.abs(self.harmonics) ** 2 * (self.measures * num_times)[:, None]

    def density(self, theta: np.ndarray, epsilon: float, order: int) -> np.ndarray:
        """Return the spectral measure, smoothed by the kernel that the computed one is smoothed with."""
        keep = self.masses > 1e-16 * self.masses.sum()
        return np.asarray(circle_density(self.phases[keep], self.masses[keep], theta, epsilon, order))

    def packet(self, theta: float, epsilon: float, order: int, num_later: int = 0) -> np.ndarray:
        """Return the exact wave packet at the states of all orbits."""
        kernel = circle_kernel(self.phases.ravel(), theta, epsilon, order).reshape(self.phases.shape)
        moved = self.harmonics * np.exp(1j * num_later * self.phases)
        return np.fft.ifft(moved * kernel, axis=1) * self.harmonics.shape[1]

    def shifted(self, num_steps: int) -> np.ndarray:
        """Return the observable at the states of all orbits, `num_steps` later."""
        return np.fft.ifft(self.harmonics * np.exp(1j * num_steps * self.phases), axis=1).real * self.harmonics.shape[1]


def circle_kernel(phases: np.ndarray, theta: float, epsilon: float, order: int) -> np.ndarray:
    """Return the kernel's values, by smoothing a point mass: as a function of the difference it is even."""
    return np.asarray(circle_density([theta], [1.0], phases, epsilon, order))


def g(s: Any) -> Any:
    """Return the observable: the product of 1 + cos x and the first Hermite function."""
    xp = jnp if isinstance(s, jax.Array) else np
    v = s[..., 1]
    return (1 + xp.cos(s[..., 0])) * np.sqrt(2.0) * np.pi**-0.25 * v * xp.exp(-(v**2) / 2)


def cross_rows(order: int, truth: Truth, settings: list[tuple[float, int]]) -> list[dict[str, Any]]:
    """Return the rows for one hyperbolic cross."""
    functions, grid = dictionary(order), (max(80, 4 * order), max(160, 8 * order))
    began = time.perf_counter()
    factor = kv.factor(functions, snapshots(*grid))
    pairs, mp = kv.edmd(factor), jax.block_until_ready(kv.mpedmd(factor))
    base = {"problem": "pendulum", "method": "hyperbolic cross", "N": factor.size, "grid": list(grid)}
    off = np.abs(np.abs(np.asarray(pairs.eigenvalues)) - 1) > 0.1
    audit = base | {
        "quantity": "audit",
        "seconds": time.perf_counter() - began,
        "cond": float(factor.cond),
        "isometry_defect": float(factor.isometry_defect),
        "sigma_min": float(mp.smallest_singular_value),
        "off_circle": int(off.sum()),
        "least_residual_off_circle": float(np.min(np.asarray(pairs.residuals)[off], initial=np.inf)),
        "least_residual_mpedmd": float(mp.residuals.min()),
    }
    smallest = base | {
        "quantity": "h_N",
        "values": kv.pseudospectrum(factor, jnp.exp(1j * jnp.asarray(ANGLES))).tolist(),
        "published": PUBLISHED.get(factor.size),
    }
    at = jax.jit(jax.vmap(functions))(jnp.asarray(truth.states.reshape(-1, 2)))
    return [audit, smallest, *measure_rows(base, mp, observable(functions), np.asarray(at), truth, settings)]


def krylov_rows(num: int, truth: Truth, settings: list[tuple[float, int]]) -> list[dict[str, Any]]:
    """Return the rows for the observable's own delays g, Kg, ..., as many as `num`, on trajectories from a grid."""
    grid = (160, 320)
    began = time.perf_counter()
    start = snapshots(*grid)
    step = lambda s, _: (flow(s, 40), g(s))
    series = jax.jit(lambda s: jax.lax.scan(step, s, None, length=num + 1)[1].T)(start.x)
    data = kv.Snapshots(series[:, :-1], series[:, 1:], start.weights, kind="quadrature")
    factor = kv.factor(lambda s: s, data, rank_tol=1e-10)
    mp = jax.block_until_ready(kv.mpedmd(factor))
    base = {"problem": "pendulum", "method": "delays", "N": num, "grid": list(grid)}
    audit = base | {
        "quantity": "audit",
        "seconds": time.perf_counter() - began,
        "rank": factor.rank,
        "cond": float(factor.cond),
        "isometry_defect": float(factor.isometry_defect),
        "sigma_min": float(mp.smallest_singular_value),
    }
    shifted = [truth.shifted(j).reshape(-1) for j in range(num)]
    # A packet filters in both directions of time: in delays, take it of the observable in their middle.
    v, middle = np.eye(num)[0], num // 2
    return [audit, *measure_rows(base, mp, v, np.stack(shifted, -1), truth, settings, np.eye(num)[middle], middle)]


def measure_rows(
    base: dict[str, Any],
    mp: kv.MeasurePreserving,
    v: np.ndarray,
    at_orbits: np.ndarray,
    truth: Truth,
    settings: list[tuple[float, int]],
    later: np.ndarray | None = None,
    num_later: int = 0,
) -> list[dict[str, Any]]:
    """Compare densities and wave packets with the truth; `at_orbits` are the dictionary's values at its states.

    The packets are those of the observable `num_later` steps later, with coefficients `later`.
    """
    theta = np.linspace(0.3, 2.8, 101)
    fine, rows = truth.density(theta, 0.01, 6), []
    size = lambda f: np.sqrt(np.sum(truth.measures[:, None] * np.abs(f) ** 2))
    for epsilon, order in settings:
        computed = np.asarray(kv.spectral_measure(mp, v, theta, epsilon, order))
        exact = truth.density(theta, epsilon, order)
        packets = kv.wave_packet(mp, v if later is None else later, ANGLES, epsilon, order)
        values = (at_orbits @ np.asarray(packets.coefficients)).reshape(*truth.states.shape[:2], -1)
        wanted = [truth.packet(angle, epsilon, order, num_later) for angle in ANGLES]
        rows.append(
            base
            | {
                "quantity": "measure",
                "epsilon": epsilon,
                "order": order,
                "resolution": float(kv.resolution(mp, theta).max()),
                "density_error": float(np.abs(computed - exact).max() / np.abs(exact).max()),
                "unsmoothed_error": float(np.abs(computed - fine).mean() / np.abs(fine).mean()),
                "unsmoothed_error_of_truth": float(np.abs(exact - fine).mean() / np.abs(fine).mean()),
                "packet_errors": [float(size(values[..., i] - w) / size(w)) for i, w in enumerate(wanted)],
                "packet_residuals": packets.residuals.tolist(),
            }
        )
    return rows


def main() -> int:
    """Parse the options and print one line for each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", default="10,20", help="orders of the hyperbolic cross (default 10,20)")
    parser.add_argument("--delays", default="20,40,80", help="numbers of delays (default 20,40,80)")
    parser.add_argument("--epsilons", default="0.3,0.1", help="smoothing (default 0.3,0.1)")
    parser.add_argument("--kernels", default="1,2,4,6", help="orders of the kernel (default 1,2,4,6)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the rows")
    arguments = parser.parse_args()
    numbers = lambda text, kind: [kind(part) for part in text.split(",") if part]
    kernels = numbers(arguments.kernels, int)
    settings = [(epsilon, order) for epsilon in numbers(arguments.epsilons, float) for order in kernels]
    truth, rows = Truth(300, 128), []
    for function, sizes in ((cross_rows, arguments.orders), (krylov_rows, arguments.delays)):
        for size in numbers(sizes, int):
            new = function(size, truth, settings)
            print(*map(json.dumps, new), sep="\n", flush=True)
            rows += new
            if arguments.json:  # after each, so that an interrupted run leaves what it has
                arguments.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
