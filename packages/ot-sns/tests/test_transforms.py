"""vmap, jit, and geometries."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import ot_sns
import pytest
from stationary_testkit import no_retrace, tree_allclose


def loss(cost, a, b, epsilon, weights):
    problem = ot_sns.EntropicOT(ot_sns.DenseCost(cost), a, b, epsilon=epsilon)
    solution = ot_sns.solve(problem, ot_sns.SparseNewton(tol=1e-13))
    return solution.value + jnp.sum(weights * solution.f), solution


def test_vmap_is_a_loop(make_problem, transport):
    # Easy and hard members in one batch: each must stop at its own time, with the answer it has alone.
    members = [make_problem(seed) for seed in range(3)]
    costs, a, b, _ = (jnp.stack(leaves) for leaves in zip(*members, strict=True))
    epsilons = jnp.array([1.0, 0.1, 0.03])
    weights = jnp.asarray(np.random.default_rng(0).normal(size=6))
    batched = no_retrace(jax.vmap(jax.grad(loss, argnums=(0, 3), has_aux=True), in_axes=(0, 0, 0, 0, None)))
    (of_cost, of_epsilon), together = batched(costs, a, b, epsilons, weights)
    r = np.random.default_rng(1)
    for i in range(3):
        alone = transport(costs[i], a[i], b[i], epsilons[i])
        member = jax.tree.map(lambda leaf, i=i: leaf[i], eqx.filter(together, eqx.is_array))
        assert tree_allclose(
            (member.value, member.f, member.g), (alone.value, alone.f, alone.g), rtol=1e-11, atol=1e-12
        )
        for name in ("num_steps", "num_newton", "num_sinkhorn", "num_cg", "num_stages"):
            assert int(member.stats[name]) == int(alone.stats[name]), name
        assert member.stats["error"] <= 1.01e-13
        direction, h = jnp.asarray(r.normal(size=(6, 8))), 1e-5

        def value(step, i=i, direction=direction):
            solution = transport(costs[i] + step * direction, a[i], b[i], epsilons[i])
            return float(solution.value + jnp.sum(weights * solution.f))

        numeric = (value(h) - value(-h)) / (2 * h)
        assert float(jnp.sum(of_cost[i] * direction)) == pytest.approx(numeric, rel=1e-6)
        above, below = (transport(costs[i], a[i], b[i], epsilons[i] + s) for s in (h, -h))
        numeric = float(above.value - below.value + jnp.sum(weights * (above.f - below.f))) / (2 * h)
        assert float(of_epsilon[i]) == pytest.approx(numeric, rel=1e-6)
    steps = np.asarray(together.stats["num_steps"])
    assert len(set(steps.tolist())) > 1


def test_solutions_are_pytrees(small, transport):
    solution = transport(*small)
    leaves, treedef = jax.tree.flatten(solution)
    again = jax.tree.unflatten(treedef, leaves)
    assert tree_allclose(again.matrix(), solution.matrix())
    assert isinstance(again.problem, ot_sns.EntropicOT)


@eqx.filter_jit
def cost_and_gradient(x, y, bar):
    def total(x, y):
        cost = ot_sns.PointCloud(x, y).cost_matrix()
        return jnp.sum(bar * cost), cost

    return jax.grad(total, argnums=(0, 1), has_aux=True)(x, y)


@pytest.mark.parametrize(
    ("dimension", "dtype"), [(3, jnp.float32), (16, jnp.float64), (17, jnp.float64), (40, jnp.float32)]
)
def test_squared_distances(dimension, dtype):
    # Far from the origin, where the expanded square of high dimensions would cancel if it were not centred.
    r = np.random.default_rng(dimension)
    x, y = (np.asarray(r.normal(size=(n, dimension)) + 100, dtype) for n in (5, 7))
    y[0] = x[0]
    bar = np.asarray(r.normal(size=(5, 7)), dtype)
    gradient, cost = cost_and_gradient(*(jnp.asarray(array) for array in (x, y, bar)))
    x, y, bar = (array.astype(np.float64) for array in (x, y, bar))
    offsets = x[:, None] - y[None]
    expected = np.sum(offsets**2, axis=-1)
    precision = 50 * float(jnp.finfo(dtype).eps)
    assert cost.dtype == dtype
    assert float(jnp.min(cost)) >= 0
    np.testing.assert_allclose(cost, expected, atol=precision * expected.max())
    np.testing.assert_allclose(gradient[0], 2 * np.einsum("ij,ijd->id", bar, offsets), atol=precision * 100)
    np.testing.assert_allclose(gradient[1], -2 * np.einsum("ij,ijd->jd", bar, offsets), atol=precision * 100)


def test_cost_of_ones_own():
    r = np.random.default_rng(0)
    x, y = r.normal(size=(4, 3)), r.normal(size=(5, 3))
    cloud = ot_sns.PointCloud(jnp.asarray(x), jnp.asarray(y), lambda p, q: jnp.sum(jnp.abs(p - q)) + p[0] * q[1])
    expected = np.abs(x[:, None] - y[None]).sum(-1) + np.outer(x[:, 0], y[:, 1])
    np.testing.assert_allclose(cloud.cost_matrix(), expected, rtol=1e-14)
    assert cloud.shape == (4, 5)
    assert cloud.dtype == jnp.float64


def test_rescale_cost():
    cost = jnp.asarray(np.random.default_rng(0).uniform(1, 9, size=(4, 5)))
    scaled = ot_sns.rescale_cost(ot_sns.DenseCost(cost))
    assert isinstance(scaled, ot_sns.DenseCost)
    np.testing.assert_allclose(scaled.cost, cost / jnp.max(cost), rtol=1e-15)


def test_transport_cost_and_matrix(small, transport, plan_of):
    solution = transport(*small)
    np.testing.assert_allclose(solution.matrix(), plan_of(*small), atol=1e-14)
    assert float(solution.transport_cost()) == pytest.approx(float(np.sum(small[0] * plan_of(*small))), rel=1e-12)
