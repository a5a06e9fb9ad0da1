"""Peak memory of one method on one problem, above what the process held just before: `python -m benchmarks.memory`.

The caches of compilation and of first use are warm, freed memory goes back to the system (see `_return_freed_memory`),
and the kernel's high-water mark is reset, so what is left is the solver's own working set with its result.
"""

import ctypes
import gc
import json
import os
import resource
import sys

import numpy as np
from ot_sns import problems

from .peers import METHODS


def main(problem_name: str, method_name: str, setting: str) -> int:
    """Return the peak in bytes."""
    _return_freed_memory()
    method, options = METHODS[method_name], json.loads(setting)
    problem = problems.standard()[problem_name]()
    call = method.prepare(problem, options)
    if method.compiles:
        call()
    else:
        method.prepare(_tiny(), options)()
    gc.collect()
    before = _reset_peak()
    raw = call()
    peak = _peak()
    del raw
    return max(peak - before, 0)


def _tiny() -> problems.NamedProblem:
    r = np.random.default_rng(0)
    return problems.NamedProblem("tiny", np.full(16, 1 / 16), np.full(16, 1 / 16), 0.1, cost=r.uniform(size=(16, 16)))


def _return_freed_memory() -> None:
    """Make glibc map every large block on its own, so that a freed block leaves the resident set at once."""
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:]])


def _reset_peak() -> int:
    """Reset the high-water mark and return the resident set in bytes."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        return _status("VmRSS")
    except (OSError, AttributeError):  # not Linux, or not allowed: the process's own peak so far is the baseline
        return _maxrss()


def _peak() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        return _maxrss()


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(key))
    return int(line.split()[1]) * 1024


def _maxrss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
