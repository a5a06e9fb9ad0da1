import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from koopman_verify import LearnedDictionary, Snapshots, factor, loss, train_dictionary


def pendulum(key, num):
    """A step of a leapfrog pendulum from random states: a smooth map whose spectrum no polynomial captures."""
    x = jr.uniform(key, (num, 2), minval=-1.5, maxval=1.5)
    half = x[:, 1] - 0.25 * jnp.sin(x[:, 0])
    angle = x[:, 0] + 0.5 * half
    return Snapshots(x, jnp.stack([angle, half - 0.25 * jnp.sin(angle)], axis=1))


def test_shapes_forms_and_dtypes(getkey):
    x = jnp.array([0.3, -0.2])
    for separate, joined in ((False, True), (True, True), (False, False)):
        d = LearnedDictionary(
            2, 7, width=6, scale=2.0, separate=separate, constant=joined, coordinates=joined, key=getkey()
        )
        values = d(x)
        assert values.shape == (7,)
        assert values.dtype == jnp.float64
        assert d(x.astype(jnp.float32)).dtype == jnp.float32
        np.testing.assert_allclose(d(x.astype(jnp.float32)), values, rtol=1e-5, atol=1e-6)
        if d.constant:
            np.testing.assert_allclose(values[:3], [1, 0.15, -0.1])


@pytest.mark.parametrize("separate", [False, True])
def test_the_bounds_of_the_functions_hold(getkey, separate):
    d = LearnedDictionary(2, 6, width=5, depth=2, separate=separate, coordinates=False, scale=0.5, key=getkey())
    x = 3 * jr.normal(getkey(), (200, 2))
    values, slopes = jax.vmap(d)(x), jnp.linalg.norm(jax.vmap(jax.jacfwd(d))(x), axis=-1)
    supremum, lipschitz = d.supremum(), d.lipschitz()
    assert supremum is not None
    assert lipschitz is not None
    assert jnp.all(jnp.abs(values).max(0) <= supremum)
    assert jnp.all(slopes.max(0) <= lipschitz * (1 + 1e-12))
    assert lipschitz[0] == 0
    assert jnp.all(slopes.max(0)[1:] > 0.01 * lipschitz[1:])
    full = LearnedDictionary(2, 6, width=4, depth=1, key=getkey())
    assert full.supremum() is None
    joined = full.lipschitz()
    assert joined is not None
    assert joined[1] == 1
    smooth = LearnedDictionary(2, 6, width=4, depth=1, activation=jax.nn.gelu, key=getkey())
    assert smooth.lipschitz() is None


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_training_makes_the_held_out_defect_smaller(getkey, dtype):
    cast = lambda s: Snapshots(s.x.astype(dtype), s.y.astype(dtype))
    train, test, fresh = (cast(pendulum(getkey(), n)) for n in (800, 400, 400))
    start = LearnedDictionary(2, 8, width=16, depth=2, key=getkey())
    start = jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, start)
    training = train_dictionary(start, train, test, optimiser=optax.adam(3e-3), max_epochs=30, key=getkey())
    before, after = (loss.invariance_defect(factor(d, fresh)) for d in (start, training.dictionary))
    assert after < 0.5 * before
    assert training.test_losses.argmin() == training.best_epoch > 0
    assert len(training.batch_losses) == 30
    assert all(
        a.dtype == b.dtype
        for a, b in zip(
            *(jax.tree.leaves(eqx.filter(d, eqx.is_array)) for d in (start, training.dictionary)), strict=True
        )
    )
    np.testing.assert_allclose(
        loss.conditioned_defect(factor(training.dictionary, test)), training.test_losses.min(), rtol=1e-3
    )
    assert jnp.all(training.dictionary.scale == start.scale)


def test_patience_ends_it_and_the_best_is_restored(getkey, capsys):
    train, test = pendulum(getkey(), 200), pendulum(getkey(), 100)
    start = LearnedDictionary(2, 5, width=4, depth=1, key=getkey())
    # Steps uphill: nothing is ever better than the beginning.
    training = train_dictionary(
        start, train, test, optimiser=optax.sgd(-0.05), max_epochs=20, patience=3, key=getkey(), progress=True
    )
    assert training.best_epoch == 0
    assert len(training.test_losses) == 4
    assert "epoch 3: test loss" in capsys.readouterr().err
    assert eqx.tree_equal(training.dictionary, start)


def test_bad_input(getkey):
    with pytest.raises(ValueError, match="one must be left to be learned; got 3"):
        LearnedDictionary(2, 3, key=getkey())
    with pytest.raises(ValueError, match="`width` must be at least 5: 5 outputs of one network"):
        LearnedDictionary(2, 8, width=4, key=getkey())
    with pytest.raises(ValueError, match="`width` must be positive; got 0"):
        LearnedDictionary(2, 8, width=0, key=getkey())
    train, d = pendulum(getkey(), 100), LearnedDictionary(2, 5, width=4, depth=1, key=getkey())
    with pytest.raises(ValueError, match="`batch_size` must be between 4 N = 20 and"):
        train_dictionary(d, train, train, batch_size=19, key=getkey())
    with pytest.raises(RuntimeError, match="`loss` is nan on `test` after 0 epochs"):
        train_dictionary(d, train, train, loss=lambda f: jnp.nan * loss.invariance_defect(f), key=getkey())
