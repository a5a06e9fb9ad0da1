"""Layers: their equilibria against dense solves and long iterations, their derivatives, what the certificate promises."""

import equinox as eqx
import fixedpoint_eq as fpe
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from fixedpoint_eq import layers
from stationary_testkit import finite_difference_jvp, no_retrace


TIGHT = fpe.Anderson(rtol=1e-12, atol=1e-13)


class Cell(eqx.Module):
    W: jax.Array

    def __call__(self, z, x):
        return jnp.tanh(self.W @ z + x)


def cell(key, n=5, norm=0.8):
    W = jr.normal(key, (n, n))
    return Cell(norm * W / jnp.linalg.norm(W, 2))


def long_run(f, x):
    return jax.lax.fori_loop(0, 300, lambda _, z: f(z, x), jnp.zeros_like(x))


def test_deq_is_the_equilibrium_with_its_derivative(getkey):
    f, x = cell(getkey()), jr.normal(getkey(), (5,))
    layer = layers.DEQ(f, jnp.zeros(5), TIGHT)
    tangents = jax.tree.map(lambda leaf: jr.normal(getkey(), leaf.shape), (f, x))

    @eqx.filter_jit
    def run(f, x):
        call = lambda f, x: eqx.tree_at(lambda layer: layer.f, layer, f)(x)
        return call(f, x), eqx.filter_jvp(call, (f, x), tangents)[1]

    value, tangent = run(f, x)
    np.testing.assert_allclose(value, long_run(f, x), atol=1e-11)
    np.testing.assert_allclose(tangent, finite_difference_jvp(jax.jit(long_run), (f, x), tangents), atol=1e-8)


def test_a_batch_is_a_map_over_examples(getkey):
    f, x = cell(getkey()), jr.normal(getkey(), (3, 5))
    layer = layers.DEQ(f, lambda x: 0 * x, TIGHT)

    def both(layer, x):
        loss = lambda layer, how: jnp.sum(jnp.sin(how(layer)))
        mapped = eqx.filter_value_and_grad(lambda layer: loss(layer, lambda layer: jax.vmap(layer)(x)))
        whole = eqx.filter_value_and_grad(lambda layer: loss(layer, lambda layer: layer(x, batch_axis=0)))
        return mapped(layer), whole(layer), layer.solve(x, batch_axis=0)

    (value, mapped), (other, whole), solution = eqx.filter_jit(both)(layer, x)
    np.testing.assert_allclose(value, other, rtol=1e-11)
    np.testing.assert_allclose(mapped.f.W, whole.f.W, rtol=1e-9)
    assert solution.stats["num_steps"].shape == (3,)


def test_first_guesses(getkey):
    f, x = cell(getkey()), jr.normal(getkey(), (5,))
    exact = long_run(f, x)
    layer = layers.DEQ(f, exact, TIGHT)
    steps = lambda *args: int(layer.solve(*args).stats["num_steps"])
    assert steps(x) == 1
    assert steps(x, jnp.ones(5)) > 3
    # One guess for all examples.
    many = layer.solve(jnp.stack([x, -x]), batch_axis=0)
    np.testing.assert_array_equal(many.stats["num_steps"] == 1, [True, False])
    with pytest.raises(eqx.EquinoxRuntimeError, match="maximum number of steps"):
        layers.DEQ(f, jnp.zeros(5), TIGHT, max_steps=2)(x)


def test_states_on_the_way(getkey):
    f, x = cell(getkey()), jr.normal(getkey(), (5,))
    layer = layers.DEQ(f, jnp.zeros(5), fpe.Picard(rtol=1e-12))
    states = layer.states(x, at=(1, 3, 200))
    np.testing.assert_allclose(states[-1], long_run(f, x), atol=1e-9)
    residuals = [float(jnp.linalg.norm(f(z, x) - z)) for z in states]
    assert residuals[0] > residuals[1] > residuals[2]
    loss = lambda z: jnp.sum(z**2)
    want = 0.25 * loss(states[0]) + 0.5 * loss(states[1]) + loss(states[2])
    np.testing.assert_allclose(layers.fixed_point_correction(loss, states, 0.5), want, rtol=1e-12)
    with pytest.raises(ValueError, match="`at` must be positive and ascending"):
        layer.states(x, at=(3, 3))


@pytest.mark.parametrize("splitting", ["forward-backward", "peaceman-rachford"])
def test_monotone_deq(splitting, getkey):
    layer = layers.MonotoneDEQ(3, 6, 0.2, splitting, TIGHT, key=getkey())
    # For large parameters it has one equilibrium all the same, though forward-backward is slow then.
    scale = 4 if splitting == "peaceman-rachford" else 1.5
    layer = eqx.tree_at(lambda l: (l.P, l.Q), layer, (scale * layer.P, 2 * scale * layer.Q))
    W = layer.weight()
    symmetric = (W + W.T) / 2
    assert np.linalg.eigvalsh(np.eye(6) - symmetric).min() >= 0.2 - 1e-12
    assert np.abs(np.linalg.eigvals(W)).max() > 1
    x = jr.normal(getkey(), (3,))
    guesses = 10 * jr.normal(getkey(), (2, 6))
    solve = eqx.filter_jit(lambda layer, x, z0: layer.solve(x, z0))
    solutions = [solve(layer, x, z0) for z0 in guesses]
    z = solutions[0].value
    np.testing.assert_allclose(z, solutions[1].value, atol=1e-9)
    b = layer.U(x)
    np.testing.assert_allclose(z, jax.nn.relu(W @ z + b), atol=1e-10)
    # The derivative on the units that are on: (I - W)^-1 there, whatever the splitting.
    on = np.flatnonzero(np.asarray(z) > 0)
    assert 0 < len(on) < 6
    jacobian = jax.jit(jax.jacobian(lambda x: layer(x)))(x)
    expected = np.zeros((6, 3))
    expected[on] = np.linalg.solve((np.eye(6) - W)[np.ix_(on, on)], layer.U.weight[on])
    np.testing.assert_allclose(jacobian, expected, atol=1e-9)


@pytest.mark.parametrize("splitting", ["forward-backward", "peaceman-rachford"])
def test_certificate_of_monotone_deq_is_a_bound(splitting, getkey):
    layer = layers.MonotoneDEQ(3, 6, 0.5, splitting, fpe.Picard(rtol=0.0, atol=1e-3), key=getkey())
    x = jr.normal(getkey(), (4, 3))
    solve = eqx.filter_jit(lambda layer, x: jax.vmap(layer.solve)(x))
    rough = solve(layer, x)
    exact = solve(eqx.tree_at(lambda l: l.solver.atol, layer, 1e-13), x).value
    error = np.linalg.norm(rough.value - exact, axis=1)
    bound = np.asarray(rough.certificate.value)
    assert rough.certificate.kind == "proved"
    assert np.all(error <= bound)
    assert np.all(bound < 1e-3 * 200)
    assert error.max() > 1e-6


def test_monotone_deq_in_a_loss(getkey):
    layer = layers.MonotoneDEQ(3, 6, jnp.array(0.3), "peaceman-rachford", TIGHT, key=getkey())
    x = jr.normal(getkey(), (3,))
    params, static = eqx.partition(layer, eqx.is_inexact_array)
    loss = jax.jit(lambda params: jnp.sum(eqx.combine(params, static)(x) ** 2))
    tangents = jax.tree.map(lambda leaf: jr.normal(getkey(), leaf.shape, leaf.dtype), params)
    gradient = jax.jit(jax.grad(loss))(params)
    got = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(tangents), strict=True))
    np.testing.assert_allclose(got, finite_difference_jvp(loss, (params,), (tangents,)), atol=1e-7)


def test_reversible_deq_has_the_gradient_of_its_steps(getkey):
    f, x, z0 = cell(getkey()), jr.normal(getkey(), (2, 5)), jr.normal(getkey(), (5,))
    layer = layers.ReversibleDEQ(f, z0, num_steps=4, beta=0.7)

    def by_hand(layer, x):
        y = z = layer.z0
        for _ in range(4):
            y = 0.3 * y + 0.7 * layer.f(z, x)
            z = 0.3 * z + 0.7 * layer.f(y, x)
        return z

    loss = lambda layer, x, how: jnp.sum(jnp.sin(how(layer, x)))
    grads = eqx.filter_jit(lambda how: eqx.filter_value_and_grad(loss)(layer, x, how))
    value, want = grads(lambda layer, x: jax.vmap(lambda x: by_hand(layer, x))(x))
    for how in (lambda layer, x: layer(x, batch_axis=0), lambda layer, x: jax.vmap(layer)(x)):
        other, got = grads(how)
        np.testing.assert_allclose(other, value, rtol=1e-13)
        np.testing.assert_allclose(got.f.W, want.f.W, atol=1e-11)
        np.testing.assert_allclose(got.z0, want.z0, atol=1e-11)


def test_jacobian_regulariser(getkey):
    f, x = cell(getkey()), jr.normal(getkey(), (5,))
    z = jr.normal(getkey(), (5,))
    estimate = no_retrace(lambda f, z, key: layers.jacobian_regulariser(f, z, x, key=key, draws=4000))
    exact = jnp.sum(jax.jacobian(f)(z, x) ** 2) / 5
    np.testing.assert_allclose(estimate(f, z, getkey()), exact, rtol=0.05)
    linear = lambda z, _: 3 * z
    one = layers.jacobian_regulariser(linear, jnp.ones(2000), None, key=getkey())
    np.testing.assert_allclose(one, 9, rtol=0.1)
    with pytest.raises(ValueError, match="`draws` must be at least 1"):
        layers.jacobian_regulariser(f, z, x, key=getkey(), draws=0)


def test_float32(getkey):
    f32 = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, tree)
    layer = f32(layers.MonotoneDEQ(3, 6, splitting="peaceman-rachford", key=getkey()))
    x = jr.normal(getkey(), (3,), jnp.float32)
    z = eqx.filter_jit(layer)(x)
    assert z.dtype == jnp.float32
    np.testing.assert_allclose(z, jax.nn.relu(layer.weight() @ z + layer.U(x)), atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: layers.MonotoneDEQ(3, 6, 0.0, key=key), "`m` must be positive"),
        (lambda key: layers.MonotoneDEQ(3, 6, 0.1, "newton", key=key), "`splitting` must be"),  # pyright: ignore[reportArgumentType]
        (lambda _: layers.ReversibleDEQ(jnp.add, jnp.zeros(2), 0), "`num_steps` must be at least 1"),
        (lambda _: layers.ReversibleDEQ(jnp.add, jnp.zeros(2), beta=1.0), "`beta` must be in"),
        (lambda _: layers.DEQ(jnp.add, jnp.zeros(2)).solve(jnp.zeros(2), batch_axis=1), "`batch_axis` must be 0"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_bad_input(call, message, getkey, untyped):
    with pytest.raises(ValueError, match=message):
        call(getkey())
