from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact

from .._factor.factor import Dictionary, Factor, Operator, Space, promoted
from .._factor.snapshots import Kind
from .eigenpair import eig


class Eigenpairs(eqx.Module):
    r"""Candidate eigenvalues with eigenfunctions, and the residual of each.

    Only the residual says whether a candidate means anything: $\sigma_{\inf}(K-\lambda)\le$ `residuals` (with exact
    integrals; [`koopman_verify.certify`][] says what finite data may claim). A pair indexes like an array, `pairs[3]`,
    `pairs[pairs.residuals < 0.1]`.

    **Attributes:**

    - `eigenvalues`: $\lambda$, `[k]`, complex.
    - `residuals`: $\lVert(K-\lambda)g\rVert/\lVert g\rVert$ on the data of the fit, `[k]`.
    - `rounding`: what rounding errors may have taken from each residual, `[k]`.
    - `coefficients`: $v$, `[N, k]`, of the eigenfunctions $g = \sum_j\psi_j v_j$, which have norm one.
    - `dictionary`: the callable of the factor.
    - `coordinates`: $u$, `[r, k]`, in the factor's orthonormal coordinates; `None` for another library's pairs.
    - `witnesses`: some states of the data of the fit.
    - `num_snapshots`, `kind`: the size and the origin of that data; zero and `None` if unknown.
    - `space`, `operator`: what the residuals speak of.

    !!! Example

        ```python
        pairs = koopman_verify.edmd(factor).sorted()
        print(pairs.eigenvalues[0], pairs.residuals[0], pairs.functions(x))
        ```
    """

    eigenvalues: Complex[Array, "..."]
    residuals: Float[Array, "..."]
    rounding: Float[Array, "..."]
    coefficients: Inexact[Array, "size ..."]
    dictionary: Dictionary
    coordinates: Inexact[Array, "rank ..."] | None = None
    witnesses: Float[Array, "w d"] | None = None
    num_snapshots: int = eqx.field(static=True, default=0)
    kind: Kind | None = eqx.field(static=True, default=None)
    space: Space = eqx.field(static=True, default="L2")
    operator: Operator = eqx.field(static=True, default="koopman")

    @property
    def size(self) -> int:
        """The number of functions in the dictionary, $N$."""
        return self.coefficients.shape[0]

    def __len__(self) -> int:
        return len(self.eigenvalues)

    def __getitem__(self, index: Any) -> "Eigenpairs":
        pick = lambda a: None if a is None else a[..., index]
        names = ("eigenvalues", "residuals", "rounding", "coefficients", "coordinates")
        where = lambda p: [getattr(p, name) for name in names]
        return eqx.tree_at(where, self, [pick(v) for v in where(self)], is_leaf=lambda v: v is None)

    def sorted(self) -> "Eigenpairs":
        """Return the pairs in the order of their residuals, the best first."""
        return self[jnp.argsort(self.residuals)]

    def functions(self, x: Float[Array, " d"]) -> Complex[Array, "..."]:
        r"""Return the eigenfunctions' values at a state, $\sum_j\psi_j(x)v_j$."""
        psi, v = promoted(self.dictionary(x), self.coefficients)
        return (psi @ v).astype(self.eigenvalues.dtype)

    def __str__(self) -> str:
        lines = [f"{'eigenvalue':>24}  {'modulus':>9}  residual"]
        for z, r in zip(np.atleast_1d(self.eigenvalues), np.atleast_1d(self.residuals), strict=True):
            lines.append(f"{z.real:>+12.6f}{z.imag:>+11.6f}i  {abs(z):>9.6f}  {r:.2e}")
        return "\n".join(lines)


@eqx.filter_jit
def edmd(factor: Factor) -> Eigenpairs:
    r"""Return all eigenpairs of the compression, each with its residual (extended DMD, and ResDMD's clean-up).

    Differentiable in forward and in reverse mode, each pair as [`koopman_verify.eigenpair`][] says.

    Nothing is thrown away: keep `pairs[pairs.residuals <= tol]`. That removes pollution and cannot add what is missing:
    spectrum near which the compression has no eigenvalue stays invisible, and
    [`koopman_verify.verified_spectrum`][] is the way to see it.

    **Arguments:**

    - `factor`: from [`koopman_verify.factor`][] or [`koopman_verify.kernel_factor`][].

    **Returns:** [`koopman_verify.Eigenpairs`][], `r` of them.

    ??? cite "Reference"

        Colbrook and Townsend, arXiv:2111.14889, Algorithm 2 (the residual, here without cancellation).

    !!! Example

        ```python
        pairs = koopman_verify.edmd(koopman_verify.factor(dictionary, snapshots))
        ```
    """
    eigenvalues, u = eig(factor.A)
    return pairs_of(factor, eigenvalues, u)


def pairs_of(factor: Factor, eigenvalues: Complex[Array, " k"], u: Complex[Array, "r k"]) -> Eigenpairs:
    """Attach residuals to any candidates, given in a factor's coordinates."""
    basis, columns = promoted(factor.basis, u)
    return Eigenpairs(
        eigenvalues=eigenvalues,
        residuals=factor.residual(eigenvalues, u),
        rounding=factor.rounding(eigenvalues, u),
        coefficients=basis @ columns,
        coordinates=u,
        dictionary=factor.dictionary,
        witnesses=factor.witnesses,
        num_snapshots=factor.num_snapshots,
        kind=factor.kind,
        space=factor.space,
        operator=factor.operator,
    )
