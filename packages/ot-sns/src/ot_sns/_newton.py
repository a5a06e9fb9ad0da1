r"""The Newton direction on the semi-dual.

The Hessian is $-S/\varepsilon$ with $S = \mathrm{diag}(r) - P \, \mathrm{diag}(1/b) P^\top$, a graph
Laplacian: symmetric, positive semidefinite, with the constants in its kernel. The gradient $a - r$
sums to zero, so $S x = a - r$ is consistent and conjugate gradients need no gauge fixing.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from implicit_core import krylov
from jaxtyping import Array, Float

from ._custom_types import FloatScalar, IntScalar
from ._scaling import DenseProblem, Point, Semidual, matvec
from ._sparsify import Sparsified, sparsify


Hessian: TypeAlias = Literal["auto", "dense", "sparse"]

# "auto" extracts a sparse Hessian only where it pays. Measured on a CPU, a sparse product costs 6 ns a kept entry, a
# dense one 0.25 ns an entry in cache and 0.7 ns beyond it, and an extraction as much as some ten dense products.
_MIN_ENTRIES = 2_000_000
_MAX_DENSITY = 0.075
_MIN_CG_STEPS = 20


class Direction(eqx.Module):
    """A solution of $S x = a - r$, in units of `log_u`, and what it cost."""

    x: Float[Array, " n"]
    num_cg: IntScalar
    nnz: IntScalar


def schur_diagonal(semidual: Semidual, point: Point) -> Float[Array, " n"]:
    """The diagonal of $S$, kept positive; it preconditions far better than `r` does."""
    weights = _column_weights(semidual.problem, point)
    squares = jnp.sum(semidual.kernel**2 * weights[None, :], axis=1)
    diagonal = point.row_sums - point.u**2 * squares
    floor = 1e-6 * point.row_sums
    return jnp.where(point.row_sums > 0, jnp.maximum(diagonal, floor), 1)


def newton_direction(
    semidual: Semidual,
    point: Point,
    *,
    radius: FloatScalar,
    rtol: FloatScalar,
    budget: FloatScalar,
    hessian: Hessian,
    capacity: int,
    max_cg_steps: int,
    expected_cg_steps: IntScalar,
) -> Direction:
    r"""Solve for the Newton direction by preconditioned conjugate gradients.

    Where the plan nearly falls apart into components, $S$ is nearly singular and Newton would shift
    whole components by thousands. Solving $(S + \mu \, \mathrm{diag}(r)) x = a - r$ keeps every
    $|x_i| \le \max_i |a_i - r_i| / (\mu r_i)$, since $S$ has row sums zero and off-diagonals that are
    not positive; $\mu$ is chosen to make this bound the radius. It vanishes with the gradient, so
    convergence stays superlinear.

    **Arguments:**

    - `radius`: the largest change of `log_u` to allow; may be infinite.
    - `rtol`: relative residual at which conjugate gradients stop (the forcing term).
    - `budget`: largest fraction of a row's or column's mass that sparsification may drop.
    - `hessian`: see [`ot_sns.SparseNewton`][].
    - `capacity`: the number of entries that a sparse Hessian has room for.
    - `max_cg_steps`: a limit.
    - `expected_cg_steps`: what the last direction took, by which "auto" decides.
    """
    problem = semidual.problem
    gradient = problem.a - point.row_sums
    has_mass = point.row_sums > 0
    relative = jnp.where(has_mass, gradient / jnp.where(has_mass, point.row_sums, 1), 0)
    shift = jnp.max(jnp.abs(relative)) / radius
    shifted_rows = (1 + shift) * point.row_sums
    diagonal = schur_diagonal(semidual, point) + shift * point.row_sums

    def solve(mv: Callable[[Array], Array], nnz: IntScalar) -> Direction:
        x, info = krylov.pcg(
            mv,
            gradient,
            precond_mv=lambda r: r / diagonal,
            rtol=rtol,
            max_steps=max_cg_steps,
        )
        return Direction(x, info.num_steps, nnz)

    def dense() -> Direction:
        weights = _column_weights(problem, point)

        def mv(x: Array) -> Array:
            t = weights * matvec(point.u * x, semidual.kernel)
            return shifted_rows * x - point.u * matvec(semidual.kernel, t)

        return solve(mv, jnp.array(problem.cost.size, jnp.int32))

    def sparse(kept: Sparsified) -> Direction:
        safe_b = jnp.where(problem.b > 0, problem.b, 1)

        def mv(x: Array) -> Array:
            return shifted_rows * x - kept.mv(kept.transpose_mv(x) / safe_b)

        return solve(mv, kept.count)

    size = problem.cost.size
    if hessian == "dense" or (hessian == "auto" and size < _MIN_ENTRIES):
        return dense()
    if hessian == "sparse":
        return sparse(sparsify(semidual, point, budget, capacity, must_fit=True))
    capacity = min(capacity, int(_MAX_DENSITY * size))

    def try_sparse() -> Direction:
        kept = sparsify(semidual, point, budget, capacity, must_fit=False)
        return jax.lax.cond(kept.count <= capacity, sparse, lambda _: dense(), kept)

    return jax.lax.cond(expected_cg_steps >= _MIN_CG_STEPS, try_sparse, dense)


def _column_weights(problem: DenseProblem, point: Point) -> Float[Array, " m"]:
    # v_j^2 / b_j, zero for a column without mass.
    positive = problem.b > 0
    return jnp.where(positive, point.v**2 / jnp.where(positive, problem.b, 1), 0)
