"""The named benchmarks: each a function from (quick, repeats) to rows."""

from collections.abc import Callable, Iterator

from .protocol import Row, apart


def duffing(quick: bool, _: int) -> Iterator[Row]:
    """KV-3: every size in a process of its own, as a peak of memory never falls."""
    sizes, num = ((50, 100), 1000) if quick else ((100, 200, 400, 800, 1259), 10_000)
    for size in sizes:
        yield from apart("duffing", "--sizes", size, "--num", num, "--width", 0.3)
    for size in sizes[:3]:  # what the restriction of the grid changes
        yield from apart("duffing", "--sizes", size, "--num", num)


def stream(quick: bool, _: int) -> Iterator[Row]:
    """KV-7: two lengths, so that memory can be seen not to grow."""
    for num in (200_000, 400_000) if quick else (2_000_000, 10_000_000):
        yield from apart("stream", "--one", "--num", num, "--blocks", 32768, "--size", 64 if quick else 256)


FAMILIES: dict[str, Callable[[bool, int], Iterator[Row]]] = {
    "KV-3": duffing,
    "KV-7": stream,
}
