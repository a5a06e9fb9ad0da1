"""What the figures say, in sentences that are made of them: where ours win, and where they do not."""

from collections.abc import Callable, Iterator
from typing import Any

from .protocol import Row, named, peers


def sentences(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield a sentence or two for each family that was run."""
    for family, speak in _SPEAKERS.items():
        rows = results.get(family, {}).get("rows")
        if rows:
            yield f"{family}: {speak(rows)}"


def _problems(rows: list[Row]) -> list[list[Row]]:
    """Group the rows by their problem."""
    return [[row for row in rows if row["problem"] == p] for p in dict.fromkeys(row["problem"] for row in rows)]


def _between(values: list[float], form: str = "{:.2g}") -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _fastest(rows: list[Row]) -> Row:
    return min((row for row in peers(rows) if row["seconds"]), key=lambda row: row["seconds"])


def _accelerated(rows: list[Row]) -> str:
    draws = [group for group in _problems(rows) if "gradient" not in group[0]["problem"]]
    counts = _between([group[0]["iterations"] for group in draws], "{}")
    picard = _between([named(group, "ours, Picard")["iterations"] for group in draws], "{}")
    speed = _between([_fastest(group)["ratio"] for group in draws])
    names = ", ".join(dict.fromkeys(_fastest(group)["method"] for group in draws))
    text = (
        f"Anderson's acceleration takes {counts} evaluations where Picard's iteration takes {picard}, and the fastest peer"
        f" ({names}) {speed} times as long."
    )
    gradients = [group for group in _problems(rows) if "gradient" in group[0]["problem"]]
    for group in gradients:
        fast = _fastest(group)
        own = group[1]
        text += (
            f" With the gradient, the fastest peer ({fast['method']}) takes {fast['ratio']:.2g} times as long as the default;"
            f" `ImplicitFP` takes {own['ratio']:.2g} times the time of the default, so use it where speed matters most."
        )
    return text


def _not_accelerated(rows: list[Row]) -> str:
    by_hand = [1 / named(group, "Picard by hand, while_loop")["ratio"] for group in _problems(rows)]
    return (
        f"there is nothing to accelerate: the default takes {_between(by_hand)} times as long as Picard's iteration by hand."
        " Where the map contracts fast, `Picard` is the better choice."
    )


def _qualities(rows: list[Row]) -> str:
    parts = []
    for group in _problems(rows):
        best = min(peers(group), key=lambda row: row["error"])
        neumann = named(group, "ours, Neumann")["error"]
        parts.append(
            f"{group[0]['problem'].split(', ', 1)[1]}: {group[0]['error']:.1e}, Neumann's series {neumann:.1e}, the best peer"
            f" ({best['method']}) {best['error']:.1e}"
        )
    return "the error of FGMRES with 20 products is, at " + "; ".join(parts) + "."


def _memories(rows: list[Row]) -> str:
    last = _problems(rows)[-1]
    times = {row["method"]: row["temp_bytes"] / last[0]["temp_bytes"] for row in peers(last) if row["temp_bytes"]}
    found = ", ".join(f"{name} {ratio:.2g}" for name, ratio in times.items())
    return f"{last[0]['problem'].split(', ')[1]}: times the temporary memory of ours: {found}."


def _holomorphic(rows: list[Row]) -> str:
    ours = next(row for row in reversed(rows) if row["method"] == "holomorphic AsymEP (ours)")
    plain = next(row for row in reversed(rows) if row["method"] == "holomorphic EP")
    return (
        f"with N = {ours['points']} points and β = {ours['nudge']}, holomorphic AsymEP has the error {ours['error']:.1e} (cosine"
        f" {ours['cosine']:.6f}); plain holomorphic equilibrium propagation {plain['error']:.2g} (cosine {plain['cosine']:.3f})."
    )


def _digits(rows: list[Row]) -> str:
    return "; ".join(f"{row['method']} {row['accuracy']:.1f} ± {row['deviation']:.1f} %" for row in rows) + "."


def _graphs(key: str, text: str) -> Callable[[list[Row]], str]:
    def speak(rows):
        parts = [
            f"{group[0]['problem'].split(', ', 1)[1]}: " + ", ".join(f"{row['method']} {row[key]}" for row in group)
            for group in _problems(rows)
        ]
        return f"{text}, after {rows[0]['steps']} steps, by test: " + "; ".join(parts) + "."

    return speak


def _radii(rows: list[Row]) -> str:
    parts = []
    for group in _problems(rows):
        ours = ", ".join(f"{row['error']:.1e} with {row['iterations']}" for row in group if row not in peers(group))
        best = min(peers(group), key=lambda row: row["error"])
        parts.append(
            f"{group[0]['problem'].split(', ', 1)[1]}: {ours} products; torchdeq's best {best['error']:.2g}, with"
            f" {best['iterations']}"
        )
    return "the worst relative error is, for " + "; ".join(parts) + "."


def _field(rows: list[Row]) -> str:
    split = next(row for row in rows if "split" in row["method"])
    accelerated = named(rows, "ours, the same Anderson for the adjoint")
    if split["seconds"] is None:
        return "optimistix, split into parts, gave no answer."
    speed = split["seconds"] / accelerated["seconds"]
    memory = split["temp_bytes"] / accelerated["temp_bytes"]
    return (
        f"optimistix, split into parts, takes {split['ratio']:.2g} times the time of our default, and {speed:.2g} times that of"
        f" ours with `ImplicitFP`, with {memory:.2g} times its temporary memory."
    )


_SPEAKERS: dict[str, Callable[[list[Row]], str]] = {
    "FPE-1": _accelerated,
    "FPE-2": _not_accelerated,
    "FPE-3": _qualities,
    "FPE-4": _memories,
    "FPE-5": _holomorphic,
    "FPE-6": _digits,
    "FPE-7": _graphs("mape_of_label", "MAPE, % of the label"),
    "FPE-8": _graphs("rmse", "RMSE"),
    "FPE-9": _radii,
    "FPE-10": _field,
}
