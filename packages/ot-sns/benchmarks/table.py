"""From rows to the Markdown page of the documentation and to JSON."""

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from .protocol import TARGET, Row


INTRODUCTION = (
    f"CPU seconds until the error of both marginals, $\\|P1-a\\|_1+\\|P^\\top1-b\\|_1$, is at most {TARGET:.0e}, float64, one"
    " thread. Every method stops by its own rule, tightened per problem until this error, measured alike for all, is"
    " reached. Methods run in turn, after compilation; medians. In brackets: times our seconds."
)
EXTRAS = {
    "literal_sns": (
        "## The paper's own experiment",
        "",
        (
            "LAP-500 (random assignment, η = 1200) to an error of 1e-12: `SNS` as published, keeping six entries per row, the"
            " default `SparseNewton`, and Sinkhorn. arXiv:2401.12253 reports 29 iterations against Sinkhorn's 56,199. Command:"
            " `python -m benchmarks.literal_sns`."
        ),
    ),
    "gradients": (
        "## Gradients of potentials in float32",
        "",
        (
            "200 points, loss Σ(f − mean f)², against NumPy in float64: relative error of the whole gradient and of one"
            " directional derivative, each library with its default implicit differentiation. Command:"
            " `python -m benchmarks.gradients`."
        ),
    ),
}
COLUMNS = {
    "literal_sns": {
        "method": "method",
        "error": "error",
        "CPU seconds": "seconds",
        "iterations": "num_steps",
        "of them Newton": "num_newton",
        "paper": "paper_iterations",
    },
    "gradients": {
        "problem": "problem",
        "method": "method",
        "condition": "condition",
        "error": "error",
        "directional error": "directional_error",
        "CPU seconds": "seconds",
        "note": "note",
    },
}


def to_json(rows: Sequence[Row], context: dict[str, Any], extras: dict[str, list[Row]] | None = None) -> str:
    """Write the rows with the machine, the versions and the command line."""
    content = {"context": context, "means": geometric_means(rows), "rows": list(rows), **(extras or {})}
    return json.dumps(content, indent=1) + "\n"


def geometric_means(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Average each method's ratio to ours over the problems that both solved; count the failures."""
    means = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        ratios = [row["ratio"] for row in mine if row["ratio"]]
        if method != "ours" and ratios:
            means[method] = {
                "ratio": statistics.geometric_mean(ratios),
                "problems": len(ratios),
                "failures": sum(not row["reached"] for row in mine),
            }
    return means


def to_markdown(rows: Sequence[Row], context: dict[str, Any], extras: dict[str, list[Row]] | None = None) -> str:
    """Write the page: the table of seconds, the means, and every row with its error, memory and setting."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    at = {(row["problem"], row["method"]): row for row in rows}
    lines = [
        "# ot-sns: benchmarks",
        "",
        INTRODUCTION,
        "",
        "| problem | " + " | ".join(_heading(method, rows) for method in methods) + " |",
        "| --- |" + " --- |" * len(methods),
    ]
    lines += [
        f"| {problem} | " + " | ".join(_cell(at.get((problem, method))) for method in methods) + " |"
        for problem in problems
    ]
    lines += [
        "",
        *_mean_lines(rows),
        "",
        *_honest_lines(rows),
        *_context_lines(context),
        "",
        *_extra_lines(extras or {}),
        "## Every row",
        "",
        *_detail(rows),
    ]
    return "\n".join(lines) + "\n"


def _extra_lines(extras: dict[str, list[Row]]) -> list[str]:
    lines = []
    for module, text in EXTRAS.items():
        if module not in extras:
            continue
        lines += [
            *text,
            "",
            "| " + " | ".join(COLUMNS[module]) + " |",
            "| --- |" + " --- |" * (len(COLUMNS[module]) - 1),
        ]
        for row in extras[module]:
            cells = [_value(row.get(key)) for key in COLUMNS[module].values()]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"
    return "–" if value is None else str(value)


def _heading(method: str, rows: Sequence[Row]) -> str:
    row = next(row for row in rows if row["method"] == method)
    return f"{method} {row['version']}" + (" (exact plan, no regularisation)" if row["exact"] else "")


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    if not row["reached"]:
        return f"fails: {row['note'] or _number(row['error'])} ({_number(row['seconds'])} s)"
    ratio = f" ({row['ratio']:.1f}×)" if row["ratio"] and row["method"] != "ours" else ""
    return f"{_number(row['seconds'])}{ratio}"


def _mean_lines(rows: Sequence[Row]) -> list[str]:
    lines = []
    for method, mean in geometric_means(rows).items():
        failures = f"; it fails on {mean['failures']} more" if mean["failures"] else ""
        lines.append(
            f"- Geometric mean of {method} over ours: **{mean['ratio']:.2f}** on the {mean['problems']} problems"
            f" that it solves{failures}."
        )
    return lines


def _honest_lines(rows: Sequence[Row]) -> list[str]:
    """Say what the network simplex is better at, with this run's count."""
    exact = [row for row in rows if row["exact"] and row["ratio"]]
    if not exact:
        return []
    faster = sum(row["ratio"] <= 1 for row in exact)
    text = (
        "For **one exact, unregularised plan** on a CPU, up to about 4,000 points a side, use the network simplex"
        f" (`ot.emd`): it returns that plan itself, and it was as fast or faster on {faster} of these {len(exact)} problems."
        " The speed claimed here is for entropic potentials, their gradients, batches, accelerators and memory."
    )
    return [text, ""]


def _context_lines(context: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in context["versions"].items())
    return [
        f"Machine: {context['machine']}. Versions: {versions}. Date: {context['date']}.",
        "",
        f"Command, in `packages/ot-sns`: `{context['command']}`",
    ]


def _detail(rows: Sequence[Row]) -> list[str]:
    lines = [
        "Memory is the peak above what the process held before the call, in a fresh process per row, the compiled code warm.",
        "",
        "| problem | method | error | seconds | compile s | peak MiB | iterations | setting |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        peak = None if row["peak_bytes"] is None else row["peak_bytes"] / 2**20
        setting = ", ".join(f"{k}={_setting(v)}" for k, v in row["setting"].items())
        error = "–" if row["error"] is None else f"{row['error']:.1e}"
        lines.append(
            f"| {row['problem']} | {row['method']} | {error} | {_number(row['seconds'])} |"
            f" {_number(row['compile_seconds'])} | {_number(peak)} | {row['iterations'] or '–'} | {setting} |"
        )
    return lines


def _setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"
