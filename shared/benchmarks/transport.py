"""I4: gradients of entropic potentials in float32.

200 points in the plane, squared Euclidean cost, loss Σ(f − mean f)², gradient in the source points. Both libraries are given
a Sinkhorn loop; they differ in how its result is differentiated. The reference is NumPy in float64.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from implicit_core import implicit
from implicit_core.krylov import PCG

from .protocol import OURS, Case, Goal, Method, at_most, relative


POINTS = 200


def cases(quick: bool) -> Iterator[Case]:
    """Yield one case for each ε."""
    for epsilon in (0.1,) if quick else (1.0, 0.1, 0.05, 0.02, 0.01, 0.005):
        yield _case(epsilon)


def _case(epsilon: float) -> Case:
    r = np.random.default_rng(0)
    # Uniform: normal clouds have outliers, which at these ε make condition numbers that no float32 method can meet.
    x, y = 3 * r.uniform(size=(2, POINTS, 2))
    direction = np.random.default_rng(1).normal(size=x.shape)
    exact, condition = _reference(x, y, epsilon)

    def error(gradient):
        along, truth = (float((np.asarray(g, np.float64) * direction).sum()) for g in (gradient, exact))
        return abs(along - truth) / abs(truth), f"whole gradient {relative(gradient, exact):.0e}"

    def gradient(potential):
        def loss(x, y):
            f = potential(x, y)
            return jnp.sum((f - jnp.mean(f)) ** 2)

        return jax.grad(loss)

    methods = [
        Method(OURS, "implicit-core", gradient(lambda x, y: _ours(x, y, epsilon))),
        Method("ott-jax, default", "ott-jax", gradient(lambda x, y: _ott(x, y, epsilon))),
    ]
    bound = "≤ 1e-3" if epsilon >= 0.02 else "reported, no goal"
    goal = Goal(
        f"error in a directional derivative {bound}",
        lambda rows: at_most(rows[OURS], 1e-3) if epsilon >= 0.02 else None,
    )
    arguments = (x.astype(np.float32), y.astype(np.float32))
    return Case(f"I4 transport ε={epsilon:g} (cond {condition:.0f})", arguments, methods, error, goal)


def _semi_dual(f, clouds, epsilon):
    """Return the error of the row marginal, times the number of rows; the other potential is eliminated."""
    x, y = clouds
    cost = jnp.sum((x[:, None] - y[None]) ** 2, axis=-1)
    return len(x) * jnp.mean(jax.nn.softmax((f[:, None] - cost) / epsilon, axis=0), axis=1) - 1


def _ours(x, y, epsilon):
    psd = frozenset({lx.positive_semidefinite_tag})

    @implicit.root(lambda f, clouds: _semi_dual(f, clouds, epsilon), linear_solver=PCG(rtol=1e-5), tags=psd)
    def potential(clouds):
        def sinkhorn(carry):
            f, _, k = carry
            excess = _semi_dual(f, clouds, epsilon)
            return f - epsilon * jnp.log1p(excess), jnp.mean(jnp.abs(excess)), k + 1

        active = lambda carry: (carry[1] > 1e-5) & (carry[2] < 20_000)
        f = jnp.zeros(len(x), x.dtype)
        return jax.lax.while_loop(active, sinkhorn, (f, jnp.array(1.0, x.dtype), 0))[0]

    return potential((x, y))


def _ott(x, y, epsilon):
    from ott.geometry import pointcloud
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    solver = sinkhorn.Sinkhorn(threshold=1e-5, max_iterations=20_000)
    return solver(linear_problem.LinearProblem(pointcloud.PointCloud(x, y, epsilon=epsilon))).f


def _reference(x: np.ndarray, y: np.ndarray, epsilon: float) -> tuple[np.ndarray, float]:
    r"""Return the gradient in float64 and the condition number of the scaled Schur complement.

    With $H = \begin{pmatrix} \mathrm{diag}\, r & P \\ P^\top & \mathrm{diag}\, c\end{pmatrix}$ and $H(u, v) = (\bar f, 0)$, the
    cotangent of the cost is $P_{ij}(u_i + v_j)$.
    """
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    f = _potential(cost, epsilon)
    plan = _plan(f, cost, epsilon)
    schur = np.diag(plan.sum(1)) - POINTS * plan @ plan.T
    u = np.linalg.lstsq(schur, 2 * (f - f.mean()), rcond=1e-13)[0]
    v = -POINTS * plan.T @ u
    cost_bar = plan * (u[:, None] + v[None])
    eigenvalues = np.linalg.eigvalsh(schur)
    return 2 * (cost_bar.sum(1)[:, None] * x - cost_bar @ y), float(eigenvalues[-1] / eigenvalues[1])


def _plan(f: np.ndarray, cost: np.ndarray, epsilon: float) -> np.ndarray:
    scaled = (f[:, None] - cost) / epsilon
    weights = np.exp(scaled - scaled.max(0))
    return weights / weights.sum(0) / POINTS


def _potential(cost: np.ndarray, epsilon: float) -> np.ndarray:
    """Sinkhorn to get near, then damped Newton on the semi-dual by dense algebra."""
    f = np.zeros(POINTS)
    excess = lambda f: 1 / POINTS - _plan(f, cost, epsilon).sum(1)
    for level in epsilon * 2.0 ** np.arange(8, -1, -1):
        for _ in range(300):
            f = f - level * np.log(POINTS * _plan(f, cost, level).sum(1))
    for _ in range(50):
        plan = _plan(f, cost, epsilon)
        schur = np.diag(plan.sum(1)) - POINTS * plan @ plan.T
        step = epsilon * np.linalg.lstsq(schur, excess(f), rcond=1e-13)[0]
        f = min((f + s * step for s in (0.0, 0.0625, 0.25, 0.5, 1.0)), key=lambda f: np.abs(excess(f)).sum())
    return f
