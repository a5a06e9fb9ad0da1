import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neuralcollapse import taps
from stationary_testkit import no_retrace


def test_what_enters_and_leaves_a_layer(getkey):
    model = eqx.nn.MLP(5, 3, 7, 2, key=getkey())
    x = jax.random.normal(getkey(), (4, 5))
    hidden = jax.nn.relu(jax.vmap(model.layers[0])(x))
    last = jax.nn.relu(jax.vmap(model.layers[1])(hidden))
    where = {"second": lambda m: m.layers[1], "head": lambda m: m.layers[2]}
    run = no_retrace(lambda tapped, x: jax.vmap(tapped)(x))
    for scale in (1.0, 2.0):
        scaled = jax.tree.map(lambda a, s=scale: a * s if eqx.is_array(a) else a, model)
        out, seen = run(taps.capture(scaled, where), x)
        np.testing.assert_allclose(out, jax.vmap(scaled)(x), rtol=1e-14)
    out, seen = jax.vmap(taps.capture(model, where))(x)
    np.testing.assert_allclose(out, jax.vmap(model)(x), rtol=1e-14)
    np.testing.assert_allclose(seen["second"], hidden, rtol=1e-14)
    np.testing.assert_allclose(seen["head"], last, rtol=1e-14)
    _, outputs = jax.vmap(taps.capture(model, where, at="output"))(x)
    np.testing.assert_allclose(outputs["head"], jax.vmap(model)(x), rtol=1e-14)


class Tied(eqx.Module):
    embed: eqx.nn.Linear
    head: eqx.nn.Linear
    twice: bool = False

    def __call__(self, x):
        h = self.embed(x) + (self.embed(x) if self.twice else 0)
        return self.head(h) + 0 * jnp.sum(self.head.weight)


def test_fields_of_a_tapped_layer_can_be_read(getkey):
    model = Tied(eqx.nn.Linear(2, 3, key=getkey()), eqx.nn.Linear(3, 2, key=getkey()))
    out, seen = taps.capture(model, {"h": lambda m: m.head})(jnp.ones(2))
    np.testing.assert_allclose(out, model(jnp.ones(2)))
    np.testing.assert_allclose(seen["h"], model.embed(jnp.ones(2)))


def test_refusals(getkey):
    model = Tied(eqx.nn.Linear(2, 3, key=getkey()), eqx.nn.Linear(3, 2, key=getkey()), twice=True)
    with pytest.raises(ValueError, match="Layer 'e' was called 2 times in one pass"):
        taps.capture(model, {"e": lambda m: m.embed})(jnp.ones(2))
    with pytest.raises(ValueError, match="`layers` must name at least one layer"):
        taps.capture(model, {})


@dataclasses.dataclass
class Variable:
    """As NNX keeps what was sown."""

    value: Any


def test_what_flax_models_have_sown():
    linen = {"Dense_0": {"__call__": (jnp.zeros(2), jnp.ones(2))}, "features": (jnp.full(2, 3.0),)}
    np.testing.assert_array_equal(taps.from_intermediates(linen, "features"), [3, 3])
    np.testing.assert_array_equal(taps.from_intermediates(linen, "Dense_0/__call__"), [1, 1])
    np.testing.assert_array_equal(taps.from_intermediates({"h": Variable((jnp.ones(1),))}, "h"), [1])
    with pytest.raises(KeyError, match="nothing was sown at 'Dense_1': at 'Dense_1' there is"):
        taps.from_intermediates(linen, "Dense_1")
    with pytest.raises(KeyError, match="'Dense_0' is not an entry; below it are"):
        taps.from_intermediates(linen, "Dense_0")
