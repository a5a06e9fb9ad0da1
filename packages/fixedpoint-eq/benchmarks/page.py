"""From rows to the Markdown page of the documentation."""

from typing import Any

from . import summary
from .protocol import Row


INTRODUCTION = """
Every method solves the same problem, in one process, with one thread on one core; the methods take turns after compilation,
and the seconds are medians of CPU time. `error` is measured alike for all, on what the method returned, in NumPy with
double precision. In brackets: times the seconds of the first row. Memory is XLA's own figure for the temporaries of the
compiled program; PyTorch has none to give. A count is of evaluations of the map, of the sample that takes the most. The
goals are those of the project's specification, or ours where it names a peer and no figure (FPE-10, the gradient of FPE-1);
they stand here whether met or not. A dash among the compile seconds is a figure that was not kept.
""".strip().replace("\n", " ")
REPRODUCE = """
One command, in `packages/fixedpoint-eq`, with `benchmarks/requirements.txt` installed: `python -m benchmarks`; or
`nox -s "bench(fixedpoint-eq)"`, which installs them. `--only FPE-1,FPE-2` runs some families and keeps the others as they are
in `benchmarks/results.json`; `--slow` adds the digits, half an hour; `--quick` is a look, without files.
""".strip().replace("\n", " ")
TIMED = {
    "count": "iterations",
    "error": "error",
    "CPU seconds": "seconds",
    "compile s": "compile_seconds",
    "temporaries MiB": "temp_bytes",
    "note": "note",
}
COLUMNS: dict[str, dict[str, str]] = {
    "FPE-5": {"N": "points", "β": "nudge", "error": "error", "cosine": "cosine", "residual": "residual"},
    "FPE-6": {
        "accuracy, %": "accuracy_spread",
        "rate": "rate",
        "free residual, median": "residual_median",
        "worst": "residual_max",
        "flagged, %": "flagged_percent",
        "CPU seconds": "seconds",
    },
    "FPE-7": {
        "MAPE, % of the label": "mape_of_label",
        "MAPE, % of the prediction": "mape_of_prediction",
        "policy accuracy, %": "policy_accuracy",
        "parameters": "parameters",
        "CPU seconds a step": "seconds",
    },
    "FPE-8": {
        "RMSE of the pressures": "rmse",
        "MAPE, %": "mape",
        "R²": "fit",
        "parameters": "parameters",
        "CPU seconds a step": "seconds",
    },
}
NOT_RUN = "Not recorded yet: {families}. `python -m benchmarks --slow --only {arguments}` adds them."
TITLES = {
    "FPE-1": "FPE-1: equilibria where acceleration helps",
    "FPE-2": "FPE-2: equilibria where it cannot",
    "FPE-3": "FPE-3: the error of a gradient at a budget of products",
    "FPE-4": "FPE-4: the memory of a gradient",
    "FPE-5": "FPE-5: equilibrium propagation without symmetric weights",
    "FPE-6": "FPE-6: digits with independent feedback weights",
    "FPE-7": "FPE-7: graph value iteration",
    "FPE-8": "FPE-8: pore networks",
    "FPE-9": "FPE-9: spectral radii",
    "FPE-10": "FPE-10: a complex field",
}
TEXTS = {
    "FPE-1": "z = tanh(Wz + x) for 64 rows of 256 unknowns in float32, until |f(z) − z| ≤ 1e-5 |f(z)| in every row. `W` is the"
    " symmetric part of a Gaussian matrix, scaled to the spectral norm 0.99; `x` is Gaussian times 0.3. `error` is the largest"
    " relative residual of a row at what was returned: ours return a state whose residual was measured, the others the map of"
    " it. optimistix and jaxopt stop at an absolute residual, set to the same size; for a batch as one state it is that of"
    " the batch, so single rows may exceed the tolerance. jaxopt's and torchdeq's Anderson add an absolute ridge, which with"
    " small residuals turns the acceleration off; the rows with a smaller ridge show them at their best. The gradient is that"
    " of a mean square in `W`; its error is against dense solves.",
    "FPE-2": "The same with a Gaussian `W` of norm 0.95, on which Picard's iteration takes 16 evaluations. The question is what"
    " acceleration costs where there is nothing to gain.",
    "FPE-3": "The relative error of the gradient in `W`, 128 unknowns, 16 rows, float64, at a solution of tolerance 1e-11; the"
    " count is that of products with the transposed Jacobian. Ours makes one more, to check that the map does not mix"
    " samples. The radius is the largest of a row's Jacobian. Methods without a Krylov space have a polynomial that was"
    " chosen before the problem was known.",
    "FPE-4": "The gradient in `W` on FPE-1's problem. Optimistix's default adjoint, on a batch as one state, forms the"
    " Jacobian of the whole batch. Under `vmap` it forms one for each row, and with GMRES none: those are its ways around.",
    "FPE-5": "The gradient of a cross-entropy in all weights of a network of thirty units whose backward weights are drawn"
    " independently, float64, against dense solves. `cosine` is the smallest of a sample between the response and the true"
    " adjoint.",
    "FPE-6": "scikit-learn's digits, a network 64-64-64-10 with independent feedback weights, five seeds, 20 epochs,"
    " gradients clipped for all alike.",
    "FPE-7": "Trained on 20 to 49 states, tested on up to 200, exact labels; the same encoder and decoder for all three. `GNN`"
    " has message passing alone. A reduced model and {steps} steps of 16 graphs, {seeds} seeds; the paper takes 5,000 of 64.",
    "FPE-8": "Trained on networks of 50 to 100 pores, tested on up to 400, exact labels. {steps} steps of 8 networks, {seeds} seeds;"
    " the paper takes 1,000 of 32.",
    "FPE-9": "The Jacobians of FPE-1's and FPE-2's map at the equilibria of three draws of eight rows, 256 unknowns, float32;"
    " `error` is the worst relative one of the 24, against NumPy's eigenvalues. torchdeq's is a power method with a Rayleigh"
    " quotient, whose number is not the radius where the leading eigenvalues are a complex pair. Arnoldi's error is of the"
    " kind that more products remove; the eigenvalues of a Gaussian matrix fill a disk, and 20 products do not resolve its rim.",
    "FPE-10": "z = a S z + b + c z² on a torus of complex numbers, `S` the mean over a point and its four neighbours, complex64,"
    " to 1e-6; then the gradient of a mean square in a, b and c. `error` is the worst of the three, against NumPy in double"
    " precision. The split into real and imaginary parts is what users of optimistix do today. Lineax's GMRES has the looser"
    " tolerance 1e-5, as in parts and single precision it may break down at 1e-6.",
}


def to_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Write the page: the goals, then one table for each family."""
    ordered = [family for family in TITLES if family in results]
    rows = [row for family in ordered for row in results[family]["rows"]]
    lines = ["# fixedpoint-eq: benchmarks", "", INTRODUCTION, "", REPRODUCE, "", "## In short", ""]
    missing = [family for family in TITLES if family not in results]
    if missing:
        lines += [NOT_RUN.format(families=", ".join(missing), arguments=",".join(missing)), ""]
    lines += [*(f"- {sentence}" for sentence in summary.sentences(results)), "", "## Goals", "", *_goals(rows), ""]
    for family in ordered:
        mine = [_completed(row) for row in results[family]["rows"]]
        text = TEXTS[family].format(steps=mine[0].get("steps"), seeds=mine[0].get("seeds"))
        lines += [f"## {TITLES[family]}", "", text, ""]
        for problem in dict.fromkeys(row["problem"] for row in mine):
            of_problem = [row for row in mine if row["problem"] == problem]
            lines += [f"**{problem}**", "", *_table(of_problem, COLUMNS.get(family, TIMED)), "", *_faster(of_problem)]
        lines += [_context(results[family]["context"]), ""]
    return "\n".join(lines[:-1]) + "\n"


def _completed(row: Row) -> Row:
    if "accuracies" not in row:
        return row
    accuracy = f"{row['accuracy']:.1f} ± {row['deviation']:.1f}"
    return row | {"accuracy_spread": accuracy, "flagged_percent": 100 * row["flagged"]}


def _goals(rows: list[Row]) -> list[str]:
    said = {True: "yes", False: "**no**", None: "–"}
    lines = ["| problem | method | goal | met |", "| --- | --- | --- | --- |"]
    return lines + [
        f"| {row['problem']} | {row['method']} | {row['goal']} | {said[row['met']]} |"
        for row in rows
        if row.get("goal", "–") != "–"
    ]


def _table(rows: list[Row], columns: dict[str, str]) -> list[str]:
    columns = {title: key for title, key in columns.items() if any(row.get(key) not in (None, "") for row in rows)}
    lines = ["| method | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for row in rows:
        cells = [_cell(row, key) for key in columns.values()]
        lines.append(f"| {row['method']} | " + " | ".join(cells) + " |")
    return lines


def _cell(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None:
        return "–"
    if key in ("error", "residual", "residual_median", "residual_max"):
        return f"{value:.1e}"
    if key == "cosine":
        return f"{value:.6f}"
    if key == "temp_bytes":
        return _number(value / 2**20)
    if key == "seconds" and row.get("ratio") and row["ratio"] != 1:
        return f"{_number(value)} ({_number(row['ratio'])}×)"
    return _number(value) if isinstance(value, float) else str(value)


def _faster(rows: list[Row]) -> list[str]:
    """Say what took less time than the first row, for the reader who would use that."""
    if not rows[0].get("ratio"):
        return []
    faster = [f"{row['method']} ({_number(row['ratio'])}×)" for row in rows[1:] if row["ratio"] and row["ratio"] < 1]
    if not faster:
        return [f"Nothing here is faster than `{rows[0]['method']}`.", ""]
    return [f"Faster than `{rows[0]['method']}` here: {', '.join(faster)}.", ""]


def _context(context: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in context["versions"].items())
    return f"{context['machine']}; {versions}; {context['date']}; `{context['command']}`."


def _number(value: float) -> str:
    if value == 0 or value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"
