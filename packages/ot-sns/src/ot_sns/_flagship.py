"""What the console script runs: one problem solved, timed, differentiated, and set beside Sinkhorn."""

import dataclasses
import sys
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._problem import EntropicOT
from ._results import RESULTS
from ._sinkhorn import Sinkhorn
from ._solution import Solution
from ._solve import solve
from ._solver import AbstractSolver
from ._sparse_newton import SparseNewton
from .plot import History
from .problems import NamedProblem


TOL = 1e-9
_FINITE_DIFFERENCE = 1e-5


@dataclasses.dataclass(frozen=True)
class GradientCheck:
    """The derivative of the transport cost along a change of the source weights, twice; and the whole gradient."""

    implicit: float
    differences: float
    gradient: np.ndarray

    @property
    def disagreement(self) -> float:
        """How far apart the two are, relatively."""
        return abs(self.implicit - self.differences) / max(abs(self.differences), 1e-300)


@dataclasses.dataclass(frozen=True)
class Run:
    """One method's solution, how long it took once compiled, and the error on the way."""

    method: str
    solution: Solution
    seconds: float
    num_sinkhorn: int
    history: History | None = None
    cap: int | None = None

    @property
    def error(self) -> float:
        """The error on both marginals."""
        return float(self.solution.stats["error"])

    @property
    def num_steps(self) -> int:
        """The number of Newton and Sinkhorn steps together."""
        return self.num_sinkhorn + int(self.solution.stats.get("num_newton", 0))

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        if _succeeded(self.solution):
            return "converged"
        if self.cap is not None and self.num_sinkhorn >= self.cap:
            return f"capped at {self.cap}"
        return "not converged"

    def row(self, named: NamedProblem) -> dict[str, Any]:
        """Return one flat record."""
        n, m = named.shape
        stats = self.solution.stats
        transport_cost, gap = _measures(self.solution)
        return {
            "problem": named.name,
            "size": f"{n} x {m}",
            "method": self.method,
            "marginal error": self.error,
            "Newton": int(stats["num_newton"]) if "num_newton" in stats else None,
            "CG": int(stats["num_cg"]) if "num_cg" in stats else None,
            "Sinkhorn": self.num_sinkhorn,
            "seconds": self.seconds,
            "value": float(self.solution.value),
            "value proved within": float(gap),
            "transport cost": float(transport_cost),
            "outcome": self.outcome,
        }


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem with everything that was found out about it."""

    named: NamedProblem
    newton: Run
    sinkhorn: Run
    check: GradientCheck | str | None

    @property
    def solved(self) -> bool:
        """Whether the default solver reached the tolerance."""
        return _succeeded(self.newton.solution)

    def rows(self) -> list[dict[str, Any]]:
        """List one flat record a method."""
        return [self.newton.row(self.named), self.sinkhorn.row(self.named)]

    def facts(self) -> dict[str, str]:
        """List what does not fit a row."""
        check = self.check
        if check is None:
            return {}
        what = f"{self.named.name}: derivative of the transport cost along a change of the source weights"
        if isinstance(check, str):
            return {what: check}
        return {
            what: f"{check.implicit:.9e} implicitly, {check.differences:.9e} by central differences "
            f"(relative difference {check.disagreement:.0e})"
        }


def say(text: str) -> None:
    """Report progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def examine(named: NamedProblem, *, sinkhorn_cap: int, history: bool = True, gradient: bool = True) -> Case:
    """Solve one problem with both methods; optionally trace the error of each step and check a gradient."""
    problem = named.problem()
    n, m = named.shape
    say(f"{named.name}, {n} x {m}: compiling the solver ...")
    newton = _newton(problem, history)
    say(f"  {newton.num_steps} steps, marginal error {newton.error:.1e}, {newton.seconds:.2f} s")
    say(f"  Sinkhorn beside it, at most {sinkhorn_cap} iterations ...")
    sinkhorn = _sinkhorn(problem, sinkhorn_cap, history)
    say(f"  {sinkhorn.num_steps} iterations, marginal error {sinkhorn.error:.1e}, {sinkhorn.seconds:.2f} s")
    if not gradient:
        return Case(named, newton, sinkhorn, None)
    say("  an implicit gradient, checked by finite differences ...")
    try:
        return Case(named, newton, sinkhorn, _check_gradient(problem))
    except RuntimeError:
        # Where the plan falls apart into components, the potentials' derivatives are nearly infinite.
        return Case(named, newton, sinkhorn, "its linear system is too nearly singular")


def _solve_up_to(problem: EntropicOT, solver: AbstractSolver, max_steps: int, init: Any = None) -> Solution:
    return jax.block_until_ready(solve(problem, solver, init=init, max_steps=max_steps, throw=False))


def _timed(problem: EntropicOT, solver: AbstractSolver, max_steps: int, init: Any = None) -> tuple[Solution, float]:
    _solve_up_to(problem, solver, 1, init)
    start = time.perf_counter()
    solution = _solve_up_to(problem, solver, max_steps, init)
    return solution, time.perf_counter() - start


def _newton(problem: EntropicOT, history: bool) -> Run:
    solver = SparseNewton(tol=TOL)
    solution, seconds = _timed(problem, solver, 10_000)
    steps = range(1, int(solution.stats["num_steps"]) + 1)
    errors = [float(_solve_up_to(problem, solver, k).stats["error"]) for k in steps] if history else []
    num_sinkhorn = int(solution.stats["num_sinkhorn"])
    return Run("SparseNewton", solution, seconds, num_sinkhorn, (steps, errors) if history else None)


def _sinkhorn(problem: EntropicOT, cap: int, history: bool) -> Run:
    solver = Sinkhorn(tol=TOL)
    n, m = problem.shape
    # Given, so that the pieces of a history, which have one, run the same program.
    zeros = (jnp.zeros(n, problem.a.dtype), jnp.zeros(m, problem.a.dtype))
    solution, seconds = _timed(problem, solver, cap, zeros)
    num_steps = int(solution.stats["num_steps"])
    traced = _sinkhorn_history(problem, solver, num_steps, zeros) if history else None
    return Run("Sinkhorn", solution, seconds, num_steps, traced, cap)


def _sinkhorn_history(problem: EntropicOT, solver: Sinkhorn, num_steps: int, init: Any) -> History:
    """Run Sinkhorn in pieces, each starting where the last one stopped, to see its error on the way."""
    steps: list[int] = []
    errors: list[float] = []
    done = 0
    while done < num_steps:
        piece = min(max(1, done // 3), num_steps - done)
        solution = _solve_up_to(problem, solver, piece, init)
        init = (solution.f, solution.g)
        done += piece
        steps.append(done)
        errors.append(float(solution.stats["error"]))
    return steps, errors


@eqx.filter_jit
@eqx.filter_value_and_grad
def _cost_and_gradient(problem: EntropicOT) -> jax.Array:
    return solve(problem, SparseNewton(tol=1e-12), throw=False).transport_cost()


def _check_gradient(problem: EntropicOT) -> GradientCheck:
    """Differentiate through the solution, and compare with central differences along a random direction."""
    _, gradient = _cost_and_gradient(problem)
    a = np.asarray(problem.a)
    noise = np.random.default_rng(0).normal(size=a.shape)
    # Relative changes that keep the total mass.
    direction = a * (noise - a @ noise / a.sum())
    h = _FINITE_DIFFERENCE
    above, below = (_cost_and_gradient(_with_source(problem, a + s * direction))[0] for s in (h, -h))
    differences = float(above - below) / (2 * h)
    slope = np.asarray(gradient.a)
    return GradientCheck(float(slope @ direction), differences, slope)


def _with_source(problem: EntropicOT, a: np.ndarray) -> EntropicOT:
    return EntropicOT(problem.geometry, jnp.asarray(a, problem.a.dtype), problem.b, epsilon=problem.epsilon)


@eqx.filter_jit
def _measures(solution: Solution) -> tuple[jax.Array, jax.Array]:
    # Compiled, so that large problems do not hold every intermediate matrix.
    return solution.transport_cost(), jnp.asarray(solution.certificate().value)


def _succeeded(solution: Solution) -> bool:
    return bool(solution.result == RESULTS.successful)
