import abc
import warnings

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._custom_types import FloatScalar, IntScalar
from ._results import RESULTS
from ._scaling import DenseProblem


class Outcome(eqx.Module):
    """What a solver hands back to the driver.

    **Attributes:**

    - `f`: the row potential, of shape `(n,)`; its gauge does not matter.
    - `result`: how the iteration ended. The driver measures the error itself, so a false `successful` is not believed.
    - `stats`: a dictionary of scalar arrays that has `num_steps` and `tol`.
    """

    f: Float[Array, " n"]
    result: RESULTS
    stats: dict[str, Array]


class AbstractSolver(eqx.Module):
    """A method for the semi-dual problem. Subclass it to run your own under [`ot_sns.solve`][]."""

    tol: eqx.AbstractVar[float | None]

    @abc.abstractmethod
    def run(self, problem: DenseProblem, f: Float[Array, " n"] | None, max_steps: IntScalar) -> Outcome:
        """Find the row potential.

        **Arguments:**

        - `problem`: the cost matrix, the weights and the regularisation. There are at most as
            many rows as columns: the driver transposes where it has to.
        - `f`: the potential to start from, or `None`.
        - `max_steps`: the number of steps to make at most.

        **Returns:**

        The potential, how it ended, and the solver's statistics, which have `num_steps` and `tol`.
        """


def tolerance(tol: float | None, dtype: jnp.dtype) -> FloatScalar:
    """The tolerance in force: the default of the dtype, never one that rounding forbids.

    Rounding the exact potentials to float32 alone leaves an error of up to 7e-6 on the marginals
    (at `epsilon = 1e-4`), so no float32 solver can promise less.
    """
    floor = 1e-5 if jnp.finfo(dtype).bits == 32 else 1e-14
    if tol is None:
        tol = max(1e-9, floor)
    if not isinstance(tol, float | int):
        return jnp.maximum(jnp.asarray(tol, dtype), floor)
    if tol < floor:
        advice = " For tighter marginals pass float64 arrays." if dtype == jnp.float32 else ""
        warnings.warn(
            f"`tol={tol}` is below what {dtype} potentials can represent; using {floor}.{advice}",
            stacklevel=2,
        )
    return jnp.asarray(max(tol, floor), dtype)


def check_positive(**values: float | int | None) -> None:
    """Raise a `ValueError` naming the first argument that is not positive."""
    for name, value in values.items():
        if isinstance(value, float | int) and not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value}.")


def ending(error: FloatScalar, tol: FloatScalar, stopped: Array, finite: Array | bool = True) -> RESULTS:
    """Name the way in which an iteration ended; `stopped` says that it gave up by itself."""
    # Equinox's enumeration types its members as its literals.
    code = RESULTS.where(stopped, RESULTS.marginal_stagnation, RESULTS.nonlinear_max_steps_reached)  # pyright: ignore[reportArgumentType]
    code = RESULTS.where(jnp.asarray(finite), code, RESULTS.nonfinite)  # pyright: ignore[reportArgumentType]
    return RESULTS.where(error <= tol, RESULTS.successful, code)  # pyright: ignore[reportArgumentType]
