import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from koopman_verify import LearnedDictionary, Snapshots, factor, loss, train_dictionary


def pendulum(rng, num, dtype=np.float64):
    """A step of a leapfrog pendulum from random states: a smooth map whose spectrum no polynomial captures."""
    x = rng.uniform(-1.5, 1.5, (num, 2))
    half = x[:, 1] - 0.25 * np.sin(x[:, 0])
    angle = x[:, 0] + 0.5 * half
    y = np.stack([angle, half - 0.25 * np.sin(angle)], axis=1)
    return Snapshots(jnp.asarray(x, dtype), jnp.asarray(y, dtype))


def made(rng, *args, scale=1.0, dtype=np.float64, **kwargs):
    """A dictionary with weights of the usual size from NumPy, for which nothing is compiled."""
    shapes = eqx.filter_eval_shape(lambda: LearnedDictionary(*args, scale=scale, **kwargs, key=jr.key(0)))

    def weights(leaf):
        bound = leaf.shape[-1] ** -0.5
        return jnp.asarray(rng.uniform(-bound, bound, leaf.shape), dtype)

    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    network = jax.tree.map(lambda leaf: weights(leaf) if is_shape(leaf) else leaf, shapes.network)
    given = (network, jnp.asarray(np.zeros(2), dtype), jnp.asarray(np.full(2, scale), dtype))
    return eqx.tree_at(lambda d: (d.network, d.centre, d.scale), shapes, given)


def test_the_first_weights(getkey):
    d = LearnedDictionary(2, 7, width=6, depth=1, scale=2.0, key=getkey())
    assert jnp.array_equal(d.scale, np.full(2, 2.0))
    separate = LearnedDictionary(2, 7, width=6, depth=1, separate=True, key=getkey())
    assert [layer.weight.shape for layer in d.network.layers] == [(6, 2), (4, 6)]
    assert [layer.weight.shape for layer in separate.network.layers] == [(4, 6, 2), (4, 1, 6)]
    for layer in (*d.network.layers, *separate.network.layers):
        weight = np.asarray(layer.weight)
        assert 0.3 < np.abs(weight).max() * weight.shape[-1] ** 0.5 <= 1
        assert len(np.unique(weight)) == weight.size


def test_shapes_forms_and_dtypes(rng):
    x = np.array([0.3, -0.2])
    value = eqx.filter_jit(lambda d, x: d(x))
    for separate, joined in ((False, True), (True, True), (False, False)):
        d = made(rng, 2, 7, width=6, scale=2.0, separate=separate, constant=joined, coordinates=joined)
        values, narrow = value(d, jnp.asarray(x)), value(d, jnp.asarray(x, jnp.float32))
        assert values.shape == (7,)
        assert values.dtype == jnp.float64
        assert narrow.dtype == jnp.float32
        np.testing.assert_allclose(narrow, values, rtol=1e-5, atol=1e-6)
        if d.constant:
            np.testing.assert_allclose(np.asarray(values)[:3], [1, 0.15, -0.1])


@pytest.mark.parametrize("separate", [False, True])
def test_the_bounds_of_the_functions_hold(rng, separate):
    d = made(rng, 2, 6, width=5, depth=2, separate=separate, coordinates=False, scale=0.5)
    x = jnp.asarray(3 * rng.normal(size=(200, 2)))
    both = eqx.filter_jit(lambda x: (jax.vmap(d)(x), jax.vmap(jax.jacfwd(d))(x)))
    values, jacobians = map(np.asarray, both(x))
    slopes = np.linalg.norm(jacobians, axis=-1).max(0)
    supremum, lipschitz = (eqx.filter_jit(bound)() for bound in (d.supremum, d.lipschitz))
    assert supremum is not None
    assert lipschitz is not None
    supremum, lipschitz = np.asarray(supremum), np.asarray(lipschitz)
    assert np.all(np.abs(values).max(0) <= supremum)
    assert np.all(slopes <= lipschitz * (1 + 1e-12))
    assert lipschitz[0] == 0
    assert np.all(slopes[1:] > 0.01 * lipschitz[1:])
    full = made(rng, 2, 6, width=4, depth=1, separate=separate)
    assert full.supremum() is None
    joined = eqx.filter_jit(full.lipschitz)()
    assert joined is not None
    assert np.asarray(joined)[1] == 1
    smooth = made(rng, 2, 6, width=4, depth=1, separate=separate, activation=jax.nn.gelu)
    assert smooth.lipschitz() is None


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_training_makes_the_held_out_defect_smaller(rng, getkey, dtype):
    train, test, fresh = (pendulum(rng, n, dtype) for n in (800, 400, 400))
    start = made(rng, 2, 6, width=16, depth=1, dtype=dtype)
    training = train_dictionary(start, train, test, optimiser=optax.adam(3e-3), max_epochs=30, key=getkey())
    score = eqx.filter_jit(lambda d, s: (loss.invariance_defect(f := factor(d, s)), loss.conditioned_defect(f)))
    assert score(training.dictionary, fresh)[0] < 0.5 * score(start, fresh)[0]
    assert training.test_losses.argmin() == training.best_epoch > 0
    assert len(training.batch_losses) == 30
    assert all(
        a.dtype == b.dtype
        for a, b in zip(
            *(jax.tree.leaves(eqx.filter(d, eqx.is_array)) for d in (start, training.dictionary)), strict=True
        )
    )
    np.testing.assert_allclose(score(training.dictionary, test)[1], training.test_losses.min(), rtol=1e-3)
    assert jnp.array_equal(training.dictionary.scale, start.scale)


def test_patience_ends_it_and_the_best_is_restored(rng, getkey, capsys):
    train, test = pendulum(rng, 200), pendulum(rng, 100)
    start = made(rng, 2, 5, width=4, depth=1)
    # Steps uphill: nothing is ever better than the beginning.
    training = train_dictionary(
        start, train, test, optimiser=optax.sgd(-0.05), max_epochs=20, patience=3, key=getkey(), progress=True
    )
    assert training.best_epoch == 0
    assert len(training.test_losses) == 4
    assert "epoch 3: test loss" in capsys.readouterr().err
    assert eqx.tree_equal(training.dictionary, start)


def test_bad_input(rng, getkey):
    with pytest.raises(ValueError, match="one must be left to be learned; got 3"):
        LearnedDictionary(2, 3, key=getkey())
    with pytest.raises(ValueError, match="`width` must be at least 5: 5 outputs of one network"):
        LearnedDictionary(2, 8, width=4, key=getkey())
    with pytest.raises(ValueError, match="`width` must be positive; got 0"):
        LearnedDictionary(2, 8, width=0, key=getkey())
    train, d = pendulum(rng, 100), made(rng, 2, 5, width=4, depth=1)
    with pytest.raises(ValueError, match="`batch_size` must be between 4 N = 20 and"):
        train_dictionary(d, train, train, batch_size=19, key=getkey())
    with pytest.raises(RuntimeError, match="`loss` is nan on `test` after 0 epochs"):
        train_dictionary(d, train, train, loss=lambda f: jnp.nan * loss.invariance_defect(f), key=getkey())
