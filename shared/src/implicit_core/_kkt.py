from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Float, Int

from ._adapter import MAX_DENSE, LinearSolver
from ._condition import condition as estimate_condition
from ._custom_types import RealScalar
from ._decorators import ImplicitFunction, decorator
from ._misc import real_dtype, tree_dot, tree_norm


class KKTPoint(eqx.Module):
    r"""A point of an optimisation problem with constraints, and its multipliers.

    **Attributes:**

    - `x`: the variables.
    - `eq`: multipliers $\nu$ of the equalities, of the structure of $h(x)$. `None` if there are none.
    - `ineq`: multipliers $\lambda \ge 0$ of the inequalities, of the structure of $g(x)$. `None` if there are none.
    """

    x: Any
    eq: Any = None
    ineq: Any = None


class KKTReport(eqx.Module):
    r"""Say how far a point is from where its derivative ceases to exist, and how well conditioned it is.

    **Attributes:**

    - `margin`: $\min_i |\lambda_i + g_i|$: near zero, a small change of the problem changes which constraints are active,
        and the solution has a kink. Infinite without inequalities.
    - `index`: of that constraint, in the order of `jax.flatten_util.ravel_pytree`; -1 without inequalities.
    - `num_active`: number of active inequalities.
    - `residual`: 2-norm of the optimality conditions: stationarity, feasibility, complementarity.
    - `condition`: 2-norm condition number of the linear system of the derivative: exact up to 256 unknowns, above an
        estimate from below, by [`implicit_core.certify.condition`][]. Infinite means dependent constraints or no strict minimum.
    """

    margin: Float[Array, ""]
    index: Int[Array, ""]
    num_active: Int[Array, ""]
    residual: Float[Array, ""]
    condition: Float[Array, ""]


class KKTConditions(eqx.Module):
    r"""The optimality conditions of $\min_x \phi(x,\theta)$ with $h(x,\theta) = 0$ and $g(x,\theta) \le 0$, as a root.

    Called on a [`implicit_core.implicit.KKTPoint`][] and `theta`. Not the textbook's complementarity rows
    $\lambda_i g_i = 0$, whose scaling makes the linear system ill-conditioned: with the active set
    $\mathcal A = \{i : \lambda_i > -g_i\}$, held fixed, the map is
    $(\nabla_x\phi + \nabla h\,\nu + \nabla g_{\mathcal A}\lambda_{\mathcal A},\; h,\; g_{\mathcal A},\; -\lambda_i\ (i\notin\mathcal A))$,
    whose Jacobian is the symmetric saddle matrix of the active constraints and minus the identity.

    **Arguments:**

    - `phi`, `eq`, `ineq`, `regularise`, `active_tol`: see [`implicit_core.implicit.kkt`][].
    """

    phi: Callable[[Any, Any], Array]
    eq: Callable[[Any, Any], Any] | None = None
    ineq: Callable[[Any, Any], Any] | None = None
    regularise: RealScalar = 0.0
    active_tol: float | None = eqx.field(default=None, static=True)

    def __call__(self, point: KKTPoint, theta: Any) -> KKTPoint:
        """Evaluate the conditions: zero at a solution."""
        h, g = self._constraints(point.x, theta)
        active = jax.lax.stop_gradient(jtu.tree_map(lambda lam, g: lam > -g, point.ineq, g))

        def lagrangian(x):
            return self.phi(x, theta) + self._coupling(x, theta, point.eq, _masked(active, point.ineq))

        def damped(constraint, multiplier):
            # Zero, with derivative `-regularise`: it makes the matrix regular and leaves the solution where it is.
            shift = jnp.asarray(self.regularise, multiplier.dtype) * (multiplier - jax.lax.stop_gradient(multiplier))
            return constraint - shift

        eq = jtu.tree_map(damped, h, point.eq)
        ineq = jtu.tree_map(lambda a, g, lam: jnp.where(a, damped(g, lam), -lam), active, g, point.ineq)
        return KKTPoint(jax.grad(lagrangian)(point.x), eq, ineq)

    def complete(self, out: Any, theta: Any) -> KKTPoint:
        r"""Return what a solver gave as a `KKTPoint`, with the multipliers that it did not give.

        They minimise $\lVert\nabla\phi + \nabla h\,\nu + \nabla g\,\lambda\rVert_2$, with $\lambda_i = 0$ where
        $g_i <$ `-active_tol`: the least ones if the active constraints are dependent.
        """
        point = out if isinstance(out, KKTPoint) else KKTPoint(out)
        x = jtu.tree_map(jnp.asarray, point.x)
        eq, ineq = self._constraints(x, theta)
        for name, given, wanted in (("eq", point.eq, eq), ("ineq", point.ineq, ineq)):
            shapes = [jtu.tree_map(jnp.shape, tree) for tree in (given, wanted)]
            if given is not None and shapes[0] != shapes[1]:
                raise ValueError(
                    f"the multipliers `{name}` must have the shape of the constraint, {shapes[1]}; got {shapes[0]}"
                )
        if (eq is None or point.eq is not None) and (ineq is None or point.ineq is not None):
            return point
        tol = float(jnp.finfo(real_dtype(x)).eps) ** 0.5 if self.active_tol is None else self.active_tol
        active = jtu.tree_map(lambda g: g >= -tol, ineq)

        def pull(multipliers):
            nu, lam = multipliers
            return jax.grad(lambda x: self._coupling(x, theta, nu, _masked(active, lam)))(x)

        structure = jax.eval_shape(lambda: (eq, ineq))
        operator = lx.FunctionLinearOperator(pull, structure)
        size = sum(leaf.size for leaf in jtu.tree_leaves((x, structure)))
        eps = float(jnp.finfo(real_dtype(x)).eps)
        solver = lx.SVD() if size <= 2 * MAX_DENSE else lx.LSMR(rtol=eps**0.75, atol=0.0)
        target = jtu.tree_map(jnp.negative, jax.grad(self.phi)(x, theta))
        nu, lam = lx.linear_solve(operator, target, solver).value
        return KKTPoint(x, nu if point.eq is None else point.eq, lam if point.ineq is None else point.ineq)

    def report(self, point: KKTPoint, theta: Any) -> KKTReport:
        """Measure a point: the margin to a change of the active set, the residual, the condition number.

        **Arguments:**

        - `point`: as the decorated solver returns it.
        - `theta`: what it was called with.

        **Returns:**

        A [`implicit_core.implicit.KKTReport`][].
        """
        residual = self(point, theta)
        norm = tree_norm(residual)
        margin, index, num_active = jnp.asarray(jnp.inf, norm.dtype), jnp.array(-1), jnp.array(0)
        if self.ineq is not None:
            lam, g = (jfu.ravel_pytree(tree)[0] for tree in (point.ineq, self.ineq(point.x, theta)))
            index = jnp.argmin(jnp.abs(lam + g))
            margin, num_active = jnp.abs(lam + g)[index], jnp.sum(lam > -g)
        operator = lx.JacobianLinearOperator(self, point, theta, tags=lx.symmetric_tag)
        if operator.in_size() <= MAX_DENSE:
            values = jnp.abs(jnp.linalg.eigvalsh(operator.as_matrix()))
            condition = jnp.max(values) / jnp.min(values)
        else:
            condition = jnp.asarray(estimate_condition(operator, key=jr.key(0)).value)
        return KKTReport(margin, index, num_active, norm, condition)

    def _constraints(self, x: Any, theta: Any) -> tuple[Any, Any]:
        h, g = (None if fn is None else fn(x, theta) for fn in (self.eq, self.ineq))
        return h, g

    def _coupling(self, x: Any, theta: Any, eq: Any, ineq: Any) -> Any:
        terms = [tree_dot(m, fn(x, theta)) for fn, m in ((self.eq, eq), (self.ineq, ineq)) if fn is not None]
        return sum(terms[1:], terms[0]) if terms else 0.0


def _masked(active: Any, multipliers: Any) -> Any:
    return jtu.tree_map(lambda a, lam: jnp.where(a, lam, jnp.zeros_like(lam)), active, multipliers)


def kkt(
    phi: Callable[[Any, Any], Array],
    eq: Callable[[Any, Any], Any] | None = None,
    ineq: Callable[[Any, Any], Any] | None = None,
    *,
    regularise: RealScalar = 0.0,
    active_tol: float | None = None,
    linear_solver: LinearSolver = None,
    options: dict[str, Any] | None = None,
) -> Callable[[Callable[..., Any]], ImplicitFunction[KKTPoint]]:
    r"""Give the result of any solver of a problem with constraints its derivative, multipliers included. A decorator.

    The problem is $\min_x \phi(x,\theta)$ with $h(x,\theta) = 0$ and $g(x,\theta) \le 0$. The decorated solver returns
    either $x$ alone or a [`implicit_core.implicit.KKTPoint`][], with $\lambda\ge0$ and the Lagrangian
    $\phi + \nu^\top h + \lambda^\top g$; the decorated function returns a `KKTPoint` always, all of it differentiable.
    The derivative exists if the active constraints are independent, the reduced Hessian is positive definite, and
    no $\lambda_i$ and $g_i$ vanish together; `solve.optimality.report(point, theta)` measures how far that is.

    **Arguments:**

    - `phi`: the objective `(x, theta) -> scalar`.
    - `eq`, `ineq`: the constraints $h$ and $g$, `(x, theta) -> array(s)`.
    - `regularise`: $\delta$ in the lower right block $-\delta I$ of the linear system: for dependent active constraints,
        where the multipliers are not unique but $x$ is. About `1e-10` times the norm of the Hessian; the derivative
        is then off by a multiple of it.
    - `active_tol`: where the solver returns no multipliers, an inequality counts as active if
        $g_i \ge$ `-active_tol`. The default is the square root of the dtype's epsilon. Multipliers, where given,
        decide by themselves: active means $\lambda_i > -g_i$.
    - `linear_solver`, `options`: see [`implicit_core.implicit.ImplicitAdjoint`][]. The matrix is symmetric and
        indefinite.

    **Returns:**

    A decorator.

    !!! Example

        ```python
        @kkt(lambda x, theta: 0.5 * jnp.sum((x - theta) ** 2), lambda x, _: jnp.sum(x) - 1, lambda x, _: -x)
        def project(theta):  # on the simplex
            return optax.projections.projection_simplex(theta)

        jax.jacobian(lambda theta: project(theta).x)(jnp.array([0.3, 0.4, -0.5]))
        ```

    ??? cite "Reference"

        Blondel et al., "Efficient and Modular Implicit Differentiation", arXiv:2105.15183, (6), in another form:
        section 5.5 of the core's specification.
    """
    conditions = KKTConditions(phi, eq, ineq, regularise, active_tol)
    return decorator(
        conditions,
        linear_solver=linear_solver,
        options=options,
        tags=frozenset({lx.symmetric_tag}),
        complete=conditions.complete,
    )
