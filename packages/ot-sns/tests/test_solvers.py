"""Small regularisation, warm starts, failures, and what the statistics say."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import ot_sns
import pytest
from scipy.optimize import linprog


N, M = 60, 80


@pytest.fixture(scope="module")
def cost():
    return jnp.asarray(np.random.default_rng(7).uniform(size=(N, M)))


@pytest.fixture(scope="module")
def solutions(cost):
    """Solve at any regularisation, with the default solver."""
    return eqx.filter_jit(lambda epsilon: ot_sns.solve(ot_sns.EntropicOT(ot_sns.DenseCost(cost), epsilon=epsilon)))


@pytest.fixture(scope="module")
def lp_value(cost):
    # Sums of rows and columns of a 60 x 80 plan; the last of them follows from the others.
    rows = np.kron(np.eye(N), np.ones(M))
    columns = np.kron(np.ones(N), np.eye(M))
    equations = np.vstack([rows, columns])[:-1]
    totals = np.concatenate([np.full(N, 1 / N), np.full(M, 1 / M)])[:-1]
    result = linprog(np.asarray(cost).ravel(), A_eq=equations, b_eq=totals, method="highs")
    assert result.status == 0
    return result.fun


@pytest.mark.parametrize("epsilon", [1e-2, 1e-4, 1e-5, 1e-6])
def test_tiny_regularisation(epsilon, cost, solutions, lp_value):
    solution = solutions(jnp.asarray(epsilon, jnp.float64))
    plan = np.asarray(solution.matrix())
    error = np.abs(plan.sum(1) - 1 / N).sum() + np.abs(plan.sum(0) - 1 / M).sum()
    assert error <= 1.01e-9
    assert float(solution.stats["error"]) == pytest.approx(error, rel=1e-6, abs=1e-13)
    assert float(solution.stats["tol"]) == 1e-9
    excess = np.sum(np.asarray(cost) * plan) - lp_value
    assert -1e-9 <= excess <= epsilon * np.log(N) + 1e-9
    assert int(solution.stats["num_steps"]) <= 100
    assert 0 < solution.certificate().value <= 1e-8


def test_statistics_add_up(solutions):
    stats = {name: float(value) for name, value in solutions(jnp.array(1e-4, jnp.float64)).stats.items()}
    assert stats["num_steps"] == stats["num_newton"] + stats["num_sinkhorn"]
    assert stats["error"] == pytest.approx(stats["error_a"] + stats["error_b"], rel=1e-12)
    assert stats["num_cg"] >= stats["num_newton"] > 0
    assert stats["num_stages"] > 1
    assert stats["hessian_nnz"] == N * M


def test_warm_start(cost, solutions):
    def restarted(epsilon, init):
        return ot_sns.solve(ot_sns.EntropicOT(ot_sns.DenseCost(cost), epsilon=epsilon), init=init)

    epsilon = jnp.array(1e-3, jnp.float64)
    cold = solutions(epsilon)
    again = restarted(epsilon, (cold.f, cold.g))
    assert int(again.stats["num_steps"]) == 0
    np.testing.assert_allclose(again.f, cold.f, atol=1e-12)
    nearby = solutions(jnp.array(1.1e-3, jnp.float64))
    warm = restarted(epsilon, (nearby.f, nearby.g))
    assert int(warm.stats["num_steps"]) <= int(cold.stats["num_steps"]) // 2
    # The gauge of a start does not matter, nor do potentials of atoms without mass.
    shifted = restarted(epsilon, ((nearby.f + 5).at[0].set(-jnp.inf), nearby.g - 5))
    r = np.random.default_rng(0)
    absurd = restarted(epsilon, (jnp.asarray(1e3 * r.normal(size=N)), jnp.asarray(1e3 * r.normal(size=M))))
    for solution in (warm, shifted, absurd):
        assert solution.stats["error"] <= 1.01e-9
        np.testing.assert_allclose(solution.f, cold.f, atol=1e-8)
    # A solution is a start as it is.
    assert int(restarted(epsilon, cold).stats["num_steps"]) == 0


def test_slow_gate_is_not_stagnation(transport):
    # Almost separate blocks: Sinkhorn gains less than a tenth a step here, for more steps than Newton is given
    # to show progress. Found by Hypothesis.
    cost = np.ones((6, 8))
    cost[1, 0] = 0
    a = np.array([16.0, 1, 1, 1, 1, 1]) / 21
    solution = transport(jnp.asarray(cost), jnp.asarray(a), jnp.full(8, 1 / 8, jnp.float64), jnp.array(0.03))
    assert solution.stats["error"] <= 1.01e-13
    assert int(solution.stats["num_sinkhorn"]) > 12


def finite(solution):
    return all(bool(jnp.all(jnp.isfinite(x))) for x in (solution.value, solution.f, solution.g, solution.matrix()))


def test_step_limit(small, transport, solve_dense):
    exact = transport(*small)
    solution = solve_dense(*small, ot_sns.SparseNewton(tol=1e-13), max_steps=2, throw=False)
    assert solution.result == ot_sns.RESULTS.nonlinear_max_steps_reached
    assert int(solution.stats["num_steps"]) == 2
    assert finite(solution)
    assert solution.stats["error"] > solution.stats["tol"]
    assert solution.stats["error_b"] <= 1e-15
    # The certificate needs no convergence: the bound holds, and is no worse than it has to be.
    wrong = abs(float(solution.value) - float(exact.value))
    bound = float(solution.certificate().value)
    assert 1e-9 < wrong <= bound <= 20 * wrong


def test_step_limit_raises(small, solve_dense):
    with pytest.raises(eqx.EquinoxRuntimeError, match="maximum number of steps"):
        solve_dense(*small, ot_sns.Sinkhorn(tol=1e-13), max_steps=3)


def test_float32_says_where_it_ends(small, solve_dense):
    # Rounding the potentials to float32 alone leaves an error of about 1e-7 / epsilon.
    cost, a, b, _ = (x.astype(jnp.float32) for x in small)
    solution = solve_dense(cost, a, b, jnp.array(1e-4, jnp.float32), ot_sns.SparseNewton(), throw=False)
    assert solution.result == ot_sns.RESULTS.marginal_stagnation
    assert finite(solution)
    plan = np.asarray(solution.matrix(), np.float64)
    error = (
        np.abs(plan.sum(1) - np.asarray(a, np.float64)).sum() + np.abs(plan.sum(0) - np.asarray(b, np.float64)).sum()
    )
    assert error > 1e-5
    assert float(solution.stats["error"]) == pytest.approx(error, rel=1e-2)


def test_messages_of_results():
    message = ot_sns.RESULTS[ot_sns.RESULTS.marginal_stagnation]
    assert "stopped falling" in message
    assert "larger `tol` or a larger `epsilon`" in message


SUCCESS: Any = ot_sns.RESULTS.successful


class Hopeless(ot_sns.AbstractSolver):
    tol: float | None = None
    answer: float = np.nan

    def run(self, problem, f, max_steps):
        del f
        stats = dict(num_steps=jnp.asarray(max_steps), tol=jnp.asarray(1e-9))
        return ot_sns.Outcome(jnp.full_like(problem.a, self.answer), SUCCESS, stats)


@pytest.mark.parametrize(
    ("answer", "result"), [(np.nan, ot_sns.RESULTS.nonfinite), (0.0, ot_sns.RESULTS.marginal_stagnation)]
)
def test_a_wrong_success_is_none(answer, result, small, solve_dense):
    # The driver measures the error itself, whatever a solver claims.
    solution = solve_dense(*small, Hopeless(answer=answer), throw=False)
    assert solution.result == result


def test_over_relaxed_sinkhorn(small, solve_dense, reference):
    solution = solve_dense(*small, ot_sns.Sinkhorn(tol=1e-13, relaxation=1.25))
    np.testing.assert_allclose(solution.f, reference(*small)[0], atol=1e-12)
    # Near the best factor, 2 / (1 + sqrt(1 - sigma_2^2)) = 1.27. Without it there are 68 steps.
    assert int(solution.stats["num_steps"]) < 60
