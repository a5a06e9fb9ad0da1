import pathlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._problems.flows import lorenz_field
from .plrnn import orbit


class Recording(eqx.Module):
    r"""States of a system at equal distances in time.

    **Attributes:**

    - `values`: the states `[T, d]`.
    - `dt`: the time between two of them, in the units of the system.
    - `mean`, `scale`: what was subtracted from and then divided out of each coordinate; 0 and 1 at first.

    !!! Example

        ```python
        gtf.lorenz63(jax.random.key(0), 1000).standardised().values
        ```
    """

    values: Float[Array, "T d"]
    dt: float = eqx.field(static=True)
    mean: Float[Array, " d"]
    scale: Float[Array, " d"]

    @eqx.filter_jit
    def standardised(self) -> "Recording":
        """Return the recording with mean 0 and standard deviation 1 in each coordinate; constant ones become 0."""
        mean, spread = jnp.mean(self.values, axis=0), jnp.std(self.values, axis=0)
        spread = jnp.where(spread > 0, spread, 1.0)
        values = (self.values - mean[None]) / spread[None]
        return Recording(values, self.dt, self.mean + self.scale * mean, self.scale * spread)

    def restore(self, values: Float[Array, "S d"]) -> Float[Array, "S d"]:
        """Return states that were standardised like this recording in the units of the system."""
        return self.mean[None] + self.scale[None] * values


class FlowMap(eqx.Module):
    r"""The map $x(t) \mapsto x(t + \Delta t)$ of $\dot x = f(x)$, by steps of the classical Runge-Kutta method.

    Short steps and few operations, for long noisy records and their Jacobians;
    [`koopman_verify.problems.Flow`][] is the one that is accurate to rounding.

    **Arguments:**

    - `field`: the right-hand side $f$, from states `[d]` to their derivatives.
    - `dt`: the time $\Delta t$.
    - `num_substeps`: the number of equal steps that make $\Delta t$.

    !!! Example

        ```python
        gtf.FlowMap(gtf.lorenz63_field, 0.01)(jnp.ones(3))
        ```
    """

    field: Callable[[Array], Array]
    dt: float = eqx.field(static=True)
    num_substeps: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        if not self.dt > 0 or self.num_substeps < 1:
            raise ValueError(f"`dt` and `num_substeps` must be positive; got {self.dt} and {self.num_substeps}")

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Return the state one `dt` later."""
        h = self.dt / self.num_substeps
        for _ in range(self.num_substeps):
            k1 = self.field(x)
            k2 = self.field(x + h / 2 * k1)
            k3 = self.field(x + h / 2 * k2)
            k4 = self.field(x + h * k3)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x


def lorenz63_field(x: Float[Array, "3"]) -> Float[Array, "3"]:
    r"""Return the vector field of Lorenz (1963), $\sigma = 10$, $\rho = 28$, $\beta = 8/3$.

    **Arguments:**

    - `x`: the state, without dimension.

    **Returns:** its derivative, per unit of the dimensionless time. The largest Lyapunov exponent of the flow is about 0.906.

    !!! Example

        ```python
        gtf.lorenz63_field(jnp.ones(3))
        ```
    """
    return lorenz_field(x)


def lorenz96_field(x: Float[Array, " d"]) -> Float[Array, " d"]:
    r"""Return the vector field of Lorenz (1996), $\dot x_i = (x_{i+1} - x_{i-2})x_{i-1} - x_i + 8$, indices modulo $d$.

    **Arguments:**

    - `x`: the state, at least four coordinates, without dimension.

    **Returns:** its derivative, per unit of time (about five days of weather, in Lorenz's reading).

    !!! Example

        ```python
        gtf.lorenz96_field(jnp.arange(5.0))
        ```
    """
    if len(x) < 4:
        raise ValueError(f"`x` must have at least 4 coordinates; got {len(x)}")
    return (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + 8.0


def lorenz63(
    key: PRNGKeyArray, num: int, noise: float = 0.0, *, dt: float = 0.01, burn_in: int = 2000, dtype: Any = None
) -> Recording:
    r"""Record the system of Lorenz (1963) on its attractor.

    **Arguments:**

    - `key`: draws the first state, $(1, 1, 25) + \mathcal{N}(0, 1)$, and the noise.
    - `num`: the number of states.
    - `noise`: standard deviation of Gaussian noise on the record, in standard deviations of each coordinate (0.05 in
        arXiv:2306.04406). The system itself runs without noise.
    - `dt`: time between states, in the dimensionless time of the system (one turn takes about 0.75).
    - `burn_in`: steps left out before.
    - `dtype`: `None` is JAX's default.

    **Returns:** a [`koopman_verify.gtf.Recording`][] of values `[num, 3]`. Runge-Kutta steps of at most 0.01.

    !!! Example

        ```python
        gtf.lorenz63(jax.random.key(0), 10_000, noise=0.05)
        ```
    """
    centre = jnp.array([1.0, 1.0, 25.0], jnp.result_type(float) if dtype is None else dtype)
    return _record(lorenz63_field, centre, key, num, noise, dt, burn_in)


def lorenz96(
    key: PRNGKeyArray,
    num: int,
    noise: float = 0.0,
    *,
    dim: int = 20,
    dt: float = 0.01,
    burn_in: int = 2000,
    dtype: Any = None,
) -> Recording:
    r"""Record the system of Lorenz (1996), with forcing 8, on its attractor.

    **Arguments:**

    - `key`: draws the first state, $8 + \mathcal{N}(0, 1)$ in each coordinate, and the noise.
    - `num`: the number of states.
    - `noise`: as in [`koopman_verify.gtf.lorenz63`][].
    - `dim`: the number of coordinates, at least 4.
    - `dt`: time between states, in the time of the system.
    - `burn_in`: steps left out before.
    - `dtype`: `None` is JAX's default.

    **Returns:** a [`koopman_verify.gtf.Recording`][] of values `[num, dim]`. Runge-Kutta steps of at most 0.01.

    !!! Example

        ```python
        gtf.lorenz96(jax.random.key(0), 10_000, dim=10)
        ```
    """
    if dim < 4:
        raise ValueError(f"`dim` must be at least 4; got {dim}")
    centre = jnp.full(dim, 8.0, jnp.result_type(float) if dtype is None else dtype)
    return _record(lorenz96_field, centre, key, num, noise, dt, burn_in)


def load(path: str | pathlib.Path, dt: float, *, delimiter: str = ",", dtype: Any = None) -> Recording:
    r"""Read a recording from a file of your own, such as an ECG or EEG.

    **Arguments:**

    - `path`: an array `[T, d]` (or `[T]`) as `.npy`, or as `.csv` with a row for each time and, if you like, one line of
        names at the top.
    - `dt`: the time between rows, in your units.
    - `delimiter`: what separates the columns of a `.csv`.
    - `dtype`: of the values; `None` is JAX's default.

    **Returns:** a [`koopman_verify.gtf.Recording`][], as it was recorded.

    **Raises:** `ValueError` for another kind of file, a table that is not `[T, d]` with $T > d$, or values that are
    missing or not finite; `FileNotFoundError`.

    !!! Example

        ```python
        gtf.load("ecg.csv", dt=1 / 700).standardised()
        ```
    """
    path = pathlib.Path(path)
    if path.suffix == ".npy":
        table = np.load(path, allow_pickle=False)
    elif path.suffix == ".csv":
        table = _read_csv(path, delimiter)
    else:
        raise ValueError(f"`path` must end in .npy or .csv; got {path.name!r}")
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or table.shape[0] <= table.shape[1] or not np.issubdtype(table.dtype, np.number):
        raise ValueError(
            f"{path.name} must hold numbers [T, d], a row for each of T > d times; got {table.dtype}{list(table.shape)}"
        )
    if np.iscomplexobj(table):
        raise ValueError(f"{path.name} must hold real numbers; got {table.dtype}")
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        raise ValueError(
            f"{path.name} has values that are missing or not finite, the first in row {bad[0, 0]}, column {bad[0, 1]}"
        )
    if not dt > 0:
        raise ValueError(f"`dt` must be positive; got {dt}")
    return _recording(jnp.asarray(table, jnp.result_type(float) if dtype is None else dtype), dt)


def _read_csv(path: pathlib.Path, delimiter: str) -> np.ndarray:
    with path.open() as file:
        first = file.readline().strip().split(delimiter)
    try:
        [float(cell) for cell in first]
        header = 0
    except ValueError:
        header = 1
    try:
        return np.loadtxt(path, delimiter=delimiter, skiprows=header, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path.name} is not a table of numbers: {error}") from error


def _record(
    field: Callable[[Array], Array], centre: Array, key: PRNGKeyArray, num: int, noise: float, dt: float, burn_in: int
) -> Recording:
    if num < 1 or burn_in < 0:
        raise ValueError(f"`num` must be positive and `burn_in` not negative; got {num} and {burn_in}")
    if noise < 0:
        raise ValueError(f"`noise` must not be negative; got {noise}")
    flow = FlowMap(field, dt, max(1, int(np.ceil(dt / 0.01 - 1e-9))))
    values = _values(flow, centre, key, num, noise, burn_in)
    if not np.all(np.isfinite(np.asarray(values))):
        raise ValueError(f"the orbit diverges: `dt` = {dt} is too large")
    return _recording(values, dt)


@eqx.filter_jit
def _values(flow: FlowMap, centre: Array, key: PRNGKeyArray, num: int, noise: float, burn_in: int) -> Array:
    key_0, key_n = jr.split(key)
    values = orbit(flow, centre + jr.normal(key_0, centre.shape, centre.dtype), burn_in + num - 1)[burn_in:]
    if noise > 0:
        values = values + noise * jnp.std(values, axis=0, keepdims=True) * jr.normal(key_n, values.shape, values.dtype)
    return values


def _recording(values: Array, dt: float) -> Recording:
    size = values.shape[1]
    return Recording(values, float(dt), jnp.zeros(size, values.dtype), jnp.ones(size, values.dtype))
