"""Single precision: honest about what it reaches, and with a gradient that can be used."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import ot_sns
import pytest


@pytest.fixture(scope="module")
def points():
    r = np.random.default_rng(11)
    return r.uniform(size=(200, 2)), r.uniform(size=(200, 2))


@pytest.fixture(scope="module")
def gradient32():
    @eqx.filter_jit
    def gradient(x, y, epsilon):
        def loss(x):
            solution = ot_sns.solve(ot_sns.EntropicOT(ot_sns.PointCloud(x, y), epsilon=epsilon))
            return jnp.sum((solution.f - jnp.mean(solution.f)) ** 2), solution

        return jax.grad(loss, has_aux=True)(x)

    return gradient


def gradient64(x, y, epsilon, reference):
    """The same gradient by a dense linear system in NumPy (specification, section 6)."""
    n, m = len(x), len(y)
    offsets = x[:, None] - y[None]
    cost = np.sum(offsets**2, axis=-1)
    f, g = reference(cost, np.full(n, 1 / n), np.full(m, 1 / m), epsilon)
    plan = np.exp((f[:, None] + g[None] - cost) / epsilon)
    cotangent = 2 * f
    schur = np.diag(plan.sum(1)) - plan / plan.sum(0) @ plan.T
    u = np.linalg.lstsq(schur, cotangent - cotangent.mean(), rcond=1e-13)[0]
    v = -(plan.T @ u) / plan.sum(0)
    of_cost = plan * (u[:, None] + v[None])
    return 2 * np.sum(of_cost[..., None] * offsets, axis=1), f


@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.05, 0.02])
def test_implicit_gradient(epsilon, points, gradient32, reference):
    x, y = (p.astype(np.float32) for p in points)
    gradient, solution = gradient32(jnp.asarray(x), jnp.asarray(y), jnp.asarray(epsilon, jnp.float32))
    expected, f = gradient64(x.astype(np.float64), y.astype(np.float64), np.float64(np.float32(epsilon)), reference)
    assert gradient.dtype == jnp.float32
    assert np.linalg.norm(np.asarray(gradient) - expected) <= 1e-3 * np.linalg.norm(expected)
    assert solution.value.dtype == solution.f.dtype == solution.g.dtype == solution.matrix().dtype == jnp.float32
    assert solution.stats["error"].dtype == jnp.float32
    assert float(solution.stats["tol"]) == pytest.approx(1e-5)
    plan = np.asarray(solution.matrix(), np.float64)
    error = np.abs(plan.sum(1) - 1 / 200).sum() + np.abs(plan.sum(0) - 1 / 200).sum()
    assert error <= 1e-5 + 1e-6
    assert float(solution.stats["error"]) == pytest.approx(error, abs=1e-6)
    np.testing.assert_allclose(solution.f, f, atol=1e-5)


@pytest.mark.parametrize("solver", [ot_sns.SparseNewton, ot_sns.Sinkhorn, ot_sns.SNS])
def test_a_tolerance_out_of_reach_is_announced(solver, small):
    cost, *_ = small
    problem = ot_sns.EntropicOT(ot_sns.DenseCost(cost.astype(jnp.float32)), epsilon=0.1)
    with pytest.warns(UserWarning, match=r"`tol=1e-07` is below what float32 potentials can represent; using 1e-05"):
        eqx.filter_eval_shape(ot_sns.solve, problem, solver(tol=1e-7))
    problem = ot_sns.EntropicOT(ot_sns.DenseCost(cost), epsilon=0.1)
    with pytest.warns(UserWarning, match=r"`tol=1e-16` is below what float64 potentials can represent; using 1e-14"):
        eqx.filter_eval_shape(ot_sns.solve, problem, solver(tol=1e-16))
