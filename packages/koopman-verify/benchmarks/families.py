"""The named benchmarks: each a function from (quick, repeats) to rows."""

import json
import pathlib
from collections.abc import Callable, Iterator

from . import game, peers as others, precision as floors, rotation as roots
from .protocol import Row, apart


_COVERAGE = pathlib.Path(__file__).with_name("coverage.json")


def precision(_: bool, __: int) -> Iterator[Row]:
    """KV-1: the precision floor."""
    yield from floors.rows()


def rotation(quick: bool, repeats: int) -> Iterator[Row]:
    """KV-2: three roots of one and nothing else."""
    yield from roots.rows((10, 20) if quick else (10, 20, 40, 80), repeats=repeats)


def duffing(quick: bool, _: int) -> Iterator[Row]:
    """KV-3: every size in a process of its own, as a peak of memory never falls."""
    sizes, num = ((50, 100), 1000) if quick else ((100, 200, 400, 800, 1259), 10_000)
    for size in sizes:
        yield from apart("duffing", "--sizes", size, "--num", num, "--width", 0.3)
    for size in sizes[:2]:  # what the restriction of the grid changes
        yield from apart("duffing", "--sizes", size, "--num", num)


def pendulum(quick: bool, _: int) -> Iterator[Row]:
    """KV-4: spectral measures against the truth from action and angle."""
    yield from apart("pendulum", *(("--orders", 10, "--delays", 20, "--kernels", "1,4") if quick else ()))


def coverage(quick: bool, _: int) -> Iterator[Row]:
    """KV-5: whether certificates are true. The recorded study is read: `benchmarks.coverage --out` takes long."""
    if quick or not _COVERAGE.exists():
        recorded = list(apart("coverage", *(("--seeds", 80, "--reference", 50_000) if quick else ())))
    else:
        recorded = json.loads(_COVERAGE.read_text())
    cases: dict[tuple, Row] = {}
    for row in recorded:  # one row for the certificate and for what would have happened otherwise
        case = cases.setdefault((row["problem"], row["M/N"], row["holdout"]), {})
        mine = row["method"] == "certify"
        case.update(row if mine else {f"{row['method']}_{key}": row[key] for key in ("false", "bound/true")})
    yield from cases.values()


def adversary(quick: bool, _: int) -> Iterator[Row]:
    """KV-6: impossibility, executed."""
    yield from game.rows(*(((12,), (2,), 10) if quick else ()))


def stream(quick: bool, _: int) -> Iterator[Row]:
    """KV-7: two lengths, so that memory can be seen not to grow."""
    for num in (200_000, 400_000) if quick else (2_000_000, 10_000_000):
        yield from apart("stream", "--one", "--num", num, "--blocks", 32768, "--size", 64 if quick else 256)


def learned(quick: bool, _: int) -> Iterator[Row]:
    """KV-8: a dictionary that is trained, on a seed that nothing was chosen on."""
    yield from apart("learned", "pendulum", "--seed", 7, *(("--epochs", 5) if quick else ()))


def peers(quick: bool, repeats: int) -> Iterator[Row]:
    """KV-9: the same data for every library."""
    yield from others.rows(repeats, ("rotation",) if quick else ("rotation", "duffing"))


FAMILIES: dict[str, Callable[[bool, int], Iterator[Row]]] = {
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
