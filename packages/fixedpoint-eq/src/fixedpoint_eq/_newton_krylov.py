from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from implicit_core.krylov import FGMRES, tree_axpy, tree_norm
from jaxtyping import Array, Float, PyTree

from ._linear import SampleWise
from ._misc import tree_sub
from ._solver import AbstractSolver, Evaluation


class _Forcing(eqx.Module):
    residual: Float[Array, ""]  # of the step before


class NewtonKrylov(AbstractSolver):
    r"""Newton's method on $G(z) = f(z) - z$, each step solved inexactly by GMRES on Jacobian-vector products.

    The linear system is solved to the relative residual $\min(0.5,\ 0.9 (\lVert G_k\rVert / \lVert G_{k-1}\rVert)^2)$, and the
    step is halved until $\lVert G\rVert$ falls. The Jacobian is never formed. Where a complex map is not holomorphic, the
    system is that of real and imaginary parts.

    **Arguments:**

    - `rtol`, `atol`, `norm`: as for [`fixedpoint_eq.Picard`][].
    - `restart`, `max_linear_steps`: of GMRES.
    - `max_halvings`: of a step.

    **Raises:**

    `ValueError` for a negative tolerance, or a count below one.

    !!! Example

        ```python
        fpe.solve(fn, z0, args, fpe.NewtonKrylov(rtol=1e-10))
        ```

    ??? cite "Reference"

        Eisenstat and Walker, "Choosing the forcing terms in an inexact Newton method", SIAM J. Sci. Comput. 17 (1996),
        choice 2.
    """

    rtol: float = 1e-6
    atol: float = 1e-8
    restart: int = eqx.field(default=30, static=True)
    max_linear_steps: int = eqx.field(default=100, static=True)
    max_halvings: int = eqx.field(default=8, static=True)
    norm: Callable[[PyTree], Float[Array, ""]] = eqx.field(default=tree_norm, static=True, kw_only=True)

    def __check_init__(self):
        for name in ("restart", "max_linear_steps", "max_halvings"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}")

    def _remember(self, y: Any) -> _Forcing:
        return _Forcing(jnp.array(jnp.inf, tree_norm(y).dtype))

    def _next(self, fn: Callable[[Any, Any], Any], at: Evaluation, args: Any, memory: _Forcing) -> tuple[Any, _Forcing]:
        size = tree_norm(at.g)
        # The first step has nothing to compare with: infinity makes the ratio zero, hence the 0.5.
        ratio = jnp.where(jnp.isfinite(memory.residual), 0.9 * (size / memory.residual) ** 2, 0.5)
        # A sample that is done waits for the others with nothing to solve for.
        rtol = jnp.where(at.done, 1.0, jnp.clip(ratio, 1e-6, 0.5))
        residual = lambda y: tree_sub(fn(y, args)[0], y)
        tangent = jax.linearize(residual, at.y)[1]
        operator = lx.FunctionLinearOperator(tangent, jax.eval_shape(lambda: at.y))
        krylov = FGMRES(rtol=rtol, max_steps=self.max_linear_steps, restart=self.restart, mode="soft")
        solver = SampleWise(krylov, samples=False)
        direction, _, _ = solver.compute(solver.init(operator, {}), at.g, {})
        length = self._search(residual, at, direction, size)
        return tree_axpy(-length, direction, at.y), _Forcing(size)

    def _search(self, residual: Callable[[Any], Any], at: Evaluation, direction: Any, size: Array) -> Array:
        def falls(length):
            # Armijo's condition; a NaN does not meet it.
            return tree_norm(residual(tree_axpy(-length, direction, at.y))) <= (1 - 1e-4 * length) * size

        def go_on(carry):
            _length, count, found = carry
            return ~(found | at.done) & (count < self.max_halvings)

        def halve(carry):
            length, count, _ = carry
            return length / 2, count + 1, falls(length / 2)

        one = jnp.ones_like(size)
        length, _, _ = jax.lax.while_loop(go_on, halve, (one, jnp.zeros((), jnp.int32), falls(one)))
        return length
