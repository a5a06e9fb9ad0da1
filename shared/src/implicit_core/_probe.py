from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Float

from ._adapter import hoist
from ._misc import real_dtype, tree_norm


class AdjointState(eqx.Module):
    r"""Diagnostics of a backward solve, and a warm start for the next: an argument whose cotangent is its next value.

    A pullback has nowhere to put auxiliary data, so it goes where a gradient would. Pass a state to a decorated solver,
    `solve(theta, adjoint_state=state)`, and differentiate in it too; what comes back in place of its gradient is the
    state after this backward solve, $(\partial_1 F)^\top u = c$. It may be read, passed on to the next call, or dropped.
    Under `jax.vmap(jax.grad(...))` there is one for each member of the batch.

    The backward solve of such a call never raises: what it attained is in `relres`. If it ran several times on one
    state (a loss that solves twice, or a sum over a batch) the cotangents add up: give each call its own. Such calls
    have no forward mode, hence no `jax.hessian`, by a limit of `jax.custom_vjp`.

    **Arguments:**

    - `like`: a solution, or `jax.ShapeDtypeStruct`s of its structure.
    - `size`: how many adjoint solutions to keep. The next backward solve of an iterative solver starts at the
        combination of them that has the smallest residual, at the cost of one product with the operator for each.

    **Attributes:**

    - `relres`: $\lVert c - (\partial_1 F)^\top u\rVert / \lVert c\rVert$, recomputed from $u$.
    - `num_steps`: number of steps, of floating point because it takes the place of a gradient. Zero for direct solvers.
    - `solutions`: the last `size` adjoint solutions $u$, latest first, along a leading axis.

    !!! Example

        ```python
        state = AdjointState(z0, size=4)
        for theta in thetas:
            gradient, state = jax.grad(lambda theta, state: loss(solve(theta, adjoint_state=state)), (0, 1))(theta, state)
            state.relres, state.num_steps
        ```

    ??? cite "Reference"

        Sections 5.5 and 5.6 of the core's specification.
    """

    relres: Float[Array, "..."]
    num_steps: Float[Array, "..."]
    solutions: Any

    def __init__(self, like: Any, size: int = 0):
        if size < 0:
            raise ValueError(f"`size` must not be negative; got {size}")
        self.relres = jnp.zeros((), real_dtype(like))
        self.num_steps = jnp.zeros((), real_dtype(like))
        self.solutions = jtu.tree_map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), like)

    def _after(self, solve: "AdjointSolve") -> "AdjointState":
        size = jtu.tree_leaves(self.solutions)[0].shape[0]
        solutions = jtu.tree_map(lambda new, old: jnp.concatenate([new[None], old])[:size], solve.u, self.solutions)
        new = (solve.relres, jnp.asarray(solve.num_steps, self.num_steps.dtype), solutions)
        return eqx.tree_at(lambda state: (state.relres, state.num_steps, state.solutions), self, new)


class AdjointSolve(eqx.Module):
    """The solution of one backward solve, and how well it solves it."""

    u: Any
    residual_norm: Array  # |c - A^T u|
    relres: Array  # the same, relative to |c|
    num_steps: Any


def jacobian(F: Callable[[Any, Any], Any], z: Any, theta: Any, tags: frozenset[object]) -> lx.AbstractLinearOperator:
    """Return the derivative of `F` in `z`, linearised once."""
    return lx.linearise(lx.JacobianLinearOperator(lambda z, args: args[0](z, args[1]), z, (F, theta), tags=tags))


def adjoint_solve(
    operator: lx.AbstractLinearOperator, solver: lx.AbstractLinearSolver, c: Any, guesses: Any = None
) -> AdjointSolve:
    """Solve with the transpose of `operator`, as the derivative of a linear solve does, but without raising."""
    # The solver is made for the operator: a preconditioner is one of it, and is transposed with it.
    state, options = solver.transpose(solver.init(operator, {}), {})
    operator = operator.transpose()
    if guesses is not None and jtu.tree_leaves(guesses)[0].shape[0] > 0:
        images = jax.vmap(lambda w: jfu.ravel_pytree(operator.mv(w))[0], out_axes=1)(guesses)
        # Not `lstsq`, which is NaN for a matrix of zeros in JAX 0.6.1.
        left, values, right = jnp.linalg.svd(images, full_matrices=False)
        sound = values > 100 * float(jnp.finfo(values.dtype).eps) * values[0]
        scaled = jnp.where(sound, 1 / jnp.where(sound, values, 1), 0).astype(left.dtype)
        weights = right.conj().T @ (scaled * (left.conj().T @ jfu.ravel_pytree(c)[0]))
        options = {**options, "y0": jtu.tree_map(lambda w: jnp.tensordot(weights, w, 1).astype(w.dtype), guesses)}
    solution = lx.linear_solve(operator, c, solver, options=options, state=state, throw=False)
    residual = jtu.tree_map(jnp.subtract, c, operator.mv(solution.value))
    norm, residual_norm = tree_norm(c), tree_norm(residual)
    relres = residual_norm / jnp.where(norm > 0, norm, 1)
    return AdjointSolve(solution.value, residual_norm, relres, solution.stats.get("num_steps", 0))


def vjp_of_theta(F: Callable[[Any, Any], Any], z: Any, theta: Any, u: Any) -> tuple[Any, Any]:
    """Return the cotangents, in `F`'s own arrays and in `theta`, that belong to the adjoint solution `u`."""
    _, pullback = eqx.filter_vjp(lambda F, theta: F(z, theta), F, theta)
    return pullback(jtu.tree_map(jnp.negative, u))


@eqx.filter_custom_vjp
def _probed(differentiable, z, tags, solver):
    del differentiable, tags, solver
    return z


@_probed.def_fwd
def _probed_fwd(perturbed, differentiable, z, tags, solver):
    del perturbed, differentiable, tags, solver
    return z, None


@_probed.def_bwd
def _probed_bwd(residuals, c, perturbed, differentiable, z, tags, solver):
    del residuals, perturbed
    F, theta, state = differentiable
    c = jtu.tree_map(lambda leaf, ct: jnp.zeros_like(leaf) if ct is None else ct, z, c)
    solve = adjoint_solve(jacobian(F, z, theta, tags), solver, c, state.solutions)
    return *vjp_of_theta(F, z, theta, solve.u), state._after(solve)


def attach_probed(
    F: Callable[[Any, Any], Any],
    z: Any,
    theta: Any,
    tags: frozenset[object],
    solver: lx.AbstractLinearSolver,
    state: AdjointState,
) -> Any:
    """Return `z` with the derivative of the root of `F` in reverse mode, and `state` with what it came to."""
    shapes, made_for = jtu.tree_map(jnp.shape, z), jtu.tree_map(lambda leaf: leaf.shape[1:], state.solutions)
    if shapes != made_for:
        raise ValueError(f"`adjoint_state` must be made for the solution, of shapes {shapes}; got {made_for}")
    return _probed((hoist(F, z, theta), theta, state), z, tags, solver)
