"""FPE-7: graph value iteration, trained on 20 to 49 states and tested on up to 200, with exact labels.

    python -m benchmarks.value_iteration    # at the paper's size: days on a CPU

Three models with the same encoder and decoder, drawn from the same key, trained on the same batches:

- `GNN`: gamma = 0, so that the decoder reads the encoder's output: message passing alone, as far as its rounds reach;
- `CGS, paper`: gamma = 0.5, clipped logits over the out-degree, rows of senders;
- `CGS, ours`: gamma = 0.9, softmax, rows of receivers, so that values flow along the edges.

`python -m benchmarks` takes a reduced size and number of steps, for minutes on one core. The paper's size is 5,000 steps of
64 graphs.
"""

import functools as ft
import time
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from fixedpoint_eq import graph as fg

from .environment import version
from .protocol import OURS, Row, say


MODELS = {
    "GNN": fg.ContractingMap(0.0, rows="receivers"),
    "CGS, paper": fg.ContractingMap(0.5, "outdegree"),
    "CGS, ours": fg.ContractingMap(0.9, "softmax", rows="receivers"),
}
TESTS = {
    "20-49 states": dict(num_states=(20, 49)),
    "50": dict(num_states=(50, 50)),
    "100": dict(num_states=(100, 100)),
    "200": dict(num_states=(200, 200)),
    "200, 15 actions": dict(num_states=(200, 200), num_actions=(15, 15)),
}


def small(inputs, map, *, key, heads=32, num_hidden=1, width=32, hidden=(64,)):
    """Return a model of about a sixth of the paper's size."""
    encoder_key, decoder_key = jr.split(key)
    encoder = fg.MPNN(inputs, heads, num_hidden, width, hidden, key=encoder_key)
    return fg.CGS(encoder, map, fg.MLP((heads, 64, 32, 1), key=decoder_key))


def count(model) -> int:
    """Return the number of parameters."""
    return sum(leaf.size for leaf in jtu.tree_leaves(eqx.filter(model, eqx.is_inexact_array)))


def batches(draw, num_graphs: int, slots: tuple[int, int], *, seed: int, reuse: int):
    """Yield padded problems without end, each `reuse` times; those that do not fit are drawn again."""
    for k in range(10**9):
        problem = draw(jr.fold_in(jr.key(seed), k), num_graphs)
        nodes, edges = len(problem.target), len(problem.graph.senders)
        if nodes >= slots[0] or edges > slots[1]:
            continue
        graph = fg.pad(problem.graph, *slots, num_graphs + 1)
        target = jnp.pad(problem.target, ((0, slots[0] - nodes), (0, 0)))
        for _ in range(reuse):
            yield fg.GraphProblem(graph, target)


def train(model, problems, steps: int, rate: float) -> tuple[Any, float]:
    """Minimise the squared error with Adam, its rate falling by a cosine; return the model and CPU seconds a step."""

    def loss(model, problem):
        square = (model(problem.graph) - problem.target) ** 2
        return jnp.mean(square[:, 0], where=fg.node_mask(problem.graph))

    @eqx.filter_jit
    def update(model, moments, problem, k):
        gradient = eqx.filter_grad(loss)(model, problem)
        first, second = (
            jtu.tree_map(lambda m, g, p=power, b=beta: b * m + (1 - b) * g**p, m, gradient)
            for m, power, beta in zip(moments, (1, 2), (0.9, 0.999), strict=True)
        )
        step = rate * 0.5 * (1 + jnp.cos(jnp.pi * k / steps))
        scaled = lambda m, v: -step * (m / (1 - 0.9 ** (k + 1))) / (jnp.sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
        return eqx.apply_updates(model, jtu.tree_map(scaled, first, second)), (first, second)

    zeros = jtu.tree_map(jnp.zeros_like, eqx.filter(model, eqx.is_inexact_array))
    moments, start = (zeros, zeros), None
    for k, problem in zip(range(steps), problems, strict=False):
        model, moments = update(model, moments, problem, jnp.asarray(k, jnp.float32))
        if k == 0:
            jax.block_until_ready(moments)
            start = time.process_time()
    jax.block_until_ready(moments)
    return model, (time.process_time() - start) / max(steps - 1, 1)


def loose_labels(problem, discount: float = 0.9) -> np.ndarray:
    """Return values by iteration from zero that stops at changes of 1e-3, as the labels of the public program do."""
    graph = jtu.tree_map(np.asarray, problem.graph)
    values = np.zeros(len(graph.nodes))
    while True:
        new = np.full(len(values), -np.inf)
        np.maximum.at(new, graph.receivers, graph.edges[:, 0] + discount * values[graph.senders])
        values, change = new, np.max(np.abs(new - values))
        if change <= 1e-3:
            return values


def rows(quick: bool = False, full: bool = False) -> Iterator[Row]:
    """Yield a row for each model and test: the errors' means over the seeds."""
    steps, seeds = (5000, 3) if full else (20, 1) if quick else (200, 3)
    num_graphs, slots, reuse = (64, (2600, 18500), 32) if full else (16, (700, 5200), 4)
    rate = 1e-3 if full else 3e-3
    make = fg.CGS.value_iteration if full else ft.partial(small, (1, 1))
    tests = {
        name: fg.value_iteration_problem(jr.key(10_000 + k), 8, **kwargs)
        for k, (name, kwargs) in enumerate(TESTS.items())
    }
    label_error = max(float(np.max(np.abs(loose_labels(p) - p.target[:, 0]))) for p in tests.values())
    for name, map in MODELS.items():
        found, seconds = {test: [] for test in tests}, []
        for seed in range(seeds):
            problems = batches(fg.value_iteration_problem, num_graphs, slots, seed=seed, reuse=reuse)
            model, per_step = train(make(map=map, key=jr.key(seed)), problems, steps, rate)
            seconds.append(per_step)
            for test, problem in tests.items():
                prediction = eqx.filter_jit(model)(problem.graph)
                mape = ft.partial(fg.mean_absolute_percentage_error, prediction, problem.target)
                right = 100 * float(fg.policy_accuracy(problem, prediction))
                errors = float(mape(relative_to="target")), float(mape(relative_to="prediction"))
                found[test].append((*errors, right))
            say(f"FPE-7 {name}, seed {seed}: {found['200'][-1]}")
        for test, values in found.items():
            mean, deviation = np.mean(values, axis=0), np.std(values, axis=0)
            yield {
                "problem": f"FPE-7 gvi, {test}",
                "method": name,
                "distribution": OURS,
                "version": version(OURS),
                "parameters": count(model),
                "error": float(mean[0]) / 100,
                "mape_of_label": spread(mean[0], deviation[0]),
                "mape_of_prediction": spread(mean[1], deviation[1]),
                "policy_accuracy": spread(mean[2], deviation[2]),
                "seconds": float(np.median(seconds)),
                "steps": steps,
                "seeds": seeds,
                "by_seed": values,
                "label_error": label_error,
            }


def spread(mean: float, deviation: float) -> str:
    """Write a mean and a standard deviation over the seeds."""
    return f"{mean:.2f} ± {deviation:.2f}"


def main() -> None:
    """Run at the paper's size, and print a row a line."""
    for row in rows(full=True):
        print(row, flush=True)


if __name__ == "__main__":
    main()
