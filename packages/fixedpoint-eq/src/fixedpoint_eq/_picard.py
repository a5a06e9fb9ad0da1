from collections.abc import Callable
from typing import Any

import equinox as eqx
from implicit_core.krylov import tree_axpy, tree_norm
from jaxtyping import Array, Float, PyTree

from ._custom_types import RealScalar
from ._solver import AbstractSolver, Evaluation


class Picard(AbstractSolver):
    r"""Iterate the map, $z \leftarrow f(z)$.

    Converges, linearly, where the map is a contraction; near a fixed point if the spectral radius of the Jacobian is
    below one.

    **Arguments:**

    - `rtol`, `atol`: stop at $\lVert f(z) - z\rVert \le \mathrm{atol} + \mathrm{rtol}\,\lVert f(z)\rVert$.
    - `norm`: a function of a state, by default the 2-norm over all leaves.

    **Raises:**

    `ValueError` for a negative tolerance.

    !!! Example

        ```python
        fpe.solve(lambda z, args: jnp.cos(z), jnp.array(1.0), solver=fpe.Picard(rtol=1e-6, atol=1e-6))
        ```
    """

    rtol: float = 1e-6
    atol: float = 1e-8
    norm: Callable[[PyTree], Float[Array, ""]] = eqx.field(default=tree_norm, static=True, kw_only=True)

    def _remember(self, y: Any) -> None:
        del y

    def _next(self, fn: Callable[[Any, Any], Any], at: Evaluation, args: Any, memory: None) -> tuple[Any, None]:
        del fn, args, memory
        return at.f, None


class Damped(AbstractSolver):
    r"""Iterate with damping, $z \leftarrow (1 - \tau) z + \tau f(z)$.

    Near a fixed point it converges if the spectral radius of $(1-\tau) I + \tau J$ is below one: a small enough $\tau$
    serves whenever every eigenvalue of $J$ has a real part below one.

    **Arguments:**

    - `tau`: $\tau$, in $(0, 1]$.
    - `rtol`, `atol`, `norm`: as for [`fixedpoint_eq.Picard`][].

    **Raises:**

    `ValueError` for a negative tolerance or a `tau` outside $(0, 1]$.

    !!! Example

        ```python
        fpe.solve(lambda z, args: 1 - 2 * z, jnp.array(0.0), solver=fpe.Damped(0.5))  # 1/3, where Picard diverges
        ```
    """

    tau: RealScalar = 0.5
    rtol: float = eqx.field(default=1e-6, kw_only=True)
    atol: float = eqx.field(default=1e-8, kw_only=True)
    norm: Callable[[PyTree], Float[Array, ""]] = eqx.field(default=tree_norm, static=True, kw_only=True)

    def __check_init__(self):
        if isinstance(self.tau, int | float) and not 0 < self.tau <= 1:
            raise ValueError(f"`tau` must be in (0, 1]; got {self.tau}")

    def _remember(self, y: Any) -> None:
        del y

    def _next(self, fn: Callable[[Any, Any], Any], at: Evaluation, args: Any, memory: None) -> tuple[Any, None]:
        del fn, args, memory
        return tree_axpy(self.tau, at.g, at.y), None
