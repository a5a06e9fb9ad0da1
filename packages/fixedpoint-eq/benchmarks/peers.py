"""The peers of FPE-1 to FPE-3: how each is called, with a tolerance that means the same for all.

optimistix and jaxopt stop at an absolute residual: that of each row, under `vmap`, or that of the whole batch. Here it is the
wanted relative one times the size of the solution, of the smallest row or of the whole batch, which NumPy knows. torchdeq
has a relative rule of its own, that of the worst row.
"""

import functools as ft
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx

from . import deq
from .protocol import Method, Prepared, compiled


_MAX_STEPS = 1000


def sizes(problem: deq.Deq) -> tuple[float, float]:
    """Return the 2-norms of the solution: of the smallest row, and of the batch."""
    z = problem.solution
    return float(np.min(np.linalg.norm(z, axis=1))), float(np.linalg.norm(z))


def _row(z, args):
    W, x = args
    return jnp.tanh(W @ z + x)


def _optimistix(problem: deq.Deq, tol: float, *, rows: bool, adjoint: Any) -> Callable[..., tuple[Any, Any]]:
    smallest, whole = sizes(problem)
    solver = optx.FixedPointIteration(rtol=0.0, atol=tol * (smallest if rows else whole), norm=optx.two_norm)

    def solve(fn, W, x):
        solution = optx.fixed_point(
            fn, solver, jnp.zeros_like(x), (W, x), adjoint=adjoint, max_steps=_MAX_STEPS, throw=False
        )
        return solution.value, solution.stats["num_steps"]

    if rows:
        return lambda W, x: jax.vmap(lambda x: solve(_row, W, x))(x)
    return lambda W, x: solve(deq.layer, W, x)


def optimistix_solvers(problem: deq.Deq, tol: float) -> list[Method]:
    """Return Picard's iteration, of the batch as one state and of each row."""
    by = lambda rows: (
        lambda: compiled(_optimistix(problem, tol, rows=rows, adjoint=optx.ImplicitAdjoint()), problem.W, problem.x)
    )
    return [
        Method("optimistix FixedPointIteration, batch", "optimistix", by(False)),
        Method("optimistix FixedPointIteration, vmap", "optimistix", by(True)),
    ]


def optimistix_gradients(problem: deq.Deq, tol: float, *, dense_batch: bool = False) -> list[Method]:
    """Return the gradient in `W`, with the default adjoint and with GMRES."""

    def by(rows: bool, adjoint: Any) -> Callable[[], Prepared]:
        solve = _optimistix(problem, tol, rows=rows, adjoint=adjoint)
        gradient = jax.grad(lambda W, x, target: deq.loss(solve(W, x)[0], target))
        return lambda: compiled(lambda *arrays: (gradient(*arrays), None), *problem.arrays)

    # Lineax's GMRES too stops at an absolute residual: the wanted relative one times the size of the cotangent.
    cotangents = np.linalg.norm(2 * (problem.solution - problem.target) / problem.x.size, axis=1)
    gmres = lambda size: optx.ImplicitAdjoint(
        lx.GMRES(rtol=0.0, atol=tol * float(size), norm=optx.two_norm, restart=40)
    )
    default = optx.ImplicitAdjoint()
    methods = [
        Method("optimistix, batch, GMRES", "optimistix", by(False, gmres(np.linalg.norm(cotangents)))),
        Method("optimistix, vmap, GMRES", "optimistix", by(True, gmres(np.min(cotangents)))),
        Method("optimistix, vmap, default adjoint", "optimistix", by(True, default)),
    ]
    whole = Method("optimistix, batch, default adjoint", "optimistix", by(False, default))
    return [whole, *methods] if dense_batch else methods


@ft.cache
def _jaxopt() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is no longer maintained
        import jaxopt
    return jaxopt


def _jaxopt_solve(problem: deq.Deq, tol: float, *, rows: bool, anderson: bool, **options) -> Callable[..., Any]:
    kind = _jaxopt().AndersonAcceleration if anderson else _jaxopt().FixedPointIteration
    smallest, whole = sizes(problem)

    def solve(fn, W, x):
        tolerance = tol * (smallest if rows else whole)
        step = kind(fn, maxiter=_MAX_STEPS, tol=tolerance, **options).run(jnp.zeros_like(x), (W, x))
        return step.params, step.state.iter_num

    if rows:
        return lambda W, x: jax.vmap(lambda x: solve(_row, W, x))(x)
    return lambda W, x: solve(deq.layer, W, x)


def jaxopt_solvers(problem: deq.Deq, tol: float) -> list[Method]:
    """Return its Picard iteration and Anderson acceleration, of five states, with the default and a far smaller ridge."""
    by = lambda **options: lambda: compiled(_jaxopt_solve(problem, tol, **options), problem.W, problem.x)
    return [
        Method("jaxopt FixedPointIteration, batch", "jaxopt", by(rows=False, anderson=False)),
        Method("jaxopt Anderson m=5, batch", "jaxopt", by(rows=False, anderson=True)),
        Method("jaxopt Anderson m=5, vmap", "jaxopt", by(rows=True, anderson=True)),
        Method("jaxopt Anderson m=5, vmap, ridge 1e-12", "jaxopt", by(rows=True, anderson=True, ridge=1e-12)),
    ]


def jaxopt_gradients(problem: deq.Deq, tol: float) -> list[Method]:
    """Return the gradient in `W` with its default implicit differentiation."""

    def by(**options) -> Callable[[], Prepared]:
        solve = _jaxopt_solve(problem, tol, **options)
        gradient = jax.grad(lambda W, x, target: deq.loss(solve(W, x)[0], target))
        return lambda: compiled(lambda *arrays: (gradient(*arrays), None), *problem.arrays)

    return [
        Method("jaxopt FixedPointIteration, batch", "jaxopt", by(rows=False, anderson=False)),
        Method("jaxopt Anderson m=5, batch", "jaxopt", by(rows=False, anderson=True)),
    ]


@ft.cache
def torch() -> Any:
    """Return PyTorch on one thread, or raise where it is absent."""
    import torch as module

    module.set_num_threads(1)
    return module


def torchdeq_solvers(problem: deq.Deq, tol: float) -> list[Method]:
    """Return its three solvers with their defaults, and Anderson with a far smaller ridge."""

    def by(name: str, **options) -> Callable[[], Prepared]:
        def prepare():
            from torchdeq.solver import get_solver

            solver = get_solver(name)
            W, x = (torch().tensor(v) for v in (problem.W, problem.x))

            def call():
                with torch().no_grad():
                    z, _, info = solver(
                        lambda z: torch().tanh(z @ W.T + x),
                        torch().zeros_like(x),
                        max_iter=_MAX_STEPS,
                        tol=tol,
                        stop_mode="rel",
                        **options,
                    )
                return z.numpy(), info["nstep"].numpy()

            return Prepared(call)

        return prepare

    return [
        Method("torchdeq Picard", "torchdeq", by("fixed_point_iter")),
        Method("torchdeq Anderson m=6", "torchdeq", by("anderson")),
        Method("torchdeq Anderson m=6, ridge 1e-9", "torchdeq", by("anderson", lam=1e-9)),
        Method("torchdeq Broyden", "torchdeq", by("broyden")),
    ]


def torchdeq_gradients(problem: deq.Deq, tol: float) -> list[Method]:
    """Return the gradient in `W` by implicit differentiation with its solvers."""
    implicit = dict(ift=True, b_tol=tol, b_max_iter=_MAX_STEPS, b_stop_mode="rel")
    names = {"Picard": "fixed_point_iter", "Anderson m=6": "anderson", "Broyden": "broyden"}
    return [
        Method(f"torchdeq {name}", "torchdeq", torchdeq_gradient(problem, tol, f_solver=s, b_solver=s, **implicit))
        for name, s in names.items()
    ]


def torchdeq_gradient(problem: deq.Deq, tol: float, **options) -> Callable[[], Prepared]:
    """Return the gradient in `W`, by `torchdeq.get_deq` with these options."""

    def prepare():
        from torchdeq import get_deq

        model = get_deq(f_tol=tol, f_max_iter=_MAX_STEPS, f_stop_mode="rel", **options)
        W, x, target = (torch().tensor(v) for v in problem.arrays)
        W.requires_grad_()

        def call():
            W.grad = None
            found, _ = model(lambda z: torch().tanh(z @ W.T + x), torch().zeros_like(x))
            ((found[-1] - target) ** 2).mean().backward()
            return W.grad.numpy().copy(), None

        return Prepared(call)

    return prepare
