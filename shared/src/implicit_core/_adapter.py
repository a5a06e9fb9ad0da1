# The only module that touches `optimistix.internal`: a move upstream touches one place.
import functools as ft
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import optimistix as optx
import optimistix.internal as optxi
from jaxtyping import Array

from ._pcg import PCG


Z = TypeVar("Z")

_MAX_DENSE = 256  # unknowns up to which a dense factorisation is used whatever the structure


# The two functions that `implicit_jvp` sees. It insists on functions without a closure, and jaxtyping's import hook
# wraps every function of a module in one: hence `unwrap`.
def _primal(inputs):
    root, *_ = inputs
    return root, None


def _rewrite(root, residual, inputs):
    del residual
    _, residual, rewrite_fn, inputs = inputs
    return rewrite_fn(root, residual, inputs)


_primal = inspect.unwrap(_primal)
_rewrite = inspect.unwrap(_rewrite)


def stop_gradient(tree: Any) -> Any:
    """Return `tree` with the derivatives of all its arrays stopped; what is not an array is passed on."""
    dynamic, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(dynamic), static)


def attach(
    rewrite_fn: Callable[[Any, Any, Any], Any],
    root: Any,
    residual: Any,
    inputs: Any,
    tags: frozenset[object],
    linear_solver: lx.AbstractLinearSolver,
) -> Any:
    r"""Return `root` with the derivative in `inputs` of the zero of `rewrite_fn(root, residual, inputs)`.

    The implicit function theorem, $\partial z = -(\partial_1 F)^{-1} \partial_2 F$, by `optimistix.internal.implicit_jvp`
    around a primal that merely returns the root; so the solver is never seen by differentiation, nor run again by it.
    """
    # A function that is neither global nor a pytree may hide arrays: turn them into leaves. (Unwrapped, because the
    # import hook puts plain functions in a closure.)
    plain = inspect.unwrap(rewrite_fn) if inspect.isfunction(rewrite_fn) else rewrite_fn
    if getattr(plain, "__closure__", None) is None and inspect.isfunction(plain):
        rewrite_fn = plain
    else:
        rewrite_fn = eqx.filter_closure_convert(rewrite_fn, root, residual, inputs)
    frozen = stop_gradient((root, residual))
    out, _ = optxi.implicit_jvp(_primal, _rewrite, (*frozen, rewrite_fn, inputs), tags, linear_solver)
    return out


def default_linear_solver(root: Any, tags: frozenset[object]) -> lx.AbstractLinearSolver:
    """Return a direct solver for small systems, conjugate gradients for large definite ones, else a direct one."""
    size = sum(leaf.size for leaf in jtu.tree_leaves(root))
    definite = not tags.isdisjoint({lx.positive_semidefinite_tag, lx.negative_semidefinite_tag})
    if size > _MAX_DENSE and definite:
        return PCG(mode="soft")
    return lx.AutoLinearSolver(well_posed=None)


class _WithOptions(lx.AbstractLinearSolver[tuple[Any, dict[str, Any]]]):
    # Optimistix calls `linear_solve` without options, so they travel in the solver and, through `transpose`, its state.
    inner: lx.AbstractLinearSolver
    options: dict[str, Any]

    def init(self, operator, options):
        options = {**self.options, **options}
        return self.inner.init(operator, options), options

    def compute(self, state, vector, options):
        del options
        inner_state, options = state
        return self.inner.compute(inner_state, vector, options)

    def transpose(self, state, options):
        return self.inner.transpose(*state), options

    def conj(self, state, options):
        return self.inner.conj(*state), options

    def assume_full_rank(self):
        return self.inner.assume_full_rank()


LinearSolver = lx.AbstractLinearSolver | Callable[[Any, Any, Any], lx.AbstractLinearSolver] | None


def _choose(
    linear_solver: LinearSolver, options: dict[str, Any] | None, root: Any, residual: Any, inputs: Any, tags: frozenset
) -> lx.AbstractLinearSolver:
    if linear_solver is None:
        solver = default_linear_solver(root, tags)
    elif isinstance(linear_solver, lx.AbstractLinearSolver):
        solver = linear_solver
    else:
        solver = linear_solver(*stop_gradient((root, residual, inputs)))
    solver = stop_gradient(solver)
    return solver if not options else _WithOptions(solver, stop_gradient(options))


class ImplicitAdjoint(optx.AbstractAdjoint):
    r"""Differentiate a solve by the implicit function theorem, with a linear solver of your choice.

    A drop-in for `optimistix.ImplicitAdjoint` in every Optimistix driver. It differs in three ways: preconditioners
    and other options reach the backward solve; the linear solver may be built from the solution; and large definite
    systems are solved without a dense Jacobian by default. The solver runs once, outside of differentiation, so it may
    be anything that JAX can run forwards. Forward and reverse mode, to any order.

    **Arguments:**

    - `linear_solver`: solves the linear system of the derivative. Either a `lineax.AbstractLinearSolver`; or a
        function `(root, residual, inputs) -> lineax.AbstractLinearSolver`, called at the solution, for instance to
        build a preconditioner there; or `None`, which means a direct solver up to 256 unknowns,
        `PCG(mode="soft")` for larger systems with a `positive_semidefinite_tag` or `negative_semidefinite_tag`, and a
        direct solver otherwise.
    - `options`: passed to the linear solver, as the `options` of `lineax.linear_solve` (for instance
        `{"preconditioner": operator}`). The linear solver has no derivative, nor have these.

    !!! Example

        ```python
        adjoint = ImplicitAdjoint(PCG(rtol=1e-8, mode="soft"))
        tags = frozenset({lx.positive_semidefinite_tag})
        optx.root_find(fn, optx.Newton(1e-8, 1e-8), y0, args, adjoint=adjoint, tags=tags)
        ```

    ??? cite "Reference"

        Blondel et al., "Efficient and Modular Implicit Differentiation", arXiv:2105.15183, (2) and (3).
    """

    linear_solver: LinearSolver = None
    options: dict[str, Any] | None = None

    def apply(
        self,
        primal_fn: Callable[[Any], tuple[Any, Any]],
        rewrite_fn: Callable[[Any, Any, Any], Any],
        inputs: tuple,
        tags: frozenset[object],
    ) -> tuple[Any, Any]:
        r"""Run the solver, and attach the derivative of its root.

        **Arguments:**

        - `primal_fn`: the solver, `inputs -> (root, residual)`. As in Optimistix it is given one more input than
            `inputs` has: a `while_loop`, last, which it is free to ignore.
        - `rewrite_fn`: `(root, residual, inputs) -> F`, zero at the root; `inputs` has the `while_loop` here too.
        - `inputs`: a tuple of pytrees: what the root is differentiated in.
        - `tags`: Lineax tags of $\partial F/\partial$`root`.

        **Returns:**

        The pair of `root`, differentiable in `inputs`, and `residual`, a constant to differentiation.
        """
        inputs = (*inputs, ft.partial(eqxi.while_loop, kind="lax"))
        root, residual = primal_fn(stop_gradient(inputs))
        solver = _choose(self.linear_solver, self.options, root, residual, inputs, tags)
        out = attach(rewrite_fn, root, residual, inputs, tags, solver)
        return out, stop_gradient(residual)


def root(
    F: Callable[[Z, Any], Z],
    *,
    linear_solver: LinearSolver = None,
    options: dict[str, Any] | None = None,
    tags: frozenset[object] = frozenset(),
) -> Callable[[Callable[..., Z]], Callable[..., Z]]:
    r"""Give the result of any solver the derivative of the root of `F`. A decorator.

    The decorated function is called as before, `solver(theta, *args) -> z`, and must return a point with
    $F(z, \theta) = 0$. How it does is its own affair: a loop of ours, an Optimistix or jaxopt call, or SciPy behind
    `jax.pure_callback`; outside of `jit` and `vmap` even plain NumPy. It is run once and never differentiated:
    $\partial z / \partial\theta = -(\partial_1 F)^{-1} \partial_2 F$ at the point that it returned. Forward mode, reverse
    mode, higher derivatives, `jit` and `vmap` all work, `vmap` if the solver's own pieces do.

    The derivative is in `theta`, any pytree, and in arrays that `F` captures by closure. The further arguments
    (a first guess, a tolerance) have none, because they do not appear in `F`.

    **Arguments:**

    - `F`: the optimality map `(z, theta) -> array(s)` of the same structure as `z`.
    - `linear_solver`, `options`: see [`implicit_core.implicit.ImplicitAdjoint`][]; a function gets
        `(z, None, theta)`.
    - `tags`: Lineax tags of $\partial_1 F$, for instance `frozenset({lineax.positive_semidefinite_tag})` where `F` is the
        gradient of a function and `z` its minimiser.

    **Returns:**

    A decorator.

    **Raises:**

    When called: `TypeError` if the solution is not of floating point, `ValueError` if `F` does not have the structure
    of the solution.

    !!! Example

        ```python
        @root(lambda z, theta: jnp.cos(theta * z) - z)
        def solve(theta):
            return jax.lax.fori_loop(0, 100, lambda _, z: jnp.cos(theta * z), jnp.zeros_like(theta))

        jax.grad(solve)(0.5)  # -0.3421...
        ```

    ??? cite "Reference"

        Blondel et al., "Efficient and Modular Implicit Differentiation", arXiv:2105.15183, (2) and (3).
    """

    def rewrite(z, residual, theta):
        del residual
        return F(z, theta)

    def decorate(solver: Callable[..., Z]) -> Callable[..., Z]:
        @ft.wraps(solver)
        def wrapped(theta, *args, **kwargs):
            # `jnp.array`, because inside `jax.grad` a Python number is a tracer around what is not an array.
            theta = jtu.tree_map(lambda leaf: jnp.array(leaf) if eqx.is_array_like(leaf) else leaf, theta)
            run = _without_tracers(solver, theta, *args, **kwargs)
            z = stop_gradient(jtu.tree_map(_as_inexact, run(*stop_gradient((theta, *args)), **stop_gradient(kwargs))))
            _check_square(F, z, theta)
            chosen = _choose(linear_solver, options, z, None, theta, tags)
            return attach(rewrite, z, None, theta, tags, chosen)

        return wrapped

    return decorate


def _as_inexact(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        raise TypeError(f"the solver must return arrays of floating point; got a leaf of dtype {leaf.dtype}")
    return leaf


def _check_square(F: Callable[[Any, Any], Any], z: Any, theta: Any) -> None:
    out = eqx.filter_eval_shape(F, z, theta)
    shapes = [jtu.tree_map(lambda leaf: leaf.shape, tree) for tree in (out, z)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"`F` must have the shapes of the solution, {shapes[1]}; got {shapes[0]}")


def _without_tracers(solver: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    # A solver that captures an array under differentiation would be differentiated through it. Only then is it traced
    # apart from its captures: a solver in plain NumPy, which cannot be traced, captures none.
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in _captured(solver)):
        return solver
    return stop_gradient(eqx.filter_closure_convert(solver, *stop_gradient(args), **stop_gradient(kwargs)))


def _captured(fn: Any) -> list[Any]:
    pending, seen, leaves = [fn], set(), []
    while pending:
        item = pending.pop()
        for leaf in jtu.tree_leaves(item):
            if id(leaf) in seen:
                continue
            seen.add(id(leaf))
            leaves.append(leaf)
            for cell in getattr(leaf, "__closure__", None) or ():
                try:
                    pending.append(cell.cell_contents)
                except ValueError:  # a name that is not bound yet
                    continue
            if inspect.ismethod(leaf):
                pending.append(leaf.__self__)
            if isinstance(leaf, ft.partial):
                pending += [leaf.func, leaf.args, leaf.keywords]
    return leaves
