"""B1 to B4: the statistics and the metrics, against neural-collapse."""

import functools as ft
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import data, ours, peer
from .protocol import Case, Goal, Method, Row, error_of, ratio_of


def throughput(quick: bool) -> Iterator[Case]:
    """B1: ten classes, with and without the third pass of the peer."""
    samples = data.around_means(10, 512, 5_000 if quick else 50_000)
    used = len(samples.batches()) * samples.batch
    goal = Goal(ours.NAME, "at least 1.5 times the samples a second, in one pass", ratio_of(peer.NAME), least=1.5)
    exact = data.quotient(samples)
    yield _both(
        "B1 stats-K10-D512",
        lambda side: side.throughput(samples, "quotient"),
        lambda value: {"error": abs(float(value) / exact - 1)},
        [goal],
        ft.partial(_per_second, used),
    )
    yield _both(
        "B1 stats-K10-D512 with NC4",
        lambda side: side.throughput(samples, "decisions"),
        lambda value: {"value": float(value)},
        [],
        ft.partial(_per_second, used),
    )


def vocabulary(quick: bool) -> Iterator[Case]:
    """B2: a vocabulary as classes; then what the number of classes and the memory option do to one batch of ours."""
    samples = data.vocabulary(1 if quick else 8)
    yield _both(
        "B2 stats-vocab, K = 30,000",
        lambda side: side.throughput(samples, "nothing"),
        lambda _: {},  # classes without samples: neither side has the metric
        [Goal(ours.NAME, "at least 50 times the samples a second", ratio_of(peer.NAME), least=50)],
        ft.partial(_per_second, len(samples.x)),
    )
    few = {k: data.vocabulary(1, k) for k in (10, 3_000, 30_000)}
    whole = few[30_000]
    ways: dict[str, Callable] = {
        "full, K = 30,000": lambda: ours.one_batch(whole, "full"),
        "full, K = 3,000": lambda: ours.one_batch(few[3_000], "full"),
        "full, K = 10": lambda: ours.one_batch(few[10], "full"),
        "full, K = 30,000, not donated": lambda: ours.one_batch(whole, "full", donated=False),
        "low-rank 32, K = 30,000": lambda: ours.one_batch(whole, "low-rank", rank=32),
        "diag, K = 30,000": lambda: ours.one_batch(whole, "diag"),
        "trace, K = 30,000": lambda: ours.one_batch(whole, "trace"),
    }
    yield Case(
        "B2 one batch of 2,048, D = 768",
        [Method(name, prepare) for name, prepare in ways.items()],
        lambda _: {},
        [
            Goal(
                "full, K = 30,000",
                "at most 1.5 times the time at K = 3,000 (the bound is ours: the issue asks for independence)",
                lambda rows: 1 / (ratio_of("full, K = 3,000")(rows) or float("nan")),
                most=1.5,
            )
        ],
    )


def precision(quick: bool) -> Iterator[Case]:
    """B3: deep collapse in float32."""
    samples = data.around_means(10, 512, 5_000 if quick else 50_000, mean=10.0, std=1e-5)
    exact = data.quotient(samples)

    yield _both(
        "B3 collapse-precision, std/mean = 1e-6",
        lambda side: side.throughput(samples, "quotient"),
        lambda value: {"error": abs(float(value) / exact - 1)},
        [
            Goal(ours.NAME, "error below 1e-5", error_of(ours.NAME), most=1e-5),
            Goal(peer.NAME, "the peer is off by over 10 %", error_of(peer.NAME), least=0.1),
        ],
    )


def evaluation(quick: bool) -> Iterator[Case]:
    """B4: all metrics of statistics at hand."""
    samples = data.around_means(*((100, 64, 5_120) if quick else (1000, 512, 20_480)), std=0.3)
    yield _both(
        f"B4 metrics-K{samples.num_classes}",
        lambda side: side.evaluation(samples),
        lambda value: {"values": {name: float(v) for name, v in value.items() if np.ndim(v) == 0}},
        [Goal(ours.NAME, "at least 20 times faster", ratio_of(peer.NAME), least=20)],
        _agree,
    )


def _both(
    problem: str,
    prepare: Callable[[Any], Any],
    measure: Callable[[Any], dict],
    goals: list[Goal],
    finish: Callable[[list[Row]], None] = lambda _: None,
) -> Case:
    methods = [
        Method(ours.NAME, lambda: prepare(ours)),
        Method(peer.NAME, lambda: prepare(peer), "neural-collapse"),
    ]
    return Case(problem, methods, measure, goals, finish)


def _per_second(samples: int, rows: list[Row]) -> None:
    for row in rows:
        row["samples_per_second"] = samples / row["seconds"] if row["seconds"] else None


def _agree(rows: list[Row]) -> None:
    """Take the metrics that both have; keep the largest relative difference."""
    values = [row.pop("values", {}) for row in rows]
    both = set(values[0]).intersection(*values[1:])
    if len(values) == 2 and both:
        rows[1]["difference"] = max(abs(values[1][name] / values[0][name] - 1) for name in both)
        rows[1]["note"] = f"compared: {', '.join(sorted(both))}"
