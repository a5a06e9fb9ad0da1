"""Jacobian homeostasis against its closed form, and the closed forms of its variance."""

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest
from fixedpoint_eq import ep
from jaxtyping import TypeCheckError
from stationary_testkit import finite_difference_jvp


FIELD = ep.mlp((3, 6, 5, 4))
N = 15


def states(key, batch=1):
    return tuple(jr.uniform(key, (batch, *shape)) for shape in FIELD.shapes)


def pairs(params):
    c = [p["weight"] for p in params["connections"]]
    return ((c[1], c[3]), (c[2], c[4]))


def closed_form(params):
    """2 |A|^2 / n = sum |W - V^T|^2 / n."""
    return sum(jnp.sum((W - V.T) ** 2) for W, V in pairs(params)) / N


@pytest.fixture(scope="module")
def draws():
    """Many single draws of both forms, of the loss and of one component of its gradient."""
    params, r0 = FIELD.init(key=jr.key(0), gain=1.0), states(jr.key(1))

    @eqx.filter_jit
    def sample(form):
        loss = lambda params, key: ep.homeostatic_loss(FIELD, params, r0, key=key, draws=1, form=form)
        both = jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0))(params, jr.split(jr.key(2), 6000))
        return both[0], both[1]["connections"][3]["weight"]

    return params, {form: sample(form) for form in ("jvp-jvp", "antisymmetric")}


def test_closed_form(draws):
    params, samples = draws
    by_weight = jax.grad(closed_form)(params)["connections"][3]["weight"]
    for values, gradients in samples.values():
        assert abs(jnp.mean(values) - closed_form(params)) < 4 * jnp.std(values) / np.sqrt(len(values))
        error = jnp.std(gradients, axis=0) / np.sqrt(len(values))
        assert np.all(np.abs(jnp.mean(gradients, 0) - by_weight) < 5 * error)


def test_variances(draws):
    params, samples = draws
    r = jtu.tree_map(lambda leaf: leaf[0], states(jr.key(1)))
    flat, unravel = jfu.ravel_pytree(r)
    K = jax.jacfwd(lambda r: jfu.ravel_pytree(FIELD.drive(params, unravel(r), None))[0])(flat)
    # Of e^T M e: 2 |sym M|^2 for Gaussian e, and without the diagonal for signs.
    M = K.T @ K - K @ K
    M = (M + M.T) / 2
    B = (K - K.T).T @ (K - K.T) / 2
    gaussian = 2 * jnp.sum(M**2) / N**2
    signs = 2 * (jnp.sum(B**2) - jnp.sum(jnp.diag(B) ** 2)) / N**2
    assert np.isclose(jnp.var(samples["jvp-jvp"][0]), gaussian, rtol=0.15)
    assert np.isclose(jnp.var(samples["antisymmetric"][0]), signs, rtol=0.15)
    assert signs < gaussian / 2


def test_zero_at_symmetry_and_blind_to_symmetric_parts(getkey):
    loss = eqx.filter_jit(
        lambda params, key: jax.value_and_grad(
            lambda p: ep.homeostatic_loss(FIELD, p, states(jr.key(1), 2), key=key, form="antisymmetric")
        )(params)
    )
    key = getkey()
    value, grads = loss(FIELD.init(key=getkey(), angle=0.0), key)
    assert value == 0
    assert np.all(jfu.ravel_pytree(grads)[0] == 0)
    params = FIELD.init(key=getkey())
    value, _ = loss(params, key)
    shift = jr.normal(getkey(), (5, 6))
    where = lambda p: (p["connections"][1]["weight"], p["connections"][3]["weight"])
    W, V = where(params)
    shifted, _ = loss(eqx.tree_at(where, params, (W + shift, V + shift.T)), key)
    assert value > 0
    assert np.isclose(value, shifted, rtol=1e-12)


@pytest.mark.parametrize("form", ["jvp-jvp", "antisymmetric"])
def test_gradient_of_a_convolutional_network(form, getkey):
    # Reverse over forward, through the pooling.
    field = ep.convnet((4, 4, 1), (2, 2), 3)
    params = field.init(key=getkey())
    r0 = tuple(jr.uniform(getkey(), (2, *shape)) for shape in field.shapes)
    flat, unravel = jfu.ravel_pytree(params["connections"])
    key = getkey()

    @jax.jit
    def loss(flat):
        return ep.homeostatic_loss(field, {**params, "connections": unravel(flat)}, r0, key=key, draws=2, form=form)

    direction = jr.normal(getkey(), flat.shape)
    slope = jax.jit(jax.grad(loss))(flat) @ direction
    assert np.isclose(slope, finite_difference_jvp(loss, (flat,), (direction,)), rtol=1e-6)


def test_bad_arguments():
    params = FIELD.init(key=jr.key(0))
    with pytest.raises((ValueError, TypeCheckError), match="form"):
        ep.homeostatic_loss(FIELD, params, states(jr.key(1)), key=jr.key(0), form="exact")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`draws`"):
        ep.homeostatic_loss(FIELD, params, states(jr.key(1)), key=jr.key(0), draws=0)
