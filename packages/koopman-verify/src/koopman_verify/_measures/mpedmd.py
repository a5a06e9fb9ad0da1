from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.scipy.linalg as jsp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Complex, Float, Inexact

from .._factor.factor import Factor, checked_factor, promoted
from .._spectra.edmd import Eigenpairs, pairs_of


class MeasurePreserving(eqx.Module):
    r"""The unitary matrix nearest to a compression of the Koopman operator, with its eigenpairs.

    For a measure-preserving map the Koopman operator is an isometry, and the compression $A$ is not. Its unitary polar
    factor $\hat U$ is, and its eigenvalues $\mu_j = e^{i\theta_j}$ and orthonormal eigenfunctions make a discrete spectral
    measure that converges (weakly) as the dictionary grows. Made by [`koopman_verify.mpedmd`][].

    **Attributes:**

    - `eigenvalues`: $\mu$, `[r]`, of modulus one.
    - `coordinates`: $Z$, `[r, r]`, unitary: the eigenfunctions in the factor's orthonormal coordinates.
    - `residuals`: $\lVert(K-\mu_j)g_j\rVert/\lVert g_j\rVert$, `[r]`, of the operator itself and not of $\hat U$.
    - `smallest_singular_value`: $\sigma_{\min}(A)$. At zero the polar factor is not unique: see `unique`.
    - `factor`: what it was made from.

    !!! Example

        ```python
        mp = koopman_verify.mpedmd(factor)
        angles, weights = mp.atoms(coefficients)
        ```
    """

    eigenvalues: Complex[Array, "*b r"]
    coordinates: Complex[Array, "*b r r"]
    residuals: Float[Array, "*b r"]
    smallest_singular_value: Float[Array, "*b"]
    factor: Factor

    @property
    def pairs(self) -> Eigenpairs:
        """The eigenpairs, for [`koopman_verify.certify`][]."""
        return pairs_of(self.factor, self.eigenvalues, self.coordinates)

    @property
    def phases(self) -> Float[Array, "*b r"]:
        r"""The angles $\theta_j$ of the eigenvalues, in $(-\pi, \pi]$."""
        return jnp.angle(self.eigenvalues)

    @property
    def unique(self) -> Bool[Array, "*b"]:
        r"""Whether $\sigma_{\min}(A)$ is above rounding errors, so that $\hat U$ is the only polar factor."""
        return self.smallest_singular_value > self.factor.rounding(jnp.zeros_like(self.smallest_singular_value))

    def modes(self, coefficients: Any) -> Complex[Array, "r ..."]:
        r"""Expand observables in the eigenfunctions: $g = \sum_j c_j g_j$ with $c = Z^*u$.

        **Arguments:**

        - `coefficients`: dictionary coefficients `[N]` of $g$, or `[N, k]` of several (of the full state, say: row $j$
            of the answer is then its Koopman mode at $\mu_j$).

        **Returns:** $c$, `[r]` or `[r, k]`.

        **Raises:** `ValueError` if the length is not the dictionary's.
        """
        z, u = promoted(self.coordinates, coordinates_of(self.factor, coefficients))
        return z.conj().T @ u

    def atoms(self, coefficients: Any) -> tuple[Float[Array, " r"], Float[Array, "r ..."]]:
        r"""Return the discrete spectral measure of an observable, $\sum_j|c_j|^2\delta_{\theta_j}$.

        **Arguments:**

        - `coefficients`: dictionary coefficients of the observable, `[N]` or `[N, k]`.

        **Returns:** angles $\theta$ in ascending order, `[r]`, and weights, `[r]` or `[r, k]`, which sum to $\lVert
        g\rVert^2$.
        """
        order = jnp.argsort(self.phases)
        return self.phases[order], jnp.abs(self.modes(coefficients)[order]) ** 2


@eqx.filter_jit
def mpedmd(factor: Factor) -> MeasurePreserving:
    r"""Return the measure-preserving compression: the unitary polar factor of $A$, diagonalised.

    Only for maps that preserve the measure of the snapshots: look at `factor.isometry_defect`. The diagonalisation is a
    complex Schur decomposition, whose vectors are orthonormal also where eigenvalues cluster; JAX has it on CPUs only, and without a derivative.

    **Arguments:**

    - `factor`: from [`koopman_verify.factor`][].

    **Returns:** [`koopman_verify.MeasurePreserving`][].

    ??? cite "Reference"

        Colbrook, *The mpEDMD algorithm for data-driven computations of measure-preserving dynamical systems*,
        arXiv:2209.02244, Algorithm 4.1.

    !!! Example

        ```python
        mp = koopman_verify.mpedmd(koopman_verify.factor(dictionary, snapshots))
        print(mp.eigenvalues, mp.residuals, mp.smallest_singular_value)
        ```
    """
    checked_factor(factor)
    left, sigma, right = jnp.linalg.svd(factor.A)
    unitary = left @ right
    complex_dtype = np.result_type(unitary.dtype, np.complex64)
    triangle, z = jsp.schur(unitary.astype(complex_dtype), output="complex")
    # The triangle of a unitary matrix is diagonal up to rounding. The residual is that of the value put on the circle.
    mu = jnp.diagonal(triangle)
    mu = mu / jnp.abs(mu).astype(mu.dtype)
    return MeasurePreserving(mu, z, factor.residual(mu, z), sigma[-1], factor)


def coordinates_of(factor: Factor, coefficients: Any) -> Inexact[Array, "r ..."]:
    """Return the coordinates of (the projection to the kept space of) functions with given dictionary coefficients."""
    v = jnp.asarray(coefficients)
    if v.ndim not in (1, 2) or v.shape[0] != factor.size:
        raise ValueError(
            f"`coefficients` must have shape [N] or [N, k] with N = {factor.size}, one for each function of the "
            f"dictionary; got {list(v.shape)}"
        )
    if not jnp.issubdtype(v.dtype, jnp.inexact):
        v = v.astype(factor.cond.dtype)
    v = checked("coefficients", v, jnp.isfinite(v), "finite")
    # R11 @ basis has orthonormal columns: the identity, or the directions that a truncation kept.
    r11, basis, v = promoted(factor.R11, factor.basis, v)
    return (r11 @ basis).conj().T @ (r11 @ v)


def checked(name: str, value: Array, good: Array, wanted: str) -> Array:
    """Return the value, or raise if not all of `good`: at once if it can be looked at, at run time under `jit`."""
    if isinstance(good, Tracer):
        return eqx.error_if(value, ~jnp.all(good), f"`{name}` must be {wanted}")
    if not bool(jnp.all(good)):
        raise ValueError(f"`{name}` must be {wanted}; got {value}")
    return value
