"""Run the benchmarks: `python -m benchmarks --help`."""

import argparse
import datetime
import importlib.metadata
import json
import pathlib
import sys
from typing import Any

from . import environment, protocol


LIBRARIES = ("neuralcollapse", "jax", "neural-collapse", "torch", "numpy")
COLUMNS = {
    "problem": "problem",
    "method": "method",
    "seconds": "CPU s",
    "samples_per_second": "samples/s",
    "ratio": "time over ours",
    "error": "relative error of tr S_W / tr S_B",
    "metrics": "metrics computed",
}


def main() -> int:
    """Parse the options, run the cases one after the other, print the page and write the files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--problems", help=f"comma-separated, of: {', '.join(protocol.CASES)}")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of timing (default 3)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the rows")
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="write the page of the documentation")
    arguments = parser.parse_args()
    chosen = arguments.problems.split(",") if arguments.problems else list(protocol.CASES)
    if unknown := set(chosen) - set(protocol.CASES):
        sys.exit(f"benchmarks: unknown {', '.join(sorted(unknown))}; choose from {', '.join(protocol.CASES)}")
    rows = [row for name in chosen for row in protocol.run(name, arguments.repeats)]
    context = {
        "machine": environment.machine(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
    }
    page = to_markdown(rows, context)
    if arguments.json:
        arguments.json.write_text(json.dumps({"context": context, "rows": rows}, indent=2))
    if arguments.markdown:
        arguments.markdown.write_text(page)
    print(page)
    return 0


def to_markdown(rows: list[protocol.Row], context: dict[str, Any]) -> str:
    """Write the page."""
    lines = [
        "# neuralcollapse: benchmarks",
        "",
        "The same float32 arrays for both sides, in turn, after compilation, one thread: median CPU seconds. The peer's",
        "passes over the data do not count the passes through the network that they need.",
        "",
        "| " + " | ".join(COLUMNS.values()) + " |",
        "| --- |" + " --- |" * (len(COLUMNS) - 1),
        *("| " + " | ".join(_cell(row.get(name)) for name in COLUMNS) + " |" for row in rows),
        "",
        f"Machine: {context['machine']}. Versions: "
        + ", ".join(f"{name} {version}" for name, version in context["versions"].items())
        + f". Date: {context['date']}.",
        "",
        f"Command, in `packages/neuralcollapse`: `{context['command']}`",
    ]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.1e}" if value < 1e-3 else f"{value:.3g}"
    return str(value)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    sys.exit(main())
