"""What holds for every problem, on examples that Hypothesis draws: one shape, compiled once."""

import jax.numpy as jnp
import numpy as np
import ot_sns
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp


def numbers(shape, low, high):
    return hnp.arrays(np.float64, shape, elements=st.floats(low, high, width=32))


def weights(n):
    return numbers((n,), 0.0625, 1).map(lambda w: jnp.asarray(w / w.sum()))


costs = numbers((6, 8), 0, 1).map(jnp.asarray)
epsilons = st.sampled_from([1.0, 0.1, 0.03]).map(jnp.asarray)
problems = st.tuples(costs, weights(6), weights(8), epsilons)


@given(problem=problems)
def test_marginals_duality_gap_and_gauge(transport, problem):
    cost, a, b, epsilon = problem
    solution = transport(*problem)
    plan = np.asarray(solution.matrix())
    assert np.all(plan >= 0)
    np.testing.assert_allclose(plan.sum(1), a, atol=2e-13)
    np.testing.assert_allclose(plan.sum(0), b, atol=2e-13)
    error = np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()
    assert solution.stats["error"] == pytest.approx(error, abs=1e-15)
    # The error is measured anew on the rounded potentials: a hundredth of slack.
    assert solution.stats["error"] <= 1.01e-13
    assert solution.result == ot_sns.RESULTS.successful
    assert abs(float(jnp.mean(solution.f))) <= 1e-15
    f, g = np.asarray(solution.f), np.asarray(solution.g)
    np.testing.assert_allclose(plan, np.exp((f[:, None] + g[None] - cost) / epsilon), rtol=1e-12)
    primal = np.sum(np.asarray(cost) * plan) + float(epsilon) * np.sum(plan * (np.log(plan) - 1))
    dual = f @ np.asarray(a) + g @ np.asarray(b) - float(epsilon) * plan.sum()
    assert float(solution.value) == pytest.approx(primal, abs=1e-12)
    assert float(solution.value) == pytest.approx(dual, abs=1e-14)


@given(problem=problems, rows=st.permutations(range(6)), columns=st.permutations(range(8)))
def test_permutations(transport, problem, rows, columns):
    cost, a, b, epsilon = problem
    rows, columns = jnp.asarray(rows), jnp.asarray(columns)
    plain = transport(*problem)
    permuted = transport(cost[rows][:, columns], a[rows], b[columns], epsilon)
    np.testing.assert_allclose(permuted.matrix(), plain.matrix()[rows][:, columns], atol=1e-12)
    np.testing.assert_allclose(permuted.f, plain.f[rows], atol=1e-11)
    np.testing.assert_allclose(permuted.g, plain.g[columns], atol=1e-11)
    assert float(permuted.value) == pytest.approx(float(plain.value), abs=1e-13)


@given(problem=problems, u=numbers((6,), -2, 2), v=numbers((8,), -2, 2))
def test_costs_of_one_side_move_only_the_potentials(transport, problem, u, v):
    cost, a, b, epsilon = problem
    plain = transport(*problem)
    moved = transport(cost + jnp.asarray(u[:, None] + v[None]), a, b, epsilon)
    np.testing.assert_allclose(moved.matrix(), plain.matrix(), atol=1e-12)
    np.testing.assert_allclose(moved.f, np.asarray(plain.f) + u - u.mean(), atol=1e-11)
    np.testing.assert_allclose(moved.g, np.asarray(plain.g) + v + u.mean(), atol=1e-11)
    shift = float(np.asarray(a) @ u + np.asarray(b) @ v)
    assert float(moved.value) == pytest.approx(float(plain.value) + shift, abs=1e-12)


@given(problem=problems, scale=st.sampled_from([1e-8, 1e-3, 1e5]))
def test_units_of_the_cost_do_not_matter(transport, problem, scale):
    cost, a, b, epsilon = problem
    plain, scaled = transport(*problem), transport(scale * cost, a, b, scale * epsilon)
    np.testing.assert_allclose(scaled.matrix(), plain.matrix(), atol=1e-12)
    assert float(scaled.value) == pytest.approx(scale * float(plain.value), rel=1e-10, abs=1e-13 * scale)


@given(problem=problems)
def test_certificate_and_feasible_plan(transport, problem):
    _, a, b, _ = problem
    solution = transport(*problem)
    plan = np.asarray(solution.feasible_matrix())
    assert np.all(plan >= 0)
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-16)
    np.testing.assert_allclose(plan.sum(0), b, atol=1e-16)
    certificate = solution.certificate()
    assert certificate.kind == "proved"
    assert 0 < certificate.value <= 1e-12


def test_transposed(transport, small, solve_dense):
    # More sources than targets: the driver eliminates the other side.
    cost, a, b, epsilon = small
    wide, tall = transport(*small), solve_dense(cost.T, b, a, epsilon, ot_sns.Sinkhorn(tol=1e-13))
    np.testing.assert_allclose(tall.matrix(), wide.matrix().T, atol=1e-13)
    assert abs(float(jnp.mean(tall.f))) <= 1e-15
    mean = float(jnp.mean(wide.g))
    np.testing.assert_allclose(tall.f, wide.g - mean, atol=1e-12)
    np.testing.assert_allclose(tall.g, wide.f + mean, atol=1e-12)
    assert float(tall.value) == pytest.approx(float(wide.value), rel=1e-13)
    # The side that is eliminated is exact.
    assert tall.stats["error_a"] <= 1e-15
    assert wide.stats["error_b"] <= 1e-15


def test_against_sinkhorn_in_numpy(transport, small, reference):
    solution = transport(*small)
    f, g = reference(*small)
    np.testing.assert_allclose(solution.f, f, atol=1e-13)
    np.testing.assert_allclose(solution.g, g, atol=1e-13)
