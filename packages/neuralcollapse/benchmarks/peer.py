"""neural-collapse (torch): accumulators of means, covariance, variances and decisions, and the metrics on them."""

from typing import Any

from .data import Samples
from .protocol import Prepared


NAME = "neural-collapse"


def throughput(samples: Samples, then: str) -> Prepared:
    """Gather means in one pass; covariance and class variances, which need the means, in another; decisions in a third."""
    from neural_collapse.accumulate import DecAccumulator
    from neural_collapse.measure import covariance_ratio

    batches = _load(samples)
    shape = (samples.num_classes, samples.x.shape[1])
    weight = torch().from_numpy(samples.classifier()["weight"])

    def call() -> Any:
        stats = _gather(samples, batches)
        if then != "decisions":
            quotient = lambda: covariance_ratio(stats["covariance"], stats["means"], stats["mean"], "quotient")
            return quotient() if then == "quotient" else None
        counted = DecAccumulator(*shape)  # without the bias, which it does not take
        for x, y in batches:
            counted.accumulate(x, y, weight, stats["means"])
        return 1 - float(counted.compute()[1])

    return Prepared(call)


def evaluation(samples: Samples) -> Prepared:
    """Compute five metrics, as its examples do."""
    from neural_collapse.measure import covariance_ratio, self_duality_error, simplex_etf_error, variability_cdnv

    stats = _gather(samples, _load(samples))
    m, mean, weight = stats["means"], stats["mean"], torch().from_numpy(samples.classifier()["weight"])

    def call() -> dict[str, float]:
        return {
            "nc1_pinv": covariance_ratio(stats["covariance"], m, mean, "pinv"),
            "nc1_quotient": covariance_ratio(stats["covariance"], m, mean, "quotient"),
            "cdnv": variability_cdnv(stats["variances"], m),
            "etf_distance": simplex_etf_error(m, mean),
            "duality_etf": self_duality_error(weight, m, mean),
        }

    return Prepared(call, facts={"metrics": 5})


def torch() -> Any:
    """Return PyTorch on one thread, or raise where it is absent."""
    import torch as module

    module.set_num_threads(1)
    return module


def _load(samples: Samples) -> list[Any]:
    # Tensors, as a network in PyTorch leaves them.
    return [(torch().from_numpy(x), torch().from_numpy(y)) for x, y in samples.batches()]


def _gather(samples: Samples, batches: list[Any]) -> dict[str, Any]:
    from neural_collapse.accumulate import CovarAccumulator, MeanAccumulator, VarNormAccumulator

    shape = (samples.num_classes, samples.x.shape[1])
    means, covariance, variances = MeanAccumulator(*shape), CovarAccumulator(*shape), VarNormAccumulator(*shape)
    for x, y in batches:
        means.accumulate(x, y)
    m, mean = means.compute()
    for x, y in batches:
        covariance.accumulate(x, y, m)
        variances.accumulate(x, y, m)
    return {"means": m, "mean": mean, "covariance": covariance.compute(), "variances": variances.compute()[0]}
