"""The protocol: compile every method, measure its error once, then time the methods in turn."""

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from .environment import version


Row = dict[str, Any]
OURS = "ours"
_WORTH_TIMING = 0.02  # seconds: what takes less is called several times over


class Method(NamedTuple):
    """One way to solve a case: a function of the case's arguments, which is compiled as a whole."""

    name: str
    distribution: str  # whose version is reported
    fn: Callable[..., Any]


class Goal(NamedTuple):
    """What the specification asks of ours, in words and as a test on the case's rows by method (`None`: nothing)."""

    text: str
    met: Callable[[dict[str, Row]], bool | None]


class Case(NamedTuple):
    """One problem, which every method is given alike.

    `error` is measured here for every method, on what it returned, in NumPy; its second value is a remark.
    """

    problem: str
    arguments: tuple
    methods: list[Method]
    error: Callable[[Any], tuple[float, str]]
    goal: Goal
    x64: bool = False


@dataclass
class _Entry:
    method: Method
    call: Callable[[], Any] | None = None
    calls: int = 1
    error: float = math.inf
    compile_seconds: float = math.nan
    peak_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)
    note: str = ""


def run(case: Case, repeats: int) -> list[Row]:
    """Measure every method on one case; the rows follow the order of the methods."""
    with jax.enable_x64(case.x64):
        entries = [_prepare(method, case) for method in case.methods]
        for _ in range(repeats):
            for entry in entries:  # in turn, so that a slow spell of the machine falls on all
                if entry.call is not None:
                    entry.seconds.append(_timed(entry.call, entry.calls))
    rows = [_row(case.problem, entry) for entry in entries]
    return judged(case.goal, rows)


def judged(goal: Goal, rows: list[Row]) -> list[Row]:
    """Add every row's ratio to ours and, to ours, the goal and whether it is met."""
    by_method = {row["method"]: row for row in rows}
    ours = by_method[OURS]
    for row in rows:
        row["ratio"] = row["seconds"] / ours["seconds"] if row["seconds"] and ours["seconds"] else None
        is_ours = row["method"] == OURS
        row |= {"goal": goal.text if is_ours else None, "met": goal.met(by_method) if is_ours else None}
        say(f"{row['problem']}: {row['method']}: error {row['error']}, {row['seconds']} s {row['note']}")
    return rows


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def relative(found: Any, exact: np.ndarray) -> float:
    """Return the relative error in the 2-norm."""
    return float(np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact))


def _prepare(method: Method, case: Case) -> _Entry:
    entry = _Entry(method)
    try:
        start = time.process_time()
        compiled = jax.jit(method.fn).lower(*case.arguments).compile()
        entry.compile_seconds = time.process_time() - start
        memory = compiled.memory_analysis()
        entry.peak_bytes = int(memory.temp_size_in_bytes + memory.output_size_in_bytes)
        call = lambda: jax.block_until_ready(compiled(*case.arguments))
        entry.error, entry.note = case.error(jax.tree_util.tree_map(np.asarray, call()))
        entry.calls = math.ceil(_WORTH_TIMING / max(_timed(call), 1e-6))
        entry.call = call
    except Exception as error:  # noqa: BLE001 a peer's failure is a result
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        reason = next((line for line in lines if "RuntimeError: " in line), lines[0])
        entry.note = f"raised {reason.split('RuntimeError: ')[-1][:120]}"
    return entry


def _timed(call: Callable[[], Any], calls: int = 1) -> float:
    gc.collect()
    start = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - start) / calls


def _row(problem: str, entry: _Entry) -> Row:
    return {
        "problem": problem,
        "method": entry.method.name,
        "version": version(entry.method.distribution),
        "error": finite(entry.error),
        "seconds": statistics.median(entry.seconds) if entry.seconds else None,
        "compile_seconds": finite(entry.compile_seconds),
        "peak_bytes": entry.peak_bytes,
        "timings": entry.seconds,
        "note": entry.note,
    }


def finite(value: float) -> float | None:
    """Return the number, or `None` if it is not one."""
    return float(value) if math.isfinite(value) else None


def at_most(row: Row, bound: float) -> bool:
    """Whether a method gave an answer, with at most this error."""
    return row["error"] is not None and row["error"] <= bound


def as_fast(rows: dict[str, Row], peer: str, factor: float) -> bool:
    """Whether ours took at most `factor` times the CPU seconds of a peer that gave an answer."""
    ours, theirs = rows[OURS]["seconds"], rows[peer]["seconds"]
    return ours is not None and (theirs is None or ours <= factor * theirs)
