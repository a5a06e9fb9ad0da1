"""The samples, the same arrays for both sides, and their metrics in float64 and two passes."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass
class Samples:
    """Features in float32, one sample a row, their labels, and how many make a batch."""

    x: np.ndarray
    y: np.ndarray
    num_classes: int
    batch: int

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        starts = range(0, len(self.x) - self.batch + 1, self.batch)
        return [(self.x[i : i + self.batch], self.y[i : i + self.batch]) for i in starts]

    def classifier(self) -> dict[str, Any]:
        """Draw a classifier."""
        r = np.random.default_rng(1)
        k, d = self.num_classes, self.x.shape[1]
        return {"weight": r.normal(size=(k, d)).astype(np.float32), "bias": r.normal(size=k).astype(np.float32)}


def around_means(num_classes: int, dim: int, num: int, *, mean: float = 0.0, std: float = 1.0) -> Samples:
    """Draw class means N(0, 1) + `mean`, and samples around them with standard deviation `std`."""
    r = np.random.default_rng(0)
    means = mean + r.normal(size=(num_classes, dim))
    # Whole batches, and every class among them.
    y = r.permutation(np.arange(num) % num_classes)
    x = np.empty((num, dim), np.float32)
    for i in range(0, num, 4096):  # in pieces, to bound the memory of float64
        part = y[i : i + 4096]
        x[i : i + 4096] = means[part] + std * r.normal(size=(len(part), dim))
    return Samples(x, y.astype(np.int64), num_classes, 256)


def vocabulary(num_batches: int, num_classes: int = 30_000) -> Samples:
    """Draw token-like labels, Zipf with exponent 1.3 cut at the number of classes, and features of 768 dimensions."""
    r = np.random.default_rng(0)
    num = 2048 * num_batches
    y = np.minimum(r.zipf(1.3, num), num_classes) - 1
    return Samples(r.normal(size=(num, 768)).astype(np.float32), y, num_classes, 2048)


def quotient(samples: Samples) -> float:
    """Compute tr S_W / tr S_B of the same float32 numbers, in float64 and two passes."""
    k, d = samples.num_classes, samples.x.shape[1]
    used = len(samples.batches()) * samples.batch
    x, y = samples.x[:used], samples.y[:used]
    sums, counts = np.zeros((k, d)), np.bincount(y, minlength=k)
    for c in range(k):
        sums[c] = x[y == c].astype(np.float64).sum(0)
    means = sums / counts[:, None]
    within = sum(((x[y == c].astype(np.float64) - means[c]) ** 2).sum() for c in range(k)) / used
    return float(within / (((means - means.mean(0)) ** 2).sum() / k))
