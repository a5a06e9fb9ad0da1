# The only module that touches `optimistix.internal`: a move upstream touches one place.
import functools as ft
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import optimistix as optx
import optimistix.internal as optxi

from ._fgmres import FGMRES
from ._minres import MINRES
from ._misc import stop_gradient
from ._pcg import PCG


MAX_DENSE = 256  # unknowns up to which a dense factorisation is used whatever the structure


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


def hoist(fn: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """Return `fn` with the arrays that it captures as its leaves, if it may capture any."""
    if inspect.isfunction(fn) and fn.__closure__ is None:
        return fn
    return eqx.filter_closure_convert(fn, *args)


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
    rewrite_fn = hoist(rewrite_fn, root, residual, inputs)
    frozen = stop_gradient((root, residual))
    out, _ = optxi.implicit_jvp(_primal, _rewrite, (*frozen, rewrite_fn, inputs), tags, linear_solver)
    return out


def default_linear_solver(root: Any, tags: frozenset[object]) -> lx.AbstractLinearSolver:
    """Return a direct solver for a small system, else the Krylov solver of its structure; never a large dense matrix.

    The Krylov solvers are strict: a derivative that misses its tolerance raises, it is never silently wrong. The ones
    in soft mode are for those who read the residual, see [`implicit_core.implicit.AdjointState`][].
    """
    size = sum(leaf.size for leaf in jtu.tree_leaves(root))
    if not tags.isdisjoint({lx.diagonal_tag, lx.tridiagonal_tag}):
        return lx.AutoLinearSolver(well_posed=None)
    if size <= MAX_DENSE:
        return Direct()
    if not tags.isdisjoint({lx.positive_semidefinite_tag, lx.negative_semidefinite_tag}):
        return PCG()
    return FGMRES() if lx.symmetric_tag not in tags else MINRES()


class Direct(lx.AbstractLinearSolver[tuple[lx.AbstractLinearOperator, Any]]):
    """Lineax's direct solver for the operator's tags, and one step of iterative refinement.

    Where rows differ in scale, as those of a Hessian and of constraints do, elimination is accurate only for the
    largest ones. One correction, even in the same precision, makes it accurate for each: Skeel, Math. Comp. 35 (1980).
    """

    inner: lx.AbstractLinearSolver = lx.AutoLinearSolver(well_posed=None)

    def init(self, operator, options):
        operator = lx.materialise(operator)
        return operator, self.inner.init(operator, options)

    def compute(self, state, vector, options):
        operator, factors = state
        x, result, stats = self.inner.compute(factors, vector, options)
        residual = jtu.tree_map(jnp.subtract, vector, operator.mv(x))
        correction, _, _ = self.inner.compute(factors, residual, options)
        return jtu.tree_map(jnp.add, x, correction), result, stats

    def transpose(self, state, options):
        operator, factors = state
        factors, options = self.inner.transpose(factors, options)
        return (operator.transpose(), factors), options

    def conj(self, state, options):
        operator, factors = state
        factors, options = self.inner.conj(factors, options)
        return (lx.conj(operator), factors), options

    def assume_full_rank(self):
        return self.inner.assume_full_rank()


class _WithOptions(lx.AbstractLinearSolver[tuple[Any, dict[str, Any]]]):
    # Optimistix calls `linear_solve` without options, so they travel in the solver and, through `transpose`, its state.
    inner: lx.AbstractLinearSolver
    options: dict[str, Any]

    def init(self, operator, options):
        options = {**self.options, **options}
        return self.inner.init(operator, options), options

    def compute(self, state, vector, options):
        inner_state, baked = state
        return self.inner.compute(inner_state, vector, {**baked, **options})

    def transpose(self, state, options):
        return self.inner.transpose(*state), options

    def conj(self, state, options):
        return self.inner.conj(*state), options

    def assume_full_rank(self):
        return self.inner.assume_full_rank()


LinearSolver = lx.AbstractLinearSolver | Callable[[Any, Any, Any], lx.AbstractLinearSolver] | None


def choose(
    linear_solver: LinearSolver, options: dict[str, Any] | None, root: Any, residual: Any, inputs: Any, tags: frozenset
) -> lx.AbstractLinearSolver:
    """Return the linear solver to be used at `root`, with `options` baked in."""
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
        build a preconditioner there; or `None`, which means a direct solver up to 256 unknowns and, for larger
        systems, [`implicit_core.krylov.PCG`][] if `tags` say that they are definite,
        [`implicit_core.krylov.MINRES`][] if they say symmetric, else [`implicit_core.krylov.FGMRES`][]: no dense
        matrix is made. These are strict, so a linear system that is not solved raises where it would else become a
        wrong derivative. Pass one with `mode="soft"` to accept what is attained.
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
        solver = choose(self.linear_solver, self.options, root, residual, inputs, tags)
        out = attach(rewrite_fn, root, residual, inputs, tags, solver)
        return out, stop_gradient(residual)


def without_tracers(solver: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """Return `solver` with the derivatives of the arrays that it captures stopped."""
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
