"""FPE-3 and FPE-4: the error of a gradient at a budget of products, and the memory that a gradient takes."""

from collections.abc import Callable, Iterator

import fixedpoint_eq as fpe
import jax
import jax.numpy as jnp
import numpy as np
from implicit_core.krylov import FGMRES

from . import deq, peers, protocol
from .protocol import OURS, Case, Goal, Method, Prepared, compiled


_BUDGET = 20
_PROBLEMS = {"symmetric W": (True, (0.79, 0.94)), "Gaussian W": (False, (0.79, 0.92))}
_WANTED = {(True, 0.94): 2e-4, (False, 0.92): 5e-2}


def cases(quick: bool) -> Iterator[Case]:
    """Yield FPE-3 in double precision at four spectral radii, and FPE-4 at three sizes of the batch."""
    for kind, (symmetric, radii) in _PROBLEMS.items():
        for radius in radii[-1:] if quick else radii:
            problem = deq.at_radius(128, 16, radius, symmetric=symmetric, seed=0)
            wanted = _WANTED.get((symmetric, radius))
            goal = Goal("–", lambda _: None)
            if wanted:
                met = lambda rows, wanted=wanted: rows[0]["error"] <= wanted
                goal = Goal(f"error at most {wanted:g} with {_BUDGET} products", met)
            name = f"FPE-3 adjoint-quality, {kind}, radius {radius}"
            yield Case(name, _qualities(problem), _error(problem), goal, x64=True)
    for batch in (4,) if quick else (4, 16, 32):
        problem = deq.draw(256, batch, 0.99, symmetric=True, seed=0)
        goal = Goal("–", lambda _: None) if batch < 32 else _FIFTY
        yield Case(f"FPE-4 adjoint-memory, batch {batch}", _memories(problem), _error(problem), goal)


def _error(problem: deq.Deq) -> Callable[[np.ndarray], float]:
    exact = deq.gradient(problem)
    return lambda value: protocol.relative(value, exact)


def _default_over_ours(rows: list[protocol.Row]) -> bool | None:
    default = protocol.named(rows, "optimistix, batch, default adjoint")["temp_bytes"]
    return None if default is None else default >= 50 * rows[0]["temp_bytes"]


_FIFTY = Goal("temporary memory at least 50 times below optimistix's default", _default_over_ours)


def _ours(problem: deq.Deq, solver, adjoint) -> Callable[[], Prepared]:
    def gradient(W, x, target):
        def loss(W):
            start = jnp.zeros_like(x)
            solution = fpe.solve(deq.layer, start, (W, x), solver, adjoint, batch_axis=0, max_steps=1000, throw=False)
            return deq.loss(solution.value, target)

        return jax.grad(loss)(W), None

    return lambda: compiled(gradient, *problem.arrays)


def _qualities(problem: deq.Deq) -> list[Method]:
    solver = fpe.Anderson(1e-11, 0.0, 10)

    def ours(adjoint, products: int) -> Callable[[], Prepared]:
        def prepare():
            prepared = _ours(problem, solver, adjoint)()
            return prepared._replace(call=lambda: (prepared.call()[0], products))

        return prepare

    def torchdeq(**options) -> Callable[[], Prepared]:
        def prepare():
            prepared = peers.torchdeq_gradient(problem, 1e-11, f_solver="fixed_point_iter", **options)()
            return Prepared(lambda: (prepared.call()[0], _BUDGET))

        return prepare

    def gmres(products: int) -> fpe.Implicit:
        return fpe.Implicit(FGMRES(rtol=1e-14, mode="soft", max_steps=products, restart=products))

    # The first term of a series needs no product with the Jacobian, nor does the first step of a solver from zero.
    anderson = fpe.ImplicitFP(fpe.Anderson(1e-14, 0.0, 10), max_steps=_BUDGET, mode="soft")
    fixed = dict(ift=True, b_tol=1e-14, b_stop_mode="rel")
    steps = _BUDGET + 1
    return [
        Method("ours, FGMRES", OURS, ours(gmres(_BUDGET), _BUDGET)),
        Method("ours, FGMRES with 10", OURS, ours(gmres(10), 10)),
        Method("ours, FGMRES with 5", OURS, ours(gmres(5), 5)),
        Method("ours, Anderson m=10", OURS, ours(anderson, _BUDGET)),
        Method("ours, Neumann", OURS, ours(fpe.Neumann(steps), _BUDGET)),
        Method("ours, phantom τ=0.5", OURS, ours(fpe.Phantom(steps, tau=0.5), _BUDGET)),
        Method("ours, one step", OURS, ours(fpe.OneStep(), 0)),
        Method("torchdeq phantom τ=0.5", "torchdeq", torchdeq(grad=steps, tau=0.5)),
        Method("torchdeq IFT, Picard", "torchdeq", torchdeq(b_solver="fixed_point_iter", b_max_iter=steps, **fixed)),
        Method("torchdeq IFT, Anderson m=6", "torchdeq", torchdeq(b_solver="anderson", b_max_iter=steps, **fixed)),
        Method("torchdeq IFT, Broyden", "torchdeq", torchdeq(b_solver="broyden", b_max_iter=_BUDGET, **fixed)),
    ]


def _memories(problem: deq.Deq) -> list[Method]:
    tol = 1e-5
    return [
        Method("ours, default", OURS, _ours(problem, fpe.Anderson(tol, 0.0), fpe.Implicit())),
        Method("ours, Picard and default adjoint", OURS, _ours(problem, fpe.Picard(tol, 0.0), fpe.Implicit())),
        *peers.optimistix_gradients(problem, tol, dense_batch=True),
        *peers.jaxopt_gradients(problem, tol)[:1],
    ]
