r"""The dual problem in scaling form: potentials are moved by matrix-vector products alone.

The plan is kept as $P = \mathrm{diag}(u) K \mathrm{diag}(v)$ with a kernel
$K_{ij} = \exp((\bar f_i + \bar g_j - C_{ij})/\varepsilon)$ that is anchored at reference potentials,
so $f = \bar f + \varepsilon \log u$ and $g = \bar g + \varepsilon \log v$. A Sinkhorn step, or a
trial point of a line search, is then two matrix-vector products and no exponential of a matrix;
the kernel is anchored anew only when $u$ has drifted far.

The column potential is always eliminated exactly ($v = b / K^\top u$), which leaves the concave
semi-dual $F(f) = \langle a, f \rangle + \langle b, g(f) \rangle$ with gradient $a - P 1$.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._custom_types import BoolScalar, FloatScalar


class DenseProblem(eqx.Module):
    """What an [`ot_sns.AbstractSolver`][] is given of a problem.

    **Attributes:**

    - `cost`: the cost matrix, of shape `(n, m)`, with `n <= m`: the driver transposes where it has to.
    - `a`, `b`: the weights of the rows and columns, checked, of equal total mass.
    - `epsilon`: the regularisation, a scalar.
    """

    cost: Float[Array, "n m"]
    a: Float[Array, " n"]
    b: Float[Array, " m"]
    epsilon: FloatScalar

    def at(self, epsilon: FloatScalar) -> "DenseProblem":
        """The same problem at another regularisation."""
        return DenseProblem(self.cost, self.a, self.b, epsilon)


def matvec(left: Array, right: Array) -> Array:
    """Multiply, without letting an accelerator round the factors (TensorFloat-32)."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def weighted_sum(weights: Array, potential: Array) -> FloatScalar:
    r"""$\langle w, p \rangle$ with $0 \cdot (-\infty) = 0$."""
    finite = jnp.where(weights > 0, potential, 0)
    return jnp.sum(weights * finite)


class Point(eqx.Module):
    """A dual point, with everything that evaluating it has produced."""

    log_u: Float[Array, " n"]
    u: Float[Array, " n"]
    v: Float[Array, " m"]
    f: Float[Array, " n"]
    g: Float[Array, " m"]
    row_sums: Float[Array, " n"]
    dual: FloatScalar


class Semidual(eqx.Module):
    r"""The semi-dual of a problem, with its kernel anchored at some potential.

    Every column's reference is its largest exponent, so $0 \le K \le 1$ with a one in each column:
    nothing can overflow, and no column can vanish.
    """

    problem: DenseProblem
    f_ref: Float[Array, " n"]
    g_ref: Float[Array, " m"]
    kernel: Float[Array, "n m"]

    def __init__(self, problem: DenseProblem, f: Float[Array, " n"]):
        # A row without mass has f = -inf: it never wins a column's maximum and its kernel row is 0.
        f = jnp.where(problem.a > 0, f, -jnp.inf)
        exponent = f[:, None] - problem.cost
        largest = jnp.max(exponent, axis=0)
        self.problem = problem
        self.f_ref = f
        self.g_ref = -largest
        self.kernel = jnp.exp((exponent - largest[None, :]) / problem.epsilon)

    def at(self, log_u: Float[Array, " n"]) -> Point:
        r"""Evaluate at $f = \bar f + \varepsilon \log u$: two matrix-vector products."""
        problem = self.problem
        u = jnp.exp(log_u)
        v = problem.b / matvec(u, self.kernel)
        f = self.f_ref + problem.epsilon * log_u
        g = self.g_ref + problem.epsilon * jnp.log(v)
        dual = weighted_sum(problem.a, f) + weighted_sum(problem.b, g)
        return Point(log_u, u, v, f, g, u * matvec(self.kernel, v), dual)

    def anchor_point(self) -> Point:
        """Evaluate at the potential at which the kernel is anchored."""
        return self.at(jnp.zeros_like(self.f_ref))

    def sinkhorn_step(self, point: Point, relaxation: float | Array = 1.0) -> Point:
        """One Sinkhorn iteration: rows, then columns."""
        return self.at(point.log_u + relaxation * log_ratio(self.problem.a, point.row_sums))

    def lost(self, point: Point) -> BoolScalar:
        """Whether the kernel must be anchored anew before `point` can be trusted or moved further.

        Entries that underflowed when the kernel was anchored must still be negligible after
        scaling by `u`, and every row that has mass must carry some.
        """
        has_mass = self.problem.a > 0
        limits = jnp.finfo(point.dual.dtype)
        drift = jnp.max(jnp.where(has_mass, jnp.abs(point.log_u), 0))
        # A seventh of the exponent range: 101 in float64, 12 in float32.
        too_far = drift > jnp.log(limits.max) / 7
        empty = jnp.any(has_mass & ~(point.row_sums > jnp.sqrt(limits.tiny)))
        return too_far | empty | ~jnp.isfinite(point.dual)

    def error(self, point: Point) -> FloatScalar:
        """The 1-norm of the row marginal's error, relative to the total mass."""
        return jnp.sum(jnp.abs(self.problem.a - point.row_sums)) / jnp.sum(self.problem.a)

    def chi_square(self, point: Point) -> FloatScalar:
        r"""The distance $\sum_i (a_i - r_i)^2 / r_i$ of the row marginal, relative to the total mass."""
        a, row_sums = self.problem.a, point.row_sums
        positive = row_sums > 0
        terms = (a - row_sums) ** 2 / jnp.where(positive, row_sums, 1)
        # A row that has mass and carries none is as far away as can be.
        terms = jnp.where(positive, terms, jnp.where(a > 0, jnp.inf, 0))
        return jnp.sum(terms) / jnp.sum(a)


def log_row_step(problem: DenseProblem, g: Float[Array, " m"]) -> Float[Array, " n"]:
    """Sinkhorn's row update in the logarithmic domain, for any finite or infinite scaling."""
    exponent = (g[None, :] - problem.cost) / problem.epsilon
    log_sums = jax.nn.logsumexp(exponent, axis=1)
    return problem.epsilon * (jnp.log(problem.a) - log_sums)


def log_ratio(a: Float[Array, " n"], row_sums: Float[Array, " n"]) -> Float[Array, " n"]:
    """`log(a / row_sums)`, zero for a row without mass."""
    positive = (a > 0) & (row_sums > 0)
    return jnp.log(jnp.where(positive, a, 1) / jnp.where(positive, row_sums, 1))
