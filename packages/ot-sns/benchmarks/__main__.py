"""Run the benchmark table: `python -m benchmarks --help`."""

import argparse
import datetime
import importlib.metadata
import json
import pathlib
import subprocess
import sys

from ot_sns import problems

from . import environment, protocol, table
from .peers import METHODS


QUICK = ("LAP-500", "DENS1D-500", "DIGITS-L2", "GAUSS2D-500")
LIBRARIES = ("ot-sns", "jax", "ott-jax", "POT", "regot", "mdot_tnt", "torch", "numpy")


def main() -> int:
    """Parse the options, run the problems one after the other, print the page and write the files."""
    arguments = _parser().parse_args()
    named = problems.standard()
    wanted = _choose(arguments.problems, QUICK if arguments.quick else tuple(named), tuple(named))
    methods = [METHODS[name] for name in _choose(arguments.methods, tuple(METHODS), tuple(METHODS))]
    limits = protocol.Limits(
        repeats=1 if arguments.quick else arguments.repeats,
        once_above=arguments.once_above,
        memory=not (arguments.quick or arguments.no_memory),
    )
    context = {
        "machine": environment.machine(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
    }
    rows: list[protocol.Row] = []
    for name in wanted:
        rows += protocol.run(named[name](), methods, limits)
        if arguments.json:  # after each problem, so that an interrupted run leaves what it has
            arguments.json.write_text(table.to_json(rows, context))
    extras = {module: _extra(module) for module in ("literal_sns", "gradients")} if arguments.extras else {}
    if arguments.json:
        arguments.json.write_text(table.to_json(rows, context, extras))
    page = table.to_markdown(rows, context, extras)
    if arguments.markdown:
        arguments.markdown.write_text(page)
    print(page)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--problems", help="comma-separated names; default: all ten")
    parser.add_argument("--methods", help=f"comma-separated, of: {', '.join(METHODS)}")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of timing (default 5)")
    parser.add_argument("--once-above", type=float, default=60.0, help="seconds above which a run is not repeated")
    parser.add_argument("--no-memory", action="store_true", help="skip the peak-memory runs")
    parser.add_argument("--quick", action="store_true", help=f"one round on {', '.join(QUICK)}, no memory")
    parser.add_argument("--extras", action="store_true", help="also run literal_sns and gradients, for the page")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the rows")
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="write the page of the documentation")
    return parser


def _choose(option: str | None, default: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    chosen = tuple(option.split(",")) if option else default
    unknown = [name for name in chosen if name not in known]
    if unknown:
        sys.exit(f"benchmarks: unknown {', '.join(unknown)}; choose from {', '.join(known)}")
    return chosen


def _extra(module: str) -> list[protocol.Row]:
    """Run another module of this folder in a process of its own: it may need other floating-point settings."""
    protocol.say(f"benchmarks.{module}")
    root = pathlib.Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", f"benchmarks.{module}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    sys.exit(main())
