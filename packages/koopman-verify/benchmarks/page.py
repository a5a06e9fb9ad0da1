"""From rows to the Markdown page of the documentation."""

from typing import Any

from . import goals
from .protocol import Goal, Row
from .texts import INTRODUCTION, TEXTS, TITLES


_NAMED = {"method": "method", "M": "M", "N": "N", "CPU s": "cpu_seconds"}
# For each family its tables: a heading, the rows (by a key that they have), and the columns.
TABLES: dict[str, list[tuple[str, str, dict[str, str]]]] = {
    "KV-1": [
        (
            "Truth: zero, and 1e-5 in the last column but one",
            "error",
            {
                "dtype": "dtype",
                "condition": "cond",
                "method": "method",
                "eigenvalue error": "error",
                "largest residual": "residual",
                "at an exact eigenvalue": "at_eigenvalue",
                "least at distance 1e-5": "least_beside",
                "negative squares of 17": "negative",
            },
        )
    ],
    "KV-2": [
        (
            "",
            "pollution",
            {
                "N": "N",
                "method": "method",
                "points": "num",
                "false": "false",
                "pollution": "pollution",
                "farthest root missed": "missed",
                "E": "E",
                "least residual of a false one": "least_residual_of_false",
            },
        )
    ],
    "KV-3": [
        (
            "",
            "E2_kappa1",
            {
                "N": "N",
                "grid points": "grid",
                "E2, κ = 1": "E2_kappa1",
                "E2, κ = 5": "E2_kappa5",
                "worst EDMD residual": "edmd_worst",
                "the same, held out": "edmd_worst_held_out",
                "false eigenvalues": "edmd_off_circle",
                "condition": "cond",
                "isometry refused": "refused",
                "CPU s: factor": "cpu_factor",
                "spectrum": "cpu_spectrum",
                "all": "cpu_seconds",
                "peak MiB": "peak_bytes",
            },
        )
    ],
    "KV-4": [
        (
            "Eigenvalues of the compression",
            "sigma_min",
            {
                **_NAMED,
                "off the circle": "off_circle",
                "least residual of these": "least_residual_off_circle",
                "isometry defect": "isometry_defect",
                "smallest singular value": "sigma_min",
            },
        ),
        ("Smallest residuals at the four angles", "values", {**_NAMED, "ours": "values", "replica": "published"}),
        (
            "Smoothed densities and wave packets",
            "density_error",
            {
                **_NAMED,
                "ε": "epsilon",
                "order": "order",
                "error against the smoothed truth": "density_error",
                "against the density": "unsmoothed_error",
                "of the smoothed truth": "unsmoothed_error_of_truth",
                "wave packets, errors at the angles": "packet_errors",
            },
        ),
    ],
    "KV-5": [
        (
            "",
            "holdout",
            {
                "problem": "problem",
                "M/N": "M/N",
                "held out": "holdout",
                "families": "seeds",
                "false": "false",
                "false lower": "false_lower",
                "pairs refused": "refused",
                "bound/true": "bound/true",
                "Student false": "student_false",
                "residual of the fit false": "training_false",
                "fit/true": "training_bound/true",
            },
        )
    ],
    "KV-6": [
        (
            "Two maps through the same snapshots",
            "twists",
            {
                **_NAMED,
                "mismatch": "mismatch",
                "twists": "twists",
                "F(F(p)) - p": "defect",
                "Lipschitz constant, at least": "lipschitz",
                "answer": "status",
            },
        ),
        (
            "A black box that is led on",
            "oscillations",
            {
                **_NAMED,
                "oscillations": "oscillations",
                "runs": "runs",
                "queries": "queries",
                "mismatch": "mismatch",
                "verdict": "status",
            },
        ),
        (
            "A fair coin picks the map",
            "rate",
            {**_NAMED, "right": "rate", "same to the last bit": "identical", "verdict": "status"},
        ),
    ],
    "KV-7": [
        (
            "",
            "block",
            {
                "M": "M",
                "N": "N",
                "block": "block",
                "dtype": "dtype",
                "CPU s": "cpu_seconds",
                "peak MiB": "peak_bytes",
                "of it after compilation": "peak_bytes_after_compilation",
                "condition": "cond",
            },
        )
    ],
    "KV-8": [
        (
            "",
            "kappa",
            {
                "method": "method",
                "N": "N",
                "M": "M",
                "mean squared residual": "mean_square_residual",
                "the same, of the fit": "train_mean_square_residual",
                "worst residual": "worst_residual",
                "condition": "kappa",
                "forecast": "forecast",
                "epochs": "epochs",
                "CPU s": "cpu_seconds",
            },
        )
    ],
    "KV-9": [
        (
            "",
            "says_so",
            {
                "problem": "problem",
                "method": "method",
                "eigenvalues": "num",
                "false": "false",
                "the library says so of": "says_so",
                "refuted by ours": "refuted",
                "certified": "certified",
                "undecided": "uncertifiable",
                "false certified": "false_certified",
                "distance to ours": "error",
                "CPU ms": "cpu_seconds",
                "with residuals, ms": "cpu_with_residuals",
            },
        )
    ],
}
_MILLISECONDS = {"CPU ms", "with residuals, ms"}


def to_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Write the page: the goals, then the tables of each family."""
    ordered = [family for family in TITLES if family in results]
    lines = ["# koopman-verify: benchmarks", "", INTRODUCTION, ""]
    missing = [family for family in TITLES if family not in results]
    if missing:
        lines += [f"Not recorded: {', '.join(missing)}.", ""]
    lines += ["## Goals", "", "| family | goal | measured | met |", "| --- | --- | --- | --- |"]
    for family in ordered:
        lines += [_goal(family, goal) for goal in goals.GOALS[family](results[family]["rows"])]
    for family in ordered:
        asked, means = TEXTS[family]
        lines += ["", f"## {family}: {TITLES[family]}", "", asked, ""]
        for heading, key, columns in TABLES[family]:
            rows = [row for row in results[family]["rows"] if key in row]
            lines += [f"**{heading}**", ""] if heading and rows else []
            lines += [*_table(rows, columns), ""] if rows else []
        lines += [means, "", _context(results[family])]
    return "\n".join(lines) + "\n"


def _goal(family: str, goal: Goal) -> str:
    said = {True: "yes", False: "**no**", None: "–"}[goal.met]
    return f"| {family} | {goal.text} | {_number(goal.figure)} | {said} |"


def _table(rows: list[Row], columns: dict[str, str]) -> list[str]:
    kept = {title: key for title, key in columns.items() if any(row.get(key) not in (None, "") for row in rows)}
    lines = ["| " + " | ".join(kept) + " |", "|" + " --- |" * len(kept)]
    return lines + ["| " + " | ".join(_cell(row, title, key) for title, key in kept.items()) + " |" for row in rows]


def _cell(row: Row, title: str, key: str) -> str:
    value = row.get(key)
    if isinstance(value, (int, float)) and key.startswith("peak_bytes"):
        value = round(value / 2**20)
    elif value is not None and title in _MILLISECONDS:
        value = 1e3 * value
    return _number(value)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_number, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if value != 0 and (abs(value) < 1e-2 or abs(value) >= 1e6):
        return f"{value:.1e}"
    return f"{value:,.0f}" if value == 0 or abs(value) >= 100 else f"{value:.3g}"


def _context(result: dict[str, Any]) -> str:
    context = result["context"]
    versions = ", ".join(f"{name} {version}" for name, version in context["versions"].items() if version != "absent")
    return (
        f"{context['machine']}; {versions}; {context['date']}; {result['cpu_seconds']:,.0f} CPU s in all; "
        f"`{context['command']}`."
    )
