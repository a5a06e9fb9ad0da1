import functools as ft
from typing import Any, Literal

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import optimistix as optx
from implicit_core.implicit import ImplicitAdjoint
from implicit_core.krylov import real_dtype, tree_axpy

from ._anderson import Anderson
from ._batch import samples_tag, zero_tag
from ._custom_types import RealScalar
from ._iterate import iterate, outcome
from ._linear import SampleWise
from ._misc import tree_sub, tree_where
from ._results import RESULTS
from ._solver import AbstractSolver


class Implicit(optx.AbstractAdjoint):
    r"""Differentiate by the implicit function theorem, with a linear solve: the default.

    With $J = \partial f/\partial z$ at $z^\star = f(z^\star, a)$ and the cotangent $c$, the gradient is
    $(\partial f/\partial a)^\top \lambda$ where $(I - J^\top) \lambda = c$; in forward mode the tangent is
    $(I - J)^{-1} (\partial f/\partial a)\,\dot a$. Both, to any order, whatever the solver did.

    Over a declared batch axis each sample has a linear system of its own: no matrix is ever that of the batch, nor do
    other samples change the gradient of one. That `fn` does not mix samples is checked. For complex states the Jacobian
    of a map that is not holomorphic is linear over the reals only, which is probed at $z^\star$ (at the cost of two
    products); then the linear system is that of real and imaginary parts.

    **Arguments:**

    - `linear_solver`: a `lineax.AbstractLinearSolver`, given the system of one sample. `None` is the LU factorisation of a
        sample's Jacobian up to 64 unknowns, and beyond [`implicit_core.krylov.FGMRES`][], whose tolerance is relative to
        the cotangent and which raises where it is not met. A large sample never has a dense Jacobian by default.
    - `holomorphic`: promise that `fn` is holomorphic. It is an error if it is not; and less to compile, and under `vmap`
        to run.

    !!! Example

        ```python
        fpe.solve(fn, z0, args, adjoint=fpe.Implicit(FGMRES(rtol=1e-4, mode="soft", max_steps=20)))
        ```
    """

    linear_solver: lx.AbstractLinearSolver | None = None
    holomorphic: bool = eqx.field(default=False, static=True)

    def __check_init__(self):
        if not (self.linear_solver is None or isinstance(self.linear_solver, lx.AbstractLinearSolver)):
            raise TypeError(f"`linear_solver` must be a Lineax solver or `None`; got {self.linear_solver!r}")

    def apply(self, primal_fn: Any, rewrite_fn: Any, inputs: Any, tags: frozenset[object]) -> tuple[Any, Any]:
        """See `optimistix.AbstractAdjoint.apply`."""
        solver = SampleWise(self.linear_solver, samples_tag in tags, self.holomorphic, zero_tag in tags)
        return ImplicitAdjoint(solver).apply(primal_fn, rewrite_fn, inputs, tags)


class ImplicitFP(optx.AbstractAdjoint):
    r"""Differentiate by the implicit function theorem, with a fixed-point solver: $\lambda \leftarrow J^\top\lambda + c$.

    The iteration contracts if that of the solve does, as the spectrum is the same. Each sample's tolerance is relative
    to its cotangent.

    **Arguments:**

    - `solver`: a solver of this package; its `atol` is in units of the largest entry of the cotangent.
    - `max_steps`: the number of its steps at most.
    - `mode`: `"strict"` raises if the solver fails, `"soft"` returns the best that it found.

    !!! Example

        ```python
        fpe.solve(fn, z0, args, adjoint=fpe.ImplicitFP(fpe.Anderson(rtol=1e-4), max_steps=20, mode="soft"))
        ```
    """

    solver: AbstractSolver = Anderson()
    max_steps: int = eqx.field(default=200, static=True)
    mode: Literal["strict", "soft"] = eqx.field(default="strict", static=True)

    def __check_init__(self):
        if not isinstance(self.solver, AbstractSolver):
            raise TypeError(f"`solver` must be a solver of this package; got {self.solver!r}")
        if self.max_steps < 1:
            raise ValueError(f"`max_steps` must be at least 1; got {self.max_steps}")
        if self.mode not in ("strict", "soft"):
            raise ValueError(f'`mode` must be "strict" or "soft"; got {self.mode!r}')

    def apply(self, primal_fn: Any, rewrite_fn: Any, inputs: Any, tags: frozenset[object]) -> tuple[Any, Any]:
        """See `optimistix.AbstractAdjoint.apply`."""
        inner = _FixedPointSolver(self.solver, self.max_steps, self.mode, samples_tag in tags, zero_tag in tags)
        return ImplicitAdjoint(inner).apply(primal_fn, rewrite_fn, inputs, tags)


class Phantom(optx.AbstractAdjoint):
    r"""Approximate the gradient by `num_steps` damped steps $\lambda \leftarrow (1-\tau)\lambda + \tau(J^\top\lambda + c)$.

    From zero. Biased, at a cost of `num_steps - 1` products and without a tolerance to choose. The same polynomial in
    $J$ serves in forward mode. Second derivatives are those of the exact formula with every solve so approximated.

    **Arguments:**

    - `num_steps`: the number of steps.
    - `tau`: $\tau$.

    **Raises:**

    `ValueError` for a `num_steps` below one.

    !!! Example

        ```python
        fpe.solve(fn, z0, args, adjoint=fpe.Phantom(5, tau=0.5))
        ```

    ??? cite "Reference"

        Geng et al., "On training implicit models", arXiv:2111.05177.
    """

    num_steps: int = eqx.field(default=1, static=True)
    tau: RealScalar = 1.0

    def __check_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"`num_steps` must be at least 1; got {self.num_steps}")

    def apply(self, primal_fn: Any, rewrite_fn: Any, inputs: Any, tags: frozenset[object]) -> tuple[Any, Any]:
        """See `optimistix.AbstractAdjoint.apply`."""
        return ImplicitAdjoint(_Series(self.num_steps, self.tau)).apply(primal_fn, rewrite_fn, inputs, tags)


class Neumann(optx.AbstractAdjoint):
    r"""Approximate the gradient by `num_terms` terms of Neumann's series, $\lambda = \sum_i (J^\top)^i c$.

    **Arguments:**

    - `num_terms`: the number of terms. One term is [`fixedpoint_eq.OneStep`][].

    **Raises:**

    `ValueError` for a `num_terms` below one.

    !!! Example

        ```python
        fpe.solve(fn, z0, args, adjoint=fpe.Neumann(20))
        ```
    """

    num_terms: int = eqx.field(default=10, static=True)

    def __check_init__(self):
        if self.num_terms < 1:
            raise ValueError(f"`num_terms` must be at least 1; got {self.num_terms}")

    def apply(self, primal_fn: Any, rewrite_fn: Any, inputs: Any, tags: frozenset[object]) -> tuple[Any, Any]:
        """See `optimistix.AbstractAdjoint.apply`."""
        return ImplicitAdjoint(_Series(self.num_terms, 1.0)).apply(primal_fn, rewrite_fn, inputs, tags)


class OneStep(optx.AbstractAdjoint):
    r"""Approximate the gradient by that of one application of the map at the solution, $\lambda = c$.

    It costs no product with $J$, and its relative error can be as large as $\rho/(1-\rho)$ for $\lVert J\rVert = \rho$.

    !!! Example

        ```python
        fpe.solve(fn, z0, args, adjoint=fpe.OneStep())
        ```

    ??? cite "Reference"

        Fung et al., "JFB: Jacobian-free backpropagation for implicit networks", arXiv:2103.12803. Bolte et al.,
        "One-step differentiation of iterative algorithms", arXiv:2305.13768.
    """

    def apply(self, primal_fn: Any, rewrite_fn: Any, inputs: Any, tags: frozenset[object]) -> tuple[Any, Any]:
        """See `optimistix.AbstractAdjoint.apply`."""
        return ImplicitAdjoint(_Series(1, 1.0)).apply(primal_fn, rewrite_fn, inputs, tags)


class Unrolled(optx.AbstractAdjoint):
    """Differentiate the iterations themselves, with checkpoints: the gradient of what was computed, in reverse mode.

    **Arguments:**

    - `checkpoints`: how many states to keep; `None` keeps the logarithm of the number of steps.

    !!! Example

        ```python
        fpe.solve(fn, z0, args, fpe.Picard(), fpe.Unrolled(), max_steps=30)
        ```
    """

    checkpoints: int | None = eqx.field(default=None, static=True)

    def apply(self, primal_fn: Any, rewrite_fn: Any, inputs: Any, tags: frozenset[object]) -> tuple[Any, Any]:
        """See `optimistix.AbstractAdjoint.apply`."""
        return optx.RecursiveCheckpointAdjoint(self.checkpoints).apply(primal_fn, rewrite_fn, inputs, tags)


class _AbstractSimpleSolver(lx.AbstractLinearSolver[lx.AbstractLinearOperator]):
    """A linear solver that needs nothing of the operator `J - I` but its products."""

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> lx.AbstractLinearOperator:
        del options
        return lx.linearise(operator)

    def transpose(self, state: lx.AbstractLinearOperator, options: dict[str, Any]) -> Any:
        return state.transpose(), options

    def conj(self, state: lx.AbstractLinearOperator, options: dict[str, Any]) -> Any:
        return lx.conj(state), options

    def assume_full_rank(self) -> bool:
        return True


class _Series(_AbstractSimpleSolver):
    num_steps: int = eqx.field(static=True)
    tau: RealScalar

    def compute(self, state: lx.AbstractLinearOperator, vector: Any, options: dict[str, Any]) -> Any:
        del options
        # The first step from zero needs no product.
        first = jtu.tree_map(lambda leaf: -jnp.asarray(self.tau).astype(leaf.dtype) * leaf, vector)
        # J x + c - x = A x - b.
        body = lambda _, x: tree_axpy(self.tau, tree_sub(state.mv(x), vector), x)
        x = jax.lax.fori_loop(1, self.num_steps, body, first)
        return x, lx.RESULTS.successful, {}


class _FixedPointSolver(_AbstractSimpleSolver):
    solver: AbstractSolver
    max_steps: int = eqx.field(static=True)
    mode: str = eqx.field(static=True)
    samples: bool = eqx.field(static=True)
    zero: bool = eqx.field(static=True)

    def compute(self, state: lx.AbstractLinearOperator, vector: Any, options: dict[str, Any]) -> Any:
        del options
        size = _sizes(vector, self.samples)
        safe = jnp.where(size > 16 * float(jnp.finfo(size.dtype).tiny), size, 1)
        b = _scaled(vector, 1 / safe)
        fn = lambda x, _: (tree_axpy(1, x, tree_sub(state.mv(x), b)), None)
        start = jtu.tree_map(jnp.negative, b)
        progress = iterate(
            fn,
            start,
            None,
            self.solver,
            max_steps=self.max_steps,
            samples=self.samples,
            while_loop=lambda cond, body, init, max_steps: eqxi.while_loop(
                cond, body, init, max_steps=max_steps, kind="lax"
            ),
        )
        ok = outcome(progress) == RESULTS.successful
        x = _scaled(progress.best, safe)
        if self.zero and self.mode == "strict":
            x = tree_where(ok, x, jtu.tree_map(jnp.zeros_like, x))
        passed = jnp.all(ok) | self.zero | (self.mode == "soft")
        result = lx.RESULTS.where(passed, lx.RESULTS.successful, lx.RESULTS.max_steps_reached)
        return x, result, {"num_steps": progress.num_steps}


def _sizes(vector: Any, samples: bool) -> jax.Array:
    """Return the largest entry in magnitude, of each sample if there are samples. Unlike a norm it cannot underflow."""

    def peak(leaf):
        axes = tuple(range(1 if samples else 0, leaf.ndim))
        return jnp.max(jnp.abs(leaf), axis=axes, initial=0).astype(real_dtype(vector))

    return ft.reduce(jnp.maximum, map(peak, jtu.tree_leaves(vector)))


def _scaled(vector: Any, factor: jax.Array) -> Any:
    return jtu.tree_map(
        lambda leaf: factor.astype(leaf.dtype).reshape(factor.shape + (1,) * (leaf.ndim - factor.ndim)) * leaf, vector
    )
