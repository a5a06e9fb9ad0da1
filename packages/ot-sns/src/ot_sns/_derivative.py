r"""How potentials and values are differentiated: at the solution, never through the iterations.

Potentials follow from the implicit function theorem on the semi-dual's optimality condition
$a - P 1 = 0$, whose Jacobian is $S / \varepsilon$. The value follows from the envelope theorem
(Danskin), without any linear solve: $\partial V / \partial C = P$, $\partial V / \partial a = f$,
$\partial V / \partial b = g$ and
$\partial V / \partial \varepsilon = -\sum P - \sum P (C - f - g) / \varepsilon$.
"""

import inspect

import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Float, PyTree

from ._custom_types import FloatScalar, IntScalar
from ._newton import schur_diagonal
from ._results import RESULTS
from ._scaling import DenseProblem, Semidual, weighted_sum
from ._solver import AbstractSolver


def potential(
    problem: DenseProblem,
    solver: AbstractSolver,
    f: Float[Array, " n"] | None,
    max_steps: IntScalar,
    adjoint: optx.AbstractAdjoint,
) -> tuple[Float[Array, " n"], tuple[RESULTS, dict[str, Array]]]:
    r"""Run the solver, and give the row potential that it finds its implicit derivative.

    The gauge is fixed by a zero mean. Rows without mass get a zero, in place of $-\infty$.
    """
    inputs = (problem, solver, f, max_steps)
    scaled, (scale, outcome) = adjoint.apply(_run, _optimality, inputs, frozenset({lx.positive_semidefinite_tag}))
    return scaled / jax.lax.stop_gradient(scale), outcome


def _run(inputs: PyTree) -> tuple[Array, PyTree]:
    # Optimistix's adjoints append a while loop, which a method that is not unrolled has no use for.
    problem, solver, f, max_steps, *_ = inputs
    outcome = solver.run(problem, f, max_steps)
    has_mass = problem.a > 0
    f = jnp.where(has_mass, outcome.f, 0)
    f = jnp.where(has_mass, f - jnp.mean(f, where=has_mass), 0)
    # Scaling unknowns and equations by the root of the diagonal is Jacobi preconditioning that
    # any linear solver profits from.
    semidual = Semidual(problem, f)
    scale = jnp.sqrt(schur_diagonal(semidual, semidual.anchor_point()))
    return scale * f, (scale, (outcome.result, outcome.stats))


def _optimality(root: Array, residual: PyTree, inputs: PyTree) -> Array:
    problem: DenseProblem = inputs[0]
    scale = jax.lax.stop_gradient(residual[0])
    f = root / scale
    has_mass = problem.a > 0
    g = column_potential(problem, f)
    rows = jnp.sum(plan_matrix(problem.cost, problem.epsilon, jnp.where(has_mass, f, -jnp.inf), g), axis=1)
    # Masses that differ would leave no solution to differentiate: only the shape of `a` counts. An
    # atom without mass has no part in it.
    a = jnp.where(has_mass, problem.a, 0)
    a = a * (jnp.sum(jnp.where(problem.b > 0, problem.b, 0)) / jnp.sum(a))
    # The Jacobian is S plus this rank-one term, which fixes the gauge: nonsingular, and of the
    # same magnitude as S.
    gauge = jnp.sum(jnp.where(has_mass, f, 0)) * jnp.sum(a) / a.size**2
    return jnp.where(has_mass, (problem.epsilon * (rows - a) + gauge) / scale, root)


# Optimistix insists on functions without a closure, and jaxtyping's import hook wraps every function in one.
_run, _optimality = inspect.unwrap(_run), inspect.unwrap(_optimality)


def column_potential(problem: DenseProblem, f: Float[Array, " n"]) -> Float[Array, " m"]:
    r"""The exact maximiser $g_j = \varepsilon (\log b_j - \log \sum_i \exp((f_i - C_{ij})/\varepsilon))$.

    Columns without mass get what an infinitesimal mass would leave of it, with a zero derivative
    in `b`; the driver replaces it.
    """
    exponent = (f[:, None] - problem.cost) / problem.epsilon
    exponent = jnp.where((problem.a > 0)[:, None], exponent, -jnp.inf)
    positive = problem.b > 0
    log_b = jnp.log(jnp.where(positive, problem.b, 1))
    g = problem.epsilon * (log_b - jax.nn.logsumexp(exponent, axis=0))
    return jnp.where(positive, g, -jnp.inf)


@jax.custom_jvp
def value(
    cost: Float[Array, "n m"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    epsilon: FloatScalar,
    f: Float[Array, " n"],
    g: Float[Array, " m"],
) -> FloatScalar:
    r"""The dual value at potentials whose columns are exact, so that $\sum P = \sum b$."""
    del cost
    return weighted_sum(a, f) + weighted_sum(b, g) - epsilon * jnp.sum(b)


@value.defjvp
def _value_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    # Stationarity in (f, g) makes their tangents drop out. They stay differentiable here, so a
    # second derivative sees them.
    cost, a, b, epsilon, f, g = primals

    def dual(cost: Array, a: Array, b: Array, epsilon: Array) -> FloatScalar:
        plan = plan_matrix(cost, epsilon, f, g)
        return weighted_sum(a, f) + weighted_sum(b, g) - epsilon * jnp.sum(plan)

    tangent = jax.jvp(dual, (cost, a, b, epsilon), tangents[:4])[1]
    return value(cost, a, b, epsilon, f, g), tangent


def plan_matrix(
    cost: Float[Array, "n m"],
    epsilon: FloatScalar,
    f: Float[Array, " n"],
    g: Float[Array, " m"],
) -> Float[Array, "n m"]:
    r"""$P_{ij} = \exp((f_i + g_j - C_{ij}) / \varepsilon)$, zero with zero derivatives without mass."""
    has_mass = jnp.isfinite(f)[:, None] & jnp.isfinite(g)[None, :]
    f = jnp.where(jnp.isfinite(f), f, 0)
    g = jnp.where(jnp.isfinite(g), g, 0)
    exponent = (f[:, None] + g[None, :] - cost) / epsilon
    return jnp.where(has_mass, jnp.exp(jnp.where(has_mass, exponent, 0)), 0)
