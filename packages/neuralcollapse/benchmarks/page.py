"""From rows to the Markdown page of the documentation."""

from typing import Any


Row = dict[str, Any]
INTRODUCTION = """
Every method gets the same arrays, in one process, with one thread on one core; the methods take turns after compilation, and
the seconds are medians of CPU time. In brackets: times the seconds of the first row. `error` is measured alike for all, on
what the method returned, against double precision. Memory is XLA's own figure for the temporaries of the compiled program;
PyTorch has none to give. The goals are those of the project's issue; they stand here whether met or not.
""".strip().replace("\n", " ")
REPRODUCE = """
One command, in `packages/neuralcollapse`, with `benchmarks/requirements.txt` installed: `python -m benchmarks`; or
`nox -s "bench(neuralcollapse)"`, which installs them. `--only B1,B2` runs some families and keeps the others as they are in
`benchmarks/results.json`; `--quick` is a look, without files.
""".strip().replace("\n", " ")
COLUMNS = {
    "error": "error",
    "worst error": "worst",
    "products or iterations": "iterations",
    "loss": "loss",
    "CPU seconds": "seconds",
    "samples/s": "samples_per_second",
    "metrics": "metrics",
    "largest relative difference": "difference",
    "compile s": "compile_seconds",
    "state MiB": "state_bytes",
    "temporaries MiB": "temp_bytes",
    "note": "note",
}
TITLES = {
    "B1": "B1: statistics of ten classes",
    "B2": "B2: a vocabulary as classes",
    "B3": "B3: deep collapse in float32",
    "B4": "B4: the metrics of a thousand classes",
    "B5": "B5: the closed form against direct optimisation",
    "B7": "B7: sharpness at equal numbers of products",
}
TEXTS = {
    "B1": "Counts, means, pooled covariance and class variances of 50,000 samples of 512 features, float32, in batches of 256;"
    " then tr S_W / tr S_B, whose error is shown. neural-collapse passes over the data twice, and a third time for the decisions"
    " of NC4, which ours make in a second pass (with the classifier's bias, which the peer leaves out). Here the"
    " passes do not count the forward passes of a network, of which the peer needs as many.",
    "B2": "30,000 classes, 768 features, labels with Zipf's exponent 1.3, float32, eight batches of 2,048. The second table is one"
    " batch of ours alone, by number of classes and by what is kept of the covariance. A batch touches at most 2,048 classes,"
    " and the work depends on that bound: with ten classes it is smaller. The state must be donated (`donate_argnums`), or"
    " each update copies it.",
    "B3": "As B1, but with class means around 10 and the standard deviation 1e-5: the ratio at which the rounding of a float32"
    " mean is as large as the deviations from it.",
    "B4": "1,000 classes, 512 features, statistics at hand. Ours is the whole report; the peer is given five metrics only. The"
    " difference is that of the metrics that both have, between the two.",
    "B5": "Class sizes 200, 100, 50, 50, 64 dimensions, all strengths 5e-4, no bias, float64; direct optimisation starts from"
    " Gaussian factors of standard deviation 0.1. All but `ufm.fit` optimise the features of all 400 samples; `ufm.fit` those of"
    " the class means, a smaller problem. `error` is the relative distance from the least loss that a direct"
    " optimisation reached, as NumPy evaluates it. The stopping rules are tight, so part of their time goes into the"
    " last digits; Adam's number of steps was chosen by us. Torch and Adam run at depth 1 only. What takes more than"
    " five seconds is timed once, in its first call.",
    "B7": "A network 64-16-10 with tanh (1,210 parameters) on 512 of scikit-learn's digits, cross-entropy, at initialisation and"
    " after 500 steps of Adam; the same float32 weights for both sides and both precisions. `error` is the mean relative error over"
    " {keys} draws of the starting vectors, against the dense Hessian in double precision. Seconds are those of one estimate."
    " lambda_max: Lanczos against power iteration. Trace: Hutch++ against Hutchinson. PyHessian runs to the given number"
    " of products, then with its defaults (tolerance 1e-3, at most 100), where the count is the mean of what it made. Its"
    " normalisation adds 1e-6 to the norm, which limits it to about 2e-6; its vectors are drawn in torch's default"
    " precision, which is set to that of the network.",
}


def to_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Write the page: the goals, then one table for each problem."""
    ordered = [family for family in TITLES if family in results]
    rows = [row for family in ordered for row in results[family]["rows"]]
    lines = ["# neuralcollapse: benchmarks", "", INTRODUCTION, "", REPRODUCE, ""]
    missing = [family for family in TITLES if family not in results]
    if missing:
        lines += [f"Not recorded: {', '.join(missing)}.", ""]
    lines += ["## Goals", "", *_goals(rows), ""]
    for family in ordered:
        mine = results[family]["rows"]
        keys = next((row["keys"] for row in mine if "keys" in row), "–")
        lines += [f"## {TITLES[family]}", "", TEXTS[family].format(keys=keys), ""]
        for problem in dict.fromkeys(row["problem"] for row in mine):
            of_problem = [row for row in mine if row["problem"] == problem]
            lines += [f"**{problem}**", "", *_table(of_problem), ""]
        lines += [_context(results[family]["context"]), ""]
    return "\n".join(lines[:-1]) + "\n"


def _goals(rows: list[Row]) -> list[str]:
    said = {True: "yes", False: "**no**", None: "–"}
    lines = ["| problem | method | goal | measured | met |", "| --- | --- | --- | --- | --- |"]
    return lines + [
        f"| {row['problem']} | {goal['method']} | {goal['text']} | {_figure(goal.get('figure'))} | {said[goal['met']]} |"
        for row in rows
        for goal in row.get("goals", [])
    ]


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1e}" if value < 1e-2 else _number(value)


def _table(rows: list[Row]) -> list[str]:
    columns = {title: key for title, key in COLUMNS.items() if any(row.get(key) not in (None, "") for row in rows)}
    lines = ["| method | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    return lines + [
        f"| {row['method']} | " + " | ".join(_cell(row, k) for k in columns.values()) + " |" for row in rows
    ]


def _cell(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None:
        return "–"
    if key in ("error", "worst", "difference"):
        return f"{value:.1e}"
    if key == "loss":
        return f"{value:.12f}"
    if key == "seconds":
        ratio = row["ratio"]
        return _number(value) if ratio in (None, 1.0) else f"{_number(value)} ({_number(ratio)}×)"
    if key in ("state_bytes", "temp_bytes"):
        return _number(value / 2**20)
    if key == "samples_per_second":
        return f"{value:,.0f}"
    return _number(value) if isinstance(value, float) else str(value)


def _context(context: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in context["versions"].items())
    return f"{context['machine']}; {versions}; {context['date']}; `{context['command']}`."


def _number(value: float) -> str:
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
