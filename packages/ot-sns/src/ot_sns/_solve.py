import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from implicit_core.implicit import ImplicitAdjoint
from implicit_core.krylov import PCG
from jaxtyping import Array, Float

from ._check import as_float, require
from ._custom_types import IntScalar
from ._derivative import column_potential, plan_matrix, potential, value
from ._problem import EntropicOT
from ._results import RESULTS
from ._scaling import DenseProblem
from ._solution import Solution
from ._solver import AbstractSolver
from ._sparse_newton import SparseNewton


def solve(
    problem: EntropicOT,
    solver: AbstractSolver = SparseNewton(),
    *,
    init: Solution | tuple[Float[Array, " n"], Float[Array, " m"]] | None = None,
    adjoint: optx.AbstractAdjoint | None = None,
    max_steps: int | IntScalar = 10_000,
    throw: bool = True,
) -> Solution:
    """Solve an entropic optimal transport problem.

    **Arguments:**

    - `problem`: an [`ot_sns.EntropicOT`][].
    - `solver`: an [`ot_sns.AbstractSolver`][]; the default is right for every problem.
    - `init`: where to start, a [`ot_sns.Solution`][] of a similar problem or potentials `(f, g)`.
    - `adjoint`: how potentials are differentiated. `None` is `implicit_core.implicit.ImplicitAdjoint` with
        preconditioned conjugate gradients to a relative residual of 1e-10 (1e-5 in float32), which raises where rounding
        keeps it from a tenth of that accuracy. `ImplicitAdjoint(PCG(rtol, mode="soft"))` never raises; any
        `optimistix.ImplicitAdjoint` works too.
    - `max_steps`: the number of the solver's steps (Sinkhorn and Newton steps) at most.
    - `throw`: raise if the solve does not succeed. Otherwise look at `result`.

    **Returns:**

    An [`ot_sns.Solution`][].

    **Raises:**

    Equinox's run-time error if the solve does not succeed and `throw` is set; a `TypeError` or
    `ValueError` for arguments of the wrong kind or shape.

    ```python
    import jax.numpy as jnp
    import ot_sns

    cost = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    solution = ot_sns.solve(ot_sns.EntropicOT(ot_sns.DenseCost(cost), epsilon=0.1))
    plan = solution.matrix()
    ```
    """
    if not isinstance(problem, EntropicOT):
        raise TypeError(f"`problem` must be an `ot_sns.EntropicOT`, got {type(problem).__name__}.")
    if not isinstance(solver, AbstractSolver):
        got = f"the class `{solver.__name__}` itself" if isinstance(solver, type) else type(solver).__name__
        raise TypeError(f"`solver` must be an instance of an `ot_sns.AbstractSolver`, got {got}.")
    # As an array it is no static argument of the compiled function: another limit is no reason to compile again.
    steps = jnp.asarray(max_steps, jnp.int32)
    steps = require(steps, steps >= 1, "`max_steps` must be at least 1.", max_steps=steps)
    if adjoint is None:
        # Strict: a gradient that misses ten times this raises, it is never silently wrong.
        rtol = 1e-5 if jnp.finfo(problem.geometry.dtype).bits == 32 else 1e-10
        adjoint = ImplicitAdjoint(linear_solver=PCG(rtol=rtol))
    if isinstance(init, Solution):
        init = (init.f, init.g)
    if init is not None:
        init = _check_init(init, problem)
    return _solve(problem, solver, init, adjoint, steps, throw)


@eqx.filter_jit
def _solve(
    problem: EntropicOT,
    solver: AbstractSolver,
    init: tuple[Array, Array] | None,
    adjoint: optx.AbstractAdjoint,
    max_steps: IntScalar,
    throw: bool,
) -> Solution:
    cost = problem.geometry.cost_matrix()
    cost = require(cost, jnp.all(jnp.isfinite(cost)), "`problem.geometry` has a cost that is not finite.")
    n, m = problem.shape
    flipped = n > m
    dense = DenseProblem(cost, problem.a, problem.b, problem.epsilon)
    start = None if init is None else init[0]
    if flipped:
        # The larger side is eliminated exactly; the iteration works on the smaller.
        dense = DenseProblem(cost.T, problem.b, problem.a, problem.epsilon)
        start = None if init is None else init[1]
    if start is not None:
        start = jax.lax.stop_gradient(jnp.where(jnp.isfinite(start), start, 0))
    f, (result, stats) = potential(dense, solver, start, max_steps, adjoint)
    g = column_potential(dense, f)
    f = jnp.where(dense.a > 0, f, -jnp.inf)
    if flipped:
        f, g = g, f
    f, g = _centre(f, g)
    stats = stats | _measure(jax.lax.stop_gradient((cost, problem, f, g)))
    objective = value(cost, problem.a, problem.b, problem.epsilon, f, g)
    # The error is measured here, whatever the solver claims. The potentials are rounded once more than its scalings
    # were, hence a hundredth of slack.
    failed = ~(stats["error"] <= 1.01 * stats["tol"]) & (result == RESULTS.successful)
    result = RESULTS.where(failed, RESULTS.marginal_stagnation, result)
    result = RESULTS.where(jnp.isfinite(objective), result, RESULTS.nonfinite)  # pyright: ignore[reportArgumentType]
    solution = Solution(
        value=objective,
        f=f,
        g=g,
        result=result,
        stats=stats,
        problem=problem,
    )
    if throw:
        solution = result.error_if(solution, result != RESULTS.successful)
    return solution


def _check_init(init: object, problem: EntropicOT) -> tuple[Array, Array]:
    if not isinstance(init, tuple) or len(init) != 2:
        raise TypeError("`init` must be an `ot_sns.Solution` or a pair of potentials `(f, g)`.")
    f, g = as_float(init[0], "init[0]"), as_float(init[1], "init[1]")
    if (f.size, g.size) != problem.shape or f.ndim != 1 or g.ndim != 1:
        raise ValueError(
            f"`init` must hold potentials of shapes {(problem.shape[0],)} and "
            f"{(problem.shape[1],)}, got {f.shape} and {g.shape}."
        )
    dtype = problem.geometry.dtype
    return f.astype(dtype), g.astype(dtype)


def _centre(f: Array, g: Array) -> tuple[Array, Array]:
    finite = jnp.isfinite(f)
    mean = jnp.mean(jnp.where(finite, f, 0), where=finite)
    # An infinite potential has no derivative, not even the mean's.
    return jnp.where(finite, f - mean, f), jnp.where(jnp.isfinite(g), g + mean, g)


def _measure(point: tuple[Array, EntropicOT, Array, Array]) -> dict[str, Array]:
    cost, problem, f, g = point
    plan = plan_matrix(cost, problem.epsilon, f, g)
    mass = jnp.sum(problem.a)
    error_a = jnp.sum(jnp.abs(jnp.sum(plan, axis=1) - problem.a)) / mass
    error_b = jnp.sum(jnp.abs(jnp.sum(plan, axis=0) - problem.b)) / mass
    return dict(error=error_a + error_b, error_a=error_a, error_b=error_b)
