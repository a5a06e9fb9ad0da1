from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from implicit_core.krylov import stop_gradient, tree_norm
from jaxtyping import Array, Float, PyTree

from ._linear import from_real, to_real
from ._misc import tree_sub
from ._solver import AbstractSolver, Evaluation


class Relaxation(AbstractSolver):
    r"""Follow $\dot z = f(z) - z$ to its steady state, by Diffrax with adaptive steps.

    Converges to an equilibrium that is stable for the differential equation: all eigenvalues of $J$ have a real part below
    one. That is weaker than what Picard needs. A step integrates over `interval` units of time.

    **Arguments:**

    - `rtol`, `atol`, `norm`: as for [`fixedpoint_eq.Picard`][].
    - `method`: a Diffrax solver; an implicit one for stiff fields.
    - `interval`: the time between two looks at the residual.
    - `accuracy`: the tolerance of a step of the integration, in units of $\lVert f(z) - z\rVert$.
    - `max_inner_steps`: of the integration over one interval.

    **Raises:**

    `ValueError` for a negative tolerance, or an `interval` or `accuracy` that is not positive.

    !!! Example

        ```python
        fpe.solve(lambda z, args: 1 - 10 * z, jnp.array(0.0), solver=fpe.Relaxation(rtol=1e-8))
        ```
    """

    rtol: float = 1e-6
    atol: float = 1e-8
    method: dfx.AbstractAdaptiveSolver = dfx.Tsit5()
    interval: float = 1.0
    accuracy: float = 1e-3
    max_inner_steps: int = eqx.field(default=1000, static=True)
    norm: Callable[[PyTree], Float[Array, ""]] = eqx.field(default=tree_norm, static=True, kw_only=True)

    def __check_init__(self):
        for name, value in (("interval", self.interval), ("accuracy", self.accuracy)):
            if isinstance(value, int | float) and not value > 0:
                raise ValueError(f"`{name}` must be positive; got {value}")

    def _remember(self, y: Any) -> None:
        del y

    def _next(self, fn: Callable[[Any, Any], Any], at: Evaluation, args: Any, memory: None) -> tuple[Any, None]:
        del memory

        # Real and imaginary parts, and `args` captured, because Diffrax warns of complex arrays.
        def field(t, parts, _):
            del t
            y = from_real(parts, at.y)
            return to_real(tree_sub(fn(y, args)[0], y))

        # Relative to what is still to go: with a fixed tolerance an explicit method hovers around the steady state at a
        # distance of that size.
        count = sum(leaf.size for leaf in jtu.tree_leaves(at.y))
        eps = float(jnp.finfo(at.residual.dtype).eps)
        sizes = (tree_norm(stop_gradient(at.g)) + 10 * eps * tree_norm(stop_gradient(at.y))) / count**0.5
        atol = jnp.where(at.done, 1.0, self.accuracy * sizes)
        solution = dfx.diffeqsolve(
            dfx.ODETerm(field),
            self.method,
            jnp.zeros_like(at.residual),
            jnp.asarray(self.interval, at.residual.dtype),
            None,
            to_real(at.y),
            None,
            stepsize_controller=dfx.PIDController(0.0, atol),
            max_steps=self.max_inner_steps,
            throw=False,
        )
        assert solution.ys is not None
        return from_real(jtu.tree_map(lambda leaf: leaf[-1], solution.ys), at.y), None
