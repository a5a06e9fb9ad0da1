"""The protocol: tune every stopping rule to one error, then time the methods in turn, after compilation."""

import contextlib
import gc
import io
import json
import math
import pathlib
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ot_sns.problems import NamedProblem

from .peers import METHODS, Method, Setting


TARGET = 1e-9  # of ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁, measured here for every method
SLOW = 10.0  # seconds from which tuning does not try what the last error makes futile
Row = dict[str, Any]


@dataclass
class Limits:
    """How much to run: repeats, and the seconds from which a run is not repeated and an iteration limit is lowered."""

    repeats: int = 5
    once_above: float = 60.0
    memory: bool = True


@dataclass
class Entry:
    """One method on one problem: what tuning found, and the timings that follow."""

    method: Method
    setting: Setting = field(default_factory=dict)
    call: Callable[[], Any] | None = None
    error: float = math.inf
    linear_cost: float = math.nan
    iterations: int = 0
    first: float = math.nan
    seconds: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def reached(self) -> bool:
        return self.error <= TARGET


def run(problem: NamedProblem, methods: Sequence[Method], limits: Limits) -> list[Row]:
    """Measure every method on one problem; the rows follow the order of `methods`."""
    entries = [_tune(problem, method, limits) for method in methods]
    for repeat in range(limits.repeats):
        for entry in entries:  # in turn, so that a slow spell of the machine falls on all
            worth_it = entry.reached and (not entry.seconds or entry.first <= limits.once_above)
            if entry.call is not None and worth_it:
                entry.seconds.append(_timed(entry.call)[1])
        say(f"{problem.name}: round {repeat + 1} of {limits.repeats}")
    ours = next((_median(entry) for entry in entries if entry.method.name == "ours" and entry.reached), None)
    return [_row(problem, entry, ours, limits) for entry in entries]


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def marginal_error(plan: np.ndarray, problem: NamedProblem) -> float:
    """Measure the error of the table: the 1-norms of both marginal residuals, infinite if the plan is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(plan.sum(1) - problem.a).sum() + np.abs(plan.sum(0) - problem.b).sum()
    return float(error) if np.isfinite(error) else math.inf


def _tune(problem: NamedProblem, method: Method, limits: Limits) -> Entry:
    """Walk the method's rungs until one of a rung's alternatives reaches the target; keep the fastest of them.

    With several alternatives, the last rung tries only the two that came closest before it.
    """
    best = Entry(method)
    rungs = method.rungs(problem)
    closest: dict[str, float] = {}
    pace: dict[str, float] = {}
    for level, rung in enumerate(rungs):
        if len(rung) > 1 and level == len(rungs) - 1:
            rung = sorted(rung, key=lambda setting: closest.get(_mode(setting), math.inf))[:2]
        for setting in rung:
            if best.first > SLOW and method.futile(setting, best.error, problem):
                continue
            budget = min(limits.once_above, 2 * best.first) if best.reached else limits.once_above
            _lower_iteration_limit(setting, pace.get(_mode(setting)), budget)
            entry = _try_tightening(problem, method, setting, limits)
            closest[_mode(setting)] = entry.error
            pace[_mode(setting)] = entry.first / max(entry.iterations, 1)
            best = min(best, entry, key=_preference)
        if best.reached:
            return best
    if not best.note:
        best.note = f"not reached: {best.error:.1e} after {best.iterations} iterations"
    return best


def _try_tightening(problem: NamedProblem, method: Method, setting: Setting, limits: Limits) -> Entry:
    """Try a setting; where it stopped by its threshold just short of the target, tighten the threshold."""
    for _ in range(3):
        entry = _try(problem, method, setting, limits)
        stopped_short = entry.iterations < setting.get("max_iterations", 0)
        if entry.reached or not stopped_short or entry.error > 20 * TARGET:
            break
        setting["threshold"] /= 2.5
    return entry


def _try(problem: NamedProblem, method: Method, setting: Setting, limits: Limits) -> Entry:
    entry = Entry(method, dict(setting))
    try:
        with _quiet():
            entry.call = method.prepare(problem, setting)
            raw, entry.first = _timed(entry.call)
        answer = method.read(raw, problem)
        entry.error, entry.iterations = marginal_error(answer.plan, problem), answer.iterations
        entry.linear_cost = float((problem.cost_matrix() * answer.plan).sum())
        if method.compiles and entry.reached and entry.first <= limits.once_above:
            entry.seconds.append(_timed(entry.call)[1])
        elif not method.compiles:
            entry.seconds.append(entry.first)
    except Exception as error:  # noqa: BLE001 a peer's failure is a result
        entry.note = f"raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
    outcome = f"error {entry.error:.2e}, {entry.iterations} iterations, {entry.first:.3f} s at first"
    say(f"{problem.name}: {method.name} {setting}: {outcome}")
    return entry


def _preference(entry: Entry) -> tuple[bool, float]:
    if entry.reached:
        return False, min([entry.first, *entry.seconds])
    return True, entry.error


def _mode(setting: Setting) -> str:
    return json.dumps({k: v for k, v in setting.items() if k not in ("max_iterations", "threshold")}, sort_keys=True)


def _lower_iteration_limit(setting: Setting, seconds_per_iteration: float | None, budget: float) -> None:
    if seconds_per_iteration and "max_iterations" in setting:
        affordable = int(budget / seconds_per_iteration) // 100 * 100
        setting["max_iterations"] = max(500, min(setting["max_iterations"], affordable))


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    gc.collect()
    start = time.process_time()
    raw = call()
    return raw, time.process_time() - start


def _median(entry: Entry) -> float:
    return statistics.median(entry.seconds) if entry.seconds else entry.first


def _row(problem: NamedProblem, entry: Entry, ours: float | None, limits: Limits) -> Row:
    seconds = _median(entry)
    compiled = entry.method.compiles and entry.reached and bool(entry.seconds)
    return {
        "problem": problem.name,
        "method": entry.method.name,
        "version": entry.method.version,
        "error": _finite(entry.error),
        "seconds": _finite(seconds),
        "compile_seconds": max(entry.first - seconds, 0.0) if compiled else None,
        "peak_bytes": _peak_bytes(problem.name, entry) if limits.memory and entry.reached else None,
        "iterations": entry.iterations,
        "ratio": seconds / ours if ours and entry.reached else None,
        "reached": entry.reached,
        "exact": entry.method.exact,
        "linear_cost": _finite(entry.linear_cost),
        "setting": entry.setting,
        "timings": entry.seconds,
        "note": entry.note,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _peak_bytes(problem: str, entry: Entry) -> int | None:
    """Measure in a fresh process, so that neither earlier problems nor other libraries count."""
    command = [sys.executable, "-m", "benchmarks.memory", problem, entry.method.name, json.dumps(entry.setting)]
    root = pathlib.Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    if done.returncode != 0:
        say(f"{problem}: {entry.method.name} memory run failed: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return int(done.stdout.strip().splitlines()[-1])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


__all__ = ["METHODS", "TARGET", "Limits", "Row", "marginal_error", "run", "say"]
