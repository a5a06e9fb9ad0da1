"""neuralcollapse: statistics in one compiled pass, and the report on them."""

from typing import Any

import jax
import jax.numpy as jnp
from neuralcollapse import ClassStats, NCCStats, metrics

from .data import Samples
from .protocol import Prepared, program_of, warmed


NAME = "ours"
_update = jax.jit(lambda stats, x, y: stats.update(x, y), donate_argnums=0)
_count = jax.jit(lambda ncc, x, y: ncc.update(x, y))


def throughput(samples: Samples, then: str) -> Prepared:
    """Gather counts, means, covariance and class variances in one pass; then `"quotient"`, `"decisions"` or nothing."""
    batches = _load(samples)
    head = samples.classifier()
    _, seconds, memory = program_of(_update, _empty(samples), *batches[0])

    def call() -> Any:
        stats = gather(samples, batches)
        if then == "decisions":
            return agreement(batches, stats, head)
        return metrics.nc1_quotient(stats) if then == "quotient" else None

    return Prepared(call, seconds, memory)


def evaluation(samples: Samples) -> Prepared:
    """Compute every metric of statistics at hand: more than the peer's five."""
    stats, head = gather(samples, _load(samples)), samples.classifier()
    report = lambda: metrics.report(stats, **head).to_dict()
    return warmed(report, facts={"metrics": len(report())})


def one_batch(samples: Samples, within: Any, *, donated: bool = True, **options: Any) -> Prepared:
    """Take in one batch after another."""
    x, y = _load(samples)[0]
    state = ClassStats.init(samples.num_classes, samples.x.shape[1], within, **options)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    update = jax.jit(lambda stats, x, y: stats.update(x, y), donate_argnums=(0,) if donated else ())
    program, seconds, memory = program_of(update, state, x, y)
    held = [state]

    def call() -> Any:
        held[0] = jax.block_until_ready(program(held[0], x, y))
        return held[0].total

    return Prepared(call, seconds, memory, facts={"state_bytes": size, "classes": samples.num_classes})


def gather(samples: Samples, batches: list[Any]) -> ClassStats:
    """Pass over the data once."""
    stats = _empty(samples)
    for x, y in batches:
        stats = _update(stats, x, y)
    return jax.block_until_ready(stats)


def agreement(batches: list[Any], stats: ClassStats, head: dict[str, Any]) -> float:
    """Count where the classifier, with its bias, is the nearest centre: a second pass."""
    ncc = NCCStats.init(stats, head["weight"], head["bias"])
    for x, y in batches:
        ncc = _count(ncc, x, y)
    return float(ncc.mismatch())


def _empty(samples: Samples) -> ClassStats:
    return ClassStats.init(samples.num_classes, samples.x.shape[1])


def _load(samples: Samples) -> list[Any]:
    # Arrays of JAX, as a network in JAX leaves them.
    return [(jnp.asarray(x), jnp.asarray(y)) for x, y in samples.batches()]
