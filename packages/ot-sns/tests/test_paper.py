"""The paper's experiment, the reference costs, and the rates of convergence."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import ot_sns
import pytest
from ot_sns import problems
from ot_sns._scaling import DenseProblem, Semidual
from stationary_testkit import converges_at_order


PRECISE = ot_sns.SparseNewton(tol=1e-11)


@pytest.fixture(scope="module")
def lap():
    named = problems.lap(500)
    return named, named.problem()


@pytest.fixture(scope="module")
def lap_solution(lap):
    return ot_sns.solve(lap[1], PRECISE)


def test_literal_algorithm_and_sinkhorn(lap):
    # Table 1 of arXiv:2401.12253: 20 Sinkhorn and 9 Newton steps to machine accuracy.
    named, problem = lap
    sns = ot_sns.solve(problem, ot_sns.SNS(num_warmup=20, num_newton=10, nnz_per_row=6, tol=1e-12))
    assert sns.stats["num_sinkhorn"] == 20
    assert sns.stats["num_newton"] <= 10
    assert sns.stats["error"] < 1e-12
    assert float(sns.transport_cost()) == pytest.approx(named.known["linear_cost"], abs=5e-11)
    sinkhorn = ot_sns.solve(problem, ot_sns.Sinkhorn(tol=1e-9), max_steps=50_000)
    assert sinkhorn.stats["error"] <= 1.01e-9
    assert sinkhorn.stats["num_sinkhorn"] == sinkhorn.stats["num_steps"]
    assert sinkhorn.stats["num_steps"] > 500 * sns.stats["num_steps"]
    np.testing.assert_allclose(sinkhorn.f, sns.f, atol=1e-6)


def test_sinkhorn_rate_explains_its_count(lap_solution):
    # Iterations per digit are ln 10 / -ln sigma_2^2: 5,809 here, so 56,199 to machine accuracy fits.
    a = 1 / 500
    sigma = np.linalg.svd(np.asarray(lap_solution.matrix()) / a, compute_uv=False)
    assert sigma[0] == pytest.approx(1, abs=1e-10)
    assert -np.log(10) / np.log(sigma[1] ** 2) == pytest.approx(5809, abs=1)


@pytest.mark.parametrize("name", ["LAP-500", "DENS1D-500", "DIGITS-L2", "DIGITS-L1", "GAUSS2D-1000"])
def test_entropic_costs_to_nine_digits(name):
    named = problems.standard()[name]()
    solution = ot_sns.solve(named.problem(), PRECISE)
    # Half a unit in the tenth decimal, which is what the references are rounded to.
    assert float(solution.transport_cost()) == pytest.approx(named.known["linear_cost"], abs=5e-11)
    assert solution.stats["error"] <= 1.01e-11
    assert solution.stats["num_newton"] <= (60 if name == "DIGITS-L1" else 20)
    assert 0 < float(jnp.asarray(solution.certificate().value)) <= 2e-12
    plan = np.asarray(solution.feasible_matrix())
    assert plan.min() >= 0
    np.testing.assert_allclose(plan.sum(1), named.a, rtol=1e-12)
    np.testing.assert_allclose(plan.sum(0), named.b, rtol=1e-12)


def test_excess_over_the_linear_programme(lap, lap_solution):
    named, problem = lap
    excess = float(lap_solution.transport_cost()) - named.known["lp_value"]
    # min(H(a), H(b)) = log n for uniform weights.
    assert 0 <= excess <= float(problem.epsilon) * np.log(500)


def test_sparse_hessian_gives_the_same_solution(lap, lap_solution):
    _, problem = lap
    sparse = ot_sns.solve(problem, ot_sns.SparseNewton(tol=1e-11, hessian="sparse"))
    np.testing.assert_allclose(sparse.f, lap_solution.f, atol=1e-9)
    np.testing.assert_allclose(sparse.g, lap_solution.g, atol=1e-9)
    np.testing.assert_allclose(sparse.matrix(), lap_solution.matrix(), atol=1e-9)
    assert int(sparse.stats["hessian_nnz"]) < 0.02 * 500**2
    assert sparse.stats["num_newton"] <= lap_solution.stats["num_newton"] + 2


def test_newton_is_quadratic_at_the_end(lap, lap_solution):
    _, problem = lap
    dense = DenseProblem(problem.geometry.cost_matrix(), problem.a, problem.b, problem.epsilon)
    solver = ot_sns.SparseNewton()
    noise = jnp.asarray(np.random.default_rng(0).normal(size=500))

    @jax.jit
    def start(f):
        semidual = Semidual(dense, f)
        point = semidual.anchor_point()
        return semidual, point, solver._start(dense, None).replace(error=semidual.error(point))

    @eqx.filter_jit
    def step(semidual, point, state):
        point, state = solver._newton_step(semidual, point, jnp.array(1e-14), state)
        return point, state.replace(error=semidual.error(point))

    semidual, point, state = start(lap_solution.f + 0.05 * problem.epsilon * noise)
    errors = [float(state.error)]
    while errors[-1] > 1e-13 and len(errors) < 12:
        point, state = step(semidual, point, state)
        errors.append(float(state.error))
    assert errors[-1] <= 1e-13
    tail = errors[:-1][-3:]  # the very last error stands at rounding
    assert converges_at_order(tail, 2)
    assert all(after <= 20 * before**2 for before, after in itertools.pairwise(tail))


def test_local_rate_of_sinkhorn(transport, small):
    solution = transport(*small)
    cost, a, b, epsilon = small
    r, c = np.sqrt(np.asarray(a)), np.sqrt(np.asarray(b))
    sigma = np.linalg.svd(np.asarray(solution.matrix()) / r[:, None] / c[None], compute_uv=False)

    @jax.jit
    def errors(f):
        semidual = Semidual(DenseProblem(cost, a, b, epsilon), f)

        def step(point, _):
            point = semidual.sinkhorn_step(point)
            return point, semidual.error(point)

        return jax.lax.scan(step, semidual.anchor_point(), length=40)[1]

    measured = np.asarray(errors(solution.f + 1e-3 * jnp.arange(6.0)))
    assert measured[-1] / measured[-2] == pytest.approx(sigma[1] ** 2, rel=1e-4)
