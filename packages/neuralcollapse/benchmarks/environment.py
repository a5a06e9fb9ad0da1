"""One thread, one core, float32: the conditions of every timing."""

import os
import platform
import re
import sys


def pin() -> None:
    """Restrict this process and its children to one thread on one core; call before any numerical import."""
    loaded = [name for name in ("numpy", "jax", "torch") if name in sys.modules]
    if loaded:
        print(f"benchmarks: {', '.join(loaded)} was imported before the threads were pinned", file=sys.stderr)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def machine() -> str:
    """Name the processor, the system and Python, for the line under the table."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            found = re.search(r"model name\s*:\s*(.+)", file.read())
        processor = found.group(1) if found else processor
    except OSError:
        pass
    return f"{processor}, {platform.system()}, Python {platform.python_version()}, one thread on one core"
