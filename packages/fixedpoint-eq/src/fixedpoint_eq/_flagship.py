"""What the console script runs: solvers side by side, gradients with and without a solve, and learning from equilibria."""

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np

from . import ep
from ._adjoints import Implicit, Neumann, OneStep
from ._anderson import Anderson
from ._broyden import Broyden
from ._newton_krylov import NewtonKrylov
from ._picard import Picard
from ._problems import FixedPointProblem
from ._results import RESULTS
from ._solution import Solution
from ._solve import solve
from ._solver import AbstractSolver


TOL = 1e-5
_SOLVERS: tuple[AbstractSolver, ...] = (Picard(TOL, 0.0), Anderson(TOL, 0.0), Broyden(TOL, 0.0), NewtonKrylov(TOL, 0.0))
_ADJOINTS = {
    "implicit (default)": Implicit(),
    "20 terms of Neumann's series": Neumann(20),
    "one step": OneStep(),
}


def say(text: str) -> None:
    """Tell of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Equilibria:
    """One problem solved by several solvers, and differentiated in several ways."""

    problem: FixedPointProblem
    rows: list[dict[str, Any]]
    traces: dict[str, Solution]
    gradient_errors: dict[str, float]

    @property
    def solved(self) -> bool:
        """Whether every sample of every solver met the tolerance."""
        return all(bool(jnp.all(s.result == RESULTS.successful)) for s in self.traces.values())


def equilibria(problem: FixedPointProblem, *, gradients: bool = True) -> Equilibria:
    """Solve a problem by each solver, timed after compilation."""
    rows, traces = [], {}
    for solver in _SOLVERS:
        name = type(solver).__name__
        say(f"{problem.name}: {name} ...")
        run = eqx.filter_jit(_solved)
        jax.block_until_ready(run(problem, solver).value)
        start = time.perf_counter()
        solution = run(problem, solver)
        jax.block_until_ready(solution.value)
        seconds = time.perf_counter() - start
        steps, residual = (np.atleast_1d(np.asarray(solution.stats[k])) for k in ("num_steps", "residual"))
        rows.append(
            {
                "solver": name,
                "steps, slowest": int(steps.max()),
                "steps, mean": float(steps.mean()),
                "residual, worst": float(residual.max()),
                "ms": 1e3 * seconds,
            }
        )
        traces[name] = _solved(problem, solver, keep_trace=True)
    return Equilibria(problem, rows, traces, _gradient_errors(problem) if gradients else {})


def _solved(problem: FixedPointProblem, solver: AbstractSolver, keep_trace: bool = False) -> Solution:
    return solve(
        problem.fn, problem.z0, problem.args, solver,
        batch_axis=problem.batch_axis, max_steps=500, throw=False, keep_trace=keep_trace,
    )  # fmt: skip


def _gradient_errors(problem: FixedPointProblem) -> dict[str, float]:
    """Return the relative error of gradients by several adjoints, against a dense factorisation for every sample."""
    say(f"{problem.name}: gradients ...")

    @eqx.filter_jit
    def gradient(adjoint):
        def loss(args):
            value = solve(
                problem.fn, problem.z0, args, Anderson(1e-7, 0.0, memory=8), adjoint,
                batch_axis=problem.batch_axis, throw=False,
            ).value  # fmt: skip
            return jnp.mean((value - 0.5) ** 2)

        return jfu.ravel_pytree(jax.grad(loss)(problem.args)["W"])[0]

    truth = gradient(Implicit(lx.LU()))
    size = jnp.linalg.norm(truth)
    return {name: float(jnp.linalg.norm(gradient(a) - truth) / size) for name, a in _ADJOINTS.items()}


# Each with the rate that suits it, and the coefficient of Jacobian homeostasis: the benchmark FPE-6 says how they were
# chosen.
METHODS: dict[str, tuple[ep.AbstractEstimator, float, float]] = {
    "holomorphic AsymEP": (ep.AsymEP(ep.Cauchy(0.2, 4)), 0.4, 0.0),
    "EP": (ep.Symmetric(0.2), 0.1, 0.0),
    "EP + homeostasis": (ep.Symmetric(0.2), 0.05, 1.0),
    "recurrent backpropagation": (ep.RBP(), 0.4, 0.0),
}


@dataclasses.dataclass(frozen=True)
class Learning:
    """A network trained from equilibria by several estimators."""

    name: str
    curves: dict[str, list[float]]
    flagged: dict[str, float]
    alignment: dict[str, ep.EPInfo]

    def cosine(self, method: str) -> float:
        """Return the mean cosine between the error signal of a method and the true one, after training."""
        cosines = self.alignment[method].alignment
        assert cosines is not None
        return float(jnp.mean(cosines[1]))


def learning(
    name: str,
    data: Any,
    methods: tuple[str, ...],
    *,
    seed: int,
    epochs: int,
    hidden: tuple[int, ...] = (64,),
    batch: int = 50,
) -> Learning:
    """Train a network whose feedback weights are independent of the forward ones, from equilibria alone."""
    x, y, test_x, test_y = (jnp.asarray(part.reshape(len(part), -1) if part.ndim > 1 else part) for part in data)
    classes = int(np.max(data.y)) + 1
    field = ep.mlp((x.shape[1], *hidden, classes), num_outputs=classes)
    curves, flagged, aligned = {}, {}, {}
    for method in methods:
        estimator, rate, homeostasis = METHODS[method]
        # The same first weights and the same order of the batches for all.
        key, params_key = jr.split(jr.key(seed))
        params = field.init(key=params_key, dtype=x.dtype)
        steps = epochs * (len(x) // batch)
        epoch, state = _trainer(field, estimator, homeostasis, rate, steps, batch, params)
        curves[method] = []
        for k in range(epochs):
            params, state, share = epoch(params, state, jr.fold_in(key, k), x, y)
            accuracy, settled = _accuracy(field, params, test_x, test_y)
            curves[method].append(100 * float(accuracy))
            flagged[method] = float(share)
            say(f"{name}, {method}: epoch {k + 1} of {epochs}, {100 * float(accuracy):.1f} % ({settled} settled)")
        _, aligned[method] = eqx.filter_jit(ep.gradient)(
            field, params, x[:200], y[:200], estimator, alignment=True, on_failure="zero", throw=False
        )
    return Learning(name, curves, flagged, aligned)


def _trainer(field, estimator, homeostasis, rate, steps, batch, params) -> tuple[Callable[..., Any], Any]:
    import optax

    schedule = optax.cosine_decay_schedule(rate, steps)
    optimiser = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(schedule, momentum=0.9))

    @jax.jit
    def epoch(params, state, key, x, y):
        order_key, noise_key = jr.split(key)
        rows = jr.permutation(order_key, len(x))[: len(x) // batch * batch].reshape(-1, batch)

        def step(carry, inputs):
            (params, state), (row, key) = carry, inputs
            grads, info = ep.gradient(field, params, x[row], y[row], estimator, on_failure="zero", throw=False)
            updates, state = optimiser.update(grads, state)
            if homeostasis > 0:
                r0 = jax.vmap(field.activation)(info.state)
                extra = jax.grad(lambda p: ep.homeostatic_loss(field, p, r0, key=key))(params)
                updates = jax.tree.map(lambda u, g: u - rate * homeostasis * g, updates, extra)
            return (optax.apply_updates(params, updates), state), jnp.mean(info.result != RESULTS.successful)

        carry, failed = jax.lax.scan(step, (params, state), (rows, jr.split(noise_key, len(rows))))
        return *carry, jnp.mean(failed)

    return epoch, optimiser.init(params)


@eqx.filter_jit
def _accuracy(field, params, x, y):
    prediction, result = ep.predict(field, params, x, throw=False)
    settled = result == RESULTS.successful
    return jnp.mean((jnp.argmax(prediction, axis=1) == y) & settled), jnp.sum(settled)
