"""How far a head and its features are from the optimum, against the objective itself on samples."""

import itertools

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from neuralcollapse import ClassStats, ufm


COUNTS = (12, 8, 5, 3)


def samples(key, dim=6):
    labels = np.repeat(np.arange(4), COUNTS)
    return jr.normal(key, (len(labels), dim)), jnp.asarray(labels)


def statistics(features, labels):
    return ClassStats.init(4, features.shape[1], dtype=features.dtype).update(features, labels)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_parts_are_those_of_the_objective_on_samples(depth, bias, getkey):
    x, labels = samples(getkey())
    sizes = (6, 5, 7, 4) if depth == 3 else (6, 4)
    weights = [jr.normal(getkey(), (o, i)) for i, o in itertools.pairwise(sizes)]
    b = 0.3 * jr.normal(getkey(), (4,)) if bias else None
    lam_W, lam_H = jnp.linspace(0.01, 0.02, depth), 0.03
    found = ufm.optimality(statistics(x, labels), weights, lam_W, lam_H, b)
    logits = x
    for w in weights:
        logits = logits @ w.T
    logits = logits if b is None else logits + b[None]
    loss = jnp.sum((logits - jnp.eye(4)[labels]) ** 2) / (2 * len(x)) + lam_H / 2 * jnp.sum(x**2)
    loss = loss + sum(lam / 2 * jnp.sum(w**2) for lam, w in zip(lam_W, weights, strict=True))
    assert found.loss == pytest.approx(float(loss), rel=1e-12)
    assert sum(found.parts.values()) == pytest.approx(float(loss), rel=1e-12)
    assert sum(found.optimal_parts.values()) == pytest.approx(float(found.optimum), rel=1e-12)
    assert found.excess > 0
    assert list(found.parts)[4:] == [f"head layer {m + 1}" for m in range(depth)]
    assert found.parts["scatter in the logits"] > 0


@pytest.mark.parametrize("bias", ["none", "free"])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_minimiser_is_at_the_optimum(depth, bias, getkey):
    solution = ufm.solve_mse(COUNTS, depth, 1e-2, 1e-2, bias, widths=6)
    point = solution.construct(getkey())
    labels = jnp.asarray(np.repeat(np.arange(4), COUNTS))
    found = ufm.optimality(statistics(point.features[labels], labels), point.weights, 1e-2, 1e-2, point.bias)
    assert abs(float(found.excess)) < 1e-12
    for name, value in found.parts.items():
        assert value == pytest.approx(float(found.optimal_parts[name]), abs=1e-13)


def test_bad_input(getkey):
    x, labels = samples(getkey())
    stats, w = statistics(x, labels), jnp.ones((4, 6))
    with pytest.raises(ValueError, match="from 6 features to 4 classes"):
        ufm.optimality(stats, [jnp.ones((4, 5))], 1e-2, 1e-2)
    with pytest.raises(ValueError, match=r"`bias` must have shape \(4,\)"):
        ufm.optimality(stats, [w], 1e-2, 1e-2, jnp.ones(3))
    with pytest.raises(ValueError, match="`lam_H` must be positive"):
        ufm.optimality(stats, [w], 1e-2, 0.0)
    with pytest.raises(ValueError, match="within='full'"):
        ufm.optimality(ClassStats.init(4, 6, "trace").update(x, labels), [w], 1e-2, 1e-2)
