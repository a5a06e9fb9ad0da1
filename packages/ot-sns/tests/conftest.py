"""What several test modules share. Compiling a solver takes seconds and running it milliseconds, so most tests use one
shape, 6 x 8, and the compiled programs below."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import ot_sns
import pytest
from stationary_testkit import no_retrace


SHAPE = (6, 8)


def transport_problem(seed: int = 0, shape: tuple[int, int] = SHAPE) -> tuple[Any, ...]:
    """Draw a cost in [0, 1], two positive weights of sum one, and a moderate regularisation."""
    r = np.random.default_rng(seed)
    cost, a, b = r.uniform(size=shape), r.dirichlet(np.full(shape[0], 5)), r.dirichlet(np.full(shape[1], 5))
    return jnp.asarray(cost), jnp.asarray(a), jnp.asarray(b), jnp.array(0.1, jnp.float64)


def solved(cost: Any, a: Any, b: Any, epsilon: Any, solver: Any = None, **kwargs: Any) -> ot_sns.Solution:
    """Solve a problem on a matrix, by default as precisely as float64 allows."""
    problem = ot_sns.EntropicOT(ot_sns.DenseCost(cost), a, b, epsilon=epsilon)
    return ot_sns.solve(problem, ot_sns.SparseNewton(tol=1e-13) if solver is None else solver, **kwargs)


def reference_potentials(cost: Any, a: Any, b: Any, epsilon: Any) -> tuple[np.ndarray, np.ndarray]:
    """Potentials by Sinkhorn's scaling in NumPy, to rounding: for problems on which that converges fast."""
    cost, a, b, epsilon = (np.asarray(x) for x in (cost, a, b, epsilon))
    kernel = np.exp(-cost / epsilon)
    v = np.ones(len(b))
    for _ in range(20_000):
        u = a / (kernel @ v)
        v, before = b / (kernel.T @ u), v
        if np.max(np.abs(v / before - 1)) < 1e-15:
            break
    else:
        raise AssertionError("the reference did not converge")
    f, g = epsilon * np.log(u), epsilon * np.log(v)
    return f - f.mean(), g + f.mean()


@pytest.fixture(scope="session")
def transport():
    """The compiled solve on 6 x 8 atoms, which fails if it is ever traced twice."""
    compiled = no_retrace(solved)
    return lambda *arrays: compiled(*(jnp.asarray(x, jnp.float64) for x in arrays))


@pytest.fixture(scope="session")
def small():
    return transport_problem()


@pytest.fixture(scope="session")
def make_problem():
    return transport_problem


@pytest.fixture(scope="session")
def solve_dense():
    return solved


@pytest.fixture(scope="session")
def reference():
    return reference_potentials


@pytest.fixture(scope="session")
def plan_of():
    def plan(cost, a, b, epsilon):
        f, g = reference_potentials(cost, a, b, epsilon)
        return np.exp((f[:, None] + g[None] - np.asarray(cost)) / np.asarray(epsilon))

    return plan
