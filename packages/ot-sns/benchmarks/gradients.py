"""Gradients of potentials in float32: `python -m benchmarks.gradients`.

200 points in the plane, squared Euclidean cost, loss Σ(f − mean f)², gradient in the source points, ε from 1 to 0.02. The
reference is NumPy in float64: Newton's method to convergence, then the linearised optimality conditions by dense algebra.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import ot_sns
from jaxtyping import Array, Float


EPSILONS = (1.0, 0.1, 0.05, 0.02)


def main() -> int:
    """Print one JSON row per ε and method."""
    argparse.ArgumentParser(prog="python -m benchmarks.gradients", description=__doc__).parse_args()
    jax.config.update("jax_enable_x64", False)  # what a float32 user has
    x, y = points()
    direction = np.random.default_rng(1).normal(size=x.shape)
    methods: dict[str, Callable] = {"ours": ours, "ott": ott}
    for epsilon in EPSILONS:
        exact, condition = reference(x, y, epsilon)
        for name, potential in methods.items():
            row = measure(potential, (x, y), epsilon, exact, direction)
            print(json.dumps({"problem": f"gradient eps={epsilon:g}", "method": name, "condition": condition, **row}))
    return 0


def points() -> tuple[Float[np.ndarray, "200 2"], Float[np.ndarray, "200 2"]]:
    """Draw the two clouds, uniform on a square of side 3: condition numbers 2.5 (ε = 1) to 110 (ε = 0.02).

    Normal clouds have outliers, which at these ε make condition numbers that no float32 method can meet.
    """
    r = np.random.default_rng(0)
    return 3 * r.uniform(size=(200, 2)), 3 * r.uniform(size=(200, 2))


def measure(potential: Callable, clouds: tuple, epsilon: float, exact: np.ndarray, direction: np.ndarray):
    """Differentiate in float32 and compare: whole gradient, and the derivative in one fixed direction."""

    @jax.jit
    def gradient(x: Array, y: Array) -> Array:
        def loss(x: Array) -> Array:
            f = potential(x, y, epsilon)
            return jnp.sum((f - jnp.mean(f)) ** 2)

        return jax.grad(loss)(x)

    try:
        arguments = [jnp.asarray(cloud, jnp.float32) for cloud in clouds]
        jax.block_until_ready(gradient(*arguments))
        start = time.process_time()
        found = np.asarray(jax.block_until_ready(gradient(*arguments)), np.float64)
        seconds = time.process_time() - start
    except Exception as error:  # noqa: BLE001 a failure is a result
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if "RuntimeError: A " in line or "RuntimeError: The " in line), lines[0])
        return {"error": None, "directional_error": None, "seconds": None, "note": f"raised: {reason[:150]}"}
    along = float((exact * direction).sum())
    return {
        "error": _finite(np.linalg.norm(found - exact) / np.linalg.norm(exact)),
        "directional_error": _finite(abs((found * direction).sum() - along) / abs(along)),
        "seconds": seconds,
        "note": "",
    }


def ours(x: Array, y: Array, epsilon: float) -> Array:
    """Solve with the defaults."""
    return ot_sns.solve(ot_sns.EntropicOT(ot_sns.PointCloud(x, y), epsilon=epsilon)).f


def ott(x: Array, y: Array, epsilon: float) -> Array:
    """Solve with OTT's default implicit differentiation, its threshold at what float32 attains."""
    from ott.geometry import pointcloud
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    solver = sinkhorn.Sinkhorn(threshold=1e-5, max_iterations=20_000)
    return solver(linear_problem.LinearProblem(pointcloud.PointCloud(x, y, epsilon=epsilon))).f


def reference(x: np.ndarray, y: np.ndarray, epsilon: float) -> tuple[Float[np.ndarray, "n d"], float]:
    r"""Return the gradient in float64 and the condition number of the scaled Schur complement.

    With $H = \begin{pmatrix} \mathrm{diag}\, r & P \\ P^\top & \mathrm{diag}\, c\end{pmatrix}$ and $H(u, v) = (\bar f, 0)$, the
    cotangent of the cost is $P_{ij}(u_i + v_j)$.
    """
    n, m = len(x), len(y)
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    f = _potential(cost, epsilon)
    plan = _plan(f, cost, epsilon)
    schur = np.diag(plan.sum(1)) - (plan * m) @ plan.T
    rhs = 2 * (f - f.mean())
    u = np.linalg.lstsq(schur, rhs, rcond=1e-13)[0]
    v = -m * plan.T @ u
    cost_bar = plan * (u[:, None] + v[None])
    eigenvalues = np.linalg.eigvalsh(n * schur)
    return 2 * (cost_bar.sum(1)[:, None] * x - cost_bar @ y), float(eigenvalues[-1] / eigenvalues[1])


def _plan(f: np.ndarray, cost: np.ndarray, epsilon: float) -> np.ndarray:
    # the column potential is eliminated: columns sum to 1/m exactly
    scaled = (f[:, None] - cost) / epsilon
    weights = np.exp(scaled - scaled.max(0))
    return weights / weights.sum(0) / cost.shape[1]


def _potential(cost: np.ndarray, epsilon: float) -> np.ndarray:
    """Sinkhorn to get near, then Newton on the semi-dual by dense algebra."""
    n, m = cost.shape
    f = np.zeros(n)
    for level in epsilon * 2.0 ** np.arange(8, -1, -1):
        for _ in range(300):
            f = f - level * np.log(n * _plan(f, cost, level).sum(1))
    for _ in range(50):
        plan = _plan(f, cost, epsilon)
        gradient = 1 / n - plan.sum(1)
        if np.abs(gradient).sum() < 1e-14:
            break
        step = epsilon * np.linalg.lstsq(np.diag(plan.sum(1)) - m * plan @ plan.T, gradient, rcond=1e-13)[0]
        sizes = (1.0, 0.5, 0.25, 0.125, 0.0625)
        f = min((f + s * step for s in sizes), key=lambda f: np.abs(1 / n - _plan(f, cost, epsilon).sum(1)).sum())
    return f


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
