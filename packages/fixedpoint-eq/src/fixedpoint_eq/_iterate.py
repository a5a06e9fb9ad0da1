import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from implicit_core.krylov import real_dtype
from jaxtyping import Array, Float, Int

from ._batch import SampleFn, lanes
from ._misc import tree_sub, tree_where
from ._results import RESULTS
from ._solver import AbstractSolver, SolverState


_DIVERGED = 1e6  # over the smallest residual
_PATIENCE = 50  # steps without a new smallest residual

_RUNNING, _CONVERGED, _DIVERGENT, _STAGNANT, _NONFINITE = range(5)


class Progress(eqx.Module):
    """The solve of one sample, or with a leading axis of each of a batch."""

    y: Any
    state: SolverState
    best: Any  # the state with the smallest residual, or that which met the tolerance
    residual: Float[Array, "..."]  # of the best state
    num_steps: Int[Array, "..."]
    age: Int[Array, "..."]  # steps since the best state
    code: Int[Array, "..."]
    trace: Float[Array, "..."] | None


def iterate(
    fn: Callable[[Any, Any], Any],
    y0: Any,
    args: Any,
    solver: AbstractSolver,
    *,
    max_steps: int,
    samples: bool,
    while_loop: Callable[..., Any],
    keep_trace: bool = False,
) -> Progress:
    """Run a solver on `fn(y, args) -> (y, aux)`; with `samples`, on each sample of the leading axis to its own end."""
    over = lanes if samples else lambda f: f
    one = SampleFn(fn) if samples else fn

    def begin(y):
        structure = jtu.tree_map(lambda leaf: leaf, y)
        state = solver.init(one, y, args, {}, structure, None, frozenset())
        infinite = jnp.array(jnp.inf, real_dtype(y))
        zero = jnp.zeros((), jnp.int32)
        trace = jnp.full(max_steps, jnp.nan, real_dtype(y)) if keep_trace else None
        return Progress(y, state, y, infinite, zero, zero, zero, trace)

    def step(c: Progress) -> Progress:
        options = {"active": c.code == _RUNNING}
        y, state, _ = solver.step(one, c.y, args, options, c.state, frozenset())
        finite = jnp.isfinite(state.error)
        better = finite & ((state.residual < c.residual) | (state.error <= 1))
        best, residual = tree_where(better, (c.y, state.residual), (c.best, c.residual))
        age = jnp.where(better, 0, c.age + 1)
        code = jnp.where(age >= _PATIENCE, _STAGNANT, _RUNNING)
        code = jnp.where(state.residual > _DIVERGED * residual, _DIVERGENT, code)
        code = jnp.where(finite, code, _NONFINITE)
        code = jnp.where(state.error <= 1, _CONVERGED, code).astype(jnp.int32)
        trace = c.trace
        if trace is not None:
            trace = jnp.where(jnp.arange(max_steps, dtype=jnp.int32) == c.num_steps, state.residual, trace)
        return Progress(y, state, best, residual, c.num_steps + 1, age, code, trace)

    memory = lambda c: c.state.memory
    put = lambda c, value: eqx.tree_at(memory, c, value, is_leaf=lambda x: x is None)

    def body(c: Progress) -> Progress:
        new = over(step)(c)
        if not samples:
            return new
        # A sample that is done stays as it is, whatever the rest of the batch still has to do. What its solver remembers
        # is of no more use, and too large to be copied at every step.
        kept = tree_where(c.code == _RUNNING, put(new, None), put(c, None))
        return put(kept, memory(new))

    return while_loop(lambda c: jnp.any(c.code == _RUNNING), body, over(begin)(y0), max_steps=max_steps)


def outcome(progress: Progress) -> RESULTS:
    """Return how the solve of every sample ended."""
    return jax.vmap(_member)(progress.code) if progress.code.ndim else _member(progress.code)


def _member(code: Array) -> RESULTS:
    result = RESULTS.nonlinear_max_steps_reached
    for known, member in (
        (_CONVERGED, RESULTS.successful),
        (_DIVERGENT, RESULTS.nonlinear_divergence),
        (_STAGNANT, RESULTS.no_progress),
        (_NONFINITE, RESULTS.nonfinite),
    ):
        result = RESULTS.where(code == known, member, result)  # pyright: ignore[reportArgumentType]
    return result


# What an adjoint is given: the solver's run, and the equation that it solves. As for Optimistix these are functions of
# one tuple, `inputs = (fn, args, y0, solver, max_steps, samples, keep_trace, while_loop)`, without a closure.
def _run(inputs):
    fn, args, y0, solver, max_steps, samples, keep_trace, while_loop = inputs
    progress = iterate(
        fn, y0, args, solver, max_steps=max_steps, samples=samples, while_loop=while_loop, keep_trace=keep_trace
    )
    return progress.best, (outcome(progress), progress)


def _equation(root, residual, inputs):
    del residual
    fn, args, *_ = inputs
    return tree_sub(fn(root, args)[0], root)


def _equation_without_nan(root, residual, inputs):
    # For samples that contribute nothing to a derivative: zero times the derivative at a NaN is a NaN, which reaches the
    # gradient in all that the samples share. A sample that succeeded does not depend on a NaN.
    fn, args, *rest = inputs
    root, fn, args = without_nan((root, fn, args))
    return _equation(root, residual, (fn, args, *rest))


def without_nan(tree: Any) -> Any:
    """Return `tree` with zeros in place of the NaNs, which then have no derivative."""
    return jtu.tree_map(lambda x: jnp.where(jnp.isnan(x), 0, x) if eqx.is_inexact_array(x) else x, tree)


run, equation, equation_without_nan = map(inspect.unwrap, (_run, _equation, _equation_without_nan))
