"""Spectral measures from the autocorrelations of one long trajectory."""

from typing import Any, Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact

from .mpedmd import checked


Filter: TypeAlias = Literal["fejer", "cosine", "vandeven", "sharpened", "bump"]


def autocorrelations(series: Any, num_lags: int) -> Inexact[Array, " lags"]:
    r"""Estimate the moments $\langle K^ng,g\rangle = \int e^{in\theta}\,d\mu_g$ from one trajectory.

    $$m_n = \frac1{M-n}\sum_{k<M-n}g(x_{k+n})\,\overline{g(x_k)},$$

    by a fast Fourier transform. For an ergodic map they converge as $M\to\infty$, at no rate that holds for all.

    **Arguments:**

    - `series`: values $g(x_k)$ along the trajectory, `[M]`, real or complex.
    - `num_lags`: the number of lags, $n = 0, \ldots$ `num_lags` - 1; less than $M$.

    **Returns:** $m_n$, `[num_lags]`, real for a real series.

    **Raises:** `ValueError` for a series that is not finite or not `[M]`, or a bad number of lags.

    !!! Example

        ```python
        moments = measures.autocorrelations(values, 200)
        density = measures.moment_density(moments, theta)
        ```
    """
    g = jnp.asarray(series)
    if g.ndim != 1:
        raise ValueError(f"`series` must have shape [M]; got {list(g.shape)}")
    if not 1 <= num_lags <= len(g):
        raise ValueError(f"`num_lags` must be from 1 to M = {len(g)}; got {num_lags}")
    g = g if jnp.issubdtype(g.dtype, jnp.inexact) else g.astype(jnp.result_type(float))
    g = checked("series", g, jnp.isfinite(g), "finite")
    return _correlations(g, num_lags)


@eqx.filter_jit
def _correlations(g: Array, num_lags: int) -> Array:
    transform = jnp.fft.fft(g, len(g) + num_lags)  # the zeros keep the end from meeting the beginning
    sums = jnp.fft.ifft(jnp.square(jnp.abs(transform)))[:num_lags]
    sums = sums if jnp.iscomplexobj(g) else sums.real
    return sums / (len(g) - np.arange(num_lags)).astype(sums.dtype)


def filter_values(name: Filter, x: Any) -> Float[Array, "..."]:
    r"""Return a filter $\varphi(x)$ for $|x|\le1$, with $\varphi(0) = 1$ and $\varphi(\pm1) = 0$.

    **Arguments:**

    - `name`: `"fejer"` $1-|x|$, a positive kernel; `"cosine"` $(1+\cos\pi x)/2$, of second order; `"vandeven"` $1 -
        x^4(35-84|x|+70x^2-20|x|^3)$, of fourth; `"sharpened"`, the cosine raised to eighth order; `"bump"`, of every order.
    - `x`: points.

    **Returns:** the values.

    !!! Example

        ```python
        measures.filter_values("bump", jnp.linspace(0, 1, 11))
        ```
    """
    if name not in get_args(Filter):
        raise ValueError(f"`filter` must be one of {get_args(Filter)}; got {name!r}")
    return _filter(name, jnp.asarray(x) if hasattr(x, "dtype") else jnp.asarray(x, jnp.result_type(float)))


@eqx.filter_jit
def _filter(name: Filter, x: Array) -> Array:
    x = jnp.clip(jnp.abs(x), 0, 1)
    if name == "fejer":
        return 1 - x
    if name == "vandeven":
        return 1 - x**4 * (35 - 84 * x + 70 * x**2 - 20 * x**3)
    if name == "bump":
        inside = jnp.where((x > 0) & (x < 1), x, 0.5 * jnp.ones_like(x))
        value = jnp.exp(-2 / (1 - inside) * jnp.exp(-0.109550455106347 / inside**4))
        return jnp.where(x == 0, jnp.ones_like(x), jnp.where(x == 1, jnp.zeros_like(x), value))
    c = (1 + jnp.cos(jnp.pi * x)) / 2
    return c if name == "cosine" else c**4 * (35 - 84 * c + 70 * c**2 - 20 * c**3)


def moment_density(moments: Any, theta: Any, filter: Filter = "bump") -> Float[Array, " T"]:
    r"""Return the density of a spectral measure from its moments.

    $$\rho(\theta)\approx\frac1{2\pi}\sum_{|n|<N}\varphi(n/N)\,m_ne^{-in\theta},\quad m_{-n} = \bar m_n.$$

    An atom shows as a peak whose height grows with $N$. In float32 the angles $n\theta$ lose digits in proportion to $n$.

    **Arguments:**

    - `moments`: $m_0, \ldots, m_{N-1}$, `[N]`, from [`koopman_verify.measures.autocorrelations`][] or exact.
    - `theta`: angles `[T]`.
    - `filter`: a name of [`koopman_verify.measures.filter_values`][].

    **Returns:** the density, `[T]`.

    **Raises:** `ValueError` for wrong shapes, an unknown filter, or values that are not finite.

    !!! Example

        ```python
        measures.moment_density([1.25, 0.5, 0.0, 0.0], jnp.linspace(0, 3, 7), "cosine")
        ```
    """
    return _filtered_sum(*_moment_arguments(moments, theta), filter) / (2 * jnp.pi)


def moment_atoms(moments: Any, theta: Any, filter: Filter = "fejer") -> Float[Array, " T"]:
    r"""Return the mass that a spectral measure has at single angles.

    The filtered sum at $\theta$ over the same sum for the unit mass there. It tends to $\mu_g(\{\theta\})$ as $N\to
    \infty$; for finite $N$ it also counts the continuous part within about $1/N$.

    **Arguments:** as in [`koopman_verify.measures.moment_density`][].

    **Returns:** the masses, `[T]`.

    !!! Example

        ```python
        measures.moment_atoms(measures.autocorrelations(values, 500), [0.0, 1.3])
        ```
    """
    moments, theta = _moment_arguments(moments, theta)
    ones = jnp.ones_like(moments)
    return _filtered_sum(moments, theta, filter) / _filtered_sum(ones, jnp.zeros_like(theta), filter)


def _moment_arguments(moments: Any, theta: Any) -> tuple[Complex[Array, " N"], Float[Array, " T"]]:
    m = jnp.asarray(moments)
    real = jnp.finfo(m.dtype).dtype if jnp.issubdtype(m.dtype, jnp.inexact) else jnp.result_type(float)
    m, theta = m.astype(np.result_type(real, np.complex64)), jnp.asarray(theta, real)
    if m.ndim != 1 or theta.ndim != 1:
        raise ValueError(f"`moments` and `theta` must be [N] and [T]; got {list(m.shape)} and {list(theta.shape)}")
    m = checked("moments", m, jnp.isfinite(m), "finite")
    return m, checked("theta", theta, jnp.isfinite(theta), "finite")


@eqx.filter_jit
def _filtered_sum(moments: Array, theta: Array, filter: Filter) -> Array:
    lags = jnp.arange(len(moments)).astype(theta.dtype)
    weights = filter_values(filter, lags / len(moments))
    # Each lag but the first counts twice, for itself and for minus itself.
    weights = jnp.where(lags == 0, weights, 2 * weights)
    phase = lags[None] * theta[:, None]
    rotated = jax.lax.complex(jnp.cos(phase), -jnp.sin(phase)) * moments[None]
    return rotated.real @ weights
