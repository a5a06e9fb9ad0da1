"""Safe sparsification, and the Newton direction with and without it."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
from implicit_core.operators import SparseOperator
from ot_sns import _newton
from ot_sns._scaling import DenseProblem, Semidual
from ot_sns._sparsify import Sparsified, compact, sparsify


N, M = 20, 24
compacted = jax.jit(compact, static_argnums=1)


def densities():
    # Empty, full and sparse masks all occur.
    return st.sampled_from([0.0, 0.02, 0.5, 1.0])


@pytest.mark.parametrize("shape", [(3, 5), (4, 64), (5, 33)])
@pytest.mark.parametrize("room", [1.0, 0.3])
def test_compact_is_nonzero(shape, room):
    capacity = max(int(room * shape[0] * shape[1]), 1)

    @given(density=densities(), seed=st.integers(0, 2**16))
    def check(density, seed):
        mask = np.random.default_rng(seed).uniform(size=shape) < density
        rows, columns, count = compacted(jnp.asarray(mask), capacity)
        expected = np.nonzero(mask)
        kept = min(len(expected[0]), capacity)
        assert int(count) == len(expected[0])
        np.testing.assert_array_equal(rows[:kept], expected[0][:kept])
        np.testing.assert_array_equal(columns[:kept], expected[1][:kept])
        # Slots that are not used must be harmless to read.
        assert rows.shape == columns.shape == (capacity,)
        assert np.all((np.asarray(rows) >= 0) & (np.asarray(rows) < shape[0]))
        assert np.all((np.asarray(columns) >= 0) & (np.asarray(columns) < shape[1]))

    check()


@pytest.fixture(scope="module")
def dual_point(make_problem):
    """A point that is not a solution: its rows are off by up to a third, its columns exact."""
    cost, a, b, _ = make_problem(3, (N, M))
    r = np.random.default_rng(4)
    semidual = Semidual(DenseProblem(cost, a, b, jnp.array(0.03)), jnp.asarray(0.02 * r.normal(size=N)))
    point = semidual.anchor_point()
    plan = np.asarray(point.u)[:, None] * np.asarray(semidual.kernel) * np.asarray(point.v)
    np.testing.assert_allclose(plan.sum(0), b, rtol=1e-13)
    np.testing.assert_allclose(plan.sum(1), point.row_sums, rtol=1e-13)
    return semidual, point, plan


@ft.partial(jax.jit, static_argnames=("capacity", "must_fit"))
def sparsified(semidual, point, budget, capacity=N * M, must_fit=True):
    kept = sparsify(semidual, point, budget, capacity, must_fit=must_fit)
    products = kept.mv(jnp.arange(1.0, M + 1)), kept.transpose_mv(jnp.arange(1.0, N + 1))
    return kept, kept.plan.as_matrix(), products


@pytest.mark.parametrize("budget", [1e-1, 1e-2, 1e-4, 1e-8])
def test_sparsify_keeps_its_budget(budget, dual_point):
    semidual, point, plan = dual_point
    kept, matrix, (product, transposed) = sparsified(semidual, point, jnp.array(budget))
    matrix = np.asarray(matrix)
    assert kept.within_budget
    assert int(kept.count) == np.count_nonzero(matrix)
    stays = matrix > 0
    np.testing.assert_allclose(matrix[stays], plan[stays], rtol=1e-14)
    dropped = np.where(stays, 0, plan)
    assert np.all(dropped.sum(1) <= budget * plan.sum(1) + 1e-17)
    assert np.all(dropped.sum(0) <= budget * plan.sum(0) + 1e-17)
    np.testing.assert_allclose(product, matrix @ np.arange(1.0, M + 1), rtol=1e-13)
    np.testing.assert_allclose(transposed, np.arange(1.0, N + 1) @ matrix, rtol=1e-13)
    # It does not keep what it may drop: the safe threshold, a factor of one, keeps at least as many.
    safe = budget * np.minimum(plan.sum(1)[:, None] / M, plan.sum(0)[None] / N)
    assert stays.sum() <= (plan > safe).sum()


def test_budget_sets_the_number_of_entries(dual_point):
    semidual, point, plan = dual_point
    counts = [int(sparsified(semidual, point, jnp.array(budget))[0].count) for budget in (1e-1, 1e-2, 1e-4, 1e-8)]
    assert counts == sorted(counts)
    assert counts[0] < 0.5 * plan.size
    assert counts[0] < counts[-1]


def test_too_little_room(dual_point):
    semidual, point, plan = dual_point
    capacity = 32  # fewer than two entries a row
    kept, matrix, _ = sparsified(semidual, point, jnp.array(1e-3), capacity, True)
    assert 0 < kept.count <= capacity
    assert not kept.within_budget
    stays = np.asarray(matrix) > 0
    assert stays.sum() == int(kept.count)
    np.testing.assert_allclose(np.asarray(matrix)[stays], plan[stays], rtol=1e-14)
    # Asked not to exceed the budget, it says that there is no room.
    kept, _, _ = sparsified(semidual, point, jnp.array(1e-3), capacity, False)
    assert kept.count > capacity


@given(mask=hnp.arrays(bool, (6, 8)))
def test_any_sparsified_hessian_is_positive(transport, small, mask):
    plan = np.asarray(transport(*small).matrix())
    rows, columns = np.nonzero(mask)
    slots = 48
    padding = (0, slots - len(rows))
    operator = SparseOperator(
        jnp.asarray(np.pad(plan[mask], padding)), jnp.pad(rows, padding), jnp.pad(columns, padding), (6, 8)
    )
    kept = Sparsified(operator, jnp.array(1.0), jnp.array(len(rows), jnp.int32), jnp.array(True))
    block = np.asarray(as_matrix(kept))
    np.testing.assert_allclose(block, np.where(mask, plan, 0), rtol=1e-15)
    r, c = plan.sum(1), plan.sum(0)
    hessian = np.block([[np.diag(r), block], [block.T, np.diag(c)]])
    assert np.linalg.eigvalsh(hessian)[0] >= -1e-15
    exact = np.block([[np.diag(r), plan], [plan.T, np.diag(c)]])
    dropped = np.where(mask, 0, plan)
    distance = np.linalg.norm(exact - hessian, 2)
    assert distance <= max(dropped.sum(1).max(), dropped.sum(0).max()) + 1e-15
    schur = np.diag(r) - block / c @ block.T
    assert np.linalg.eigvalsh(schur)[0] >= -1e-15


@jax.jit
def as_matrix(kept):
    return jax.vmap(kept.mv, out_axes=1)(jnp.eye(8))


@pytest.fixture(scope="module")
def directions():
    """Newton directions by all three Hessians, with "auto" made to consider a sparse one."""

    @jax.jit
    def run(semidual, point, radius, budget, expected_cg_steps):
        return {
            hessian: _newton.newton_direction(
                semidual,
                point,
                radius=radius,
                rtol=jnp.array(1e-13),
                budget=budget,
                hessian=hessian,
                capacity=N * M,
                max_cg_steps=200,
                expected_cg_steps=expected_cg_steps,
            )
            for hessian in ("dense", "sparse", "auto")
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_newton, "_MIN_ENTRIES", 0)
        patch.setattr(_newton, "_MAX_DENSITY", 0.9)
        yield run


@pytest.mark.parametrize("expected_cg_steps", [0, 1000])
def test_newton_directions_agree(expected_cg_steps, directions, dual_point):
    semidual, point, plan = dual_point
    a, b = np.asarray(semidual.problem.a), np.asarray(semidual.problem.b)
    schur = np.diag(plan.sum(1)) - plan / b @ plan.T
    expected = np.linalg.lstsq(schur, a - plan.sum(1), rcond=1e-12)[0]
    out = directions(semidual, point, jnp.array(np.inf), jnp.array(1e-14), jnp.array(expected_cg_steps, jnp.int32))
    for direction in out.values():
        x = np.asarray(direction.x)
        np.testing.assert_allclose(x - x.mean(), expected - expected.mean(), rtol=1e-9, atol=1e-10)
        assert 0 < direction.num_cg <= 2 * N
    # Ample budget: fewer entries, and a direction that is still one of ascent.
    out = directions(semidual, point, jnp.array(np.inf), jnp.array(1e-2), jnp.array(expected_cg_steps, jnp.int32))
    nnz = {hessian: int(direction.nnz) for hessian, direction in out.items()}
    assert nnz["dense"] == N * M
    assert nnz["sparse"] < 0.9 * N * M
    assert nnz["auto"] == (nnz["sparse"] if expected_cg_steps else N * M)
    assert float(jnp.sum((a - plan.sum(1)) * out["sparse"].x)) > 0


@pytest.mark.parametrize("radius", [1e-3, 0.1, 10.0])
def test_trust_region_bounds_the_direction(radius, directions, dual_point):
    semidual, point, plan = dual_point
    out = directions(semidual, point, jnp.array(radius), jnp.array(1e-14), jnp.array(0, jnp.int32))
    gradient = np.asarray(semidual.problem.a) - plan.sum(1)
    for direction in out.values():
        x = np.asarray(direction.x)
        assert 0 < np.abs(x).max() <= radius * (1 + 1e-10)
        assert gradient @ x > 0


@pytest.mark.parametrize("transpose", [False, True])
def test_a_light_row_or_column_keeps_its_own_budget(transpose):
    # A light atom whose mass is spread evenly: the first threshold drops all of it, which only its own marginal shows.
    n = 40
    cost, light = 1 - np.eye(n), np.full(n, 1.0)
    cost[0], light[0] = 0.5, 1e-6
    even, light = np.full(n, 1 / n), light / light.sum()
    cost, a, b = (cost.T, even, light) if transpose else (cost, light, even)
    problem = DenseProblem(jnp.asarray(cost), jnp.asarray(a), jnp.asarray(b), jnp.array(0.05))
    f = jnp.asarray(0.05 * np.log(a / (np.exp(-cost / 0.05) @ b)))
    semidual = Semidual(problem, f)
    point, budget = semidual.anchor_point(), 0.05
    kept = sparsify(semidual, point, jnp.array(budget), n * n, must_fit=False)
    assert kept.factor < 32, "the first threshold was to be too coarse"
    plan = np.asarray(kept.plan.as_matrix())
    assert np.all(plan.sum(1) >= (1 - budget) * np.asarray(point.row_sums))
    assert np.all(plan.sum(0) >= (1 - budget) * b)
