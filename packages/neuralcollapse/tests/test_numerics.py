"""Softmax collapse and its remedies: oracle O15 of the specification, and grokking at a tiny size."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from neuralcollapse import numerics


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_stablemax_is_its_definition_and_its_softmax_form(dtype):
    x = jnp.linspace(-30, 30, 61, dtype=dtype).reshape(1, -1)
    scale = np.where(np.asarray(x) >= 0, np.asarray(x) + 1, 1 / (1 - np.asarray(x)))
    got = numerics.stablemax(x)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, scale / scale.sum(), rtol=1e-5)
    np.testing.assert_allclose(got, jax.nn.softmax(jnp.sign(x) * jnp.log1p(jnp.abs(x))), rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(numerics.log_stablemax(x)), got, rtol=1e-5)
    np.testing.assert_allclose(numerics.stablemax(x.T, axis=0), got.T, rtol=1e-6)


def test_stablemax_is_smooth_at_zero_and_does_not_collapse():
    slope = jax.grad(lambda x: numerics.log_stablemax(jnp.stack([x, jnp.ones(())]))[0])
    np.testing.assert_allclose(slope(jnp.zeros(())), slope(jnp.array(1e-9)), rtol=1e-6)
    assert slope(jnp.zeros(())) == pytest.approx(2 / 3)
    z, y = jnp.array([[200.0, 0, 0]], jnp.float32), jnp.array([0])
    assert numerics.softmax_collapse_fraction(z, y) == 1
    assert jax.grad(lambda z: jnp.sum(optax.softmax_cross_entropy_with_integer_labels(z, y)))(z)[0, 0] == 0
    assert numerics.stablemax_cross_entropy(z, y)[0] > 1e-3
    assert jax.grad(lambda z: jnp.sum(numerics.stablemax_cross_entropy(z, y)))(z)[0, 0] < 0


@pytest.mark.parametrize(
    ("dtype", "onsets"),
    [
        (jnp.float16, (7.63, 9.83, 12.34)),
        (jnp.bfloat16, (5.55, 7.74, 10.29)),
        (jnp.float32, (16.64, 18.25, 20.67)),
    ],
)
def test_onset_of_softmax_collapse(dtype, onsets):
    for classes, onset in zip((2, 10, 113), onsets, strict=True):
        # All gaps that the dtype has between five and twenty-two.
        gaps = jnp.unique(jnp.linspace(5, 22, 4001, dtype=jnp.float32).astype(dtype))
        logits = jnp.zeros((gaps.shape[0], classes), dtype).at[:, 0].set(gaps)
        mask = np.asarray(numerics.softmax_collapsed(logits, jnp.zeros(gaps.shape[0], int)))
        first = float(gaps[mask.argmax()])
        spacing = float(gaps[mask.argmax()] - gaps[mask.argmax() - 1])
        assert abs(first - onset) <= 0.02 + spacing
        low, high = numerics.collapse_onset(dtype, classes)
        assert low - spacing <= first <= high + spacing
    assert numerics.collapse_onset(dtype, 2)[0] == pytest.approx(onsets[0], abs=0.01)


def test_collapse_mask_edges():
    logits = jnp.array([[jnp.inf, 0], [jnp.nan, 0], [50.0, 0], [50.0, 0], [50.0, 0]], jnp.float32)
    mask = numerics.softmax_collapsed(logits, jnp.array([0, 0, 0, 1, -1]))
    np.testing.assert_array_equal(mask, [False, False, True, False, False])
    with pytest.raises(ValueError, match="`labels` must have shape"):
        numerics.softmax_collapsed(logits, jnp.zeros((5, 1), int))
    with pytest.raises(ValueError, match="no samples"):
        numerics.softmax_collapse_fraction(logits[:0], jnp.zeros(0, int))
    with pytest.raises(ValueError, match="`num_classes`"):
        numerics.collapse_onset(jnp.float32, 1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_perp_grad_is_the_projection(dtype, getkey):
    params = {"w": jr.normal(getkey(), (5, 3), dtype), "b": jr.normal(getkey(), (4,), dtype)}
    grads = {"w": jr.normal(getkey(), (5, 3), dtype), "b": jr.normal(getkey(), (4,), dtype)}
    tol = 4 * float(jnp.finfo(dtype).eps)
    for rescale in (True, False):
        transform = numerics.perp_grad(rescale=rescale)
        updates, _ = jax.jit(transform.update)(grads, transform.init(params), params)
        for name, update in updates.items():
            u, w, g = (np.asarray(x, np.float64) for x in (update, params[name], grads[name]))
            assert update.dtype == dtype
            assert abs(np.sum(u * w)) <= 4 * tol * np.linalg.norm(u) * np.linalg.norm(w)
            expected = g - np.sum(w * g) / np.sum(w * w) * w
            if rescale:
                expected *= np.linalg.norm(g) / np.linalg.norm(expected)
            np.testing.assert_allclose(u, expected, atol=8 * tol)


def test_perp_grad_edges():
    transform = numerics.perp_grad()
    zero, ones = jnp.zeros(3), jnp.ones(3)
    np.testing.assert_array_equal(transform.update(ones, transform.init(zero), zero)[0], ones)
    np.testing.assert_array_equal(transform.update(zero, transform.init(ones), ones)[0], zero)
    # Along the parameters nothing is left: rounding is not blown up.
    w = jnp.array([0.1, 0.2, 0.3])
    np.testing.assert_array_equal(transform.update(3 * w, transform.init(w), w)[0], zero)
    tree: Any = (None, ones)
    kept: Any = transform.update(tree, transform.init(tree), tree)[0]
    assert kept[0] is None
    with pytest.raises(ValueError, match="call `update"):
        transform.update(ones, transform.init(ones))
    chained = optax.chain(transform, optax.sgd(0.1))
    updates, _ = chained.update(jnp.array([1.0, 0, 0]), chained.init(ones), ones)
    np.testing.assert_allclose(np.sum(np.asarray(updates)), 0, atol=1e-15)


def test_alignment(getkey):
    params = {"a": jr.normal(getkey(), (3, 2)), "b": jr.normal(getkey(), (4,))}
    along = numerics.nlm_alignment(jax.tree.map(lambda w: -2 * w, params), params)
    np.testing.assert_allclose([along.cosine["a"], along.total_cosine, along.total_explained], 1, rtol=1e-12)
    projected, _ = numerics.perp_grad().update({"a": jnp.ones((3, 2)), "b": jnp.ones(4)}, optax.EmptyState(), params)
    np.testing.assert_allclose(numerics.nlm_alignment(projected, params).total_cosine, 0, atol=1e-12)
    assert numerics.nlm_alignment(jax.tree.map(jnp.zeros_like, params), params).total_cosine == 0
    with pytest.raises(ValueError, match="structure"):
        numerics.nlm_alignment({"a": jnp.ones(2)}, params)


def test_grokking_at_a_tiny_size():
    # All runs fit the training data at once. Only that with projected gradients generalises in as many steps; in half
    # precision the others' losses are exactly zero for many samples.
    data = numerics.modular_addition(23, train_fraction=0.7, key=jr.key(0))
    assert data.train_x.shape == (370, 46)
    np.testing.assert_array_equal(jnp.sum(data.train_x, axis=1), 2)
    np.testing.assert_array_equal(
        data.test_y, jnp.sum(data.test_x @ jnp.arange(46.0, dtype=jnp.float32)[:, None], 1) % 23
    )
    adam = optax.adam(1e-2, b1=0.9, b2=0.99)
    options: dict[str, Any] = dict(key=jr.key(1), num_steps=300, record_every=150, widths=(64, 64))
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
        plain = numerics.grok(data, adam, **options)
        half = numerics.grok(data, adam, logit_dtype=jnp.float16, **options)
        perpendicular = numerics.grok(data, optax.chain(numerics.perp_grad(), adam), **options)
    for run in (plain, half, perpendicular):
        assert run.train_accuracy[-1] == 1
        np.testing.assert_array_equal(run.steps, [150, 300])
    assert plain.test_accuracy[-1] < 0.1
    assert perpendicular.test_accuracy[-1] > 0.75
    assert half.collapsed[-1] > 0.2
    assert plain.collapsed[-1] == perpendicular.collapsed[-1] == 0
    # The gradient scales the weights up: naive loss minimisation.
    assert plain.alignment[-1] > 0.5


def test_bad_experiment():
    with pytest.raises(ValueError, match="`train_fraction`"):
        numerics.modular_addition(5, train_fraction=1.0, key=jr.key(0))
    with pytest.raises(ValueError, match="`p` must be"):
        numerics.modular_addition(1, key=jr.key(0))
    data = numerics.modular_addition(5, key=jr.key(0))
    with pytest.raises(ValueError, match="multiple of `record_every`"):
        numerics.grok(data, optax.sgd(0.1), key=jr.key(0), num_steps=7, record_every=2)
