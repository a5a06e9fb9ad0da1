import abc
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from implicit_core.krylov import real_dtype, stop_gradient
from jaxtyping import Array, Bool, Float

from ._custom_types import Y
from ._misc import tree_sub, tree_where


Memory = TypeVar("Memory")


class SolverState(eqx.Module, Generic[Memory]):
    """What every solver of this package carries: the residual, as measured, and a memory of its own."""

    memory: Memory
    error: Float[Array, ""]  # |f(y) - y| / (atol + rtol |f(y)|), at the state that the last step was given
    residual: Float[Array, ""]  # |f(y) - y|
    best: Float[Array, ""]  # the smallest residual before


class Evaluation(eqx.Module, Generic[Y]):
    """The map at the present state."""

    y: Y
    f: Y
    g: Y  # f - y
    residual: Float[Array, ""]
    best: Float[Array, ""]  # the smallest residual before
    done: Bool[Array, ""]  # whether to stay at `y`, for it meets the tolerance


class AbstractSolver(optx.AbstractFixedPointSolver[Y, Any, SolverState]):
    r"""A method for $z = f(z)$ on the state of one sample, a pytree of real or complex arrays.

    A solver is an `optimistix.AbstractFixedPointSolver`, so it also runs in `optimistix.fixed_point`. In a step it
    evaluates $f$ at the state that it is given, and stays there if
    $\lVert f(z) - z\rVert \le \mathrm{atol} + \mathrm{rtol}\,\lVert f(z)\rVert$: the state that is returned is one whose
    residual was measured. A subclass says how to go on otherwise.
    """

    def __check_init__(self):
        for name, tolerance in (("rtol", self.rtol), ("atol", self.atol)):
            if isinstance(tolerance, int | float) and not tolerance >= 0:
                raise ValueError(f"`{name}` must be non-negative; got {tolerance}")
        if not callable(self.norm):
            raise TypeError(f"`norm` must be a function of a state; got {self.norm!r}")

    @abc.abstractmethod
    def _remember(self, y: Any) -> Any:
        """Return the memory before the first step."""

    @abc.abstractmethod
    def _next(self, fn: Callable[[Any, Any], Any], at: Evaluation, args: Any, memory: Any) -> tuple[Any, Any]:
        """Return the next state and memory. What is returned where `at.done` holds is not used, but for the memory."""

    def init(
        self,
        fn: Callable[[Any, Any], Any],
        y: Any,
        args: Any,
        options: dict[str, Any],
        f_struct: Any,
        aux_struct: Any,
        tags: frozenset[object],
    ) -> SolverState:
        """Return the state of the solver before the first step. See `optimistix.AbstractIterativeSolver.init`."""
        del fn, args, options, f_struct, aux_struct, tags
        infinite = jnp.array(jnp.inf, real_dtype(y))
        return SolverState(self._remember(y), infinite, infinite, infinite)

    def step(
        self,
        fn: Callable[[Any, Any], Any],
        y: Any,
        args: Any,
        options: dict[str, Any],
        state: SolverState,
        tags: frozenset[object],
    ) -> tuple[Any, SolverState, Any]:
        """Evaluate the map once, and take a step. See `optimistix.AbstractIterativeSolver.step`."""
        del tags
        f, aux = fn(y, args)
        g = tree_sub(f, y)
        # Decisions are no function to differentiate.
        residual, size = (self.norm(stop_gradient(v)).astype(state.residual.dtype) for v in (g, f))
        tol = jnp.asarray(self.atol, size.dtype) + jnp.asarray(self.rtol, size.dtype) * size
        error = residual / jnp.where(tol > 0, tol, jnp.finfo(tol.dtype).tiny)
        # The driver's samples that are done have nothing more to do, but wait for the others.
        done = (error <= 1) | ~options.get("active", jnp.array(True))
        new_y, memory = self._next(fn, Evaluation(y, f, g, residual, state.best, done), args, state.memory)
        # A NaN leaves the best residual as it is.
        best = jnp.where(residual < state.best, residual, state.best)
        return tree_where(done, y, new_y), SolverState(memory, error, residual, best), aux

    def terminate(
        self,
        fn: Callable[[Any, Any], Any],
        y: Any,
        args: Any,
        options: dict[str, Any],
        state: SolverState,
        tags: frozenset[object],
    ) -> tuple[Bool[Array, ""], optx.RESULTS]:
        """Say whether the residual meets the tolerance. See `optimistix.AbstractIterativeSolver.terminate`."""
        del fn, y, args, options, tags
        return state.error <= 1, optx.RESULTS.successful

    def postprocess(
        self,
        fn: Callable[[Any, Any], Any],
        y: Any,
        aux: Any,
        args: Any,
        options: dict[str, Any],
        state: SolverState,
        tags: frozenset[object],
        result: optx.RESULTS,
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Return the state, and the residual as a statistic. See `optimistix.AbstractIterativeSolver.postprocess`."""
        del fn, args, options, tags, result
        return y, aux, {"residual": state.residual}
