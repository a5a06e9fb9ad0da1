"""Complex states: holomorphic maps, maps that are not, and never a silently wrong derivative."""

import equinox as eqx
import fixedpoint_eq as fpe
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from implicit_core.krylov import FGMRES
from stationary_testkit import finite_difference_jvp, tree_allclose


# Picard's iteration makes for the smallest programs, and it takes no part in the derivatives.
TIGHT = fpe.Picard(1e-13, 1e-14)


def holomorphic(z, args):
    A, b = args
    return jnp.tanh(A @ z + b)


def conjugating(z, args):
    A, b = args
    return jnp.tanh(A @ z.conj() + 0.3 * z.real.astype(z.dtype) + b)


def problem(key, n=4):
    k1, k2 = jr.split(key)
    A = jr.normal(k1, (n, n), complex)
    return A * (0.4 / jnp.linalg.norm(A, 2)).astype(complex), 0.3 * jr.normal(k2, (n,), complex)


SOLVERS = [
    TIGHT,
    fpe.Anderson(1e-12, 1e-13),
    fpe.Broyden(1e-10, 1e-12),
    fpe.NewtonKrylov(1e-10, 1e-12),
    fpe.Reversible(0.7, rtol=1e-10, atol=1e-12),
    fpe.Relaxation(1e-9, 1e-10),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("fn", [holomorphic, conjugating])
def test_solvers(solver, fn, getkey):
    A, b = problem(getkey())
    solution = eqx.filter_jit(fpe.solve)(fn, jnp.zeros_like(b), (A, b), solver)
    assert jnp.linalg.norm(fn(solution.value, (A, b)) - solution.value) < 1e-8
    assert solution.stats["residual"].dtype == jnp.float64


def test_square_root_of_a_complex_number():
    a = jnp.array([-1.0 + 2.0j, 3.0 - 0.5j])
    solution = fpe.solve(lambda z, a: (z + a / z) / 2, jnp.ones(2, complex), a, fpe.Picard(1e-12), batch_axis=0)
    assert tree_allclose(solution.value, jnp.sqrt(a), rtol=1e-10)
    slope = jax.grad(
        lambda a: fpe.solve(lambda z, a: (z + a / z) / 2, 1.0 + 0j, a, fpe.Picard(1e-12)).value, holomorphic=True
    )
    assert tree_allclose(slope(a[0]), 0.5 / jnp.sqrt(a[0]), rtol=1e-8)


@pytest.mark.parametrize(
    "adjoint",
    [fpe.Implicit(), fpe.Implicit(FGMRES(rtol=1e-12)), fpe.ImplicitFP(fpe.Anderson(1e-12, 1e-13)), fpe.Neumann(120)],
    ids=["lu", "fgmres", "fixed-point", "neumann"],
)
@pytest.mark.parametrize("fn", [holomorphic, conjugating])
def test_derivatives(adjoint, fn, getkey):
    A, b = problem(getkey())
    tangents = tuple(jr.normal(getkey(), leaf.shape, complex) for leaf in (A, b))
    value = eqx.filter_jit(lambda A, b: fpe.solve(fn, jnp.zeros_like(b), (A, b), TIGHT, adjoint).value)
    loss = lambda A, b: jnp.sum(jnp.abs(value(A, b) - 1.0) ** 2)
    push = lambda A, b: jax.jvp(value, (A, b), tangents)[1]
    pushed, grads = jax.jit(lambda A, b: (push(A, b), jax.grad(loss, argnums=(0, 1))(A, b)))(A, b)
    assert tree_allclose(pushed, finite_difference_jvp(value, (A, b), tangents), rtol=1e-6, atol=1e-8)
    # Reverse mode of a real loss, by finite differences in a direction: JAX's gradient is conjugate.
    along = sum(jnp.real(jnp.sum(g * t)) for g, t in zip(grads, tangents, strict=True))
    assert tree_allclose(along, finite_difference_jvp(loss, (A, b), tangents), rtol=1e-6, atol=1e-8)


def test_batches(getkey):
    A, b = problem(getkey())
    batch = jnp.stack([b, 2 * b, 0.1 * b])
    for fn in (holomorphic, conjugating):
        batched = lambda z, args, fn=fn: jax.vmap(fn, in_axes=(0, (None, 0)))(z, args)
        loss = lambda solve: jax.jit(jax.grad(lambda *args: jnp.sum(jnp.abs(solve(*args)) ** 2), argnums=(0, 1)))
        together = loss(lambda A, b, fn=batched: fpe.solve(fn, jnp.zeros_like(b), (A, b), TIGHT, batch_axis=0).value)
        adjoint = fpe.Implicit(holomorphic=fn is holomorphic)
        alone = loss(lambda A, b, fn=fn, adj=adjoint: fpe.solve(fn, jnp.zeros_like(b), (A, b), TIGHT, adj).value)
        by_A, by_b = zip(*(alone(A, row) for row in batch), strict=True)
        assert tree_allclose(together(A, batch), (sum(by_A), jnp.stack(by_b)), rtol=1e-8)


def test_real_parameters_of_a_complex_state(getkey):
    A, b = problem(getkey())
    value = lambda s: fpe.solve(lambda z, s: jnp.tanh(s * (A @ z) + b), jnp.zeros_like(b), s, TIGHT).value
    loss = jax.jit(lambda s: jnp.sum(jnp.abs(value(s)) ** 2))
    one = jnp.array(1.0)
    pushed, pulled = jax.jit(lambda s: (jax.jvp(loss, (s,), (one,))[1], jax.grad(loss)(s)))(jnp.array(0.9))
    expected = finite_difference_jvp(loss, (jnp.array(0.9),), (one,))
    assert tree_allclose(pushed, expected, rtol=1e-6)
    assert tree_allclose(pulled, expected, rtol=1e-6)


def test_a_broken_promise_is_an_error(getkey):
    A, b = problem(getkey())
    for fn, fails in ((holomorphic, False), (conjugating, True)):
        loss = lambda b, fn=fn: jnp.sum(
            jnp.abs(fpe.solve(fn, jnp.zeros_like(b), (A, b), TIGHT, fpe.Implicit(holomorphic=True)).value) ** 2
        )
        run = eqx.filter_jit(jax.grad(loss))
        if fails:
            with pytest.raises(eqx.EquinoxRuntimeError, match="not holomorphic"):
                jax.block_until_ready(run(b))
        else:
            jax.block_until_ready(run(b))


def test_mixed_real_and_complex_leaves(getkey):
    A, b = problem(getkey())

    def fn(z, args):
        A, b = args
        return {"c": jnp.tanh(A @ z["c"] + b), "r": 0.5 * jnp.abs(z["c"][0]) - 0.3 * z["r"]}

    z0 = {"c": jnp.zeros_like(b), "r": jnp.array(0.0)}
    value = lambda b: fpe.solve(fn, z0, (A, b), TIGHT).value["r"]
    direction = jr.normal(getkey(), b.shape, complex)
    with pytest.raises(ValueError, match="complex in every leaf; got 1 of 2 leaves"):
        jax.grad(lambda b: fpe.solve(fn, z0, (A, b), TIGHT, fpe.Implicit(holomorphic=True)).value["r"])(b)
    along = jnp.real(jnp.sum(jax.jit(jax.grad(value))(b) * direction))
    assert tree_allclose(along, finite_difference_jvp(value, (b,), (direction,)), rtol=1e-6)
