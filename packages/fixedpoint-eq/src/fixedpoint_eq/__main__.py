"""The console script `fixedpoint-eq`: equilibria, their gradients, and networks that learn from them."""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import jax.random as jr

from . import problems
from ._flagship import METHODS, TOL, Equilibria, Learning, equilibria, learning


_EXPERIMENTS = {
    "deq": "a tanh DEQ of 256 units and 64 inputs, symmetric weights of norm 0.99: solvers, and four gradients",
    "deq-gauss": "the same with Gaussian weights of norm 0.95, where acceleration cannot help",
    "complex-field": "a holomorphic map of 99,856 complex unknowns",
    "digits": "scikit-learn's digits, learned without a backward pass: EP, EP with Jacobian homeostasis, holomorphic "
    "AsymEP, and recurrent backpropagation, with independent feedback weights",
    "idx": "the same on MNIST or Fashion-MNIST, the data of arXiv:2309.02214: fixedpoint-eq idx FOLDER",
}
_EPOCHS = 10
_IDX_HIDDEN = (256, 256)  # the paper's


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script; return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        _check(arguments)
        cases = _run(arguments)
        if arguments.plot is not None:
            from ._pictures import draw

            draw(cases, str(arguments.plot))
    except (ValueError, OSError, ImportError) as error:
        print(f"fixedpoint-eq: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    answer = _answer(cases, arguments.plot)
    print(json.dumps(answer, indent=2) if arguments.json else _text(answer))
    missed = [case.problem.name for case in cases if isinstance(case, Equilibria) and not case.solved]
    if missed:
        print(f"fixedpoint-eq: error: no relative residual of {TOL:g} on {', '.join(missed)}", file=sys.stderr)
    return int(bool(missed))


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, _EXPERIMENTS))
    listed = "\n".join(f"  {name:{width}}  {text}" for name, text in _EXPERIMENTS.items())
    parser = _Parser(
        prog="fixedpoint-eq",
        description="Equilibria: solved, differentiated, and learned from. Without a problem: `deq`, then `digits` by EP\n"
        "and by holomorphic AsymEP.",
        epilog=f"problems:\n{listed}\n\nreferences: arXiv 2309.02214 (equilibrium propagation without weight symmetry), "
        "2106.01680\n(convergent graph solvers, whose experiments are FPE-7 and FPE-8 of the benchmarks)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("problem", nargs="?", metavar="PROBLEM", help="one of those below")
    parser.add_argument("folder", nargs="?", metavar="FOLDER", type=pathlib.Path, help="of the files of `idx`")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE", help="save the picture (.png, .svg or .pdf)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the problem and the weights (default 0)")
    parser.add_argument("--epochs", type=int, default=_EPOCHS, metavar="N", help=f"of learning (default {_EPOCHS})")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    name = arguments.problem
    if name is not None and name not in _EXPERIMENTS:
        raise ValueError(f"no problem {name!r}; there are {', '.join(_EXPERIMENTS)}")
    if (name == "idx") != (arguments.folder is not None):
        raise ValueError("`idx`, and only `idx`, takes a FOLDER: fixedpoint-eq idx FOLDER")
    if arguments.epochs < 1:
        raise ValueError(f"`--epochs` must be at least 1; got {arguments.epochs}")
    if arguments.seed < 0:
        raise ValueError(f"`--seed` must not be negative; got {arguments.seed}")
    if arguments.plot is not None:
        # Before minutes are spent: a wrong suffix or folder would otherwise be found out at the end.
        import matplotlib  # noqa: F401

        if arguments.plot.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"`--plot` must name a .png, .svg or .pdf file; got {arguments.plot}")
        if not arguments.plot.parent.is_dir():
            raise ValueError(f"`--plot`: there is no folder {arguments.plot.parent}")


def _run(arguments: argparse.Namespace) -> list[Equilibria | Learning]:
    key, options = jr.key(arguments.seed), {"seed": arguments.seed, "epochs": arguments.epochs}
    if arguments.problem is None:
        few = ("holomorphic AsymEP", "EP")
        digits = problems.digits(arguments.seed)
        return [equilibria(problems.tanh_deq(key)), learning("digits", digits, few, **options)]
    if arguments.problem == "digits":
        return [learning("digits", problems.digits(arguments.seed), tuple(METHODS), **options)]
    if arguments.problem == "idx":
        data = problems.idx(arguments.folder)
        return [learning(arguments.folder.name, data, tuple(METHODS), hidden=_IDX_HIDDEN, **options)]
    if arguments.problem == "complex-field":
        return [equilibria(problems.complex_field(key), gradients=False)]
    symmetric = arguments.problem == "deq"
    return [equilibria(problems.tanh_deq(key, norm=0.99 if symmetric else 0.95, symmetric=symmetric))]


def _answer(cases: list[Equilibria | Learning], plot: pathlib.Path | None) -> dict[str, Any]:
    answer: dict[str, Any] = {"title": "fixedpoint-eq: " + ", then ".join(_name(case) for case in cases), "rows": []}
    for case in cases:
        if isinstance(case, Equilibria):
            answer["rows"] += [{"problem": case.problem.name, **row} for row in case.rows]
            for name, error in case.gradient_errors.items():
                answer[f"error of the gradient, {name}"] = error
        else:
            for name, curve in case.curves.items():
                cosine = case.cosine(name)
                flagged = 100 * case.flagged[name]
                answer[f"{case.name}, {name}"] = (
                    f"{curve[-1]:.1f} % of the test after {len(curve)} epochs; cosine with the true error {cosine:.3f}; "
                    f"{flagged:.1f} % of the samples of the last epoch flagged"
                )
    answer["summary"] = " ".join(_sentence(case) for case in cases)
    answer["figures"] = [] if plot is None else [str(plot)]
    return answer


def _name(case: Equilibria | Learning) -> str:
    return case.problem.name if isinstance(case, Equilibria) else case.name


def _sentence(case: Equilibria | Learning) -> str:
    if isinstance(case, Equilibria):
        picard, anderson = case.rows[0], case.rows[1]
        return (
            f"{case.problem.name}: Anderson's acceleration takes {anderson['steps, slowest']} evaluations of the map, "
            f"Picard's iteration {picard['steps, slowest']}."
        )
    name, curve = next(iter(case.curves.items()))
    return f"{case.name}: {curve[-1]:.1f} % by {name}, without a backward pass or symmetric weights."


def _text(answer: dict[str, Any]) -> str:
    lines = [answer["title"], ""]
    rows = answer["rows"]
    if rows:
        cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        numeric = [not isinstance(value, str) for value in rows[0].values()]
        for line in cells:
            aligned = zip(line, widths, numeric, strict=True)
            lines.append("  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in aligned).rstrip())
        lines += ["", "ms: after compilation, on this machine", ""]
    known = {"title", "summary", "rows", "figures"}
    lines += [f"{key}: {_cell(value)}" for key, value in answer.items() if key not in known]
    return "\n".join([*lines, *(f"picture: {figure}" for figure in answer["figures"])])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if value < 0.01 else f"{value:.3g}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
