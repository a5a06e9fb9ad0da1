"""What several test modules share. Random numbers are NumPy's: for JAX's own, XLA compiles half a second for each shape."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest


@pytest.fixture
def rng(getkey):
    """NumPy's generator, seeded from the test's name as `getkey` is."""
    return np.random.default_rng(np.asarray(jr.key_data(getkey())))


@pytest.fixture
def normal(rng):
    """Draw from the normal distribution; a complex number has variance one, like JAX's."""

    def draw(shape=(), dtype=jnp.float64):
        value = rng.normal(size=shape)
        if np.issubdtype(dtype, np.complexfloating):
            value = (value + 1j * rng.normal(size=shape)) / np.sqrt(2)
        return jnp.asarray(value, dtype)

    return draw


@pytest.fixture
def uniform(rng):
    """Draw from an interval."""
    return lambda shape=(), low=-1.0, high=1.0, dtype=jnp.float64: jnp.asarray(rng.uniform(low, high, shape), dtype)
