"""The protocol: both sides on the same arrays, in turn, after compilation; medians of CPU time."""

import gc
import importlib
import importlib.metadata
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from . import data, ours


Row = dict[str, Any]


def sides() -> list[Any]:
    """Return ours, and the peer if it is installed."""
    try:
        return [ours, importlib.import_module(".peer", __package__)]
    except ModuleNotFoundError as error:
        say(f"without the peer: {error}")
        return [ours]


def run(name: str, repeats: int) -> list[Row]:
    """Run one case by name; one row a side."""
    return CASES[name](repeats)


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def _throughput(samples: data.Samples, repeats: int, *, warm_up: data.Samples, with_decisions: bool) -> list[Row]:
    head = data.classifier(samples)

    def work(side: Any, of: data.Samples, batches: Any) -> Any:
        stats = side.statistics(of, batches)
        return side.agreement(of, batches, stats, head) if with_decisions else stats

    found = sides()
    for side in found:
        work(side, warm_up, side.load(warm_up))
    loaded = [(side, side.load(samples)) for side in found]
    calls = [lambda side=side, batches=batches: work(side, samples, batches) for side, batches in loaded]
    seconds = _in_turn(calls, repeats, samples.name)
    used = len(samples.batches()) * samples.batch
    rows = [
        _row(samples.name, side, s) | {"samples_per_second": used / s} for side, s in zip(found, seconds, strict=True)
    ]
    return _with_ratios(rows)


def _stats_k10(repeats: int) -> list[Row]:
    samples = data.around_means("stats-K10-D512", 10, 512, 50_000)
    first = data.around_means("warm-up", 10, 512, 256)
    rows = _throughput(samples, repeats, warm_up=first, with_decisions=False)
    samples.name += " with NC4"
    return rows + _throughput(samples, repeats, warm_up=first, with_decisions=True)


def _stats_vocab(repeats: int) -> list[Row]:
    # The peer takes seconds a batch, so there are few, and one round.
    del repeats
    return _throughput(data.vocabulary(8), 1, warm_up=data.vocabulary(1), with_decisions=False)


def _collapse_precision(repeats: int) -> list[Row]:
    del repeats
    samples = data.around_means("collapse-precision", 10, 512, 50_000, mean=10.0, std=1e-5)
    exact = data.quotient(samples)
    rows = []
    for side in sides():
        batches = side.load(samples)
        start = time.process_time()
        value = side.quotient(side.statistics(samples, batches))
        rows.append(_row(samples.name, side, time.process_time() - start) | {"error": abs(value / exact - 1)})
        say(f"{samples.name}: {side.NAME}: {rows[-1]['error']:.1e}")
    return rows


def _metrics_k1000(repeats: int) -> list[Row]:
    samples = data.around_means("metrics-K1000", 1000, 512, 20_480, std=0.3)
    head = data.classifier(samples)
    found = sides()
    gathered = [side.statistics(samples, side.load(samples)) for side in found]
    calls = [lambda side=side, s=s: side.evaluate(s, head) for side, s in zip(found, gathered, strict=True)]
    values = [call() for call in calls]
    for name in set(values[0]).intersection(*values[1:]):
        say(f"{samples.name}: {name}: " + ", ".join(f"{v[name]:.6g}" for v in values))
    seconds = _in_turn(calls, min(repeats, 3), samples.name)
    rows = [
        _row(samples.name, side, s) | {"metrics": len(v)} for side, s, v in zip(found, seconds, values, strict=True)
    ]
    return _with_ratios(rows)


CASES: dict[str, Callable[[int], list[Row]]] = {
    "stats-K10-D512": _stats_k10,
    "stats-vocab": _stats_vocab,
    "collapse-precision": _collapse_precision,
    "metrics-K1000": _metrics_k1000,
}


def _in_turn(calls: list[Callable[[], Any]], repeats: int, name: str) -> list[float]:
    seconds: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats):
        for taken, call in zip(seconds, calls, strict=True):
            gc.collect()
            start = time.process_time()
            call()
            taken.append(time.process_time() - start)
        say(f"{name}: round {repeat + 1} of {repeats}: " + ", ".join(f"{taken[-1]:.3g} s" for taken in seconds))
    return [statistics.median(taken) for taken in seconds]


def _row(problem: str, side: Any, seconds: float) -> Row:
    name = "neuralcollapse" if side is ours else "neural-collapse"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = "from a checkout"
    return {"problem": problem, "method": side.NAME, "version": version, "seconds": seconds}


def _with_ratios(rows: list[Row]) -> list[Row]:
    return [row | {"ratio": row["seconds"] / rows[0]["seconds"]} for row in rows]
