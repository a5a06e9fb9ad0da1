"""Derivatives: implicit ones against dense solves and finite differences, inexact ones against their series."""

import equinox as eqx
import fixedpoint_eq as fpe
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from implicit_core.krylov import FGMRES
from stationary_testkit import (
    finite_difference_jvp,
    implicit_jacobian,
    max_live_bytes,
    tree_allclose,
    vjp_matches_jvp,
)


# Picard's iteration makes for the smallest programs, and it takes no part in the derivatives.
TIGHT = fpe.Picard(1e-13, 1e-14)
layer = lambda z, args: jnp.tanh(z @ args[0].T + args[1])
name = lambda adjoint: type(adjoint).__name__


def problem(key, n=4, batch=3, norm=0.8):
    k1, k2 = jr.split(key)
    W = jr.normal(k1, (n, n))
    return norm * W / jnp.linalg.norm(W, 2), 0.5 * jr.normal(k2, (batch, n))


def gradient(adjoint, W, x, *, solver: fpe.AbstractSolver = TIGHT, fn=layer, max_steps=300, throw=True):
    def loss(args):
        solution = fpe.solve(
            fn, jnp.zeros_like(x), args, solver, adjoint, batch_axis=0, max_steps=max_steps, throw=throw
        )
        return jnp.sum(jnp.sin(3 * solution.value))

    return eqx.filter_jit(eqx.filter_grad(loss))((W, x))


@pytest.fixture(scope="module")
def dense():
    """A problem, and its gradient by a dense solve."""
    W, x = problem(jr.key(0))
    return (W, x), eqx.filter_jit(reference)(W, x)


def reference(W, x):
    z = fpe.solve(layer, jnp.zeros_like(x), (W, x), TIGHT, batch_axis=0, max_steps=300).value
    jacobian = implicit_jacobian(lambda z, args: layer(z, args) - z, z, (W, x))
    flat = (3 * jnp.cos(3 * z)).ravel() @ jacobian
    return flat[: W.size].reshape(W.shape), flat[W.size :].reshape(x.shape)


EXACT = [
    fpe.Implicit(),
    fpe.Implicit(FGMRES(rtol=1e-12)),
    fpe.Implicit(lx.GMRES(1e-12, 1e-14)),
    fpe.ImplicitFP(fpe.Anderson(1e-12, 1e-13)),
    fpe.Neumann(150),
    fpe.Phantom(250, 0.8),
    fpe.Unrolled(),
    optx.ImplicitAdjoint(),
]


@pytest.mark.parametrize("adjoint", EXACT, ids=name)
def test_all_agree_with_the_dense_solve(adjoint, dense):
    (W, x), expected = dense
    assert tree_allclose(gradient(adjoint, W, x), expected, rtol=1e-7, atol=1e-9)


def test_reversible_is_the_gradient_of_what_was_computed(dense):
    (W, x), expected = dense
    solver = fpe.Reversible(0.6, rtol=0.0, atol=0.0)

    def by_hand(args):
        y = z = jnp.zeros_like(x)
        for _ in range(6):
            y = 0.4 * y + 0.6 * layer(z, args)
            z = 0.4 * z + 0.6 * layer(y, args)
        return jnp.sum(jnp.sin(3 * z))

    ours = gradient(fpe.ReversibleAdjoint(), W, x, solver=solver, max_steps=6, throw=False)
    assert tree_allclose(ours, jax.jit(jax.grad(by_hand))((W, x)), rtol=1e-9)
    # Samples that stop at different steps.
    converged = gradient(fpe.ReversibleAdjoint(), W, x, solver=fpe.Reversible(0.6, rtol=1e-9, atol=1e-9))
    assert tree_allclose(converged, expected, rtol=1e-5, atol=1e-6)


def test_reversible_gradient_of_a_sample_that_diverged():
    # It stops long before the slow one beside it, and is the gradient of the steps up to there.
    fn = lambda z, a: a[:, None] * z + 1.0
    a = jnp.array([4.0, 0.9])

    def loss(a, max_steps):
        solution = fpe.solve(
            fn,
            jnp.ones((len(a), 1)),
            a,
            fpe.Reversible(0.6, rtol=1e-9, atol=1e-9),
            fpe.ReversibleAdjoint(),
            batch_axis=0,
            throw=False,
            max_steps=max_steps,
        )
        return jnp.sum(solution.value), solution.stats["num_steps"]

    both, steps = eqx.filter_grad(loss, has_aux=True)(a, 200)
    assert steps[0] < steps[1]
    alone, _ = eqx.filter_grad(loss, has_aux=True)(a[:1], int(steps[0]))
    assert tree_allclose(both[0], alone[0], rtol=1e-10)


def test_series_are_what_they_say(getkey):
    W, x = problem(getkey(), batch=1)
    z = fpe.solve(layer, jnp.zeros_like(x), (W, x), TIGHT, batch_axis=0, max_steps=300).value[0]
    c = 3 * jnp.cos(3 * z)
    J = jax.jacobian(lambda z: layer(z, (W, x[0])))(z)
    slope = 1 - z**2
    damped, terms, total = jnp.zeros_like(c), c, jnp.zeros_like(c)
    for _ in range(4):
        damped = 0.3 * damped + 0.7 * (J.T @ damped + c)
        total, terms = total + terms, J.T @ terms
    for adjoint, multiplier in ((fpe.Phantom(4, 0.7), damped), (fpe.Neumann(4), total), (fpe.OneStep(), c)):
        assert tree_allclose(gradient(adjoint, W, x)[1], (slope * multiplier)[None], rtol=1e-7), name(adjoint)


def test_forward_mode_and_second_order(getkey):
    W, x = problem(getkey(), n=3, batch=2)

    def value(W, x):
        return fpe.solve(layer, jnp.zeros_like(x), (W, x), TIGHT, batch_axis=0, max_steps=300).value

    assert vjp_matches_jvp(jax.jit(value), (W, x), key=getkey())
    tangents = (jr.normal(getkey(), W.shape), jr.normal(getkey(), x.shape))
    push = jax.jit(lambda W, x: jax.jvp(value, (W, x), tangents)[1])
    assert tree_allclose(push(W, x), finite_difference_jvp(value, (W, x), tangents), rtol=1e-6, atol=1e-8)
    slope = jax.jit(jax.grad(lambda W, x: jnp.sum(value(W, x) ** 3), argnums=(0, 1)))
    second = jax.jit(lambda W, x: jax.jvp(slope, (W, x), tangents)[1])
    assert tree_allclose(second(W, x), finite_difference_jvp(slope, (W, x), tangents), rtol=1e-5, atol=1e-7)


def test_scalar_closed_form():
    value = lambda w, b: fpe.solve(lambda z, a: jnp.tanh(a[0] * z + a[1]), jnp.array(0.0), (w, b), TIGHT).value
    z, dz = jax.value_and_grad(value, argnums=1)(0.7, 0.3)
    s = 1 - z**2
    assert tree_allclose(dz, s / (1 - 0.7 * s), rtol=1e-9)


def test_captured_arrays_have_a_derivative(dense):
    (W, x), expected = dense
    loss = lambda fn, args: jnp.sum(jnp.sin(3 * fpe.solve(fn, jnp.zeros_like(x), args, TIGHT, batch_axis=0).value))
    captured = jax.jit(jax.grad(lambda W: loss(lambda z, x: layer(z, (W, x)), x)))(W)
    assert tree_allclose(captured, expected[0], rtol=1e-7)


@pytest.mark.parametrize("adjoint", [fpe.Implicit(), fpe.ImplicitFP(fpe.Anderson(1e-9, 1e-9))], ids=name)
def test_tolerance_is_relative_to_the_cotangent(adjoint, getkey):
    W, x = problem(getkey(), n=70, batch=2, norm=0.9)

    @jax.jit
    def scaled(W, scale):
        loss = lambda W: jnp.sum(fpe.solve(layer, jnp.zeros_like(x), (W, x), TIGHT, adjoint, batch_axis=0).value)
        return jax.grad(lambda W: scale * loss(W))(W) / scale

    for scale in (1e-12, 1e-200):
        assert tree_allclose(scaled(W, scale), scaled(W, 1.0), rtol=1e-6, atol=1e-9)


def test_a_cotangent_of_zero_needs_no_solve():
    # Every point is a fixed point, so that no linear system has a solution.
    value, pull = jax.vjp(lambda a: fpe.solve(lambda z, a: z + 0.0 * a, jnp.ones(2), a).value, 1.0)
    assert tree_allclose(pull(jnp.zeros_like(value)), (jnp.array(0.0),))


def test_quality_at_twenty_products(getkey):
    # FPE-3: symmetric weights, spectral radius of the Jacobian near 0.9.
    k1, k2 = jr.split(getkey())
    W = jr.normal(k1, (128, 128))
    W = W + W.T
    W, x = 0.97 * W / jnp.linalg.norm(W, 2), 0.2 * jr.normal(k2, (2, 128))
    solver = fpe.Anderson(1e-12, 1e-13)
    z = np.asarray(fpe.solve(layer, jnp.zeros_like(x), (W, x), solver, batch_axis=0).value)
    slopes, c = 1 - z**2, 3 * np.cos(3 * z)
    multipliers = [np.linalg.solve(np.eye(128) - (s[:, None] * W).T, r) for s, r in zip(slopes, c, strict=True)]
    exact = (slopes * multipliers).T @ z
    relative = lambda W: np.linalg.norm(W - exact) / np.linalg.norm(exact)
    error = lambda adjoint: relative(gradient(adjoint, W, x, solver=solver)[0])
    krylov = error(fpe.Implicit(FGMRES(rtol=1e-12, max_steps=20, mode="soft")))
    neumann = error(fpe.Neumann(20))
    assert krylov <= 2e-4
    assert neumann >= 50 * krylov


def test_memory_is_not_that_of_the_whole_batch():
    # FPE-4: the default adjoint of Optimistix forms a matrix of the batch.
    W, x = jnp.eye(256, dtype=jnp.float32) / 2, jnp.ones((32, 256), jnp.float32)

    def slope(adjoint):
        def loss(W, x):
            solver = fpe.Anderson(1e-5, 1e-6)
            return jnp.sum(fpe.solve(layer, jnp.zeros_like(x), (W, x), solver, adjoint, batch_axis=0).value)

        return jax.grad(loss)

    assert max_live_bytes(slope(fpe.Implicit()), W, x) < 10 * 2**20


def test_a_stalled_adjoint_raises(getkey):
    W, x = problem(getkey(), norm=0.9)
    for adjoint in (fpe.Implicit(FGMRES(rtol=1e-12, max_steps=1)), fpe.ImplicitFP(fpe.Picard(), max_steps=2)):
        with pytest.raises(eqx.EquinoxRuntimeError):
            jax.block_until_ready(gradient(adjoint, W, x))
    soft = gradient(fpe.ImplicitFP(fpe.Picard(), max_steps=2, mode="soft"), W, x)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in soft)


def test_adjoints_run_in_optimistix(dense):
    (W, x), expected = dense
    for adjoint in (fpe.Implicit(), fpe.ImplicitFP(fpe.Picard(1e-12, 1e-13)), fpe.Neumann(150)):
        loss = lambda x, adjoint=adjoint: jnp.sum(
            jnp.sin(3 * optx.fixed_point(layer, TIGHT, jnp.zeros_like(x), (W, x), adjoint=adjoint).value)
        )
        assert tree_allclose(jax.jit(jax.grad(loss))(x[0]), expected[1][0], rtol=1e-7, atol=1e-9)


def test_what_cannot_be_combined_is_refused():
    halve = lambda z, a: 0.5 * z + a
    with pytest.raises(TypeError, match="cannot be unrolled"):
        fpe.solve(halve, jnp.ones(2), 1.0, fpe.NewtonKrylov(), fpe.Unrolled())
    with pytest.raises(ValueError, match=r"`ReversibleAdjoint` needs .*; got the solver `Picard`"):
        fpe.solve(halve, jnp.ones(2), 1.0, fpe.Picard(), fpe.ReversibleAdjoint())
