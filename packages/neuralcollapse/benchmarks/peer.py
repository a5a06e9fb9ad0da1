"""neural-collapse (torch): accumulators of means, covariance, variances and decisions, and the metrics on them."""

from typing import Any

import torch
from neural_collapse.accumulate import CovarAccumulator, DecAccumulator, MeanAccumulator, VarNormAccumulator
from neural_collapse.measure import (
    covariance_ratio,
    self_duality_error,
    simplex_etf_error,
    variability_cdnv,
)

from .data import Samples


NAME = "neural-collapse"
torch.set_num_threads(1)


def load(samples: Samples) -> list[Any]:
    """Make the batches tensors, as a network in PyTorch leaves them."""
    return [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in samples.batches()]


def statistics(samples: Samples, batches: list[Any]) -> dict[str, Any]:
    """Gather means in one pass; covariance and class variances, which need the means, in another."""
    shape = (samples.num_classes, samples.x.shape[1])
    means, covariance, variances = MeanAccumulator(*shape), CovarAccumulator(*shape), VarNormAccumulator(*shape)
    for x, y in batches:
        means.accumulate(x, y)
    m, mean = means.compute()
    for x, y in batches:
        covariance.accumulate(x, y, m)
        variances.accumulate(x, y, m)
    return {"means": m, "mean": mean, "covariance": covariance.compute(), "variances": variances.compute()[0]}


def agreement(samples: Samples, batches: list[Any], stats: dict[str, Any], head: dict[str, Any]) -> float:
    """Count where the classifier, without its bias, is the nearest centre: a third pass."""
    decisions = DecAccumulator(samples.num_classes, samples.x.shape[1])
    weight = torch.from_numpy(head["weight"])
    for x, y in batches:
        decisions.accumulate(x, y, weight, stats["means"])
    return 1 - float(decisions.compute()[1])


def quotient(stats: dict[str, Any]) -> float:
    """Compute tr S_W / tr S_B."""
    return covariance_ratio(stats["covariance"], stats["means"], stats["mean"], "quotient")


def evaluate(stats: dict[str, Any], head: dict[str, Any]) -> dict[str, float]:
    """Compute five metrics, as its examples do."""
    m, mean, weight = stats["means"], stats["mean"], torch.from_numpy(head["weight"])
    return {
        "nc1_pinv": covariance_ratio(stats["covariance"], m, mean, "pinv"),
        "nc1_quotient": covariance_ratio(stats["covariance"], m, mean, "quotient"),
        "cdnv": variability_cdnv(stats["variances"], m),
        "etf_distance": simplex_etf_error(m, mean),
        "duality_etf": self_duality_error(weight, m, mean),
    }
