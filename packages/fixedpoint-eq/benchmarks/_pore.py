"""FPE-8: pressures in pore networks, trained on 50 to 100 pores and tested on up to 400, with exact labels.

    python -m benchmarks._pore [--steps 1000] [--seeds 1] [--full]

The models are those of FPE-7, but with the paper's number of heads and rounds: 16 heads after a single round of messages, so
that all that reaches further is the equilibrium. `--full` trains with the paper's batch of 32 networks of 50 to 200 pores.
"""

import argparse
import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from fixedpoint_eq import graph as fg

from ._gvi import batches, count, train


MODELS = {
    "GNN": fg.ContractingMap(0.0),
    "CGS, paper": fg.ContractingMap(0.5, "outdegree"),
    "CGS, ours": fg.ContractingMap(0.9, "softmax"),
}
TESTS = {"50-100 pores": (50, 100), "200": (200, 200), "400": (400, 400)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--graphs", type=int, default=8, help="test networks of each kind")
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    num_graphs, pores, slots = (32, (50, 200), (5000, 75000)) if options.full else (8, (50, 100), (750, 9500))
    rate, reuse = (1e-3, 32) if options.full else (3e-3, 8)
    draw = ft.partial(fg.pore_network_problem, num_pores=pores)

    tests = {
        name: fg.pore_network_problem(jr.key(10_000 + k), options.graphs, num_pores=range_)
        for k, (name, range_) in enumerate(TESTS.items())
    }
    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}; {options.steps} steps of {num_graphs} networks, {rate=}"
    )
    print("\n| model (parameters) | seed | ms a step | test | RMSE of free pores | MAPE of free pores, % | R^2 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for seed in range(options.seeds):
        for name, map in MODELS.items():
            problems = batches(draw, num_graphs, slots, seed=seed, reuse=reuse)
            model, seconds = train(fg.CGS.pore_network(map, key=jr.key(seed)), problems, options.steps, rate)
            for test, problem in tests.items():
                prediction = eqx.filter_jit(model)(problem.graph)
                free = problem.graph.nodes[:, 3] == 0
                square = np.mean(np.asarray(prediction - problem.target)[free] ** 2)
                mape = float(fg.mean_absolute_percentage_error(prediction, problem.target, where=free))
                fit = 1 - square / jnp.var(problem.target[:, 0], where=free)
                print(
                    f"| {name} ({count(model)}) | {seed} | {1e3 * seconds:.0f} | {test} | {square**0.5:.4f} | {mape:.2f} | "
                    f"{fit:.4f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
