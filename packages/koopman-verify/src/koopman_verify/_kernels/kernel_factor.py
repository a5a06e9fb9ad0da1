import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Inexact

from .._dictionaries.dictionary import AbstractDictionary
from .._factor.factor import Factor, _truncated
from .._factor.snapshots import Snapshots
from .kernels import AbstractKernel, gram


class KernelSections(AbstractDictionary):
    r"""The functions $k(\cdot,x_i)$ of a kernel and its points.

    **Arguments:**

    - `kernel`: a kernel; see `koopman_verify.kernels`.
    - `points`: $x_i$, `[N, d]`.

    !!! Example

        ```python
        KernelSections(kernels.Gaussian(0.5), centres)
        ```
    """

    kernel: Callable
    points: Float[Array, "N d"]

    def __call__(self, x: Float[Array, " d"]) -> Inexact[Array, " N"]:
        """Return $k(x, x_i)$ for every point."""
        return jax.vmap(lambda p: self.kernel(x, p))(self.points.astype(x.dtype))

    def supremum(self) -> Float[Array, " N"] | None:
        r"""Return the bound from $|k(x,y)|^2\le k(x,x)k(y,y)$."""
        return self._constant(self.kernel.supremum() if isinstance(self.kernel, AbstractKernel) else None)

    def lipschitz(self) -> Float[Array, " N"] | None:
        """Return the kernel's constant for every point."""
        return self._constant(self.kernel.lipschitz() if isinstance(self.kernel, AbstractKernel) else None)

    def _constant(self, value: Array | None) -> Array | None:
        return None if value is None else jnp.full(len(self.points), value)


def kernel_factor(kernel: Callable, snapshots: Snapshots, *, rank_tol: float | None = None) -> Factor:
    r"""Factorise the Perron-Frobenius operator of a reproducing kernel space on the functions $k(\cdot,x_i)$.

    There $K^*k(\cdot,x)=k(\cdot,F(x))$ for every state: the matrices

    $$G_{ij}=k(x_i,x_j),\quad A_{ij}=k(x_i,y_j),\quad R_{ij}=k(y_i,y_j)$$

    are exact for any finite number of snapshots, with no integral and no limit of many data, and residuals speak of $K^*$
    in the norm of the space. Weights have no part in it.

    One eigendecomposition of $\begin{bmatrix}G&A\\A^*&R\end{bmatrix}=C^*C$ gives coordinates $C$ of all $2N$ functions,
    which are factorised as in [`koopman_verify.factor`][]; a residual is the norm of a vector, not the root of a
    difference. The rounding errors $E$ of the matrix ($\lVert E\rVert\approx\mathrm{eps}\,\lVert C\rVert^2$) cannot be
    undone: the residual of $g=\sum_iv_ik(\cdot,x_i)$ is off by up to $\sqrt{\lVert E\rVert}\,(1+|z|)|v|/\lVert g\rVert$.
    `Factor.rounding` reports the largest value of that in the space that is kept,
    [`koopman_verify.kernels.rounding`][] the one of a given $g$, which can be thousands of times smaller.

    The L2 residual of such eigenpairs on the same snapshots is worth nothing: $N$ functions at $N$ points make it zero
    always.

    **Arguments:**

    - `kernel`: a kernel from `koopman_verify.kernels` or any positive semidefinite callable.
    - `snapshots`: pairs $(x_i, y_i)$; $N$ of them cost $O(N^3)$ operations.
    - `rank_tol`: directions are kept whose singular value (of the functions, scaled to norm one; so the root of an
        eigenvalue of $G$) is above `rank_tol` times the largest. By default the fourth root of the machine epsilon, so
        that the part lost and the rounding errors are alike. What is left out is not in the space; what the operator
        sends there counts in the residual.

    **Returns:** a [`koopman_verify.Factor`][] with `space="rkhs"`, `operator="perron-frobenius"`, whose `rank` says what
    was kept.

    **Raises:** `ValueError` if the kernel is not positive semidefinite on the states, or not finite. `TypeError` under
    `jit`, as the rank depends on values.

    ??? cite "Reference"

        Boullé, Colbrook and Conradie, *Convergent methods for Koopman operators on reproducing kernel Hilbert spaces*,
        arXiv:2506.15782, has the residual, in its squared form.

    !!! Example

        ```python
        pairs = koopman_verify.edmd(koopman_verify.kernel_factor(kernels.Gaussian(0.5), snapshots))
        ```
    """
    if isinstance(snapshots.x, Tracer):
        raise TypeError("`kernel_factor` decides a rank from values: call it outside of `jit`")
    eps = float(jnp.finfo(snapshots.x.dtype).eps)
    tol = eps**0.25 if rank_tol is None else rank_tol
    num = snapshots.num_snapshots
    values, triangle, skew = _joint(kernel, snapshots.x, snapshots.y)
    smallest, largest = float(values[0]), float(values[-1])
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        raise ValueError("`kernel` returned a value that is not finite on `snapshots`")
    # Of the matrix's entries and its eigenvalues, and what was cut off to make it Hermitian and positive.
    error = 8 * eps * float(jnp.linalg.norm(values)) + max(0.0, -smallest) + float(skew)
    if largest <= 0 or max(-smallest, float(skew)) > 32 * num * eps * largest:
        raise ValueError(
            f"`kernel` is not positive semidefinite on `snapshots`: the eigenvalues of its matrix are between {smallest:.1e} "
            f"and {largest:.1e}, and it is off from Hermitian by {float(skew):.1e}. Is it a kernel?"
        )
    parts = _truncated(triangle, tol)
    # So that Factor.rounding(z) = sqrt(error) * (1 + |z|) * |basis|.
    worst = jnp.linalg.norm(parts["basis"], 2) * (math.sqrt(error) / (4 * math.sqrt(num) * eps))
    scales = jnp.stack([jnp.ones_like(worst), jnp.ones_like(worst), jnp.zeros_like(worst), worst])
    return Factor(
        dictionary=KernelSections(kernel, snapshots.x),
        num_snapshots=num,
        kind=snapshots.kind,
        witnesses=snapshots.x[:: max(1, num // 64)][:64],
        space="rkhs",
        operator="perron-frobenius",
        **(parts | {"scales": scales}),
    )


def rounding(factor: Factor, z: Inexact[Array, " k"], u: Inexact[Array, "r k"]) -> Float[Array, " k"]:
    r"""Return the allowance for rounding errors in the residuals of given functions of a kernel factor.

    $\sqrt{\lVert E\rVert}\,(1+|z|)|v|/\lVert g\rVert$ with the coefficients $v$ of $g$: for smooth functions far below the
    largest value in the space, which `factor.rounding` is.

    **Arguments:**

    - `factor`: from [`koopman_verify.kernel_factor`][].
    - `z`, `u`: points, and functions as columns in the factor's coordinates.

    **Returns:** what to add to each of `factor.residual(z, u)`.

    **Raises:** `ValueError` for a factor in another space.

    !!! Example

        ```python
        kernels.rounding(factor, pairs.eigenvalues, pairs.coordinates)
        ```
    """
    if factor.space != "rkhs":
        raise ValueError(f"`factor` must come from `kernel_factor`; got one whose space is {factor.space!r}")
    return factor.rounding(z, u)


@eqx.filter_jit
def _joint(kernel: Callable, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return the eigenvalues of the joint kernel matrix, the triangle of its root, and how far it is from Hermitian."""
    both = jnp.concatenate([x, y])
    matrix = gram(kernel, both)
    skew = jnp.linalg.norm(matrix - matrix.conj().T) / 2
    matrix = (matrix + matrix.conj().T) / 2
    values, vectors = jnp.linalg.eigh(matrix)
    roots = jnp.sqrt(jnp.maximum(values, 0)).astype(matrix.dtype)
    return values, jnp.linalg.qr(roots[:, None] * vectors.conj().T, mode="r"), skew
