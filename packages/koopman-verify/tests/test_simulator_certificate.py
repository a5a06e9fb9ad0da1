"""A learned simulator knows its Lipschitz constant, which turns finitely many of its values into a proof."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from koopman_verify import KnownModulus, Legendre, Snapshots, certify, edmd, factor, gtf


@pytest.fixture(scope="module")
def model():
    return gtf.ShallowPLRNN(2, 20, key=jr.key(0))


def certificate(model, num):
    radius = float(model.invariant_radius())
    centres = radius * (2 * (np.arange(num) + 0.5) / num - 1)
    nodes = jnp.asarray(np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2))
    # Cells are squares of side 2 radius / num, so that every state is within half a diagonal of its node.
    snapshots = Snapshots(nodes, jax.vmap(model)(nodes), kind="quadrature")
    pairs = edmd(factor(Legendre(2, [-radius, -radius], [radius, radius]), snapshots)).sorted()
    known = KnownModulus(snapshots, float(model.lipschitz()), np.sqrt(2) * radius / num)
    return pairs, certify(pairs, known)


def test_eigenvalues_of_a_simulator_are_proved(model, getkey):
    pairs, coarse = certificate(model, 30)
    assert coarse.kind == "quadrature"
    assert coarse.level == 1.0
    assert np.all(coarse.status == "certified")
    # The true residual, by many states drawn at random: inside of what was proved.
    radius = float(model.invariant_radius())
    x = jr.uniform(getkey(), (200_000, 2), minval=-radius, maxval=radius)
    g = jax.jit(jax.vmap(pairs.functions))
    before, after = g(x), g(jax.vmap(model)(x))
    residual = jnp.linalg.norm(after - pairs.eigenvalues[None] * before, axis=0) / jnp.linalg.norm(before, axis=0)
    assert np.all(residual <= coarse.upper)
    assert np.all(residual >= coarse.lower - 1e-12)
    # Four times as many values, half the uncertainty.
    _, fine = certificate(model, 60)
    rest = slice(1, None)  # the constant function has none
    assert np.all(np.asarray(fine.upper)[rest] < 0.55 * np.asarray(coarse.upper)[rest])


def test_a_modulus_that_is_too_small_would_prove_what_is_false():
    # The other side of the same coin: the modulus is believed. A bump of slope 100 that the nodes do not see.
    step = lambda x: x + jnp.maximum(0.0, 1.0 - 100.0 * jnp.abs(x))
    nodes = jnp.asarray((np.arange(40) + 0.5) / 20 - 1)[:, None]
    snapshots = Snapshots(nodes, step(nodes), kind="quadrature")
    pairs = edmd(factor(Legendre(1, [-1.0], [1.0]), snapshots)).sorted()
    honest = certify(pairs, KnownModulus(snapshots, 101.0, 1 / 40))
    assert np.max(honest.upper) > 1.0
    naive = certify(pairs, KnownModulus(snapshots, 1.0, 1 / 40))
    assert np.max(naive.upper) < 0.2
    assert any(line.startswith("stated:") and "modulus" in line for line in naive.assumptions)
