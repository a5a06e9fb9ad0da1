"""C1: CPU seconds to trace, lower and compile one solve, and its gradient, each in a fresh process.

`python -m benchmarks.compiling METHOD` prints the seconds of one method.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import lineax as lx
from implicit_core.krylov import PCG

from .environment import version
from .protocol import OURS, Goal, Row, judged


METHODS = {
    OURS: ("implicit-core", PCG(rtol=1e-4)),
    "jax.scipy cg": ("jax", None),
    "lineax CG": ("lineax", lx.CG(1e-4, 1e-4)),
    "lineax GMRES": ("lineax", lx.GMRES(1e-4, 1e-4)),
}


def rows(quick: bool) -> list[Row]:
    """Measure all methods in turn, several times over."""
    taken: dict[str, list[dict]] = {name: [] for name in METHODS if not (quick and name == "lineax GMRES")}
    for _ in range(1 if quick else 5):
        for name, runs in taken.items():
            command = [sys.executable, "-m", "benchmarks.compiling", name]
            root = pathlib.Path(__file__).resolve().parents[1]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=root, check=True)
            runs.append(json.loads(done.stdout))
    out = []
    for what, bound in (("solve", 0.6), ("gradient", 0.8)):
        found = [
            {
                "problem": f"C1 compile {what}, n=256",
                "method": name,
                "version": version(METHODS[name][0]),
                "error": None,
                "seconds": statistics.median(timings := [run[what] for run in runs]),
                "compile_seconds": None,
                "peak_bytes": None,
                "timings": timings,
                "note": "",
            }
            for name, runs in taken.items()
        ]
        out += judged(Goal(f"≤ {bound} s", lambda by, bound=bound: by[OURS]["seconds"] <= bound), found)
    return out


def main(name: str) -> int:
    """Print the seconds of one method."""
    matrix, b = jnp.diag(jnp.linspace(1, 100, 256)), jnp.ones(256)
    solver = METHODS[name][1]

    def solve(a, b):
        if solver is None:
            return jax.scipy.sparse.linalg.cg(lambda v: a @ v, b, tol=1e-4)[0]
        return lx.linear_solve(lx.MatrixLinearOperator(a, lx.positive_semidefinite_tag), b, solver, throw=False).value

    jax.block_until_ready(jax.jit(lambda x: x @ x)(matrix))  # what the first compilation of a process costs
    loss = lambda a, b: jnp.sum(solve(a, b) ** 2)
    seconds = {}
    for what, fn in (("solve", solve), ("gradient", jax.grad(loss))):
        start = time.process_time()
        jax.jit(fn).lower(matrix, b).compile()
        seconds[what] = time.process_time() - start
    print(json.dumps(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
