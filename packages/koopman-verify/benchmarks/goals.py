"""What the project's issue and specification ask of each family, as figures of the recorded rows."""

import itertools
from collections.abc import Callable

from .protocol import Goal, Row


def precision(rows: list[Row]) -> list[Goal]:
    """KV-1."""
    goals = []
    for dtype, floor in (("float64", 1e-14), ("float32", 1e-6)):
        ours, squared = (r for r in rows if r["dtype"] == dtype and r["cond"] == 1)
        gain = squared["at_eigenvalue"] / ours["at_eigenvalue"]
        goals += [
            Goal(
                f"{dtype}: residual floor at an exact eigenvalue at most {floor:.0e}", ours["at_eigenvalue"], most=floor
            ),
            Goal(f"{dtype}: the squared form's floor is at least 10,000 times higher", gain, least=1e4),
        ]
    return goals


def rotation(rows: list[Row]) -> list[Goal]:
    """KV-2."""
    ours = [row for row in rows if "verified" in row["method"]]
    goals = []
    for row in ours:
        n = row["N"]
        goals += [
            Goal(f"N = {n}: points that are no root of one: none", row["pollution"], most=1e-12),
            Goal(f"N = {n}: E below 0.05", row["E"], most=0.05),
        ]
    others = [row["pollution"] for row in rows if "verified" not in row["method"]]
    return [*goals, Goal("least pollution of any EDMD, of every library: at least 0.9", min(others), least=0.9)]


def duffing(rows: list[Row]) -> list[Goal]:
    """KV-3."""
    mine = [row for row in rows if row["width"] < 2]
    largest = max(row["N"] for row in mine)
    falls = max(b["E2_kappa1"] / a["E2_kappa1"] for a, b in itertools.pairwise(mine)) if mine[1:] else None
    return [
        Goal("the paper's sizes, N up to 1,259: largest N measured", largest, least=1259),
        Goal("E2 falls with N, kappa 1: largest ratio of one size to the one before", falls, most=1.0),
        Goal(
            "E2 below the worst EDMD residual: largest ratio",
            max(r["E2_kappa1"] / r["edmd_worst"] for r in rows),
            most=1,
        ),
    ]


def pendulum(rows: list[Row]) -> list[Goal]:
    """KV-4."""
    cross = [row for row in rows if row["method"] == "hyperbolic cross"]
    found = [row for row in cross if row["quantity"] == "h_N" and row["published"]]
    off = max(abs(a - b) for row in found for a, b in zip(row["values"], row["published"], strict=True))
    least = min(row["least_residual_off_circle"] for row in cross if row["quantity"] == "audit")
    best = min(row["density_error"] for row in rows if row["quantity"] == "measure")
    return [
        Goal("h_N at the paper's angles agrees with the replica's figures, to their three digits", off, most=1.5e-3),
        Goal("every eigenvalue off the circle has a residual of at least 0.4: least", least, least=0.4),
        Goal("best density against the smoothed truth, relative error", best),
    ]


def coverage(rows: list[Row]) -> list[Goal]:
    """KV-5."""
    total = lambda name: sum(row.get(name) or 0 for row in rows)
    return [
        Goal("families of certificates at level 0.99", total("seeds"), least=1000),
        Goal("false among them: none", total("false"), most=0),
    ]


def adversary(rows: list[Row]) -> list[Goal]:
    """KV-6."""
    maps = [row for row in rows if "twists" in row]
    games = [row for row in rows if "oscillations" in row]
    right = sum("undetermined without a modulus" in row["status"] for row in maps)
    coin = next(row for row in rows if "rate" in row)
    excess = (coin["rate"] - 0.5) * 2 * coin["games"] ** 0.5
    return [
        Goal("both maps through all snapshots: largest mismatch", max(r["mismatch"] for r in maps), most=1e-9),
        Goal('answered "undetermined without a modulus", of all constructions', right / len(maps), least=1),
        Goal("most oscillations of one black box", max(row["oscillations"] for row in games), least=2),
        Goal("the coin: right above one half, in standard deviations", excess, most=3),
    ]


def stream(rows: list[Row]) -> list[Goal]:
    """KV-7."""
    short, long = rows[0], rows[-1]
    grown = (long["peak_bytes"] - short["peak_bytes"]) / 2**20 if len(rows) > 1 else None
    return [
        Goal("snapshots streamed, N = 256", max(row["M"] for row in rows), least=10**7),
        Goal("memory of five times the snapshots: MiB more", grown, most=64),
    ]


def learned(rows: list[Row]) -> list[Goal]:
    """KV-8."""
    ours = next(row for row in rows if row["method"].endswith("verify, trained"))
    theirs = next(row for row in rows if row["method"].endswith("repository, trained"))
    share = ours["mean_square_residual"] / theirs["mean_square_residual"]
    return [Goal("mean squared residual over the published one (not the same run), below 1", share, most=1)]


def peers(rows: list[Row]) -> list[Goal]:
    """KV-9."""
    goals = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        mine = [row for row in rows if row["problem"] == problem]
        ours = next(row for row in mine if row["method"] == "koopman-verify")
        others = [row for row in mine if not row["method"].startswith(("koopman-verify", "NumPy"))]
        goals.append(
            Goal(
                f"{problem}: false eigenvalues that were certified",
                sum(r.get("false_certified", 0) for r in mine),
                most=0,
            )
        )
        if others:
            by_hand = ours["cpu_seconds"] / min(
                row["cpu_with_residuals"] for row in others if "cpu_with_residuals" in row
            )
            goals += [
                Goal(f"{problem}: CPU time over the fastest library's, without residuals", ours["ratio"], most=1.5),
                Goal(f"{problem}: CPU time over the fastest library's with residuals by hand", by_hand, most=1.5),
            ]
    return goals


GOALS: dict[str, Callable[[list[Row]], list[Goal]]] = {
    "KV-1": precision,
    "KV-2": rotation,
    "KV-3": duffing,
    "KV-4": pendulum,
    "KV-5": coverage,
    "KV-6": adversary,
    "KV-7": stream,
    "KV-8": learned,
    "KV-9": peers,
}
