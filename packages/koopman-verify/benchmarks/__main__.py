"""Run the benchmarks: `python -m benchmarks --help`. Writes `results.json` here and the page of the documentation."""

import argparse
import datetime
import json
import pathlib
import resource
import sys
from collections.abc import Callable, Iterator

from . import environment, families, page, protocol


HERE = pathlib.Path(__file__).resolve().parent
PAGE = HERE.parents[2] / "docs" / "packages" / "koopman-verify-benchmarks.md"
LIBRARIES = ("koopman-verify", "jax", "equinox", "numpy", "scipy", "pydmd", "deeptime", "kooplearn")
FAMILIES: dict[str, Callable[[bool, int], Iterator[protocol.Row]]] = families.FAMILIES


def main() -> int:
    """Parse the options, run the families one after the other, print the page and write the files."""
    options = _parser().parse_args()
    wanted = options.only.split(",") if options.only else list(FAMILIES)
    wanted = [] if options.page else wanted
    unknown = [family for family in wanted if family not in FAMILIES]
    if unknown:
        sys.exit(f"benchmarks: unknown {', '.join(unknown)}; choose from {', '.join(FAMILIES)}")
    keep = not options.quick or options.json or options.markdown
    file = options.json or HERE / "results.json"
    # What is not run again stays as it was recorded, with the machine and the versions of its own run.
    results = {} if options.quick or not file.exists() else json.loads(file.read_text())
    for family in wanted:
        start, rows = _cpu(), []
        for row in FAMILIES[family](options.quick, 1 if options.quick else options.repeats):
            rows.append(row)
            protocol.say(f"{family}: {json.dumps(row)}")
        results[family] = {"context": _context(), "cpu_seconds": _cpu() - start, "rows": rows}
        protocol.say(f"{family}: {results[family]['cpu_seconds']:.0f} CPU s in all")
        if keep:  # after each family, so that an interrupted run leaves what it has
            file.write_text(json.dumps(results, indent=1, sort_keys=False) + "\n")
    text = page.to_markdown(results)
    if keep:
        (options.markdown or PAGE).write_text(text)
    print(text)
    return 0


def _cpu() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


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
    parser.add_argument("--quick", action="store_true", help="one round, small problems; writes no file by itself")
    parser.add_argument("--page", action="store_true", help="run nothing: write the page from the recorded rows")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the rows here, not to results.json")
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="write the page here, not to docs/")
    return parser


if __name__ == "__main__":
    sys.exit(main())
