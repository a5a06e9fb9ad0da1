"""What several test modules share: labelled samples, and what NumPy says of them in float64 and two passes."""

from typing import Any

import jax.numpy as jnp
import neuralcollapse
import numpy as np
import pytest


def draw(
    counts: tuple[int, ...] = (9, 6, 3, 2),
    dim: int = 6,
    *,
    mean: float = 0.0,
    std: float = 0.5,
    dtype: Any = np.float64,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw samples around random class means with a common offset, in random order."""
    r = np.random.default_rng(seed)
    labels = r.permutation(np.repeat(np.arange(len(counts)), counts))
    means = mean + r.normal(size=(len(counts), dim))
    return (means[labels] + std * r.normal(size=(len(labels), dim))).astype(dtype), labels.astype(np.int32)


class Reference:
    """Two passes in float64 over the same numbers."""

    def __init__(self, x: np.ndarray, y: np.ndarray, num_classes: int):
        x = np.asarray(x, np.float64)
        self.n = np.bincount(y, minlength=num_classes)
        self.p = self.n / self.n.sum()
        self.means = np.stack([x[y == k].mean(0) for k in range(num_classes)])
        residuals = x - self.means[y]
        self.within = residuals.T @ residuals / len(x)
        self.variances = np.array([(residuals[y == k] ** 2).sum(1).mean() for k in range(num_classes)])

    def centred(self, weighting: str) -> np.ndarray:
        weights = self.p if weighting == "weighted" else np.full(len(self.p), 1 / len(self.p))
        return self.means - weights @ self.means

    def between(self, global_mean: str, weighting: str) -> np.ndarray:
        weights = self.p if weighting == "weighted" else np.full(len(self.p), 1 / len(self.p))
        m = self.centred(global_mean)
        return m.T @ (weights[:, None] * m)


@pytest.fixture(scope="session")
def samples():
    return draw


@pytest.fixture(scope="session")
def reference():
    return Reference


@pytest.fixture(scope="session")
def collect():
    """Gather statistics over batches."""

    def gather(x: Any, y: Any, num_classes: int, batch: int = 7, **kwargs: Any) -> neuralcollapse.ClassStats:
        stats = neuralcollapse.ClassStats.init(num_classes, x.shape[1], dtype=x.dtype, **kwargs)
        for i in range(0, len(x), batch):
            # One shape, so that one program is compiled.
            rows, labels = np.zeros((batch, x.shape[1]), x.dtype), np.full(batch, -1, y.dtype)
            rows[: len(x) - i], labels[: len(x) - i] = x[i : i + batch], y[i : i + batch]
            stats = stats.update(jnp.asarray(rows), jnp.asarray(labels))
        return stats

    return gather


@pytest.fixture(scope="session")
def frame():
    """A simplex frame of `k` vectors in `k` dimensions, one a row."""
    return lambda k, dtype=jnp.float64: jnp.eye(k, dtype=dtype) - jnp.full((k, k), 1 / k, dtype)
