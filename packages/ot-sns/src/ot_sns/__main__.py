"""The console script `ot-sns`: transport between real images, to a marginal error of 1e-9, and the paper's experiments."""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import jax

from . import problems
from ._flagship import TOL, Case, examine, say
from .problems import NamedProblem


_EXPERIMENTS = {
    "lap": "random linear assignment of 500 x 500, eta = 1200 (paper, Table 1)",
    "digits-l2": "two of scikit-learn's digits at 28 x 28, squared L2 cost, eta = 1200 (the paper's MNIST pair)",
    "digits-l1": "the same with the L1 cost, whose exact plan is not unique",
    "gauss2d": "two samples of plane Gaussians, 1000 x 1000",
    "dens1d": "two densities on a line, 500 grid points",
    "colors": "colour transfer between two photographs, 3000 x 3000, eta = 1200",
    "mnist": "two images of a file in MNIST's idx format, the paper's own data: ot-sns mnist PATH",
}
_SIZED = {"lap": 500, "gauss2d": 1000, "dens1d": 500, "colors": 3000}
_SEEDED = ("colors", "digits-l2", "digits-l1", "mnist")
# Sinkhorn's limit: what is seen within a few seconds.
_CAP = 20_000
_CAP_LARGE = 200
_LARGE = 1_500_000


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script; return its exit code."""
    arguments = _parser().parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    try:
        _check(arguments)
        cases = _run(arguments)
        if arguments.plot is not None:
            from ._pictures import draw

            draw(cases, str(arguments.plot))
    except (ValueError, OSError, ImportError) as error:
        print(f"ot-sns: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    answer = _answer(cases, arguments.plot)
    print(json.dumps(answer, indent=2) if arguments.json else _text(answer))
    missed = [case.named.name for case in cases if not case.solved]
    if missed:
        print(f"ot-sns: error: no marginal error of {TOL:g} on {', '.join(missed)}", file=sys.stderr)
    return int(bool(missed))


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, _EXPERIMENTS))
    listed = "\n".join(f"  {name:{width}}  {text}" for name, text in _EXPERIMENTS.items())
    parser = _Parser(
        prog="ot-sns",
        description="Entropic optimal transport to machine precision, with Sinkhorn beside it. Without a problem: the\n"
        "flagship, which transports one digit to another and one photograph's colours to another's.",
        epilog=f"problems:\n{listed}\n\nreference: Tang et al., Accelerating Sinkhorn Algorithm with Sparse Newton "
        "Iterations, arXiv 2401.12253",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("problem", nargs="?", metavar="PROBLEM", help="one of those below")
    parser.add_argument("path", nargs="?", metavar="PATH", type=pathlib.Path, help="the idx file of `mnist`")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE", help="save the picture (.png, .svg or .pdf)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="which pixels of the photographs; the digits and mnist transport image N to image N + 1 (default 0)",
    )
    parser.add_argument(
        "--num-points", type=int, metavar="N", help=f"atoms a side, for {', '.join(_SIZED)} and the flagship's colours"
    )
    parser.add_argument(
        "--epsilon", type=float, metavar="X", help="regularisation as a fraction of the largest cost (1/eta)"
    )
    return parser


def _check(arguments: argparse.Namespace) -> None:
    name, size, epsilon = arguments.problem, arguments.num_points, arguments.epsilon
    if name is not None and name not in _EXPERIMENTS:
        raise ValueError(f"no problem {name!r}; there are {', '.join(_EXPERIMENTS)}")
    if (name == "mnist") != (arguments.path is not None):
        raise ValueError("`mnist`, and only `mnist`, takes a PATH: ot-sns mnist PATH")
    if size is not None and name is not None and name not in _SIZED:
        raise ValueError(f"`--num-points` is for {', '.join(_SIZED)}; the size of {name} is that of its images")
    if size is not None and size < 2:
        raise ValueError(f"`--num-points` must be at least 2, got {size}")
    if epsilon is not None and not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"`--epsilon` must be positive and finite, got {epsilon}")
    if arguments.seed < 0:
        raise ValueError(f"`--seed` must not be negative, got {arguments.seed}")
    if arguments.seed and name is not None and name not in _SEEDED:
        raise ValueError(f"{name} is one fixed problem; `--seed` is for {', '.join(_SEEDED)}")
    if arguments.plot is not None:
        _check_picture(arguments.plot)


def _check_picture(path: pathlib.Path) -> None:
    # Before minutes are spent: a wrong suffix or folder would otherwise be found out at the end.
    import matplotlib  # noqa: F401

    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"`--plot` must name a .png, .svg or .pdf file, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"`--plot`: there is no folder {path.parent}")


def _run(arguments: argparse.Namespace) -> list[Case]:
    if arguments.problem is None:
        digits, colors = _make("digits-l2", arguments), _make("colors", arguments)
        return [
            examine(digits, sinkhorn_cap=_cap(digits)),
            examine(colors, sinkhorn_cap=_cap(colors), history=False, gradient=False),
        ]
    named = _make(arguments.problem, arguments)
    return [examine(named, sinkhorn_cap=_cap(named))]


def _cap(named: NamedProblem) -> int:
    n, m = named.shape
    return _CAP_LARGE if n * m > _LARGE else _CAP


def _make(name: str, arguments: argparse.Namespace) -> NamedProblem:
    seed, epsilon = arguments.seed, arguments.epsilon
    size = arguments.num_points or _SIZED.get(name, 0)
    if name == "colors":
        say(f"sampling {size} pixels of each photograph ...")
        return problems.color_transfer(size, seed, eta=1200.0 if epsilon is None else 1 / epsilon)
    if name == "mnist":
        named = problems.mnist_pair(arguments.path, seed, seed + 1)
    elif name.startswith("digits"):
        try:
            named = problems.digit_pair(seed, seed + 1, metric="l1" if name.endswith("l1") else "l2")
        except IndexError as error:
            raise ValueError(f"`--seed {seed}`: scikit-learn's digits end before image {seed + 1}") from error
    else:
        named = {"lap": problems.lap, "gauss2d": problems.gauss2d, "dens1d": problems.dens1d}[name](size)
    return named if epsilon is None else dataclasses.replace(named, epsilon=epsilon, known={})


def _answer(cases: list[Case], plot: pathlib.Path | None) -> dict[str, Any]:
    digits_and_colors = len(cases) > 1
    title = "ot-sns: transport between real images" if digits_and_colors else f"ot-sns: {cases[0].named.name}"
    return {
        "title": title,
        "summary": " ".join(_sentence(case) for case in cases),
        "rows": [row for case in cases for row in case.rows()],
        **{key: value for case in cases for key, value in case.facts().items()},
        "figures": [] if plot is None else [str(plot)],
    }


def _sentence(case: Case) -> str:
    newton, sinkhorn = case.newton, case.sinkhorn
    n, m = case.named.shape
    return (
        f"{case.named.name} ({n} x {m}): a marginal error of {newton.error:.1e} in {newton.num_steps} steps and "
        f"{newton.seconds:.2f} s; Sinkhorn: {sinkhorn.error:.1e} in {sinkhorn.num_steps} steps and "
        f"{sinkhorn.seconds:.2f} s ({sinkhorn.outcome})."
    )


def _text(answer: dict[str, Any]) -> str:
    rows = answer["rows"]
    cells = [list(rows[0]), *([_cell(key, value) for key, value in row.items()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [isinstance(value, int | float) for value in rows[0].values()]
    lines = [
        "  ".join(
            c.rjust(w) if right else c.ljust(w) for c, w, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    known = {"title", "summary", "rows", "figures"}
    facts = [f"{key}:\n  {value}" for key, value in answer.items() if key not in known]
    figures = [f"picture: {figure}" for figure in answer["figures"]]
    return "\n".join([answer["title"], "", *lines, "", *facts, *figures, "seconds: after compilation, on this machine"])


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return (
            f"{value:.3f}"
            if key == "seconds"
            else f"{value:.1e}"
            if key in ("marginal error", "value proved within")
            else f"{value:.10g}"
        )
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
