"""The console script `koopman-verify`: which Koopman eigenvalues of a mechanical system are true, and what no data decide."""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import numpy as np


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script; return its exit code."""
    arguments = _parser().parse_args(argv)
    jax.config.update("jax_enable_x64", True)  # a program of its own: certificates are for double precision
    from . import _flagship

    try:
        _check(arguments)
        say = lambda stage: print(f"koopman-verify: {stage} ...", file=sys.stderr)
        experiment = _flagship.run(arguments.problem, arguments.functions, arguments.seed, say)
        if arguments.plot is not None:
            say("picture")
            _flagship.draw(experiment, str(arguments.plot))
        answer = _answer(experiment, arguments.plot)
    except (ValueError, OSError, ImportError) as error:
        print(f"koopman-verify: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=2) if arguments.json else _text(answer))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="koopman-verify",
        description="Fit EDMD to snapshots of a frictionless mechanical system, whose spectrum is on the unit circle; say which "
        "eigenvalues fresh data certify and which they refute; find the spectrum with a bound on the error; and lead a "
        "black box on for as long as asked.",
        epilog="references: Colbrook, Mezić and Stepanenko, Limits and Powers of Koopman Learning, arXiv 2407.06312",
    )
    problems = ["duffing", "pendulum"]
    parser.add_argument("problem", nargs="?", default="duffing", choices=problems, help="the system (default duffing)")
    parser.add_argument("--functions", type=int, default=100, metavar="N", help="radial functions (default 100)")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE", help="save the picture (.png, .svg or .pdf)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all draws (default 0)")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    # Before half a minute is spent: a wrong suffix or folder would otherwise be found out at the end.
    if arguments.seed < 0:
        raise ValueError(f"`--seed` must not be negative, got {arguments.seed}")
    if not 10 <= arguments.functions <= 2000:
        raise ValueError(f"`--functions` must be in 10 .. 2000, got {arguments.functions}")
    path = arguments.plot
    if path is not None:
        import matplotlib  # noqa: F401

        if path.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"`--plot` must name a file that ends in .png, .svg or .pdf, got {path}")
        if not path.parent.is_dir():
            raise ValueError(f"`--plot`: there is no folder {path.parent}")


def _answer(experiment: Any, path: pathlib.Path | None) -> dict[str, Any]:
    pairs, certificate, off = experiment.pairs, experiment.certificate, experiment.off
    status, upper = np.asarray(certificate.status), np.asarray(certificate.upper)
    rows = [
        {
            "eigenvalue": f"{z.real:+.4f}{z.imag:+.4f}i",
            "modulus": round(float(abs(z)), 4),
            "residual": float(f"{r:.3g}"),
            "bound (0.99)": float(f"{b:.3g}") if np.isfinite(b) else None,
            "status": str(s),
        }
        for z, r, b, s in zip(np.asarray(pairs.eigenvalues), np.asarray(pairs.residuals), upper, status, strict=True)
    ]
    false, spectrum, game = off > 0.1, experiment.spectrum, experiment.game
    count = lambda name: int(np.sum(status == name))
    return {
        "title": f"koopman-verify: the {experiment.problem} system, {experiment.factor.size} functions, "
        f"{experiment.factor.num_snapshots} snapshots",
        "summary": f"{int(false.sum())} of {len(pairs)} EDMD eigenvalues are more than 0.1 off the unit circle, where all of "
        f"the spectrum lies; {int((false & experiment.certified).sum())} of them are certified. On fresh data "
        f"{count('certified')} pairs are certified (residual at most 0.2, all at once at level 0.99), "
        f"{count('refuted')} refuted, {count('uncertifiable')} left open.",
        "rows": rows[:12],
        "spectrum on a grid of the circle": f"{len(spectrum.points)} points, E = {float(spectrum.error):.3g} on the data of "
        "the fit",
        "isometry defect of the data": float(f"{float(experiment.factor.isometry_defect):.3g}"),
        "adversary": f"{game.verdict}; {int(np.sum(game.num_queries))} queries, every answer true of the last map to "
        f"{float(game.mismatch):.0e}",
        "figures": [] if path is None else [str(path)],
    }


def _text(answer: dict[str, Any]) -> str:
    rows = answer["rows"]
    cells = [list(rows[0]), *(["-" if v is None else str(v) for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    facts = [f"{key}: {value}" for key, value in answer.items() if key not in ("title", "summary", "rows", "figures")]
    figures = [f"picture: {figure}" for figure in answer["figures"]]
    return "\n".join([answer["title"], "", *lines, "", answer["summary"], *facts, *figures])


if __name__ == "__main__":
    sys.exit(main())
