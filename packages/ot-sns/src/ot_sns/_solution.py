import equinox as eqx
import jax
import jax.numpy as jnp
from implicit_core.certify import Certificate
from jaxtyping import Array, Float

from ._custom_types import FloatScalar
from ._derivative import plan_matrix
from ._problem import EntropicOT
from ._results import RESULTS
from ._scaling import weighted_sum


class Solution(eqx.Module):
    r"""The solution of an entropic transport problem.

    Everything but `result` and `stats` is differentiable with respect to the problem.

    **Attributes:**

    - `value`: the optimal value $\langle C, P \rangle + \varepsilon \sum P (\log P - 1)$, a scalar.
    - `f`: the source potential, of shape `(n,)`, with mean zero over the atoms that have mass;
        $-\infty$ where an atom has none.
    - `g`: the target potential, of shape `(m,)`; $-\infty$ where an atom has no mass.
    - `result`: how the solve ended, an [`ot_sns.RESULTS`][].
    - `stats`: `num_steps`; `error`, `error_a` and `error_b` (the 1-norms of both marginals' errors, relative to the
        total mass, as measured on the returned potentials); `tol`; and what the solver counts (`num_newton`, `num_cg`,
        `num_sinkhorn`, ...).
    - `problem`: the problem that was solved.
    """

    value: FloatScalar
    f: Float[Array, " n"]
    g: Float[Array, " m"]
    result: RESULTS
    stats: dict[str, Array]
    problem: EntropicOT

    def matrix(self) -> Float[Array, "n m"]:
        r"""Return the plan $P_{ij} = \exp((f_i + g_j - C_{ij})/\varepsilon)$ of shape `(n, m)`."""
        cost = self.problem.geometry.cost_matrix()
        return plan_matrix(cost, self.problem.epsilon, self.f, self.g)

    def feasible_matrix(self) -> Float[Array, "n m"]:
        r"""Return a plan near `matrix()` whose marginals are exactly `a` and `b`, up to rounding.

        Rows and columns that are too heavy are scaled down, and the missing mass is spread as a product (Algorithm 2
        of arXiv 1705.09634). For an upper bound, not for derivatives: at convergence the missing mass is rounding.
        """
        a, b, plan = self.problem.a, self.problem.b, self.matrix()
        plan = plan * _shrink(a, jnp.sum(plan, axis=1))[:, None]
        plan = plan * _shrink(b, jnp.sum(plan, axis=0))[None, :]
        # Nonnegative but for rounding, which must not make the plan negative.
        missing_a = jnp.maximum(a - jnp.sum(plan, axis=1), 0)
        missing_b = jnp.maximum(b - jnp.sum(plan, axis=0), 0)
        mass = jnp.sum(missing_a)
        return plan + missing_a[:, None] * (missing_b / jnp.where(mass > 0, mass, 1))[None, :]

    def transport_cost(self) -> FloatScalar:
        r"""Return $\langle C, P \rangle$, the cost of the plan without its entropy."""
        return jnp.sum(self.problem.geometry.cost_matrix() * self.matrix())

    def certificate(self) -> Certificate:
        r"""Bound how far `value` can be from the optimal value, whatever the solver did.

        Any potentials bound the optimal value from below by weak duality, and any feasible plan bounds it from above:
        the certificate's `value` is the gap between the returned potentials and `feasible_matrix()`, plus an allowance
        for rounding. It has no derivative.
        """
        problem, f, g, value = jax.lax.stop_gradient((self.problem, self.f, self.g, self.value))
        cost, eps = problem.geometry.cost_matrix(), float(jnp.finfo(self.value.dtype).eps)
        mass = jnp.sum(jax.lax.stop_gradient(self.matrix()))
        lower = weighted_sum(problem.a, f) + weighted_sum(problem.b, g) - problem.epsilon * mass
        plan = jax.lax.stop_gradient(self.feasible_matrix())
        entropy = jnp.sum(jax.scipy.special.xlogy(plan, plan) - plan)
        upper = jnp.sum(cost * plan) + problem.epsilon * entropy
        size = jnp.sum(jnp.abs(cost) * plan) + problem.epsilon * (jnp.abs(entropy) + mass)
        size += weighted_sum(problem.a, jnp.abs(f)) + weighted_sum(problem.b, jnp.abs(g))
        rounding = 8 * eps * size
        gap = jnp.maximum(upper - value, value - lower)
        return Certificate(
            quantity="distance of `value` from the optimal value",
            value=jnp.maximum(gap, 0) + rounding,
            kind="proved",
            assumptions=(
                "weak duality: no assumption on convergence",
                "rounding of the sums stays within 8 eps of their terms' magnitude",
            ),
        )


def _shrink(wanted: Array, actual: Array) -> Array:
    # min(1, wanted / actual), one where there is nothing.
    return jnp.minimum(wanted / jnp.where(actual > 0, actual, 1), 1)
