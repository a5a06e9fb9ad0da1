from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from ._linear import from_real, to_real
from ._misc import tree_sub, two_norm
from ._solver import AbstractSolver, Evaluation


class Relaxation(AbstractSolver):
    r"""Follow $\dot z = f(z) - z$ to its steady state, by Diffrax with adaptive steps.

    Converges to an equilibrium that is stable for the differential equation: all eigenvalues of $J$ have a real part below
    one. That is weaker than what Picard needs. A step integrates over `interval` units of time.

    **Arguments:**

    - `rtol`, `atol`, `norm`: as for [`fixedpoint_eq.Picard`][].
    - `method`: a Diffrax solver; an implicit one for stiff fields.
    - `interval`: the time between two looks at the residual.
    - `accuracy`: relative and absolute tolerance of the integration. The steady state does not depend on it.
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
    norm: Callable[[PyTree], Float[Array, ""]] = eqx.field(default=two_norm, static=True)

    def __check_init__(self):
        for name, value in (("interval", self.interval), ("accuracy", self.accuracy)):
            if isinstance(value, int | float) and not value > 0:
                raise ValueError(f"`{name}` must be positive; got {value}")

    def _remember(self, y: Any) -> None:
        del y

    def _next(self, fn: Callable[[Any, Any], Any], at: Evaluation, args: Any, memory: None) -> tuple[Any, None]:
        del memory

        # Real and imaginary parts, because Diffrax warns of complex states.
        def field(t, parts, args):
            del t
            y = from_real(parts, at.y)
            return to_real(tree_sub(fn(y, args)[0], y))

        solution = dfx.diffeqsolve(
            dfx.ODETerm(field),
            self.method,
            0.0,
            self.interval,
            None,
            to_real(at.y),
            args,
            stepsize_controller=dfx.PIDController(self.accuracy, self.accuracy),
            max_steps=self.max_inner_steps,
            throw=False,
        )
        assert solution.ys is not None
        return from_real(jtu.tree_map(lambda leaf: leaf[-1], solution.ys), at.y), None
