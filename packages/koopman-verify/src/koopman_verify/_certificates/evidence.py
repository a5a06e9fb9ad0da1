from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .._factor.snapshots import Snapshots


class ExactIntegrals(eqx.Module):
    r"""The statement that the quadrature rule of the fit integrates the dictionary's products exactly.

    True for Fourier modes and more equispaced nodes than twice the largest frequency, if the map keeps the span
    trigonometric; for Gauss rules and polynomials of the degree they are exact for; and for the kernel matrices of a
    reproducing-kernel space. Nothing in the data can prove it, so it is yours to state.

    **Arguments:**

    - `reason`: why the integrals are exact; it is quoted in the certificate.

    !!! Example

        ```python
        koopman_verify.certify(pairs, ExactIntegrals("64 equispaced nodes, |k| <= 8, a rotation"))
        ```
    """

    reason: str = eqx.field(static=True)

    def __check_init__(self):
        if not isinstance(self.reason, str) or not self.reason.strip():
            raise ValueError(f"`reason` must say why the integrals are exact; got {self.reason!r}")


class KnownModulus(eqx.Module):
    r"""Nodes with cells, and the modulus of continuity of the map: what makes finite data a proof.

    The state space is divided into cells of measure $w_m$, each within the distance $r_m$ of its node $x_m$, and
    $|F(x)-F(x')|\le\alpha(|x-x'|)$. The dictionary's Lipschitz constants $\ell_j$ give $\ell=\sum_j|v_j|\ell_j$ for
    $g=\sum_j\psi_jv_j$, so that on the cell of $x_m$

    $$|g(x)-g(x_m)|\le\ell r_m,\qquad |(K-\lambda)g(x)-(K-\lambda)g(x_m)|\le\delta_m:=\ell\,(\alpha(r_m)+|\lambda|r_m)
    + \ell e,$$

    with $e$ the error of the recorded successors, $|y_m-F(x_m)|\le e$. With the function that is constant on cells as
    the one to compare with, the triangle inequality in $L^2(\omega)$ gives, without constants,

    $$\Bigl|\,\lVert(K-\lambda)g\rVert-\bigl(\textstyle\sum_m w_m|g(y_m)-\lambda g(x_m)|^2\bigr)^{1/2}\Bigr|\le
    \bigl(\textstyle\sum_m w_m\delta_m^2\bigr)^{1/2}$$

    and the same for $\lVert g\rVert$ with $\ell r_m$. The quotient of the two intervals bounds the residual. (Bounds for
    the entries of the three Gram matrices give less: they ask for suprema, and count each error twice.)

    **Arguments:**

    - `snapshots`: the nodes, their images, and as weights the measures of their cells (up to one common factor). They
        may be those of the fit: nothing here is random.
    - `modulus`: the Lipschitz constant of the map, or a function that maps radii `[M]` to $\alpha$ of them.
    - `radii`: the radius $r_m$ of each cell, `[M]`, or one number (the fill distance).
    - `lipschitz`: constants $\ell_j$, `[N]`; by default those of the dictionary.
    - `error`: $e$; zero by default.

    **Raises:** `ValueError` for radii, constants or an error that are negative, not finite or of the wrong shape.

    !!! Example

        ```python
        x = (jnp.arange(4000) + 0.5)[:, None] / 4000
        known = KnownModulus(Snapshots(x, tent(x), kind="quadrature"), modulus=2.0, radii=1 / 8000)
        koopman_verify.certify(pairs, known)
        ```
    """

    snapshots: Snapshots
    modulus: float | Callable[[Any], Any] = eqx.field(static=True)
    radii: Float[Array, "..."]
    lipschitz: Float[Array, " N"] | None
    error: float = eqx.field(static=True)

    def __init__(self, snapshots: Snapshots, modulus: Any, radii: Any, *, lipschitz: Any = None, error: float = 0.0):
        dtype = snapshots.x.dtype
        self.snapshots, self.error = snapshots, float(error)
        self.modulus = modulus if callable(modulus) else float(modulus)
        self.radii = jnp.asarray(radii, dtype)
        self.lipschitz = None if lipschitz is None else jnp.asarray(lipschitz, dtype)

    def __check_init__(self):
        if self.radii.shape not in ((), (self.snapshots.num_snapshots,)):
            raise ValueError(
                f"`radii` must be one number or [M] = [{self.snapshots.num_snapshots}]; got {list(self.radii.shape)}"
            )
        numbers = {"radii": self.radii, "error": self.error, "lipschitz": self.lipschitz}
        if not callable(self.modulus):
            numbers["modulus"] = self.modulus
        for name, value in numbers.items():
            if value is None or isinstance(value, Tracer):
                continue
            if not np.all(np.isfinite(np.asarray(value)) & (np.asarray(value) >= 0)):
                raise ValueError(f"`{name}` must be finite and not negative; got {value}")

    def alpha(self, radii: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""Return $\alpha$ of some radii."""
        return self.modulus(radii) if callable(self.modulus) else self.modulus * radii
