from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .plrnn import orbit


@eqx.filter_jit
def state_space_divergence(
    data: Float[Array, "T d"],
    generated: Float[Array, "S d"],
    *,
    bins: int = 30,
    smoothing: float = 1e-5,
    variance: float = 1.0,
    num_samples: int = 1000,
    key: PRNGKeyArray | None = None,
) -> Float[Array, ""]:
    r"""Compare where two orbits spend their time: $D_\text{stsp}$, a Kullback-Leibler divergence.

    For fewer than six dimensions: of histograms, $\sum_k p_k\log(p_k/q_k)$, with `bins` bins a dimension on $[\min -
    0.1\sigma, \max + 0.1\sigma]$ of the data. Otherwise: of Gaussian mixtures centred on the points of the orbits, by
    Monte Carlo (standardise the data for that).

    **Arguments:**

    - `data`, `generated`: the two orbits, `[T, d]` and `[S, d]`, without their transients.
    - `bins`: bins a dimension.
    - `smoothing`: added to the count of each bin.
    - `variance`, `num_samples`, `key`: of the mixtures and of the Monte Carlo estimate; `key` is needed for $d \ge 6$.

    **Returns:** the divergence, zero for equal orbits. A histogram divides by the length of its orbit: points outside
    of the box, and points that are not finite, are missing from $q$, which makes the divergence larger. The Monte Carlo
    estimate can come out slightly negative.

    **Raises:** `ValueError` for shapes that do not fit, or without a `key` where one is needed; at run time, where
    `data` (for mixtures: one of the orbits) are not finite.

    !!! Example

        ```python
        gtf.state_space_divergence(data, model.orbit(data[0], 10_000))
        ```
    """
    _check_pair(data, generated)
    data = eqx.error_if(data, ~jnp.all(jnp.isfinite(data)), "`data` must be finite")
    if data.shape[1] < 6:
        return _histogram_divergence(data, generated, bins, smoothing)
    if key is None:
        raise ValueError(f"`key` is needed for data of 6 dimensions or more; these have {data.shape[1]}")
    if not variance > 0 or num_samples < 1:
        raise ValueError(f"`variance` and `num_samples` must be positive; got {variance} and {num_samples}")
    generated = eqx.error_if(generated, ~jnp.all(jnp.isfinite(generated)), "`generated` must be finite")
    key_c, key_n = jr.split(key)
    centres = data[jr.randint(key_c, (num_samples,), 0, len(data))]
    noise = jr.normal(key_n, centres.shape, data.dtype)
    samples = centres + noise * variance**0.5

    def difference(x):
        return _log_mixture(x, data, variance) - _log_mixture(x, generated, variance)

    return jnp.mean(jax.lax.map(difference, samples, batch_size=16))


def _log_mixture(x: Array, centres: Array, variance: float) -> Array:
    # Both mixtures have one normalising constant, which cancels in the divergence.
    square = jnp.sum((x[None] - centres) ** 2, axis=1)
    return jax.scipy.special.logsumexp(-square / (2 * variance)) - jnp.log(jnp.asarray(len(centres), x.dtype))


def _histogram_divergence(data: Array, generated: Array, bins: int, smoothing: float) -> Array:
    size = data.shape[1]
    if bins < 1 or bins**size >= np.iinfo(np.int32).max:
        raise ValueError(f"`bins` must be at least 1, and bins**d below 2**31; got {bins} for d = {size}")
    if not smoothing > 0:
        raise ValueError(f"`smoothing` must be positive; got {smoothing}")
    spread = jnp.std(data, axis=0)
    low, high = jnp.min(data, axis=0) - 0.1 * spread, jnp.max(data, axis=0) + 0.1 * spread
    width = jnp.where(high > low, high - low, 1.0)

    def index(x):
        place = (x - low[None]) / width[None] * bins
        # The upper edge belongs to the last bin: a constant coordinate would miss its only bin otherwise.
        inside = jnp.all((place >= 0) & (x <= high[None]), axis=1)
        cell = jnp.where(inside[:, None], jnp.minimum(jnp.floor(place), bins - 1), 0.0).astype(jnp.int32)
        powers = jnp.asarray(bins ** np.arange(size), jnp.int32)
        return jnp.where(inside, cell @ powers, -1)

    # Counting by sorting needs memory for the points, not for the bins**d bins, nearly all of which are empty.
    where, own = jnp.concatenate([index(data), index(generated)]), np.arange(len(data) + len(generated)) < len(data)
    cells, own = jax.lax.sort((where, jnp.asarray(own, jnp.int32)), num_keys=1)
    new = jnp.concatenate([jnp.array([True]), cells[1:] != cells[:-1]])
    left, right = (jnp.searchsorted(cells, cells, side=side) for side in ("left", "right"))
    before = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(own)])
    first = before[right] - before[left]
    second = (right - left).astype(first.dtype) - first

    total = float(bins**size)
    p = (first.astype(data.dtype) + smoothing) / (len(data) + smoothing * total)
    q = (second.astype(data.dtype) + smoothing) / (len(generated) + smoothing * total)
    counted = new & (cells >= 0)
    full = jnp.sum(jnp.where(counted, p * jnp.log(p / q), 0.0))
    empty_p = smoothing / (len(data) + smoothing * total)
    empty_q = smoothing / (len(generated) + smoothing * total)
    num_empty = total - jnp.sum(counted).astype(data.dtype)
    return full + num_empty * empty_p * float(np.log(empty_p / empty_q))


@eqx.filter_jit
def hellinger_spectrum(
    data: Float[Array, "T d"], generated: Float[Array, "T d"], *, sigma: float = 20.0
) -> Float[Array, ""]:
    r"""Compare the power spectra of two orbits: $D_H$, the mean of the Hellinger distances of their coordinates.

    $\frac{1}{\sqrt2}\lVert\sqrt p - \sqrt q\rVert_2$, with the periodograms $p$ and $q$ of the standardised coordinates,
    smoothed by a Gaussian of `sigma` frequency bins (cut at four, mirrored at the ends), normalised to sum one.

    **Arguments:**

    - `data`, `generated`: the orbits `[T, d]`, of one length.
    - `sigma`: the width of the Gaussian, in frequency bins; 0 for none.

    **Returns:** a number in $[0, 1]$, 0 for equal spectra. A coordinate that is constant in both counts 0, in one 1.

    **Raises:** `ValueError` for shapes that do not fit; at run time, where an orbit is not finite.

    !!! Example

        ```python
        gtf.hellinger_spectrum(data, model.orbit(data[0], len(data) - 1))
        ```
    """
    _check_pair(data, generated)
    if len(data) != len(generated) or len(data) < 2:
        raise ValueError(
            f"`data` and `generated` must have one length, at least 2; got {len(data)} and {len(generated)}"
        )
    if sigma < 0:
        raise ValueError(f"`sigma` must not be negative; got {sigma}")
    data = eqx.error_if(data, ~jnp.all(jnp.isfinite(data)), "`data` must be finite")
    generated = eqx.error_if(generated, ~jnp.all(jnp.isfinite(generated)), "`generated` must be finite")
    p, flat_p = _spectra(data, sigma)
    q, flat_q = _spectra(generated, sigma)
    distance = jnp.sqrt(jnp.sum((jnp.sqrt(p) - jnp.sqrt(q)) ** 2, axis=0) / 2)
    distance = jnp.where(flat_p | flat_q, (flat_p != flat_q).astype(p.dtype), distance)
    return jnp.mean(jnp.clip(distance, 0.0, 1.0))


def _spectra(x: Array, sigma: float) -> tuple[Array, Array]:
    centred = x - jnp.mean(x, axis=0, keepdims=True)
    spread = jnp.std(x, axis=0, keepdims=True)
    size = jnp.max(jnp.abs(x), axis=0, keepdims=True)
    flat = spread <= 8 * float(np.finfo(x.dtype).eps) * size
    power = jnp.abs(jnp.fft.rfft(centred / jnp.where(flat, 1.0, spread), axis=0)) ** 2
    power = jnp.where(flat, 1.0, power)
    radius = int(4 * sigma + 0.5)
    if radius > 0:
        kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        kernel = jnp.asarray(kernel / kernel.sum(), x.dtype)
        padded = jnp.pad(power, ((radius, radius), (0, 0)), mode="symmetric")
        power = jax.vmap(lambda column: jnp.convolve(column, kernel, mode="valid"), in_axes=1, out_axes=1)(padded)
        # jnp.convolve may go through a transform, which leaves zeros as rounding of either sign.
        power = jnp.maximum(power, 0.0)
    return power / jnp.sum(power, axis=0, keepdims=True), flat[0]


@eqx.filter_jit
def prediction_error(fn: Callable[[Array], Array], data: Float[Array, "T d"], num_steps: int = 20) -> Float[Array, ""]:
    r"""Return the mean squared error of free prediction, $\mathrm{PE}(n)$.

    **Arguments:**

    - `fn`: the model, a map of states `[d]`.
    - `data`: an orbit `[T, d]`. Every state that has a successor `num_steps` later is a start.
    - `num_steps`: the horizon $n$.

    **Returns:** the mean over starts $t$ and coordinates of $(x_{t+n} - F^n(x_t))^2$; `inf` where the model diverges.

    !!! Example

        ```python
        gtf.prediction_error(model, data, 20)
        ```
    """
    if not 1 <= num_steps < len(data):
        raise ValueError(f"`num_steps` must be in 1...{len(data) - 1}, below the length of `data`; got {num_steps}")
    data = eqx.error_if(data, ~jnp.all(jnp.isfinite(data)), "`data` must be finite")
    ends = jax.vmap(lambda z: orbit(fn, z, num_steps)[-1])(data[:-num_steps])
    error = jnp.mean((ends - data[num_steps:]) ** 2)
    return jnp.where(jnp.isfinite(error), error, jnp.inf)


def _check_pair(data: Array, generated: Array) -> None:
    if data.shape[1] != generated.shape[1] or data.dtype != generated.dtype or not len(data) or not len(generated):
        raise ValueError(
            "`data` and `generated` must be orbits [T, d] of one dimension and dtype, not empty; got "
            f"{data.dtype}{list(data.shape)} and {generated.dtype}{list(generated.shape)}"
        )
