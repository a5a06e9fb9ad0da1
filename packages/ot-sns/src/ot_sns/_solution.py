import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._custom_types import FloatScalar
from ._derivative import plan_matrix
from ._problem import EntropicOT
from ._results import RESULTS


class Solution(eqx.Module):
    r"""The solution of an entropic transport problem.

    Everything but `result` and `stats` is differentiable with respect to the problem.

    **Attributes:**

    - `value`: the optimal value $\langle C, P \rangle + \varepsilon \sum P (\log P - 1)$, a scalar.
    - `f`: the source potential, of shape `(n,)`, with mean zero over the atoms that have mass;
        $-\infty$ where an atom has none.
    - `g`: the target potential, of shape `(m,)`, likewise.
    - `result`: how the solve ended, an [`ot_sns.RESULTS`][].
    - `stats`: `num_steps`; `error`, `error_a` and `error_b` (the 1-norms of both marginals' errors,
        relative to the total mass, as measured on the returned potentials); `tol`; and what the
        solver counts (`num_newton`, `num_cg`, `num_sinkhorn`, ...).
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

    def transport_cost(self) -> FloatScalar:
        r"""Return $\langle C, P \rangle$, the cost of the plan without its entropy."""
        return jnp.sum(self.problem.geometry.cost_matrix() * self.matrix())
