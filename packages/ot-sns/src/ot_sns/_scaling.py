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


class Dense(eqx.Module):
    """What a solver needs of a problem: the cost as a matrix, and checked weights."""

    cost: Float[Array, "n m"]
    a: Float[Array, " n"]
    b: Float[Array, " m"]
    epsilon: FloatScalar

    def at(self, epsilon: FloatScalar) -> "Dense":
        """The same problem at another regularisation."""
        return Dense(self.cost, self.a, self.b, epsilon)


class Scaling(eqx.Module):
    """A dual point, with everything that evaluating it has produced."""

    f_ref: Float[Array, " n"]
    g_ref: Float[Array, " m"]
    kernel: Float[Array, "n m"]
    log_u: Float[Array, " n"]
    u: Float[Array, " n"]
    v: Float[Array, " m"]
    row_sums: Float[Array, " n"]
    dual: FloatScalar

    def f(self, epsilon: FloatScalar) -> Float[Array, " n"]:
        r"""The row potential; $-\infty$ for a row of zero mass."""
        return self.f_ref + epsilon * self.log_u

    def g(self, epsilon: FloatScalar) -> Float[Array, " m"]:
        r"""The column potential; $-\infty$ for a column of zero mass."""
        return self.g_ref + epsilon * jnp.log(self.v)


def matvec(left: Array, right: Array) -> Array:
    """Multiply, without letting an accelerator round the factors (TensorFloat-32)."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def weighted_sum(weights: Array, potential: Array) -> FloatScalar:
    r"""$\langle w, p \rangle$ with $0 \cdot (-\infty) = 0$."""
    finite = jnp.where(weights > 0, potential, 0)
    return jnp.sum(weights * finite)


def anchor(problem: Dense, f: Float[Array, " n"]) -> Scaling:
    r"""Evaluate the dual at any `f`, exactly, with the kernel anchored there.

    Every column's reference is its largest exponent, so $0 \le K \le 1$ with a one in each column:
    nothing can overflow, and no column can vanish.
    """
    # A row without mass has f = -inf: it never wins a column's maximum and its kernel row is zero.
    f = jnp.where(problem.a > 0, f, -jnp.inf)
    exponent = f[:, None] - problem.cost
    largest = jnp.max(exponent, axis=0)
    kernel = jnp.exp((exponent - largest[None, :]) / problem.epsilon)
    return _evaluate(problem, f, -largest, kernel, jnp.zeros_like(f))


def move(problem: Dense, scaling: Scaling, log_u: Float[Array, " n"]) -> Scaling:
    """Evaluate the dual at another `log_u`, on the kernel as it is anchored."""
    return _evaluate(problem, scaling.f_ref, scaling.g_ref, scaling.kernel, log_u)


def _evaluate(problem: Dense, f_ref: Array, g_ref: Array, kernel: Array, log_u: Array) -> Scaling:
    u = jnp.exp(log_u)
    v = problem.b / matvec(u, kernel)
    f = f_ref + problem.epsilon * log_u
    g = g_ref + problem.epsilon * jnp.log(v)
    dual = weighted_sum(problem.a, f) + weighted_sum(problem.b, g)
    return Scaling(f_ref, g_ref, kernel, log_u, u, v, u * matvec(kernel, v), dual)


def log_row_step(problem: Dense, g: Float[Array, " m"]) -> Float[Array, " n"]:
    """Sinkhorn's row update in the logarithmic domain, for any finite or infinite scaling."""
    exponent = (g[None, :] - problem.cost) / problem.epsilon
    log_sums = jax.nn.logsumexp(exponent, axis=1)
    return problem.epsilon * (jnp.log(problem.a) - log_sums)


def lost_range(problem: Dense, scaling: Scaling) -> BoolScalar:
    """Whether the kernel must be anchored anew before `scaling` can be trusted or moved further.

    Entries that underflowed when the kernel was anchored must still be negligible after scaling by
    `u`, and every row that has mass must carry some.
    """
    limits = jnp.finfo(scaling.row_sums.dtype)
    drift = jnp.max(jnp.where(problem.a > 0, jnp.abs(scaling.log_u), 0))
    # A seventh of the exponent range: 101 in float64, 12 in float32.
    too_far = drift > jnp.log(limits.max) / 7
    empty = jnp.any((problem.a > 0) & ~(scaling.row_sums > jnp.sqrt(limits.tiny)))
    return too_far | empty | ~jnp.isfinite(scaling.dual)


def sinkhorn_step(problem: Dense, scaling: Scaling, relaxation: float | Array = 1.0) -> Scaling:
    """One Sinkhorn iteration: rows, then columns. Anchors the kernel anew where it has to."""

    def absorb(s: Scaling) -> Scaling:
        return anchor(problem, log_row_step(problem, s.g(problem.epsilon)))

    def update(s: Scaling) -> Scaling:
        return move(problem, s, s.log_u + relaxation * log_ratio(problem.a, s.row_sums))

    return jax.lax.cond(lost_range(problem, scaling), absorb, update, scaling)


def log_ratio(a: Float[Array, " n"], row_sums: Float[Array, " n"]) -> Float[Array, " n"]:
    """`log(a / row_sums)`, zero for a row without mass."""
    positive = (a > 0) & (row_sums > 0)
    return jnp.log(jnp.where(positive, a, 1) / jnp.where(positive, row_sums, 1))


def row_error(problem: Dense, scaling: Scaling) -> FloatScalar:
    """The 1-norm of the row marginal's error, relative to the total mass."""
    return jnp.sum(jnp.abs(problem.a - scaling.row_sums)) / jnp.sum(problem.a)
