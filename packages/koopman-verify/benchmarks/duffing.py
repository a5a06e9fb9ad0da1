"""The Duffing experiment of arXiv:2407.06312 at its size: the error bound E2 against the number of functions.

10^4 initial states in [-2, 2]^2, five steps of 0.3 each (M = 50,000 pairs); radial functions exp(-2 r / d) about k-means
centres of an independent run; E1, the largest EDMD residual on a third run; E2, the error of the verified spectrum on
the grid [-0.5, 1] x [0, 1] of step 0.02, for kappa 1 and 5. Run `python -m benchmarks.duffing`; `plot` draws E2 against N.
"""

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import koopman_verify
import numpy as np

from .protocol import peak_bytes


SIZES = (100, 200, 400, 800, 1259)


def flow(state: np.ndarray, delta: float, dt: float = 0.3, steps: int = 60) -> np.ndarray:
    """Advance states `[M, 2]` of the Duffing oscillator by `dt`, with steps of Runge and Kutta of order four."""
    h = dt / steps
    field = lambda s: np.stack([s[:, 1], -delta * s[:, 1] + s[:, 0] - s[:, 0] ** 3], axis=1)
    for _ in range(steps):
        k1 = field(state)
        k2 = field(state + h / 2 * k1)
        k3 = field(state + h / 2 * k2)
        k4 = field(state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state


def snapshots(num: int, delta: float, seed: int) -> koopman_verify.Snapshots:
    """Return five consecutive pairs of each of `num` trajectories that start uniformly in the square."""
    states = [np.random.default_rng(seed).uniform(-2, 2, (num, 2))]
    for _ in range(5):
        states.append(flow(states[-1], delta))
    return koopman_verify.Snapshots(np.concatenate(states[:-1]), np.concatenate(states[1:]), kind="trajectory")


@eqx.filter_jit
def held_out(pairs: koopman_verify.Eigenpairs, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the residuals of eigenpairs on other snapshots."""

    def add(total: tuple, piece: tuple) -> tuple:
        g, image = (jax.vmap(pairs.functions)(states) for states in piece)
        defect = jnp.sum(jnp.abs(image - g * pairs.eigenvalues[None]) ** 2, axis=0)
        return (total[0] + defect, total[1] + jnp.sum(jnp.abs(g) ** 2, axis=0)), None

    pieces = tuple(a.reshape(-1, 1000, 2) for a in (x, y))
    zero = jnp.zeros(len(pairs), x.dtype)
    defect, norm = jax.lax.scan(add, (zero, zero), pieces)[0]
    return jnp.sqrt(defect / norm)


def rows(
    sizes: tuple[int, ...] = SIZES, *, num: int = 10_000, delta: float = 0.0, width: float = 2.0
) -> Iterator[dict]:
    """Yield one row for each number of functions. `width` keeps of the grid what is no farther from the circle."""
    train, test = snapshots(num, delta, 1), snapshots(max(200, num // 5), delta, 2)
    grid = koopman_verify.rectangle_grid(-0.5, 1 + 1j, 0.02)
    grid = grid[jnp.abs(1 - jnp.abs(grid)) <= width]
    began = time.process_time()
    other = snapshots(2000, delta, 3).x
    for size in sizes:
        row: dict[str, Any] = dict(problem="duffing", N=size, M=train.num_snapshots, grid=len(grid), width=width)
        clock = _Clock(row)
        dictionary = koopman_verify.RBF.from_kmeans(other, size, key=jr.key(0))
        clock("cpu_kmeans", dictionary.centres)
        factor = koopman_verify.factor(dictionary, train)
        clock("cpu_factor", factor.A)
        row.update(cond=float(factor.cond), isometry_defect=float(factor.isometry_defect))
        pairs = koopman_verify.edmd(factor)
        off = jnp.abs(1 - jnp.abs(pairs.eigenvalues))
        worst = jnp.max(held_out(pairs, test.x, test.y))
        row.update(edmd_worst=float(jnp.max(pairs.residuals)), edmd_worst_held_out=float(worst))
        row.update(edmd_off_circle=int(jnp.sum(off > 0.1)))
        clock("cpu_edmd", pairs.residuals)
        spectrum = koopman_verify.verified_spectrum(factor, grid, measure_preserving=delta == 0, throw=False)
        clock("cpu_spectrum", spectrum.error)
        contradicted = bool(spectrum.result == koopman_verify.RESULTS.not_measure_preserving)
        row.update(violation=float(spectrum.violation), refused=contradicted)
        for kappa in (1, 5):
            spectrum = spectrum.with_kappa(kappa)
            row.update({f"E2_kappa{kappa}": float(spectrum.error), f"points_kappa{kappa}": len(spectrum.points)})
        row.update(cpu_seconds=round(time.process_time() - began, 1), peak_bytes=peak_bytes())
        began = time.process_time()
        yield row


class _Clock:
    """CPU seconds from one stage to the next, compilation included: a study compiles once."""

    def __init__(self, row: dict):
        self.row, self.cpu = row, time.process_time()

    def __call__(self, name: str, value: Any) -> None:
        jax.block_until_ready(value)
        self.row[name] = round(time.process_time() - self.cpu, 1)
        self.cpu = time.process_time()


def plot(rows: list[dict], axes: Any = None) -> Any:
    """Draw E2, and the worst EDMD residual, against the number of functions; return the axes."""
    import matplotlib.pyplot as plt

    axes = plt.subplots()[1] if axes is None else axes
    sizes = [row["N"] for row in rows]
    axes.loglog(sizes, [row["edmd_worst"] for row in rows], "k^:", label="largest EDMD residual")
    for kappa, mark in ((1, "o-"), (5, "s-")):
        axes.loglog(sizes, [row[f"E2_kappa{kappa}"] for row in rows], mark, label=rf"$E_2$, $\kappa={kappa}$")
    axes.set(xlabel="$N$", ylabel="error")
    axes.legend()
    return axes


def main() -> None:
    """Print one row of JSON for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--num", type=int, default=10_000, help="trajectories")
    parser.add_argument("--delta", type=float, default=0.0, help="damping")
    parser.add_argument("--width", type=float, default=2.0, help="keep grid points no farther from the unit circle")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    for row in rows(tuple(args.sizes), num=args.num, delta=args.delta, width=args.width):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
