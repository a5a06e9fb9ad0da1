"""One thread and float64: the conditions of every figure."""

import importlib.metadata
import os
import pathlib
import platform
import re
import sys
import tomllib


OURS = "koopman-verify"


def pin() -> None:
    """Restrict this process and its children to one thread; call before any numerical import."""
    loaded = [name for name in ("numpy", "jax") if name in sys.modules]
    if loaded:
        print(f"benchmarks: {', '.join(loaded)} was imported before the threads were pinned", file=sys.stderr)
    # Several threads of LAPACK on thin matrices cost many times the time of one on a busy machine.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_ENABLE_X64"] = "1"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # compilation counts as in a first run
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def machine() -> str:
    """Name the processor, the system and Python, for the line under the table."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            found = re.search(r"model name\s*:\s*(.+)", file.read())
        processor = found.group(1) if found else processor
    except OSError:
        pass
    return f"{processor}, {platform.system()}, Python {platform.python_version()}, one thread"


def version(name: str) -> str:
    """Return the installed version of a distribution; that of the checkout for ours where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if name != OURS:
            return "absent"
        metadata = pathlib.Path(__file__).resolve().parents[1] / "pyproject.toml"
        return tomllib.loads(metadata.read_text())["project"]["version"]
