"""The protocol: make every method ready, measure what it returns once, then time the methods in turn."""

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

from .environment import OURS, version


Row = dict[str, Any]
_WORTH_TIMING = 0.02  # seconds: what takes less is called several times over
_SLOW = 5.0  # seconds: what takes more is timed once


class Prepared(NamedTuple):
    """What a method is once it is ready to be timed: a call without arguments that waits for its result."""

    call: Callable[[], Any]
    compile_seconds: float | None = None
    temp_bytes: int | None = None
    timing: Callable[[], Any] | None = None  # what is timed in place of `call`: fewer draws of the same work
    parts: int = 1  # it does the work this many times over: seconds are those of one part
    facts: dict[str, Any] = {}  # noqa: RUF012 never changed


class Method(NamedTuple):
    """One way to solve a case."""

    name: str
    prepare: Callable[[], Prepared]
    distribution: str = OURS  # whose version is reported


class Goal(NamedTuple):
    """What the issue asks of a method: in words, and as a figure of the case's rows that has a bound.

    The figure is `None` where there is nothing to compare with.
    """

    method: str
    text: str
    figure: Callable[[list[Row]], float | None]
    least: float = -math.inf
    most: float = math.inf


class Case(NamedTuple):
    """One problem, which every method is given alike. The first method is ours.

    `measure` says, in double precision and alike for all, how good a returned value is. `finish` adds to the rows what
    takes all of them to say.
    """

    problem: str
    methods: list[Method]
    measure: Callable[[Any], dict[str, Any]]
    goals: list[Goal]
    finish: Callable[[list[Row]], None] = lambda _: None
    x64: bool = False


@dataclass
class _Entry:
    method: Method
    prepared: Prepared | None = None
    calls: int = 1
    measured: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    note: str = ""


def compiled(fn: Callable[..., Any], *arguments: Any, **options: Any) -> Prepared:
    """Compile a function of arrays as a whole."""
    program, seconds, memory = program_of(jax.jit(fn), *arguments)
    return Prepared(lambda: jax.block_until_ready(program(*arguments)), seconds, memory, **options)


def program_of(fn: Any, *arguments: Any) -> tuple[Callable[..., Any], float, int]:
    """Compile a jitted function; return the program, the CPU seconds that took and the bytes of its temporaries."""
    start = time.process_time()
    program = fn.lower(*arguments).compile()
    seconds = time.process_time() - start
    return program, seconds, int(program.memory_analysis().temp_size_in_bytes)


def warmed(call: Callable[[], Any], **options: Any) -> Prepared:
    """Take what compiles by itself: the seconds of compilation are those the first call takes over the second."""
    first, second = timed(call), timed(call)
    return Prepared(call, max(first - second, 0.0), **options)


def run(case: Case, repeats: int) -> list[Row]:
    """Measure every method on one case; the rows follow the order of the methods."""
    with jax.enable_x64(case.x64):
        entries = [_prepare(method, case) for method in case.methods]
        for _ in range(repeats):
            for entry in entries:  # in turn, so that a slow spell of the machine falls on all
                slow = entry.seconds and entry.seconds[0] > _SLOW
                if entry.prepared is not None and not slow:
                    entry.seconds.append(timed(entry.prepared.timing or entry.prepared.call, entry.calls))
    rows = [_row(case.problem, entry) for entry in entries]
    first = rows[0]
    for row in rows:
        row["ratio"] = row["seconds"] / first["seconds"] if row["seconds"] and first["seconds"] else None
    case.finish(rows)
    for row in rows:
        say(f"{row['problem']}: {row['method']}: error {row.get('error')}, {row['seconds']} s {row['note']}")
    for goal in case.goals:
        figure = goal.figure(rows)
        met = None if figure is None else goal.least <= figure <= goal.most
        entry = {"method": goal.method, "text": goal.text, "figure": figure, "met": met}
        first.setdefault("goals", []).append(entry)
    return rows


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def named(rows: list[Row], name: str) -> Row | None:
    """Return the row of a method, or `None` if it is absent or failed."""
    return next((row for row in rows if row["method"] == name and row["seconds"] is not None), None)


def ratio_of(name: str) -> Callable[[list[Row]], float | None]:
    """Give the seconds of this method over those of the first."""
    return lambda rows: (named(rows, name) or {}).get("ratio")


def error_of(name: str) -> Callable[[list[Row]], float | None]:
    """Give the error of this method."""
    return lambda rows: (named(rows, name) or {}).get("error")


def timed(call: Callable[[], Any], calls: int = 1) -> float:
    """Return the CPU seconds of a call, the mean of several."""
    gc.collect()
    start = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - start) / calls


def _prepare(method: Method, case: Case) -> _Entry:
    entry = _Entry(method)
    try:
        with _quiet():
            prepared = method.prepare()
            start = time.process_time()
            value = prepared.call()
            once = time.process_time() - start if prepared.timing is None else timed(prepared.timing)
            entry.measured = case.measure(jax.tree_util.tree_map(np.asarray, value))
        entry.calls = math.ceil(_WORTH_TIMING / max(once, 1e-6))
        if once > _SLOW:
            entry.seconds.append(once)
        entry.prepared = prepared
    except Exception as error:  # noqa: BLE001 a peer's failure is a result
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        entry.note = f"raised {type(error).__name__}: {reason[:120]}"
    return entry


def _row(problem: str, entry: _Entry) -> Row:
    prepared = entry.prepared or Prepared(lambda: None)
    seconds = [s / prepared.parts for s in entry.seconds]
    return {
        "problem": problem,
        "method": entry.method.name,
        "distribution": entry.method.distribution,
        "version": version(entry.method.distribution),
        "error": None,
        **entry.measured,
        **prepared.facts,
        "seconds": statistics.median(seconds) if seconds else None,
        "compile_seconds": prepared.compile_seconds,
        "temp_bytes": prepared.temp_bytes,
        "timings": seconds,
        "note": entry.note,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
