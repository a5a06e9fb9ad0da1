"""The protocol: compile every method, measure its error once, then time the methods in turn."""

import contextlib
import gc
import io
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from .environment import version


Row = dict[str, Any]
OURS = "fixedpoint-eq"
_WORTH_TIMING = 0.02  # seconds: what takes less is called several times over
_SLOW = 2.0  # seconds: what takes more is timed once


class Prepared(NamedTuple):
    """What a method is once it is ready to be timed: a call without arguments that waits for its result."""

    call: Callable[[], tuple[Any, Any]]  # the value, and the number of evaluations or products; or `None`
    compile_seconds: float | None = None
    temp_bytes: int | None = None


class Method(NamedTuple):
    """One way to solve a case."""

    name: str
    distribution: str  # whose version is reported
    prepare: Callable[[], Prepared]


class Goal(NamedTuple):
    """What the specification asks of ours, in words and as a test on the case's rows (`None`: nothing)."""

    text: str
    met: Callable[[list[Row]], bool | None]


class Case(NamedTuple):
    """One problem, which every method is given alike. The first method is the one of ours that a newcomer would use.

    `error` is measured here for every method, on what it returned, in NumPy.
    """

    problem: str
    methods: list[Method]
    error: Callable[[Any], float]
    goal: Goal
    x64: bool = False


@dataclass
class _Entry:
    method: Method
    prepared: Prepared | None = None
    calls: int = 1
    error: float = math.inf
    iterations: int | None = None
    seconds: list[float] = field(default_factory=list)
    note: str = ""


def compiled(fn: Callable[..., Any], *arguments: Any) -> Prepared:
    """Compile a function of arrays, which returns a value and a count, as a whole."""
    start = time.process_time()
    program = jax.jit(fn).lower(*arguments).compile()
    seconds = time.process_time() - start
    memory = program.memory_analysis()
    call = lambda: jax.block_until_ready(program(*arguments))
    return Prepared(call, seconds, int(memory.temp_size_in_bytes))


def run(case: Case, repeats: int) -> list[Row]:
    """Measure every method on one case; the rows follow the order of the methods."""
    with jax.enable_x64(case.x64):
        entries = [_prepare(method, case) for method in case.methods]
        for _ in range(repeats):
            for entry in entries:  # in turn, so that a slow spell of the machine falls on all
                slow = entry.seconds and entry.seconds[0] > _SLOW
                if entry.prepared is not None and not slow:
                    entry.seconds.append(_timed(entry.prepared.call, entry.calls))
    rows = [_row(case.problem, entry) for entry in entries]
    first = rows[0]
    for row in rows:
        row["ratio"] = row["seconds"] / first["seconds"] if row["seconds"] and first["seconds"] else None
        say(f"{row['problem']}: {row['method']}: error {row['error']}, {row['seconds']} s {row['note']}")
    first |= {"goal": case.goal.text, "met": case.goal.met(rows)}
    return rows


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def relative(found: Any, exact: np.ndarray) -> float:
    """Return the relative error in the 2-norm."""
    return float(np.linalg.norm(np.asarray(found) - exact) / np.linalg.norm(exact))


def _prepare(method: Method, case: Case) -> _Entry:
    entry = _Entry(method)
    try:
        with _quiet():
            prepared = method.prepare()
            value, iterations = prepared.call()
            entry.error = case.error(jax.tree_util.tree_map(np.asarray, value))
            entry.iterations = None if iterations is None else int(np.max(np.asarray(iterations)))
            start = time.process_time()
            prepared.call()
            once = time.process_time() - start
        entry.calls = math.ceil(_WORTH_TIMING / max(once, 1e-6))
        if once > _SLOW:
            entry.seconds.append(once)
        entry.prepared = prepared
    except Exception as error:  # noqa: BLE001 a peer's failure is a result
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        reason = next((line for line in lines if "RuntimeError: " in line), lines[0])
        entry.note = f"raised {type(error).__name__}: {reason.split('RuntimeError: ')[-1][:120]}"
    return entry


def _timed(call: Callable[[], Any], calls: int = 1) -> float:
    gc.collect()
    start = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - start) / calls


def _row(problem: str, entry: _Entry) -> Row:
    prepared = entry.prepared or Prepared(lambda: (None, None))
    return {
        "problem": problem,
        "method": entry.method.name,
        "distribution": entry.method.distribution,
        "version": version(entry.method.distribution),
        "error": float(entry.error) if math.isfinite(entry.error) else None,
        "iterations": entry.iterations,
        "seconds": statistics.median(entry.seconds) if entry.seconds else None,
        "compile_seconds": prepared.compile_seconds,
        "temp_bytes": prepared.temp_bytes,
        "timings": entry.seconds,
        "note": entry.note,
    }


def peers(rows: list[Row]) -> list[Row]:
    """Return the rows that are not ours."""
    return [row for row in rows if row["distribution"] != OURS]


def named(rows: list[Row], name: str) -> Row:
    """Return the row of a method."""
    return next(row for row in rows if row["method"] == name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
