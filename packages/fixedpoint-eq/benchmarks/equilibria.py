"""FPE-1 and FPE-2: how many evaluations and how long to the equilibria of a batch, and with their gradient."""

from collections.abc import Callable, Iterator

import fixedpoint_eq as fpe
import jax
import jax.numpy as jnp
import numpy as np

from . import deq, peers, protocol
from .protocol import OURS, Case, Goal, Method, Prepared, compiled


TOL = 1e-5  # |f(z) - z| <= TOL |f(z)|, for each row
BATCH, SIZE = 64, 256


def cases(quick: bool) -> Iterator[Case]:
    """Yield four draws of FPE-1, one with gradient, and two draws of FPE-2; of each one if `quick`."""
    for seed in range(1 if quick else 4):
        problem = deq.draw(SIZE, BATCH, 0.99, symmetric=True, seed=seed)
        yield Case(f"FPE-1 deq-sym-0.99, draw {seed}", _solvers(problem), _residual(problem), _ACCELERATED)
    problem = deq.draw(SIZE, BATCH, 0.99, symmetric=True, seed=0)
    exact = deq.gradient(problem)
    error = lambda value: protocol.relative(value, exact)
    yield Case("FPE-1 with gradient, draw 0", _gradients(problem), error, _FASTER)
    for seed in range(1 if quick else 2):
        problem = deq.draw(SIZE, BATCH, 0.95, symmetric=False, seed=seed)
        yield Case(f"FPE-2 deq-gauss-0.95, draw {seed}", _solvers(problem), _residual(problem), _NO_WORSE)


def _residual(problem: deq.Deq) -> Callable[[np.ndarray], float]:
    return lambda z: deq.residual(problem, z)


def _beats(rows: list[protocol.Row]) -> bool:
    return all(rows[0]["seconds"] < row["seconds"] for row in protocol.peers(rows) if row["seconds"])


_BY_HAND = "Picard by hand, while_loop"
_ACCELERATED = Goal(
    "at most 30 evaluations, less time than every peer", lambda rows: rows[0]["iterations"] <= 30 and _beats(rows)
)
_FASTER = Goal("error at most 1e-4, less time than every peer", lambda rows: rows[0]["error"] <= 1e-4 and _beats(rows))
_NO_WORSE = Goal(
    "no more evaluations than Picard by hand, at most 1.3 times its time",
    lambda rows: (
        rows[0]["iterations"] <= protocol.named(rows, _BY_HAND)["iterations"]
        and rows[0]["seconds"] <= 1.3 * protocol.named(rows, _BY_HAND)["seconds"]
    ),
)


def _solvers(problem: deq.Deq) -> list[Method]:
    def ours(solver) -> Callable[[], Prepared]:
        def run(W, x):
            solution = fpe.solve(
                deq.layer, jnp.zeros_like(x), (W, x), solver, batch_axis=0, max_steps=1000, throw=False
            )
            return solution.value, solution.stats["num_steps"]

        return lambda: compiled(run, problem.W, problem.x)

    by_hand = lambda: compiled(_picard, problem.W, problem.x)
    return [
        Method("ours, Anderson m=5", OURS, ours(fpe.Anderson(TOL, 0.0))),
        Method("ours, Anderson m=10", OURS, ours(fpe.Anderson(TOL, 0.0, 10))),
        Method("ours, Broyden", OURS, ours(fpe.Broyden(TOL, 0.0))),
        Method("ours, Picard", OURS, ours(fpe.Picard(TOL, 0.0))),
        Method(_BY_HAND, "jax", by_hand),
        *peers.optimistix_solvers(problem, TOL),
        *peers.jaxopt_solvers(problem, TOL),
        *peers.torchdeq_solvers(problem, TOL),
    ]


def _gradients(problem: deq.Deq) -> list[Method]:
    def ours(solver, adjoint) -> Callable[[], Prepared]:
        def loss(W, x, target):
            solution = fpe.solve(
                deq.layer, jnp.zeros_like(x), (W, x), solver, adjoint, batch_axis=0, max_steps=1000, throw=False
            )
            return deq.loss(solution.value, target)

        return lambda: compiled(lambda *arrays: (jax.grad(loss)(*arrays), None), *problem.arrays)

    anderson = fpe.Anderson(TOL, 0.0)
    return [
        Method("ours, default", OURS, ours(anderson, fpe.Implicit())),
        Method("ours, the same Anderson for the adjoint", OURS, ours(anderson, fpe.ImplicitFP(anderson))),
        *peers.optimistix_gradients(problem, TOL),
        *peers.jaxopt_gradients(problem, TOL),
        *peers.torchdeq_gradients(problem, TOL),
    ]


def _picard(W, x):
    size = lambda v: jnp.linalg.norm(v, axis=1)

    def body(carry):
        z, _, count = carry
        f = deq.layer(z, (W, x))
        return f, jnp.max(size(f - z) / size(f)), count + 1

    start = (jnp.zeros_like(x), jnp.float32(jnp.inf), jnp.int32(0))
    z, _, count = jax.lax.while_loop(lambda carry: carry[1] > TOL, body, start)
    return z, count
