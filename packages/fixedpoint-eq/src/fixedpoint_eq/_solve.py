from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx
from implicit_core.certify import Certificate
from implicit_core.krylov import stop_gradient
from jaxtyping import Array

from ._adjoints import Implicit, Unrolled
from ._anderson import Anderson
from ._batch import samples_tag, zero_tag
from ._contraction import Contraction
from ._custom_types import Y
from ._iterate import Progress, equation, equation_without_nan, run
from ._misc import tree_sub
from ._newton_krylov import NewtonKrylov
from ._results import RESULTS
from ._solution import Solution
from ._solver import AbstractSolver


def solve(
    fn: Callable[[Any, Any], Any],
    z0: Any,
    args: Any = None,
    solver: AbstractSolver = Anderson(),
    adjoint: optx.AbstractAdjoint = Implicit(),
    *,
    batch_axis: int | None = None,
    max_steps: int = 200,
    throw: bool = True,
    contraction: Any = None,
    on_failure: Literal["keep", "zero", "nan"] = "keep",
    keep_trace: bool = False,
    tags: frozenset[object] = frozenset(),
) -> Solution:
    r"""Solve $z = f(z, a)$.

    **Arguments:**

    - `fn`: $f$, a function `(z, args) -> z` that returns the structure, shapes and dtypes of `z0`.
    - `z0`: the first guess, a pytree of real or complex arrays, or a [`fixedpoint_eq.Solution`][] from which to start. It
        has no derivative, but by [`fixedpoint_eq.Unrolled`][].
    - `args`: any pytree. The solution is differentiable in it, and in arrays that `fn` captures.
    - `solver`: one of [`fixedpoint_eq.Anderson`][], `Picard`, `Damped`, `Broyden`, `NewtonKrylov`, `Reversible` and
        `Relaxation`.
    - `adjoint`: how to differentiate: [`fixedpoint_eq.Implicit`][], `ImplicitFP`, `Neumann`, `Phantom`, `OneStep`,
        `ReversibleAdjoint`, `Unrolled`, or any adjoint of Optimistix.
    - `batch_axis`: the axis of every leaf of `z0` along which there are samples that do not depend on one another. `fn`
        is given, and returns, the *whole* batch, so that it may use other arrays that have one (a map of one sample
        becomes one of the batch by `jax.vmap(fn, in_axes=(0, None))`). Each sample has its own history, stopping, status
        and statistics, and its own linear system in the derivative, as if it were alone.
    - `max_steps`: the number of the solver's steps at most.
    - `throw`: raise if the solve, that of any sample, does not succeed. Otherwise look at `result`.
    - `contraction`: a number $\gamma < 1$ with $\lVert f(z) - f(z')\rVert \le \gamma\lVert z - z'\rVert$ in the norm of the
        solver, or one for each sample, or a [`fixedpoint_eq.diagnostics.Contraction`][], which brings its own norm. Then
        the solution comes with a bound on its error, $\lVert f(z) - z\rVert / (1-\gamma)$, as its `certificate`.
    - `on_failure`: the derivative of a sample whose solve did not succeed, which `throw=False` lets pass: `"keep"` that
        of the adjoint at the state that was found, `"zero"`, or `"nan"`. With `"zero"` such a sample adds nothing to the
        gradient in what the samples share either, even if there are NaNs in its own `args`; and one whose solve
        succeeded but whose linear system in [`fixedpoint_eq.Implicit`][] or `ImplicitFP` was not solved is zero too,
        where it raises an error otherwise. What remains: an infinity in `args`; `Neumann` and `Phantom`, which
        raise where the Jacobian at the state that was found is not finite; and `Unrolled` and `ReversibleAdjoint`, which
        differentiate through the NaN itself.
    - `keep_trace`: keep the residual of every step in `stats["trace"]`.
    - `tags`: Lineax tags of $\partial f/\partial z - I$, for instance `frozenset({lineax.symmetric_tag})`.

    **Returns:**

    A [`fixedpoint_eq.Solution`][].

    **Raises:**

    `TypeError` or `ValueError` for an argument of the wrong kind, or an `fn` that does not map a state to a state.
    Equinox's run-time error if the solve does not succeed and `throw` is set.

    !!! Example

        ```python
        fn = lambda z, args: jnp.tanh(z @ args["W"].T + args["x"])
        solution = fpe.solve(fn, jnp.zeros((64, 256)), {"W": W, "x": x}, batch_axis=0)
        solution.value, solution.result, solution.stats["num_steps"]
        ```
    """
    if isinstance(z0, Solution):
        z0 = z0.value
    _check_kinds(fn, solver, adjoint, batch_axis, max_steps, on_failure)
    z0 = _check_state(z0, batch_axis)
    return _solve(
        fn, z0, args, solver, adjoint, batch_axis, max_steps, throw, contraction, on_failure, keep_trace, tags
    )


@eqx.filter_jit
def _solve(fn, z0, args, solver, adjoint, batch_axis, max_steps, throw, contraction, on_failure, keep_trace, tags):
    samples = batch_axis is not None
    if samples and batch_axis != 0:
        front = lambda tree: jtu.tree_map(lambda leaf: jnp.moveaxis(leaf, batch_axis, 0), tree)
        back = lambda tree: jtu.tree_map(lambda leaf: jnp.moveaxis(leaf, 0, batch_axis), tree)
        user_fn, z0 = fn, front(z0)
        fn = lambda z, args: front(user_fn(back(z), args))
    else:
        back = lambda tree: tree
    _check_map(fn, z0, args, samples)
    map_fn = lambda z, args: (jtu.tree_map(jnp.asarray, fn(z, args)), None)
    map_fn = eqx.filter_closure_convert(map_fn, z0, args)
    if samples:
        tags = tags | {samples_tag}
    zero = on_failure == "zero"
    if zero and not throw:
        tags = tags | {zero_tag}
    inputs = (map_fn, args, z0, solver, max_steps, samples, keep_trace)
    value, (result, progress) = adjoint.apply(run, equation_without_nan if zero else equation, inputs, tags)
    result, progress = stop_gradient((result, progress))
    if on_failure != "keep":
        ok = result == RESULTS.successful
        value = _with_derivative(value, stop_gradient(value), jnp.where(ok, 1.0, 0.0))
        if on_failure == "nan":
            # Through the map, as no linear solve would take a NaN.
            image = map_fn(stop_gradient(value), args)[0]
            nan = _with_derivative(image, jtu.tree_map(jnp.zeros_like, image), jnp.where(ok, 0.0, jnp.nan))
            value = jtu.tree_map(jnp.add, value, nan)
    certificate = None if contraction is None else _certify(contraction, map_fn, value, args, progress, samples)
    stats = {"num_steps": progress.num_steps, "residual": progress.residual}
    if keep_trace:
        stats["trace"] = progress.trace
    solution = Solution(back(value), result, stats, certificate)
    if throw:
        solution = result.error_if(solution, result != RESULTS.successful)
    return solution


@eqx.filter_custom_jvp
def _with_derivative(source, value, factor):
    """Return `value`, with the derivative of `source` times `factor`, one for each sample."""
    del source, factor
    return value


@_with_derivative.def_jvp
def _with_derivative_jvp(primals, tangents):
    source, value, factor = primals
    tangent, *_ = tangents

    def leaf(x, t):
        if t is None:
            return jnp.zeros_like(x)
        scale = factor.reshape(factor.shape + (1,) * (t.ndim - factor.ndim))
        # Zero times a NaN is none.
        return jnp.where(scale == 0, 0, scale.astype(t.dtype) * t)

    tangent = jtu.tree_map(leaf, value, tangent, is_leaf=lambda t: t is None)
    return _with_derivative(source, value, factor), tangent


def _certify(
    contraction: Any, fn: Callable[..., Any], value: Any, args: Any, progress: Progress, samples: bool
) -> Certificate:
    if isinstance(contraction, Contraction):
        contraction, value, args = stop_gradient((contraction, value, args))
        distance = contraction.distance
        if samples:
            distance = jax.vmap(distance)
        residual = distance(tree_sub(stop_gradient(fn)(value, args)[0], value))
        factor, kind, norm = contraction.factor, contraction.kind, contraction.norm
        assumptions = contraction.assumptions
    else:
        residual, factor, kind, norm = (
            progress.residual,
            stop_gradient(jnp.asarray(contraction)),
            "proved",
            "the solver's norm",
        )
        assumptions = (
            f"`fn` is a contraction in {norm}, with the factor `contraction`",
            "up to rounding of the residual",
        )
    factor = jnp.broadcast_to(factor.astype(residual.dtype), residual.shape)
    # Banach: |z - z*| <= |f(z) - z| / (1 - gamma). A factor of one or more says nothing.
    bound = jnp.where(factor < 1, residual / jnp.where(factor < 1, 1 - factor, 1), jnp.inf)
    return Certificate(f"distance of `value` from the fixed point, in {norm}", bound, kind, assumptions)


def _check_kinds(fn, solver, adjoint, batch_axis, max_steps, on_failure) -> None:
    if not callable(fn):
        raise TypeError(f"`fn` must be a function `(z, args) -> z`; got {type(fn).__name__}")
    if not isinstance(solver, AbstractSolver):
        got = f"the class `{solver.__name__}` itself" if isinstance(solver, type) else type(solver).__name__
        raise TypeError(
            f"`solver` must be a solver of `fixedpoint_eq`, as `Anderson()`; got {got}. The solvers of Optimistix run in "
            "`optimistix.fixed_point`, which takes the adjoints of this package."
        )
    if not isinstance(adjoint, optx.AbstractAdjoint):
        got = f"the class `{adjoint.__name__}` itself" if isinstance(adjoint, type) else type(adjoint).__name__
        raise TypeError(f"`adjoint` must be an adjoint, as `Implicit()`; got {got}")
    if isinstance(adjoint, Unrolled | optx.RecursiveCheckpointAdjoint) and isinstance(solver, NewtonKrylov):
        raise TypeError(f"`{type(solver).__name__}` cannot be unrolled; use `adjoint=Implicit()`")
    if not (batch_axis is None or isinstance(batch_axis, int)):
        raise TypeError(f"`batch_axis` must be an integer or `None`; got {batch_axis!r}")
    if not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"`max_steps` must be an integer of at least 1; got {max_steps!r}")
    if on_failure not in ("keep", "zero", "nan"):
        raise ValueError(f'`on_failure` must be "keep", "zero" or "nan"; got {on_failure!r}')


def _check_state(z0: Y, batch_axis: int | None) -> Y:
    def leaf(x: Any) -> Array:
        if not eqx.is_array_like(x):
            raise TypeError(f"`z0` must be a pytree of arrays; got a leaf of type {type(x).__name__}")
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            raise TypeError(f"`z0` must be of floating point or complex; got a leaf of dtype {x.dtype}")
        return x

    z0 = jtu.tree_map(leaf, z0)
    leaves = jtu.tree_leaves(z0)
    if not leaves or not any(x.size for x in leaves):
        raise ValueError("`z0` must have an array with at least one element")
    if batch_axis is not None:
        if any(not -x.ndim <= batch_axis < x.ndim for x in leaves):
            raise ValueError(f"every leaf of `z0` must have the axis `batch_axis={batch_axis}`; got {_shapes(z0)}")
        if len({x.shape[batch_axis] for x in leaves}) != 1:
            raise ValueError(f"the leaves of `z0` must agree in size along `batch_axis`; got {_shapes(z0)}")
    return z0


def _check_map(fn: Callable[[Any, Any], Any], z0: Any, args: Any, samples: bool) -> None:
    out = eqx.filter_eval_shape(lambda z, args: jtu.tree_map(jnp.asarray, fn(z, args)), z0, args)
    hint = (
        " With `batch_axis` it is given the whole batch: of a map of one sample make one of the batch by "
        "`jax.vmap(fn, in_axes=(0, None))`."
        if samples
        else ""
    )
    if jtu.tree_structure(out) != jtu.tree_structure(z0):
        raise ValueError(
            f"`fn` must return the structure of `z0`, {jtu.tree_structure(z0)}; got {jtu.tree_structure(out)}.{hint}"
        )
    if _shapes(out) != _shapes(z0):
        raise ValueError(f"`fn` must return the shapes and dtypes of `z0`, {_shapes(z0)}; got {_shapes(out)}.{hint}")


def _shapes(tree: Any) -> str:
    return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jtu.tree_leaves(tree))
