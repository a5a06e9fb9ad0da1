from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._factor.factor import promoted
from .._spectra.edmd import Eigenpairs, pairs_of
from .mpedmd import MeasurePreserving, checked
from .rational import checked_order, circle_kernel, line_kernel


def spectral_measure(
    mp: MeasurePreserving, coefficients: Any, theta: Any, epsilon: Any, order: int = 4
) -> Float[Array, "T ..."]:
    r"""Return the spectral measure of an observable, smoothed to a density on the circle.

    $$\xi_\varepsilon(\theta) = -\frac1{2\pi}\sum_{j=1}^m\mathrm{Re}\,\alpha_j\langle(K+z_j)(K-z_j)^{-1}g,g\rangle,\quad
    z_j = e^{i\theta-i\varepsilon a_j},$$

    with $K$ replaced by the unitary matrix of [`koopman_verify.mpedmd`][]. Where the measure has a smooth density the
    error is $O(\varepsilon^m\log1/\varepsilon)$ once the dictionary resolves $\varepsilon$: take $\varepsilon$ at least
    twice [`koopman_verify.resolution`][], for below that the density shows single eigenvalues. It is an approximation and
    carries no error bound. From order two on the kernel has negative parts, so values may be negative next to an atom.

    **Arguments:**

    - `mp`: from [`koopman_verify.mpedmd`][].
    - `coefficients`: dictionary coefficients of the observable $g$, `[N]`, or `[N, k]` of several.
    - `theta`: angles `[T]`, in radians.
    - `epsilon`: the smoothing, positive.
    - `order`: $m$, from 1 (the Poisson kernel) to 6.

    **Returns:** the density at each angle, `[T]` or `[T, k]`; its integral over the circle is $\lVert g\rVert^2$.

    **Raises:** `ValueError` for an order out of range, a length that is not the dictionary's, `epsilon` not positive or
    `theta` not finite (the last two are run-time errors under `jit`).

    ??? cite "Reference"

        Colbrook, Drysdale and Horning, *Rigged dynamic mode decomposition*, arXiv:2405.00782, equation for the smoothed
        measure with rational kernels.

    !!! Example

        ```python
        theta = jnp.linspace(-jnp.pi, jnp.pi, 400)
        density = koopman_verify.spectral_measure(mp, coefficients, theta, epsilon=0.1, order=4)
        ```
    """
    theta, epsilon, order = _arguments(mp, theta, epsilon, order)
    weights = jnp.abs(mp.modes(coefficients)) ** 2
    return circle_kernel(mp.phases, theta, epsilon, order) @ weights


def wave_packet(mp: MeasurePreserving, coefficients: Any, theta: Any, epsilon: Any, order: int = 4) -> Eigenpairs:
    r"""Return approximate generalised eigenfunctions of the continuous spectrum, each with its residual.

    $$g_\theta = -\frac1{4\pi}\sum_{j=1}^m\left[\alpha_j(K+z_j)(K-z_j)^{-1} -
    \bar\alpha_j(K+\tilde z_j)(K-\tilde z_j)^{-1}\right]g,\quad \tilde z_j = e^{i\theta-i\varepsilon\bar a_j}$$

    with $K$ replaced by the unitary matrix of [`koopman_verify.mpedmd`][]: $g$ filtered to frequencies within about
    $\varepsilon$ of $\theta$. They are nearly invariant over times of about $1/\varepsilon$. The residual is that of $K$.

    **Arguments:** as in [`koopman_verify.spectral_measure`][], with one observable.

    **Returns:** [`koopman_verify.Eigenpairs`][] with eigenvalues $e^{i\theta}$, one for each angle. The functions are not
    normalised: $\langle g, g_\theta\rangle = \xi_\varepsilon(\theta)$.

    **Raises:** as [`koopman_verify.spectral_measure`][].

    ??? cite "Reference"

        Colbrook, Drysdale and Horning, arXiv:2405.00782, Algorithm 2.

    !!! Example

        ```python
        packets = koopman_verify.wave_packet(mp, coefficients, jnp.array([0.5, 1.0]), epsilon=0.1)
        print(packets.residuals, packets.functions(x))
        ```
    """
    theta, epsilon, order = _arguments(mp, theta, epsilon, order)
    c = mp.modes(coefficients)
    if c.ndim != 1:
        raise ValueError(f"`coefficients` must be those of one observable, [N]; got {c.shape[1]} columns")
    return _packets(mp, c, theta, epsilon, order)


@eqx.filter_jit
def _packets(mp: MeasurePreserving, c: Array, theta: Array, epsilon: Array, order: int) -> Eigenpairs:
    kernel, z, c = promoted(circle_kernel(mp.phases, theta, epsilon, order), mp.coordinates, c)
    circle = jax.lax.complex(jnp.cos(theta), jnp.sin(theta))
    return pairs_of(mp.factor, circle, z @ (kernel.T * c[:, None]))


def resolution(mp: MeasurePreserving, theta: Any) -> Float[Array, " T"]:
    r"""Return the largest gap of the eigenvalues' angles near each angle.

    A density at $\theta$ is trustworthy for $\varepsilon\ge2$ times this number, and less smoothing only uncovers the
    single eigenvalues of the matrix. The gap is the largest of three: that around $\theta$, and its two neighbours.

    **Arguments:**

    - `mp`: from [`koopman_verify.mpedmd`][].
    - `theta`: angles `[T]`.

    **Returns:** gaps in radians, `[T]`.

    !!! Example

        ```python
        epsilon = 2 * koopman_verify.resolution(mp, theta).max()
        ```
    """
    return _gaps(mp.phases, _finite("theta", theta, mp))


@eqx.filter_jit
def _gaps(phases: Array, theta: Array) -> Array:
    phases = jnp.sort(phases)
    gaps = jnp.diff(phases, append=phases[:1] + 2 * jnp.pi)  # gap i lies above phase i
    wrapped = phases[0] + jnp.mod(theta - phases[0], 2 * jnp.pi)
    around = jnp.searchsorted(phases, wrapped, side="right") - 1
    return jnp.stack([gaps[(around + shift) % len(gaps)] for shift in (-1, 0, 1)]).max(axis=0)


def line_measure(matrix: Any, vector: Any, x: Any, epsilon: Any, order: int = 4) -> Float[Array, " T"]:
    r"""Return the spectral measure of a self-adjoint operator, smoothed to a density on the real line.

    $$\xi_\varepsilon(x) = \frac1\pi\,\mathrm{Im}\sum_{j=1}^m\alpha_j\langle(T-x-\varepsilon a_j)^{-1}g,g\rangle$$

    For reversible stochastic systems, whose Koopman operator is self-adjoint, and for generators $iL$.

    **Arguments:**

    - `matrix`: a Hermitian matrix of $T$ in an orthonormal basis, `[n, n]`.
    - `vector`: coordinates of $g$ in that basis, `[n]`.
    - `x`, `epsilon`, `order`: points `[T]` on the line, smoothing, and order of the kernel, from 1 to 6.

    **Returns:** the density at each point, `[T]`.

    **Raises:** `ValueError` for wrong shapes, a matrix that is not Hermitian to rounding, or a bad order, `epsilon` or
    `x`.

    !!! Example

        ```python
        measures.line_measure(jnp.diag(jnp.arange(4.0)), jnp.ones(4), jnp.linspace(0, 3, 50), epsilon=0.5)
        ```
    """
    a, g = _inexact(matrix, vector)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or g.shape != a.shape[:1]:
        raise ValueError(f"`matrix` must be [n, n] and `vector` [n]; got {list(a.shape)} and {list(g.shape)}")
    order = checked_order(order)
    eps = jnp.finfo(a.dtype).eps
    off = jnp.linalg.norm(a - a.conj().T) <= 8 * len(a) * eps * jnp.linalg.norm(a)
    a = checked("matrix", a, off, "Hermitian")
    values, vectors = jnp.linalg.eigh(a)
    x = jnp.asarray(x, values.dtype)
    x = checked("x", x, jnp.isfinite(x), "finite")
    epsilon = _positive(epsilon, values.dtype)
    return line_kernel(values, x, epsilon, order) @ (jnp.abs(vectors.conj().T @ g) ** 2)


def circle_density(phases: Any, weights: Any, theta: Any, epsilon: Any, order: int = 4) -> Float[Array, "T ..."]:
    r"""Smooth any discrete measure on the circle by a rational kernel, as [`koopman_verify.spectral_measure`][] does.

    To compare with a measure that is known in another way, convolve that one with the same kernel.

    **Arguments:**

    - `phases`, `weights`: the measure $\sum_lw_l\delta_{\phi_l}$, `[r]` and `[r]` or `[r, k]`.
    - `theta`, `epsilon`, `order`: angles `[T]`, smoothing, and order of the kernel, from 1 to 6.

    **Returns:** the density at each angle, `[T]` or `[T, k]`.

    **Raises:** `ValueError` for a bad order, `epsilon` or `theta`, or shapes that do not fit.

    !!! Example

        ```python
        measures.circle_density([0.5, 1.0], [0.25, 0.75], jnp.linspace(0, 3, 50), epsilon=0.2)
        ```
    """
    phases, weights = _inexact(phases, weights)
    if phases.ndim != 1 or weights.ndim not in (1, 2) or len(weights) != len(phases):
        raise ValueError(
            f"`phases` and `weights` must be [r] and [r] or [r, k]; got {list(phases.shape)} and {list(weights.shape)}"
        )
    theta = jnp.asarray(theta, phases.dtype)
    theta = checked("theta", theta, jnp.isfinite(theta), "finite")
    return circle_kernel(phases, theta, _positive(epsilon, phases.dtype), checked_order(order)) @ weights


def _inexact(*arrays: Any) -> tuple[Array, ...]:
    """Bring numbers and lists to one dtype that is not whole."""
    arrays = promoted(*(jnp.asarray(a) for a in arrays))
    return arrays if jnp.issubdtype(arrays[0].dtype, jnp.inexact) else tuple(a.astype(float) for a in arrays)


def _arguments(mp: MeasurePreserving, theta: Any, epsilon: Any, order: Any) -> tuple[Array, Array, int]:
    if not isinstance(mp, MeasurePreserving):
        raise TypeError(f"`mp` must be a `MeasurePreserving`, from `koopman_verify.mpedmd`; got {type(mp).__name__}")
    order = checked_order(order)
    theta = _finite("theta", theta, mp)
    return theta, _positive(epsilon, theta.dtype), order


def _finite(name: str, value: Any, mp: MeasurePreserving) -> Array:
    value = jnp.asarray(value)
    if value.ndim != 1 or jnp.iscomplexobj(value):
        raise ValueError(f"`{name}` must be real, of shape [T]; got {value.dtype}{list(value.shape)}")
    value = value.astype(mp.residuals.dtype)
    return checked(name, value, jnp.isfinite(value), "finite")


def _positive(epsilon: Any, dtype: Any) -> Array:
    epsilon = jnp.asarray(epsilon, dtype)
    if epsilon.ndim != 0:
        raise ValueError(f"`epsilon` must be one number; got shape {list(epsilon.shape)}")
    return checked("epsilon", epsilon, (epsilon > 0) & jnp.isfinite(epsilon), "positive and finite")
