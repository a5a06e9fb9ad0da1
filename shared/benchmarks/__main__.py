"""Run the benchmark table: `python -m benchmarks --help`."""

import argparse
import datetime
import pathlib
import sys

from . import batches, compiling, derivatives, environment, krylov, page, protocol, quadratic, transport


MODULES = (krylov, batches, derivatives, quadratic, transport)
LIBRARIES = ("implicit-core", "jax", "lineax", "optimistix", "jaxopt", "ott-jax", "numpy")


def main() -> int:
    """Parse the options, run the families one after the other, print the page and write the files."""
    arguments = _parser().parse_args()
    context = {
        "machine": environment.machine(),
        "versions": {name: environment.version(name) for name in LIBRARIES},
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
    }
    wanted = tuple(arguments.only.split(",")) if arguments.only else ("",)
    rows: list[protocol.Row] = []
    for module in MODULES:
        for case in module.cases(arguments.quick):
            if case.problem.startswith(wanted):
                if arguments.quick:
                    case = case._replace(methods=case.methods[:4])
                rows += protocol.run(case, 1 if arguments.quick else arguments.repeats)
    if "C1".startswith(wanted):
        rows += compiling.rows(arguments.quick)
    if arguments.json:
        arguments.json.write_text(page.to_json(rows, context))
    text = page.to_markdown(rows, context)
    if arguments.markdown:
        arguments.markdown.write_text(text)
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", help="comma-separated beginnings of problems' names, for instance K1,I3")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of timing (default 5)")
    parser.add_argument("--quick", action="store_true", help="one round, small sizes, at most four methods: a minute")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the rows")
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="write the page of the documentation")
    return parser


if __name__ == "__main__":
    sys.exit(main())
