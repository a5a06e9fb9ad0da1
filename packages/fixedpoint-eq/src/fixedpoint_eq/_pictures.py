"""The pictures of the console script."""

from typing import Any

from . import plot
from ._flagship import TOL, Equilibria, Learning


def draw(cases: list[Equilibria | Learning], path: str) -> None:
    """Draw every case as a row of two pictures, and save them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2 * len(cases)), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(len(cases), 2, squeeze=False)
    for (left, right), case in zip(panels, cases, strict=True):
        if isinstance(case, Learning):
            _draw_learning(left, right, case)
        else:
            _draw_equilibria(left, right, case)
    figure.savefig(path, dpi=110)


def _draw_equilibria(left: Any, right: Any, case: Equilibria) -> None:
    longest = max(row["steps, slowest"] for row in case.rows)
    plot.convergence(case.traces, ax=left).set_xlim(0, 1.05 * longest)
    left.set_title(f"{case.problem.name}: residuals of a batch, to {TOL:g} of the state")
    if not case.gradient_errors:
        names, values = [row["solver"] for row in case.rows], [row["ms"] for row in case.rows]
        right.set_xlabel("ms, after compilation")
    else:
        names, values = list(case.gradient_errors), list(case.gradient_errors.values())
        right.set_xscale("log")
        right.set_xlabel("relative error of the gradient")
    bars = right.barh(names, values, color="#1d4ed8", height=0.6)
    right.bar_label(bars, fmt="%.1e" if case.gradient_errors else "%.1f", padding=4)
    right.margins(x=0.2)
    right.invert_yaxis()
    right.set_title("how far the gradient is off" if case.gradient_errors else "time")
    for side in ("top", "right"):
        right.spines[side].set_visible(False)


def _draw_learning(left: Any, right: Any, case: Learning) -> None:
    plot.curves(case.curves, ax=left).set_title(f"{case.name}: learned from equilibria alone")
    plot.alignment(case.alignment, ax=right).set_title("after training: is the error signal the true one?")
