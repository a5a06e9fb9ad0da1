"""From rows to the Markdown page of the documentation and to JSON."""

import json
from typing import Any

from .protocol import OURS, Row


INTRODUCTION = """
Every method solves the same problem, in one process, one thread; the methods take turns after compilation, and the seconds
are medians of CPU time. `error` is measured alike for all, on what the method returned, in NumPy with float64. In
brackets: times our seconds. Memory is XLA's own figure for the compiled program: temporaries and result. The goals are
those of the specification; they bind the rows of ours, and stand here whether met or not.
""".strip().replace("\n", " ")
FAMILIES = {
    "K1": "Conjugate gradients in float32 at large n: `error` is the relative residual. The tolerance is 1e-6, or 1e-4 for"
    " the Laplacian without shift.",
    "K2": "A tolerance, 1e-6, that float32 does not attain: is the result finite, and does the flag tell?",
    "K3": "A batch in which 5 % of the matrices have condition 2,000 and the rest 4, float32, tolerance 1e-4: `error` is the"
    " largest relative residual.",
    "I1": "Value and gradient through z = tanh(Wz + x), float64. `error` is that of the gradient in x. The forward solve is"
    " the same iteration for all.",
    "I2": "Gradient of a validation loss in the ridge of a logistic regression, float64, at a given solution.",
    "I3": "Gradient of the solution of a quadratic programme with 20 variables, 5 equalities, 30 inequalities of which 14"
    " are active. The solver is jaxopt's OSQP for all; the methods differ in the derivative.",
    "I4": "Gradient of entropic potentials in float32, 200 points: `error` is that of one directional derivative.",
    "I5": "The gradient of a small or large multiple of a loss, divided by the multiple, float32, Jacobi preconditioner.",
    "C1": "CPU seconds to trace, lower and compile, in fresh processes.",
    "S1": "Two processes and one give the same digits: see the tests, `shared/tests/test_processes.py`.",
}


def to_json(rows: list[Row], context: dict[str, Any]) -> str:
    """Write the rows with the machine, the versions and the command line."""
    return json.dumps({"context": context, "rows": rows}, indent=1) + "\n"


def to_markdown(rows: list[Row], context: dict[str, Any]) -> str:
    """Write the page: the goals, then one table for each family."""
    versions = ", ".join(f"{name} {version}" for name, version in context["versions"].items())
    lines = ["# implicit-core: benchmarks", "", INTRODUCTION, "", "## Goals", "", *_goals(rows), ""]
    lines += [f"Machine: {context['machine']}. Versions: {versions}. Date: {context['date']}.", ""]
    lines += [f"Command, in `shared`: `{context['command']}`", ""]
    for family, text in FAMILIES.items():
        mine = [row for row in rows if row["problem"].startswith(family)]
        if mine or family == "S1":
            lines += [f"## {family}", "", text, ""]
        if mine:
            lines += [*_table(mine), ""]
    return "\n".join(lines[:-1]) + "\n"


def _goals(rows: list[Row]) -> list[str]:
    ours = [row for row in rows if row["method"] == OURS]
    lines = ["| problem | goal | met |", "| --- | --- | --- |"]
    said = {True: "yes", False: "**no**", None: "–"}
    return lines + [f"| {row['problem']} | {row['goal']} | {said[row['met']]} |" for row in ours]


def _table(rows: list[Row]) -> list[str]:
    lines = [
        "| problem | method | error | seconds | compile s | peak MiB | note |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ratio = f" ({_number(row['ratio'])}×)" if row["ratio"] and row["method"] != OURS else ""
        peak = None if row["peak_bytes"] is None else row["peak_bytes"] / 2**20
        error = "–" if row["error"] is None else f"{row['error']:.1e}"
        lines.append(
            f"| {row['problem']} | {row['method']} {row['version']} | {error} | {_number(row['seconds'])}{ratio} |"
            f" {_number(row['compile_seconds'])} | {_number(peak)} | {row['note']} |"
        )
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
