"""Streaming: 10^7 snapshots and 256 real functions, in memory for the triangle and one block.

Run `python -m benchmarks.stream`.
"""

import argparse
import json
import time
from collections.abc import Iterator

import jax
import koopman_verify
import numpy as np

from .protocol import apart, peak_bytes


def blocks(num: int, block: int, seed: int = 0) -> Iterator[koopman_verify.Snapshots]:
    """Yield snapshots of the golden rotation of the circle, a block at a time."""
    rng, angle = np.random.default_rng(seed), 2 * np.pi * (np.sqrt(5) - 1) / 2
    for start in range(0, num, block):
        x = rng.uniform(0, 2 * np.pi, (min(block, num - start), 1)).astype(_dtype())
        yield koopman_verify.Snapshots(x, (x + _dtype()(angle)) % _dtype()(2 * np.pi))


def _dtype() -> type:
    return np.float64 if jax.config.jax_enable_x64 else np.float32


def measure(num: int, block: int, size: int = 256) -> dict:
    """Return the time of one factorisation and the peak memory of this process, before and after."""
    nodes = np.random.default_rng(1).uniform(0, 2 * np.pi, size)
    dictionary = koopman_verify.Hats(nodes)
    # Compilation (and the memory that it takes) comes first, so that both can be told apart.
    jax.block_until_ready(koopman_verify.factor(dictionary, blocks(2 * block, block)).A)
    before, wall, cpu = peak_bytes(), time.perf_counter(), time.process_time()
    factor = koopman_verify.factor(dictionary, blocks(num, block))
    jax.block_until_ready(factor.A)
    return dict(
        problem="stream",
        M=factor.num_snapshots,
        N=factor.size,
        block=block,
        dtype=str(factor.A.dtype),
        wall_seconds=round(time.perf_counter() - wall, 2),
        cpu_seconds=round(time.process_time() - cpu, 2),
        peak_bytes=peak_bytes(),
        peak_bytes_after_compilation=before,
        isometry_defect=float(factor.isometry_defect),
        cond=float(factor.cond),
    )


def rows(
    num: int = 10_000_000, block_sizes: tuple[int, ...] = (16384,), *, size: int = 256, x64: bool = True
) -> Iterator[dict]:
    """Yield one row for each block size, each measured in a process of its own: a peak never falls."""
    for block in block_sizes:
        more = [] if x64 else ["--float32"]
        yield from apart("stream", "--one", "--num", num, "--blocks", block, "--size", size, *more)


def main() -> None:
    """Print one row of JSON for each block size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=10_000_000)
    parser.add_argument("--blocks", type=int, nargs="+", default=[16384])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--one", action="store_true", help="measure in this process")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", not args.float32)
    if args.one:
        print(json.dumps(measure(args.num, args.blocks[0], args.size)))
        return
    for row in rows(args.num, tuple(args.blocks), size=args.size, x64=not args.float32):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
