"""neuralcollapse: statistics in one compiled pass, and the report on them."""

from typing import Any

import jax
import jax.numpy as jnp
from neuralcollapse import ClassStats, NCCStats, metrics

from .data import Samples


NAME = "ours"
_update = jax.jit(lambda stats, x, y: stats.update(x, y), donate_argnums=0)
_count = jax.jit(lambda ncc, x, y: ncc.update(x, y))


def load(samples: Samples) -> list[Any]:
    """Make the batches arrays of JAX, as a network in JAX leaves them."""
    return [(jnp.asarray(x), jnp.asarray(y)) for x, y in samples.batches()]


def statistics(samples: Samples, batches: list[Any]) -> ClassStats:
    """Gather counts, means, covariance and class variances: one pass."""
    stats = ClassStats.init(samples.num_classes, samples.x.shape[1])
    for x, y in batches:
        stats = _update(stats, x, y)
    return jax.block_until_ready(stats)


def agreement(samples: Samples, batches: list[Any], stats: ClassStats, head: dict[str, Any]) -> float:
    """Count where the classifier, with its bias, is the nearest centre: a second pass."""
    del samples
    ncc = NCCStats.init(stats, head["weight"], head["bias"])
    for x, y in batches:
        ncc = _count(ncc, x, y)
    return float(ncc.mismatch())


def quotient(stats: ClassStats) -> float:
    """Compute tr S_W / tr S_B."""
    return float(metrics.nc1_quotient(stats))


def evaluate(stats: ClassStats, head: dict[str, Any]) -> dict[str, float]:
    """Compute every metric: more than the peer's five."""
    return metrics.report(stats, **head).to_dict()
