"""Layers of networks that settle: derivatives, holomorphy, symmetry, errors."""

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import lineax as lx
import numpy as np
import pytest
from fixedpoint_eq import RESULTS, ep
from jaxtyping import TypeCheckError
from stationary_testkit import implicit_jacobian


def ravel(tree):
    return jfu.ravel_pytree(tree)[0]


@pytest.mark.parametrize("fn", [ep.sigma4, ep.dsilu, lambda z: ep.softmax_pool(z.reshape(2, 2, 1))])
def test_holomorphic(fn, getkey):
    z = jax.lax.complex(jr.normal(getkey(), (4,)), jr.normal(getkey(), (4,)) / 8)
    v = jax.lax.complex(jr.normal(getkey(), (4,)), jr.normal(getkey(), (4,)))
    push = lambda v: jax.jvp(fn, (z,), (v,))[1]
    # Complex-linear, and right along both axes.
    assert np.allclose(push(1j * v), 1j * push(v), atol=1e-13)
    h = 1e-6
    for direction in (v, 1j * v):
        assert np.allclose(push(direction), (fn(z + h * direction) - fn(z - h * direction)) / (2 * h), atol=1e-8)
    assert np.allclose(fn(jnp.conj(z)), jnp.conj(fn(z)), atol=1e-14)


def test_activations():
    assert ep.sigma4(jnp.array(0.5)) == 0.5
    assert np.isclose(jax.grad(ep.sigma4)(0.5), 1)
    z = jnp.array([-40.0, 40.0])
    assert np.allclose(ep.dsilu(z), [0, 1])
    assert np.all(np.isfinite(jax.vmap(jax.grad(ep.sigma4))(1e4 * z)))
    assert np.all(np.isfinite(jax.vmap(jax.grad(ep.dsilu))(1e4 * z)))
    s = lambda z: 1 / (1 + np.exp(-z))
    assert np.isclose(ep.dsilu(jnp.array(0.7)), 0.35 * s(0.7) + 0.65 * s(-1.3))


def test_softmax_pool(getkey):
    v = jr.normal(getkey(), (4, 4, 2))
    window = v[2:4, 0:2, 1].ravel()
    assert np.isclose(ep.softmax_pool(v)[1, 0, 1], jax.nn.softmax(window) @ window)
    assert np.allclose(ep.softmax_pool(1e4 * jnp.ones((2, 2, 1))), 1e4)
    # Cold windows take the maximum.
    assert np.allclose(ep.softmax_pool(v, 4, 1e-3)[0, 0], jnp.max(v, (0, 1)), atol=1e-6)
    with pytest.raises(ValueError, match="`window`"):
        ep.softmax_pool(v, 3)


@pytest.mark.parametrize("loss", [ep.MSE(), ep.CrossEntropy(), ep.HolomorphicLoss(lambda p, y: jnp.sum((p - y) ** 4))])
def test_gradient_of_a_loss(loss, getkey):
    p, y = jr.normal(getkey(), (5,)), jax.nn.softmax(jr.normal(getkey(), (5,)))
    assert np.allclose(loss.gradient(p, y), jax.grad(loss.value)(p, y), atol=1e-14)
    z = jax.lax.complex(p, jnp.zeros_like(p))
    assert np.allclose(loss.gradient(z, jax.lax.complex(y, 0 * y)), loss.gradient(p, y), atol=1e-14)


def test_cross_entropy_of_labels(getkey):
    p = jr.normal(getkey(), (5,))
    hot = jax.nn.one_hot(2, 5, dtype=p.dtype)
    assert np.allclose(ep.CrossEntropy().gradient(p, jnp.array(2)), ep.CrossEntropy().gradient(p, hot))
    assert np.allclose(ep.CrossEntropy().value(p, jnp.array(2)), -jax.nn.log_softmax(p)[2])


def jacobian(field, params, r):
    flat, unravel = jfu.ravel_pytree(r)
    return jax.jacfwd(lambda r: ravel(field.drive(params, unravel(r), None)))(flat)


@pytest.mark.parametrize("field", [ep.mlp((3, 5, 4, 2)), ep.convnet((8, 8, 1), (2, 3), 4)])
def test_angle_between_the_weights(field, getkey):
    r = tuple(jr.uniform(getkey(), shape) for shape in field.shapes)
    for angle in (0.0, 90.0):
        params = field.init(key=jr.key(1), angle=angle)
        J = jacobian(field, params, r)
        # At zero the network has an energy, through the pooling as well.
        assert (np.max(np.abs(J - J.T)) < 1e-14) == (angle == 0)


def test_weights_at_an_angle():
    net = ep.mlp((3, 400, 400))
    own, half = (net.init(key=jr.key(1), angle=a)["connections"] for a in (0.0, 60.0))
    W, V = half[1]["weight"], half[2]["weight"]
    cosine = jnp.sum(W.T * V) / jnp.linalg.norm(W) / jnp.linalg.norm(V)
    assert np.isclose(cosine, 0.5, atol=0.02)
    assert np.array_equal(own[1]["weight"].T, own[2]["weight"])


def test_loop_has_no_reciprocal_pairs():
    net = ep.mlp((3, 5, 4, 2), feedback="loop")
    assert [(c.pre, c.post) for c in net.connections] == [(None, 0), (0, 1), (1, 2), (2, 0)]
    params = net.init(key=jr.key(0))
    x, y = jr.normal(jr.key(1), (2, 3)), jnp.array([0, 1])
    run = lambda estimator: eqx.filter_jit(ep.gradient)(net, params, x, y, estimator, free=ep.Settle(rtol=1e-14))
    (_, info), (_, true) = map(run, (ep.AsymEP(ep.Cauchy(0.05, 6)), ep.RBP(lx.LU())))
    assert all(map(lambda a, b: np.allclose(a, b, rtol=1e-5, atol=1e-8), info.response, true.response))
    assert np.all(info.result == RESULTS.successful)


def test_convolutional_network_has_the_implicit_gradient():
    field = ep.convnet((4, 4, 1), (2, 3), 3)
    params = field.init(key=jr.key(0), gain=0.8)
    x, y = jr.normal(jr.key(1), (2, 4, 4, 1)), jnp.array([0, 2])
    tight = ep.Settle(tau=1.0, rtol=1e-15, max_steps=200)

    def run(estimator):
        return eqx.filter_jit(lambda e: ep.gradient(field, params, x, y, e, free=tight))(estimator)

    grads, info = run(ep.AsymEP(ep.Cauchy(0.05, 6)))
    flat, unravel = jfu.ravel_pytree(params)

    def dense(u, x, y):
        F = lambda u, p: jtu.tree_map(jnp.subtract, field.drive(unravel(p), field.activation(u), x), u)
        by_u, by_p = jax.grad(lambda u, p: field.cost(unravel(p), field.activation(u), y), (0, 1))(u, flat)
        return ravel(by_u) @ implicit_jacobian(F, u, flat) + by_p

    truth = jnp.mean(jax.jit(jax.vmap(dense))(info.state, x, y), 0)
    relative = lambda grads: np.linalg.norm(ravel(grads) - truth) / np.linalg.norm(truth)
    assert relative(grads) < 1e-8
    assert relative(run(ep.ExactResponse(lx.LU()))[0]) > 1e-3


def test_bad_networks():
    with pytest.raises(ValueError, match="`connections` must be between"):
        ep.Network(input_shape=(3,), shapes=((2,),), connections=(ep.Dense(None, 1),))
    with pytest.raises(ValueError, match="lead to each layer"):
        ep.Network(input_shape=(3,), shapes=((2,), (2,)), connections=(ep.Dense(None, 0),))
    with pytest.raises(ValueError, match="shapes of the layers"):
        ep.Network(input_shape=(4, 4, 1), shapes=((4, 4, 2),), connections=(ep.Conv(None, 0),))
    with pytest.raises(ValueError, match="`feedback`"):
        ep.Conv(1, 0, bias=True, feedback=True)
    with pytest.raises(ValueError, match="`input_shape`"):
        ep.convnet((6, 6, 1), (2, 3), 4)
    with pytest.raises(ValueError, match="`sizes`"):
        ep.mlp((3,))
    with pytest.raises((ValueError, TypeCheckError), match="feedback"):
        ep.mlp((3, 4), feedback="random")  # pyright: ignore[reportArgumentType]
