"""Problems whose solution is known: oracles 1 to 3, the theory of small regularisation, and degenerate problems."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import ot_sns
import pytest


def embedded_two_by_two(epsilon):
    return *embedded(1 - np.eye(2)), epsilon


def embedded(cost):
    """A square problem with uniform weights, as one on 6 x 8 atoms of which the others have no mass."""
    n = len(cost)
    weights = np.full(n, 1 / n)
    padded = np.pad(cost, ((0, 6 - n), (0, 8 - n)), constant_values=0.3)
    return jnp.asarray(padded), jnp.asarray(np.pad(weights, (0, 6 - n))), jnp.asarray(np.pad(weights, (0, 8 - n)))


@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.03])
def test_two_by_two(epsilon, transport):
    # The atoms without mass must be as if they were not there.
    expected, other = 0.5 / (1 + math.exp(-1 / epsilon)), 0.5 / (1 + math.exp(1 / epsilon))
    solution = transport(*embedded_two_by_two(epsilon))
    plan = np.asarray(solution.matrix())
    np.testing.assert_allclose(np.diag(plan)[:2], expected, rtol=1e-11)
    np.testing.assert_allclose([plan[0, 1], plan[1, 0]], other, rtol=1e-10)
    assert np.all(plan[2:] == 0)
    assert np.all(plan[:, 2:] == 0)
    assert np.all(np.asarray(solution.f)[2:] == -np.inf)
    assert np.all(np.asarray(solution.g)[2:] == -np.inf)
    linear, entropy = 2 * plan[0, 1], sum(p * (math.log(p) - 1) for p in plan[:2, :2].ravel())
    assert float(solution.value) == pytest.approx(linear + epsilon * entropy, rel=1e-12)


@pytest.mark.parametrize("solver", [ot_sns.Sinkhorn(tol=1e-13), ot_sns.SNS(tol=1e-13)])
def test_two_by_two_with_uneven_weights(solver, solve_dense):
    # P_11 solves p (1 - a - b + p) = k^2 (a - p) (b - p) with k = exp(1 / eps): a quadratic.
    a, b, epsilon = 0.3, 0.6, 0.25
    k2 = math.exp(2 / epsilon)
    roots = np.roots([1 - k2, 1 - a - b + k2 * (a + b), -k2 * a * b])
    expected = next(p for p in roots if max(0, a + b - 1) < p < min(a, b))
    weights = jnp.array([a, 1 - a]), jnp.array([b, 1 - b])
    solution = solve_dense(1 - jnp.eye(2), *weights, epsilon, solver)
    assert float(solution.matrix()[0, 0]) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("epsilon", [2.0, 0.5, 0.1])
def test_gaussians_on_the_line(epsilon, solve_dense):
    # Janati et al., arXiv:2006.02572. Their value has KL(P | a x b); ours has no reference measure.
    m1, s1, m2, s2 = -0.5, 0.6, 0.4, 0.9
    x = np.linspace(-7, 7, 500)
    a = np.exp(-0.5 * ((x - m1) / s1) ** 2)
    b = np.exp(-0.5 * ((x - m2) / s2) ** 2)
    # Atoms of no weight in float64 would only make the problem singular.
    a, b = a / a.sum() + 1e-300, b / b.sum() + 1e-300
    cost = (x[:, None] - x[None]) ** 2
    largest = cost.max()
    arrays = jnp.asarray(cost / largest), jnp.asarray(a), jnp.asarray(b)
    solution = solve_dense(*arrays, epsilon / largest, ot_sns.SparseNewton(tol=1e-11))
    variance = epsilon / 2
    d = math.sqrt(4 * s1**2 * s2**2 + variance**2)
    linear = (m1 - m2) ** 2 + s1**2 + s2**2 - (d - variance)
    # KL(P | a x b) = sum P log P - sum a log a - sum b log b, and our value has sum P (log P - 1).
    value = (m1 - m2) ** 2 + s1**2 + s2**2 - d + variance * (1 - math.log(2 * variance))
    value += variance * math.log(d + variance)
    ours = largest * float(solution.value) + epsilon * (1 - np.sum(a * np.log(a)) - np.sum(b * np.log(b)))
    plan = np.asarray(solution.matrix())
    covariance = (x - m1) @ plan @ (x - m2)
    assert float(solution.transport_cost()) * largest == pytest.approx(linear, abs=1e-9)
    assert covariance == pytest.approx((d - variance) / 2, abs=1e-9)
    assert ours == pytest.approx(value, abs=1e-9)


def test_separable_cost_gives_the_product_plan(transport, reference, plan_of):
    r = np.random.default_rng(5)
    c1, a1, b1 = r.uniform(size=(2, 2)), r.dirichlet(np.full(2, 5)), r.dirichlet(np.full(2, 5))
    c2, a2, b2 = r.uniform(size=(3, 4)), r.dirichlet(np.full(3, 5)), r.dirichlet(np.full(4, 5))
    cost = (c1[:, None, :, None] + c2[None, :, None, :]).reshape(6, 8)
    a, b = np.outer(a1, a2).ravel(), np.outer(b1, b2).ravel()
    solution = transport(jnp.asarray(cost), jnp.asarray(a), jnp.asarray(b), jnp.array(0.1))
    np.testing.assert_allclose(
        solution.matrix(), np.kron(plan_of(c1, a1, b1, 0.1), plan_of(c2, a2, b2, 0.1)), atol=1e-13
    )
    f1, f2 = reference(c1, a1, b1, 0.1)[0], reference(c2, a2, b2, 0.1)[0]
    np.testing.assert_allclose(solution.f, np.add.outer(f1, f2).ravel(), atol=1e-12)


@pytest.mark.parametrize("seed", [0, 2, 3, 4])
def test_plan_nears_the_assignment_exponentially(seed, transport):
    # Theorem 1 of arXiv:2401.12253 in the limit of many iterations, and how far the entropic cost is from the linear
    # programme's. The vertices of this polytope are the permutations over n, so the gap is found by enumeration.
    n = 5
    cost = np.random.default_rng(seed).uniform(size=(n, n))
    ranked = sorted(
        (sum(cost[i, p] for i, p in enumerate(perm)) / n, perm) for perm in itertools.permutations(range(n))
    )
    best, gap = ranked[0][0], ranked[1][0] - ranked[0][0]
    exact = np.eye(n)[list(ranked[0][1])] / n
    bounds = []
    for epsilon in (gap, gap / 3, gap / 6, gap / 12):
        solution = transport(*embedded(cost), epsilon)
        bound = 6 * n**2 * math.exp(-gap / epsilon)
        assert np.abs(np.asarray(solution.matrix())[:n, :n] - exact).sum() <= bound + 1e-12
        excess = float(solution.transport_cost()) - best
        assert -1e-13 <= excess <= epsilon * math.log(n)
        bounds.append(bound)
    # The plan was at a distance of at most two before: the last bounds say something.
    assert bounds[-1] < 0.01


@pytest.fixture(scope="module")
def one_source(solve_dense):
    """Value and gradient with a single source point, and five target points."""

    def value(x, y, b, epsilon):
        problem = ot_sns.EntropicOT(ot_sns.PointCloud(x, y), None, b, epsilon=epsilon)
        solution = ot_sns.solve(problem, ot_sns.SparseNewton(tol=1e-13))
        return solution.value + jnp.sum(solution.matrix() ** 2), solution

    return jax.jit(jax.grad(value, argnums=(0, 1, 2, 3), has_aux=True))


def test_one_point(one_source):
    # Everything goes where the weights say, whatever the cost: P = b.
    x, y = jnp.array([[0.3, -0.2]]), jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))
    b, epsilon = jnp.array([0.1, 0.2, 0.3, 0.15, 0.25]), jnp.array(0.2)
    (of_x, of_y, of_b, of_epsilon), solution = one_source(x, y, b, epsilon)
    np.testing.assert_allclose(solution.matrix()[0], b, rtol=1e-13)
    cost = np.sum((np.asarray(x) - np.asarray(y)) ** 2, axis=1)
    entropy = np.sum(np.asarray(b) * (np.log(b) - 1))
    assert float(solution.value) == pytest.approx(float(cost @ b + 0.2 * entropy), rel=1e-13)
    assert solution.f.shape == (1,)
    assert float(solution.f[0]) == 0
    offsets = np.asarray(x) - np.asarray(y)
    np.testing.assert_allclose(of_x[0], 2 * np.asarray(b) @ offsets, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(of_y, -2 * np.asarray(b)[:, None] * offsets, rtol=1e-12, atol=1e-14)
    expected = cost + 0.2 * np.log(b) + 2 * np.asarray(b)
    shift = np.asarray(of_b) - expected  # known up to a constant: only zero-sum changes keep the masses equal
    np.testing.assert_allclose(shift, shift.mean(), atol=1e-13)
    assert float(of_epsilon) == pytest.approx(entropy, rel=1e-12)


def test_constant_cost_gives_independence(transport, small):
    _, a, b, epsilon = small
    for constant in (0.0, 3.0, -2.0):
        solution = transport(jnp.full((6, 8), constant, jnp.float64), a, b, epsilon)
        np.testing.assert_allclose(solution.matrix(), np.outer(a, b), rtol=1e-12)


@pytest.mark.parametrize("mass", [1e-6, 5.0, 1e6])
def test_total_mass(mass, transport, small, plan_of):
    cost, a, b, epsilon = small
    solution = transport(cost, mass * a, mass * b, epsilon)
    np.testing.assert_allclose(solution.matrix(), mass * plan_of(*small), rtol=1e-11)
    plan = np.asarray(solution.matrix())
    value = np.sum(np.asarray(cost) * plan) + 0.1 * np.sum(plan * (np.log(plan) - 1))
    assert float(solution.value) == pytest.approx(value, rel=1e-12)
    # The error is relative to the mass.
    assert 0 <= solution.stats["error"] <= 1.01e-13


def test_uniform_weights_are_the_default(transport, small):
    cost, *_, epsilon = small
    problem = ot_sns.EntropicOT(ot_sns.DenseCost(cost), epsilon=epsilon)
    np.testing.assert_allclose(problem.a, np.full(6, 1 / 6), rtol=1e-15)
    np.testing.assert_allclose(problem.b, np.full(8, 1 / 8), rtol=1e-15)
    assert problem.shape == (6, 8)
    heavy = ot_sns.EntropicOT(ot_sns.DenseCost(cost), jnp.full(6, 0.5), epsilon=epsilon)
    np.testing.assert_allclose(heavy.b, np.full(8, 3 / 8), rtol=1e-15)
