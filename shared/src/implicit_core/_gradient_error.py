from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array

from ._adapter import MAX_DENSE
from ._certificate import Certificate
from ._custom_types import RealScalar
from ._misc import real_dtype, tree_norm
from ._probe import adjoint_solve, jacobian, vjp_of_theta


def gradient_error(
    F: Callable[[Any, Any], Any],
    z: Any,
    theta: Any,
    cotangent: Any,
    *,
    linear_solver: lx.AbstractLinearSolver,
    tags: frozenset[object] = frozenset(),
    alpha: RealScalar | None = None,
    beta: RealScalar | None = None,
    gamma: RealScalar | None = None,
    smoothness: RealScalar | None = None,
    cross: RealScalar | None = None,
) -> Certificate:
    r"""Bound, or estimate, the error of an implicit gradient that is due to an inexact solution `z` of $F(z,\theta)=0$.

    The gradient is $g = -B^\top u$ with $B = \partial_2 F$ and $(\partial_1 F)^\top u = c - r$ at `z`, where $c$ is the
    cotangent and $r$ the residual of the linear solve. It differs from $g^\star$, that at the exact solution $z^\star$, by

    $$\lVert g - g^\star\rVert \le \gamma\delta\lVert u\rVert +
      \tfrac{\lVert B\rVert + \gamma\delta}{\alpha}(\beta\delta\lVert u\rVert + \ell\delta + \lVert r\rVert),
      \qquad \lVert z - z^\star\rVert \le \delta = \lVert F(z,\theta)\rVert / \alpha.$$

    This is proved if $\alpha, \beta, \gamma$ are given (and $\ell$, for a loss). Otherwise the value is the change of
    the gradient over one Newton step of $F$ from `z`: an estimate, which tends to the error as `z` tends to $z^\star$.

    **Arguments:**

    - `F`: the optimality map `(z, theta) -> array(s)`.
    - `z`, `theta`: the point that a solver returned, and what it was called with. The error is that of the gradient in
        `theta`, in the 2-norm over all its leaves.
    - `cotangent`: $c$, a pytree like `z`; or the loss, a function `z -> scalar`, whose gradient is the cotangent.
    - `linear_solver`, `tags`: for $\partial_1 F$.
    - `alpha`: positive, with $\lVert F(z,\theta) - F(z',\theta)\rVert \ge \alpha\lVert z-z'\rVert$ for all $z, z'$: a
        strong convexity constant, or one minus that of a contraction.
    - `beta`, `gamma`: Lipschitz constants of $\partial_1 F$ and $\partial_2 F$ in `z`. For a quadratic objective `beta` is
        zero.
    - `smoothness`: $\ell$, a Lipschitz constant of the gradient of the loss; of use only where `cotangent` is a
        function. It is zero for a linear loss.
    - `cross`: an upper bound on the norm of $B$. By default it is the Frobenius norm, by one derivative for each
        element of `z` or of `theta`, whichever are fewer; if both are more than 256 the result is an estimate.

    **Returns:**

    A [`implicit_core.certify.Certificate`][] on the gradient. Its `error_upper` bounds the error of `z` if `alpha` is
    given, and its `true_relres` is that of the linear solve.

    ??? cite "Reference"

        Section 5.7 of the core's specification; the content is that of Theorem 1 of arXiv:2105.15183.
    """
    loss = cotangent if callable(cotangent) else None
    c = cotangent if loss is None else jax.grad(loss)(z)
    if loss is None:
        smoothness = 0.0
    operator = jacobian(F, z, theta, tags)
    adjoint = adjoint_solve(operator, linear_solver, c)
    residual = F(z, theta)
    dtype = real_dtype(z)
    delta = None if alpha is None else _quotient(tree_norm(residual), jnp.asarray(alpha, dtype))
    if cross is None and not any(constant is None for constant in (alpha, beta, gamma, smoothness)):
        cross = _cross_norm(F, z, theta)
    if delta is None or alpha is None or beta is None or gamma is None or smoothness is None or cross is None:
        kind, assumptions = "estimated", _ESTIMATED
        step = lx.linear_solve(operator, residual, linear_solver, throw=False).value
        nearer = jtu.tree_map(jnp.subtract, z, step)
        c_nearer = c if loss is None else jax.grad(loss)(nearer)
        adjoint_nearer = adjoint_solve(jacobian(F, nearer, theta, tags), linear_solver, c_nearer)
        gradients = (vjp_of_theta(F, z, theta, adjoint.u)[1], vjp_of_theta(F, nearer, theta, adjoint_nearer.u)[1])
        value = tree_norm(jtu.tree_map(jnp.subtract, *gradients))
    else:
        kind, assumptions = "proved", _PROVED
        beta, gamma, smoothness, cross = (jnp.asarray(v, dtype) for v in (beta, gamma, smoothness, cross))
        u = tree_norm(adjoint.u)
        inner = beta * delta * u + smoothness * delta + adjoint.residual_norm
        value = gamma * delta * u + (cross + gamma * delta) * _quotient(inner, jnp.asarray(alpha, dtype))
    return Certificate(
        quantity="error of the implicit gradient, 2-norm",
        value=jnp.where(jnp.isfinite(value), value, jnp.inf),  # no finite number says that it is not known
        kind=kind,
        assumptions=assumptions,
        true_relres=adjoint.relres,
        error_upper=delta,
        error_norm=None if delta is None else "2-norm",
    )


_PROVED = (
    "the constants `alpha`, `beta`, `gamma` (and `smoothness`, `cross` where given) are what they are said to be",
    "up to the rounding of one evaluation of the optimality map and its derivatives",
)
_ESTIMATED = (
    "the error to first order in that of the solution: the change over one Newton step of the optimality map",
    "the linear systems are solved much better than the equations",
)


def _quotient(error: Array, alpha: Array) -> Array:
    # A constant that is not positive bounds nothing.
    return jnp.where((alpha > 0) & jnp.isfinite(error), error / alpha, jnp.inf)


def _cross_norm(F: Callable[[Any, Any], Any], z: Any, theta: Any) -> Array | None:
    dynamic, static = eqx.partition(theta, eqx.is_inexact_array)
    sizes = [sum(leaf.size for leaf in jtu.tree_leaves(tree)) for tree in (z, dynamic)]
    if min(sizes) > MAX_DENSE:
        return None
    mode = jax.jacrev if sizes[0] < sizes[1] else jax.jacfwd
    return tree_norm(mode(lambda dynamic: F(z, eqx.combine(dynamic, static)))(dynamic))
