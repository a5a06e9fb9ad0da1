"""A network on imbalanced digits reaches the oracle: O16 of the specification (its experiment E3')."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from neuralcollapse import ufm


COUNTS = (100, 80, 60, 50, 40, 30, 20, 10, 5, 3)


def digits() -> tuple[jax.Array, np.ndarray]:
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    rows = np.concatenate([np.flatnonzero(data.target == k)[:n] for k, n in enumerate(COUNTS)])
    x = data.data[rows] / 16
    return jnp.asarray(x - x.mean(0), jnp.float32), data.target[rows]


@pytest.mark.slow
def test_own_class_logits_of_a_network_are_those_of_the_oracle():
    x, labels = digits()
    y, lam, steps = jax.nn.one_hot(labels, 10, dtype=jnp.float32), 1e-3, 6000
    sizes = (64, 128, 128, 128)
    keys = jr.split(jr.key(0), 4)
    params = [
        jr.normal(k, (n, m), jnp.float32) * (2 / n) ** 0.5 for k, n, m in zip(keys, sizes, sizes[1:], strict=False)
    ]
    params = (params, jr.normal(keys[3], (10, 128), jnp.float32) * 0.1)

    def features(layers):
        h = x
        for w in layers[:-1]:
            h = jax.nn.relu(h @ w)
        return h @ layers[-1]

    def objective(params):
        layers, head = params
        h = features(layers)
        fit = jnp.sum((h @ head.T - y) ** 2) / (2 * x.shape[0])
        # Only the last features and the head are regularised: the model of the theory.
        return fit + lam / 2 * (jnp.sum(h**2) + jnp.sum(head**2))

    # Adam, written out: Optax's needs promotion that the tests forbid.
    @jax.jit
    def train(params):
        def step(carry, i):
            params, first, second = carry
            grads = jax.grad(objective)(params)
            first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
            second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, grads)
            t = i.astype(jnp.float32)
            rate = 1e-3 * (1 + jnp.cos(jnp.pi * t / steps)) / 2
            scale = 1 / (1 - 0.9 ** (t + 1)), 1 / (1 - 0.999 ** (t + 1))
            params = jax.tree.map(
                lambda p, m, v: p - rate * m * scale[0] / (jnp.sqrt(v * scale[1]) + 1e-8), params, first, second
            )
            return (params, first, second), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(step, (params, zeros, zeros), jnp.arange(steps))[0][0]

    layers, head = train(params)
    h = features(layers)
    means = np.stack([np.asarray(h)[labels == k].mean(0) for k in range(10)])
    own = np.sum(means * np.asarray(head), axis=1)
    oracle = ufm.solve_mse(COUNTS, 1, lam, lam)
    np.testing.assert_allclose(own, jnp.diag(oracle.logits), atol=5e-3)
    np.testing.assert_allclose(np.sum(means**2, axis=1), jnp.diag(oracle.gram_means), rtol=0.02)
    assert 1 - 1e-4 < float(objective((layers, head))) / float(oracle.loss) < 1.005
