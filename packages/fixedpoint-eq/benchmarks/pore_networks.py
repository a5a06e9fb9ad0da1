"""FPE-8: pressures in pore networks, trained on 50 to 100 pores and tested on up to 400, with exact labels.

    python -m benchmarks.pore_networks    # at the paper's size: long on a CPU

The models are those of FPE-7, but with the paper's number of heads and rounds: 16 heads after a single round of messages, so
that all that reaches further is the equilibrium. The paper trains 1,000 steps with 32 networks of 50 to 200 pores.
"""

import functools as ft
from collections.abc import Iterator

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from fixedpoint_eq import graph as fg

from .environment import version
from .protocol import OURS, Row, say
from .value_iteration import batches, count, spread, train


MODELS = {
    "GNN": fg.ContractingMap(0.0),
    "CGS, paper": fg.ContractingMap(0.5, "outdegree"),
    "CGS, ours": fg.ContractingMap(0.9, "softmax"),
}
TESTS = {"50-100 pores": (50, 100), "200": (200, 200), "400": (400, 400)}


def rows(quick: bool = False, full: bool = False) -> Iterator[Row]:
    """Yield a row for each model and test: the errors' means over the seeds."""
    # Less than for FPE-7: a step is dearer.
    steps, seeds = (1000, 3) if full else (20, 1) if quick else (100, 3)
    num_graphs, pores, slots = (32, (50, 200), (5000, 75000)) if full else (8, (50, 100), (750, 9500))
    rate, reuse = (1e-3, 32) if full else (3e-3, 8)
    draw = ft.partial(fg.pore_network_problem, num_pores=pores)
    tests = {
        name: fg.pore_network_problem(jr.key(10_000 + k), 8, num_pores=range_)
        for k, (name, range_) in enumerate(TESTS.items())
    }
    for name, map in MODELS.items():
        found, seconds = {test: [] for test in tests}, []
        for seed in range(seeds):
            problems = batches(draw, num_graphs, slots, seed=seed, reuse=reuse)
            model, per_step = train(fg.CGS.pore_network(map, key=jr.key(seed)), problems, steps, rate)
            seconds.append(per_step)
            for test, problem in tests.items():
                prediction = eqx.filter_jit(model)(problem.graph)
                free = problem.graph.nodes[:, 3] == 0
                square = float(np.mean(np.asarray(prediction - problem.target)[free] ** 2))
                mape = float(fg.mean_absolute_percentage_error(prediction, problem.target, where=free))
                fit = 1 - square / float(jnp.var(problem.target[:, 0], where=free))
                found[test].append((square**0.5, mape, fit))
            say(f"FPE-8 {name}, seed {seed}: {found['400'][-1]}")
        for test, values in found.items():
            mean, deviation = np.mean(values, axis=0), np.std(values, axis=0)
            yield {
                "problem": f"FPE-8 pore, {test}",
                "method": name,
                "distribution": OURS,
                "version": version(OURS),
                "parameters": count(model),
                "error": float(mean[0]),
                "rmse": f"{mean[0]:.4f} ± {deviation[0]:.4f}",
                "mape": spread(mean[1], deviation[1]),
                "fit": f"{mean[2]:.3f} ± {deviation[2]:.3f}",
                "seconds": float(np.median(seconds)),
                "steps": steps,
                "seeds": seeds,
                "by_seed": values,
            }


def main() -> None:
    """Run at the paper's size, and print a row a line."""
    for row in rows(full=True):
        print(row, flush=True)


if __name__ == "__main__":
    main()
