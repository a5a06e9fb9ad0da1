"""Run the benchmarks: `python -m benchmarks --help`. Writes `results.json` here and the page of the documentation."""

import argparse
import datetime
import json
import pathlib
import sys
from collections.abc import Callable, Iterable

from . import (
    adjoints,
    complex_field,
    digits,
    environment,
    equilibria,
    holomorphic,
    page,
    pore_networks,
    protocol,
    radius,
    value_iteration,
)


HERE = pathlib.Path(__file__).resolve().parent
PAGE = HERE.parents[2] / "docs" / "packages" / "fixedpoint-eq-benchmarks.md"
LIBRARIES = ("fixedpoint-eq", "jax", "equinox", "lineax", "optimistix", "jaxopt", "torch", "torchdeq", "numpy")

Rows = Callable[[argparse.Namespace], Iterable[protocol.Row]]


def _timed(cases: Callable, family: str) -> Rows:
    def rows(options):
        for case in cases(options.quick):
            if case.problem.split()[0] == family:
                yield from protocol.run(case, 1 if options.quick else options.repeats)

    return rows


FAMILIES: dict[str, Rows] = {
    "FPE-1": _timed(equilibria.cases, "FPE-1"),
    "FPE-2": _timed(equilibria.cases, "FPE-2"),
    "FPE-3": _timed(adjoints.cases, "FPE-3"),
    "FPE-4": _timed(adjoints.cases, "FPE-4"),
    "FPE-5": lambda options: holomorphic.rows(options.quick),
    "FPE-7": lambda options: value_iteration.rows(options.quick),
    "FPE-8": lambda options: pore_networks.rows(options.quick),
    "FPE-9": _timed(radius.cases, "FPE-9"),
    "FPE-10": _timed(complex_field.cases, "FPE-10"),
    "FPE-6": lambda _: digits.rows(digits.METHODS, range(5)),
}
SLOW = ("FPE-6",)


def main() -> int:
    """Parse the options, run the families one after the other, print the page and write the files."""
    options = _parser().parse_args()
    wanted = options.only.split(",") if options.only else [f for f in FAMILIES if options.slow or f not in SLOW]
    wanted = [] if options.page else wanted
    unknown = [family for family in wanted if family not in FAMILIES]
    if unknown:
        sys.exit(f"benchmarks: unknown {', '.join(unknown)}; choose from {', '.join(FAMILIES)}")
    keep = not options.quick or options.json or options.markdown
    file = options.json or HERE / "results.json"
    # What is not run again stays as it was recorded, with the machine and the versions of its own run.
    results = {} if options.quick or not file.exists() else json.loads(file.read_text())
    for family in wanted:
        results[family] = {"context": _context(), "rows": list(FAMILIES[family](options))}
        if keep:  # after each family, so that an interrupted run leaves what it has
            file.write_text(json.dumps(results, indent=1) + "\n")
    text = page.to_markdown(results)
    if keep:
        (options.markdown or PAGE).write_text(text)
    print(text)
    return 0


def _context() -> dict:
    return {
        "machine": environment.machine(),
        "versions": {name: environment.version(name) for name in LIBRARIES},
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", help=f"comma-separated, of {', '.join(FAMILIES)}")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of timing (default 7)")
    parser.add_argument("--quick", action="store_true", help="one round, one draw, few steps; writes no file by itself")
    parser.add_argument("--slow", action="store_true", help=f"run {', '.join(SLOW)} too, which takes half an hour")
    parser.add_argument("--page", action="store_true", help="run nothing: write the page from the recorded rows")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the rows here, not to results.json")
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="write the page here, not to docs/")
    return parser


if __name__ == "__main__":
    sys.exit(main())
