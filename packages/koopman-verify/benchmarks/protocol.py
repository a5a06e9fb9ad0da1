"""What the families share: processes of their own, turns of timing, goals."""

import gc
import json
import math
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax


Row = dict[str, Any]
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
_WORTH_TIMING = 0.02  # seconds: what takes less is called several times over


class Goal(NamedTuple):
    """What is asked for, in words, and the figure that has a bound; `None` where there is nothing to compare with."""

    text: str
    figure: float | None
    least: float = -math.inf
    most: float = math.inf

    @property
    def met(self) -> bool | None:
        """Whether the figure is within its bounds; `None` without a figure or a bound."""
        bounded = math.isfinite(self.least) or math.isfinite(self.most)
        return self.least <= self.figure <= self.most if bounded and self.figure is not None else None


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def apart(module: str, *arguments: object) -> Iterator[Row]:
    """Run a module of this folder in a process of its own, and yield the rows that it prints, one JSON object a line."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    say(" ".join(command[1:]))
    with subprocess.Popen(command, cwd=_PACKAGE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def in_turn(calls: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Return what each call returns and the median of its CPU seconds: a first call, then `repeats` rounds of all."""
    results, often = {}, {}
    for name, call in calls.items():
        results[name] = jax.block_until_ready(call())
        often[name] = max(1, math.ceil(_WORTH_TIMING / max(timed(call), 1e-6)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():  # in turn, so that a slow spell of the machine falls on all
            seconds[name].append(timed(call, often[name]))
    return results, {name: statistics.median(values) for name, values in seconds.items()}


def timed(call: Callable[[], Any], times: int = 1) -> float:
    """Return the CPU seconds of a call, the mean of several."""
    gc.collect()
    start = time.process_time()
    for _ in range(times):
        jax.block_until_ready(call())
    return (time.process_time() - start) / times
