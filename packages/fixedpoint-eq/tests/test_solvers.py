"""Every solver against closed forms and dense solves, in the driver and in Optimistix."""

import dataclasses

import equinox as eqx
import fixedpoint_eq as fpe
import jax
import jax.flatten_util
import jax.numpy as jnp
import jax.random as jr
import optimistix as optx
import pytest
from fixedpoint_eq import RESULTS
from stationary_testkit import tree_allclose


SOLVERS = [
    fpe.Picard(1e-11, 1e-12),
    fpe.Damped(0.7, rtol=1e-11, atol=1e-12),
    fpe.Anderson(1e-11, 1e-12),
    fpe.Broyden(1e-11, 1e-12),
    fpe.NewtonKrylov(1e-11, 1e-12),
    fpe.Reversible(0.7, rtol=1e-11, atol=1e-12),
    fpe.Relaxation(1e-9, 1e-10, interval=4.0),
]
name = lambda solver: type(solver).__name__


@eqx.filter_jit
def solve_both(fn, z0, args, solver):
    """Solve in the driver, alone and as a batch of two, and in Optimistix."""
    ours = fpe.solve(fn, z0, args, solver)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), z0)
    batch = fpe.solve(lambda z, args: jax.vmap(fn, in_axes=(0, None))(z, args), stacked, args, solver, batch_axis=0)
    theirs = optx.fixed_point(fn, solver, z0, args)
    return ours, batch, theirs


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_linear_map_is_a_dense_solve(solver, getkey):
    M, b = jr.normal(getkey(), (5, 5)), jr.normal(getkey(), (5,))
    M = 0.6 * M / jnp.linalg.norm(M, 2)
    # A pytree, of two shapes.
    fn = lambda z, args: split(args[0] @ jnp.concatenate([z["a"], z["b"].ravel()]) + args[1])
    split = lambda v: {"a": v[:3], "b": v[3:].reshape(1, 2)}
    ours, batch, theirs = solve_both(fn, split(jnp.ones(5)), (M, b), solver)
    exact = split(jnp.linalg.solve(jnp.eye(5) - M, b))
    tol = dict(rtol=1e-7, atol=1e-7)
    assert tree_allclose(ours.value, exact, **tol)
    assert tree_allclose(theirs.value, exact, **tol)
    assert ours.stats["num_steps"] == theirs.stats["num_steps"] == batch.stats["num_steps"][0]
    assert tree_allclose(ours.stats["residual"], theirs.stats["residual"], rtol=1e-3, atol=1e-14)
    for i in range(2):
        assert tree_allclose(jax.tree.map(lambda leaf, i=i: leaf[i], batch.value), exact, **tol)
    residual = jax.tree.map(jnp.subtract, fn(ours.value, (M, b)), ours.value)
    assert tree_allclose(
        ours.stats["residual"], jnp.linalg.norm(jax.flatten_util.ravel_pytree(residual)[0]), rtol=1e-3, atol=1e-14
    )


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_cosine_and_square_root(solver):
    """Two scalar equations with known solutions, solved as one batch."""

    def fn(z, a):
        newton = (z[1] + a / z[1]) / 2
        return jnp.stack([jnp.cos(z[0]), newton])

    solution = eqx.filter_jit(fpe.solve)(fn, jnp.ones((2, 3)), jnp.array([2.0, 3.0, 0.25]), solver, batch_axis=1)
    assert jnp.allclose(solution.value[0], 0.7390851332151607, atol=1e-8)
    assert jnp.allclose(solution.value[1], jnp.sqrt(jnp.array([2.0, 3.0, 0.25])), atol=1e-8)


@pytest.mark.parametrize("memory", [6, 9])
def test_anderson_with_full_memory_is_exact(memory, getkey):
    # GMRES in disguise: at most n + 1 states and one evaluation to notice.
    M, b = jr.normal(getkey(), (5, 5)) / 3, jr.normal(getkey(), (5,))
    assert jnp.max(jnp.abs(jnp.linalg.eigvals(M))) < 1
    solution = fpe.solve(lambda z, _: M @ z + b, jnp.zeros(5), None, fpe.Anderson(1e-9, 1e-9, memory, ridge=0.0))
    assert int(solution.stats["num_steps"]) <= 7
    assert tree_allclose(solution.value, jnp.linalg.solve(jnp.eye(5) - M, b), rtol=1e-6)


def deq(key, norm, symmetric, n=256, batch=64):
    """FPE-1 and FPE-2: a layer of tanh of which the weights have the given 2-norm, or Gaussian of that size."""
    k1, k2, k3 = jr.split(key, 3)
    W = jr.normal(k1, (n, n), jnp.float32)
    W = (W + W.T) / 2 if symmetric else W
    W = norm * W / (jnp.linalg.norm(W, 2) if symmetric else 2 * jnp.sqrt(n).astype(jnp.float32))
    x = jr.normal(k2, (batch, n), jnp.float32) @ (jr.normal(k3, (n, n), jnp.float32) / jnp.sqrt(n).astype(jnp.float32))
    return W, 0.3 * x


@eqx.filter_jit
def steps(problem, solver):
    fn = lambda z, args: jnp.tanh(z @ args[0].T + args[1])
    solution = fpe.solve(fn, jnp.zeros_like(problem[1]), problem, solver, batch_axis=0, throw=False)
    return jnp.max(solution.stats["num_steps"]), jnp.all(solution.result == RESULTS.successful)


def test_anderson_accelerates(getkey):
    for _ in range(3):
        problem = deq(getkey(), 0.99, True)
        count, ok = steps(problem, fpe.Anderson(1e-5, 0.0))
        reference, reference_ok = steps(problem, fpe.Picard(1e-5, 0.0))
        assert bool(ok & reference_ok)
        assert int(count) <= 27
        assert int(reference) > 2.5 * int(count)


def test_combining_periodically_is_faster(getkey):
    # Eigenvalues on both sides, and on the side where Picard diverges.
    Q, _ = jnp.linalg.qr(jr.normal(getkey(), (40, 40)))
    b = jr.normal(getkey(), (40,))

    @eqx.filter_jit
    def count(low, high, solver):
        M = Q @ jnp.diag(jnp.linspace(low, high, 40)) @ Q.T
        return fpe.solve(lambda z, _: M @ z + b, jnp.zeros(40), None, solver, max_steps=1000).stats["num_steps"]

    for low, high in jnp.array([(-0.99, 0.99), (0.0, 0.99), (-3.0, 0.9)]):
        periodic, classical = (int(count(low, high, fpe.Anderson(1e-8, 0.0, period=p))) for p in (3, 1))
        assert periodic < 0.6 * classical
    # It would fail if it took Picard's steps where the residual grows.
    assert count(jnp.array(-6.0), jnp.array(0.5), fpe.Anderson(1e-8, 0.0)) < 100


def test_anderson_costs_little_where_it_cannot_help(getkey):
    problem = deq(getkey(), 0.95, False)
    count, ok = steps(problem, fpe.Anderson(1e-5, 0.0))
    reference, _ = steps(problem, fpe.Picard(1e-5, 0.0))
    assert bool(ok)
    assert int(count) <= 1.3 * int(reference)


def test_the_ridge_is_relative():
    # Scaling the problem changes no weight, hence no step.
    M = jnp.diag(jnp.linspace(-0.9, 0.9, 8))
    run = eqx.filter_jit(
        lambda b: fpe.solve(lambda z, b: M @ z + b, jnp.zeros(8), b, fpe.Anderson(1e-9, 0.0, ridge=1e-8)).stats[
            "num_steps"
        ]
    )
    assert run(jnp.ones(8)) == run(jnp.full(8, 1e-12)) == run(jnp.full(8, 1e12))


@pytest.mark.parametrize("solver", [fpe.NewtonKrylov(), fpe.Broyden(), fpe.Damped(0.3), fpe.Relaxation()], ids=name)
def test_expansive_maps(solver):
    # The slope at the solution 1/4 is -3: Picard diverges.
    solution = fpe.solve(lambda z, _: 1 - 3 * z, jnp.array([0.0]), None, dataclasses.replace(solver, rtol=1e-8))
    assert tree_allclose(solution.value, jnp.array([0.25]), rtol=1e-6)


def test_newton_is_fast_and_guarded(getkey):
    W, x = deq(getkey(), 0.99, True, 32, 1)
    fn = lambda z, args: jnp.tanh(args[0] @ z + args[1])
    solution = fpe.solve(fn, jnp.zeros(32, jnp.float32), (W, x[0]), fpe.NewtonKrylov(1e-5, 1e-6))
    assert int(solution.stats["num_steps"]) <= 8
    # Plain Newton on arctan diverges from here.
    solution = fpe.solve(lambda z, _: z - jnp.arctan(z), jnp.array([3.0]), None, fpe.NewtonKrylov(1e-8, 1e-10))
    assert jnp.allclose(solution.value, 0.0, atol=1e-8)


def test_float32_keeps_its_dtype():
    fn = lambda z, _: jnp.cos(z)
    for solver in SOLVERS:
        loose = dataclasses.replace(solver, rtol=1e-5, atol=1e-6)
        solution = fpe.solve(fn, jnp.ones(2, jnp.float32), None, loose)
        assert solution.value.dtype == solution.stats["residual"].dtype == jnp.float32, name(solver)
        assert jnp.allclose(solution.value, 0.7390851, atol=1e-4)
