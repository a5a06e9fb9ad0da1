import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from implicit_core import RESULTS, batched
from implicit_core.krylov import FGMRES, MINRES, PCG
from implicit_core.operators import BatchedOperator
from implicit_core.precond import jacobi
from stationary_testkit import tree_allclose


PSD = lx.positive_semidefinite_tag
SIZE, N = 40, 12


@pytest.fixture(scope="module")
def problem():
    # Most examples are easy and a few take long.
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(SIZE, N, N)))
    cond = np.where(np.arange(SIZE) % 9 == 4, 1e4, 3.0)
    spectra = cond[:, None] ** np.linspace(0, 1, N)
    return jnp.asarray(q * spectra[:, None, :] @ q.transpose(0, 2, 1)), jnp.asarray(rng.normal(size=(SIZE, N)))


def operators_of(matrices, tags: object = PSD):
    return eqx.filter_vmap(lambda a: lx.MatrixLinearOperator(a, tags))(matrices)


@eqx.filter_jit
def solve(matrices, b, solver, strategy, tags: object = PSD, throw: bool = False):
    solution = batched.solve(solver, operators_of(matrices, tags), b, strategy, throw=throw)
    return solution.value, solution.stats


@pytest.mark.parametrize("solver", [PCG(1e-9), MINRES(1e-9), FGMRES(1e-3)], ids=["pcg", "minres", "fgmres"])
def test_strategies_agree(solver, problem):
    matrices, b = problem
    values, counts = {}, {}
    for strategy in ("vmap", "compact", "map"):
        values[strategy], stats = solve(matrices, b, solver, strategy)
        counts[strategy] = stats["num_steps"]
        assert jnp.all(stats["result"] == RESULTS.successful)
        assert counts[strategy].shape == (SIZE,)
    assert jnp.min(counts["vmap"]) < jnp.max(counts["vmap"])
    residuals = jnp.einsum("bij,bj->bi", matrices, values["compact"]) - b
    for strategy in ("compact", "map"):
        assert tree_allclose(values[strategy], values["vmap"], rtol=1e-7, atol=1e-9)
        assert jnp.max(jnp.abs(counts[strategy] - counts["vmap"])) <= 1
    assert jnp.all(jnp.linalg.norm(residuals, axis=1) <= 1.001 * solver.rtol * jnp.linalg.norm(b, axis=1))


def test_permutation(problem):
    matrices, b = problem
    order = jr.permutation(jr.key(1), SIZE)
    value, stats = solve(matrices, b, PCG(1e-9), "compact")
    permuted, other = solve(matrices[order], b[order], PCG(1e-9), "compact")
    assert tree_allclose(permuted, value[order], rtol=1e-9, atol=1e-12)
    assert jnp.max(jnp.abs(other["num_steps"] - stats["num_steps"][order])) <= 1


def test_derivatives(problem):
    matrices, b = problem

    @eqx.filter_jit
    def gradient(matrices, b, strategy):
        loss = lambda m, b: jnp.sum(batched.solve(PCG(1e-10), operators_of(m), b, strategy, throw=False).value ** 2)
        return jax.grad(loss, argnums=(0, 1))(matrices, b)

    expected = jax.grad(lambda m, b: jnp.sum(jnp.linalg.solve(m, b[..., None]) ** 2), argnums=(0, 1))(matrices, b)
    for strategy in ("compact", "map"):
        for got, wanted in zip(gradient(matrices, b, strategy), expected, strict=True):
            assert jnp.linalg.norm(got - wanted) <= 1e-6 * jnp.linalg.norm(wanted)
    # And once more under `vmap`.
    twice = jax.vmap(lambda b: solve(matrices, b, PCG(1e-9), "compact")[0])(jnp.stack([b, 2 * b]))
    assert tree_allclose(twice[1], 2 * twice[0], rtol=1e-9, atol=1e-12)


def test_work_follows_the_examples():
    # Counted in the compiled program: products per example, by a callback.
    seen = []
    diagonals = jnp.where(jnp.arange(64)[:, None] == 7, jnp.geomspace(1, 1e3, 30), jnp.full(30, 2.0))

    def make(diagonal):
        def mv(v):
            jax.debug.callback(lambda _: seen.append(None), v[0])
            return diagonal * v

        return lx.FunctionLinearOperator(mv, jax.ShapeDtypeStruct((30,), jnp.float64), PSD)

    def run(strategy):
        seen.clear()
        solution = jax.jit(
            lambda d: (
                batched.solve(PCG(1e-6), eqx.filter_vmap(make)(d), jnp.ones((64, 30)), strategy, throw=False).stats
            )
        )(diagonals)
        jax.block_until_ready(solution["num_steps"])
        jax.effects_barrier()
        return len(seen), int(jnp.sum(solution["num_matvecs"]))

    everyone, total = run("vmap")
    compacted, same = run("compact")
    assert same == total
    assert everyone > 20 * total / 2
    assert compacted <= 4 * total


def test_shared_operator_and_other_solvers(problem):
    matrices, b = problem
    operator = lx.MatrixLinearOperator(matrices[0], PSD)
    expected = jnp.linalg.solve(matrices[0], b.T).T
    for solver, strategy in (
        (PCG(1e-10), "compact"),
        (PCG(1e-10), "map"),
        (lx.Cholesky(), "auto"),
        (PCG(1e-10), "auto"),
    ):
        value = batched.solve(solver, operator, b, strategy, shared=True).value  # pyright: ignore[reportArgumentType]
        assert tree_allclose(value, expected, rtol=1e-8, atol=1e-9)
    value = batched.solve(lx.LU(), BatchedOperator(operators_of(matrices)), b).value
    assert tree_allclose(value, jnp.linalg.solve(matrices, b[..., None])[..., 0], rtol=1e-8, atol=1e-9)
    # A solver of each operator's own.
    scaled = matrices * jnp.geomspace(1, 1e3, N)[None, :, None] * jnp.geomspace(1, 1e3, N)[None, None, :]
    plain, built = (solve(scaled, b, s, "compact")[1] for s in (PCG(1e-6), lambda op: PCG(1e-6, precond=jacobi(op))))
    assert jnp.sum(built["num_steps"]) < jnp.sum(plain["num_steps"])


def test_one_bad_example_spoils_no_other(problem):
    matrices, b = problem
    value, stats = solve(matrices.at[3].set(-jnp.eye(N)).at[5, 0, 0].set(jnp.nan), b, PCG(1e-9), "compact")
    reference, _ = solve(matrices, b, PCG(1e-9), "compact")
    others = jnp.delete(jnp.arange(SIZE), jnp.array([3, 5]), assume_unique_indices=True)
    assert tree_allclose(value[others], reference[others], rtol=1e-9, atol=1e-12)
    assert (stats["result"] == RESULTS.indefinite)[3]
    assert (stats["result"] == RESULTS.nonfinite)[5]


def test_bad_input(problem, untyped):
    matrices, b = problem
    with pytest.raises(ValueError, match="`strategy` must be"):
        batched.solve(PCG(), operators_of(matrices), b, "fast")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="needs a solver of"):
        batched.solve(lx.LU(), operators_of(matrices), b, "compact")
    with pytest.raises(ValueError, match="one leading batch axis"):
        batched.solve(PCG(), operators_of(matrices), b[:5])
    with pytest.raises(RuntimeError, match="breakdown"):
        eqx.filter_jit(batched.solve)(PCG(1e-9), operators_of(-matrices), b, "vmap")
