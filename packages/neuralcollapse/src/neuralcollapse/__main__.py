"""The console script `neuralcollapse`: a network trained on digits of unequal classes, against the optimum of the theory."""

import argparse
import base64
import html
import json
import math
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from ._digits import COUNTS, LAM, Experiment, draw, run


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script; return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        _check(arguments)
        every = max(1, arguments.steps // 30)
        experiment = run(arguments.steps, arguments.seed, every, depth=arguments.depth, lam=arguments.lam)
        answer = _answer(experiment, arguments.plot)
        if arguments.plot is not None:
            draw(experiment, str(arguments.plot))
        if arguments.html is not None:
            arguments.html.write_text(_page(answer, experiment))
    except (ValueError, OSError, ImportError) as error:
        print(f"neuralcollapse: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=2) if arguments.json else _text(answer))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="neuralcollapse",
        description="Train a network on scikit-learn's digits, with classes of 100 down to 3 samples, and compare its last "
        "features and its head with the global optimum that theory gives for these class sizes.",
        epilog="references: Dang et al., Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data, "
        "arXiv 2301.00437",
    )
    parser.add_argument(
        "problem", nargs="?", default="digits", choices=["digits"], help="the experiment (default digits)"
    )
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE", help="save the picture (.png, .svg or .pdf)")
    parser.add_argument("--html", type=pathlib.Path, metavar="FILE", help="save a page with the picture and the table")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the initial weights (default 0)")
    parser.add_argument("--depth", type=int, default=1, metavar="M", help="layers of the linear head (default 1)")
    parser.add_argument("--lam", type=float, default=LAM, metavar="X", help=f"of the regularisation (default {LAM:g})")
    parser.add_argument("--steps", type=int, default=3000, metavar="N", help="training steps (default 3000)")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    # Before a minute is spent: a wrong suffix or folder would otherwise be found out at the end.
    if arguments.seed < 0:
        raise ValueError(f"`--seed` must not be negative, got {arguments.seed}")
    if arguments.depth < 1:
        raise ValueError(f"`--depth` must be at least 1, got {arguments.depth}")
    if not (math.isfinite(arguments.lam) and arguments.lam > 0):
        raise ValueError(f"`--lam` must be positive and finite, got {arguments.lam}")
    if arguments.steps < 1:
        raise ValueError(f"`--steps` must be at least 1, got {arguments.steps}")
    for name, suffixes in (("plot", (".png", ".svg", ".pdf")), ("html", (".html",))):
        path = getattr(arguments, name)
        if path is None:
            continue
        import matplotlib  # noqa: F401

        if path.suffix not in suffixes:
            raise ValueError(f"`--{name}` must name a file that ends in {' or '.join(suffixes)}, got {path}")
        if not path.parent.is_dir():
            raise ValueError(f"`--{name}`: there is no folder {path.parent}")


def _answer(experiment: Experiment, plot: pathlib.Path | None) -> dict[str, Any]:
    gof, found = experiment.gof, experiment.optimality
    last = experiment.monitor.history[-1].reports["into the head"]
    columns = {
        "own logit": gof.logits,
        "predicted": gof.predicted_logits,
        "|mean|^2": gof.mean_lengths,
        "predicted |mean|^2": gof.predicted_mean_lengths,
        "|w|^2": gof.classifier_lengths,
        "predicted |w|^2": gof.predicted_classifier_lengths,
    }
    rows = [
        {"class": k, "samples": n, **{name: round(float(column[k]), 4) for name, column in columns.items()}}
        for k, n in enumerate(COUNTS)
    ]
    layers = {
        name: float(value)
        for name, value in zip(experiment.profile.reports, experiment.profile.curve("nc1_quotient"), strict=True)
    }
    return {
        "title": "neuralcollapse: digits of unequal classes against the theoretical optimum",
        "summary": f"The loss, {float(found.loss):.6g}, is {100 * float(found.excess):.3g} % above the optimum over all "
        f"features and heads of depth {found.solution.depth}, {float(found.optimum):.6g} (lambda = {experiment.lam:g}). The own "
        f"logits of the class means are within {experiment.logit_error:.1e} of those of the optimum.",
        "rows": rows,
        "above the optimum, % of it, by part": ", ".join(
            f"{name} {100 * float(value - found.optimal_parts[name]) / float(found.optimum):+.2g}"
            for name, value in found.parts.items()
        ),
        "classes that the optimum gives up": ", ".join(map(str, np.flatnonzero(gof.collapsed))) or "none",
        "NC1 by layer, tr S_W / tr S_B": ", ".join(f"{name} {value:.3g}" for name, value in layers.items()),
        "W Hbar against diag(q), NC3_WH": f"{float(gof.nc3_wh):.2e}",
        "samples that the head and the nearest mean put apart": f"{100 * float(np.asarray(last.ncc_mismatch)):.3g} %",
        "figures": [] if plot is None else [str(plot)],
    }


def _text(answer: dict[str, Any]) -> str:
    rows = answer["rows"]
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    facts = [f"{key}: {value}" for key, value in answer.items() if key not in ("title", "summary", "rows", "figures")]
    figures = [f"picture: {figure}" for figure in answer["figures"]]
    return "\n".join([answer["title"], "", *lines, "", answer["summary"], *facts, *figures])


def _page(answer: dict[str, Any], experiment: Experiment) -> str:
    with tempfile.TemporaryDirectory() as folder:
        picture = pathlib.Path(folder) / "picture.png"
        draw(experiment, str(picture))
        encoded = base64.b64encode(picture.read_bytes()).decode()
    rows = answer["rows"]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{value}</td>" for value in row.values()) + "</tr>" for row in rows)
    facts = "".join(
        f"<li>{html.escape(key)}: {html.escape(str(value))}</li>"
        for key, value in answer.items()
        if key not in ("title", "summary", "rows", "figures")
    )
    style = "body{font:16px/1.5 sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem}img{max-width:100%}"
    style += "table{border-collapse:collapse}th,td{padding:.3rem .6rem;border-bottom:1px solid #8884;text-align:right}"
    title = html.escape(answer["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{style}</style>'
        f"<h1>{title}</h1><p>{html.escape(answer['summary'])}</p>"
        f'<img alt="Collapse, loss, layers and logits" src="data:image/png;base64,{encoded}">'
        f"<table><tr>{head}</tr>{body}</table><ul>{facts}</ul></html>\n"
    )


if __name__ == "__main__":
    sys.exit(main())
