from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._factor.factor import Dictionary
from .._factor.snapshots import Snapshots
from .._spectra.edmd import Eigenpairs
from .pointwise import pointwise


class _Functions(eqx.Module):
    """Eigenfunctions as a dictionary of themselves."""

    functions: Callable[[Any], Any]

    def __call__(self, x: Float[Array, " d"]) -> Array:
        return self.functions(x)


def from_eigenvectors(
    eigenvalues: Any, eigenfunctions: Any, dictionary: Dictionary | None = None, *, snapshots: Snapshots | None = None
) -> Eigenpairs:
    r"""Take candidates from anywhere, so that [`koopman_verify.certify`][] can judge them.

    **Arguments:**

    - `eigenvalues`: $\lambda$, `[k]`.
    - `eigenfunctions`: coefficients $v$, `[N, k]`, of $g_j = \sum_i\psi_iv_{ij}$ (right eigenvectors of the matrix $K$
        with $\Psi_Y\approx\Psi_XK$); or a callable from one state `[d]` to the values `[k]`, in JAX, and no dictionary.
    - `dictionary`: the callable from one state `[d]` to $N$ values that the coefficients refer to.
    - `snapshots`: the data of the fit, if at hand: residuals on it are attached, and some of its states, so that it is
        recognised if it is passed as a hold-out set. Without it residuals are not a number.

    **Returns:** [`koopman_verify.Eigenpairs`][] without coordinates.

    **Raises:** `ValueError` for shapes that do not fit or values that are not finite.

    !!! Example

        ```python
        pairs = interop.from_eigenvectors(*np.linalg.eig(np.linalg.lstsq(psi_x, psi_y)[0]), dictionary)
        koopman_verify.certify(pairs, fresh_snapshots)
        ```
    """
    values = np.atleast_1d(np.asarray(eigenvalues))
    if values.ndim != 1 or not np.all(np.isfinite(values)):
        raise ValueError(f"`eigenvalues` must be finite and of shape [k]; got shape {list(values.shape)}")
    if callable(eigenfunctions):
        if dictionary is not None:
            raise ValueError("`dictionary` belongs to coefficients; `eigenfunctions` is a callable, which needs none")
        dictionary, coefficients = _Functions(eigenfunctions), np.eye(len(values))
    else:
        coefficients = np.asarray(eigenfunctions)
        if dictionary is None:
            raise ValueError("`dictionary` is needed: `eigenfunctions` are coefficients of its functions")
        if coefficients.ndim != 2 or coefficients.shape[1] != len(values) or not np.all(np.isfinite(coefficients)):
            raise ValueError(
                f"`eigenfunctions` must be finite coefficients [N, k] with k = {len(values)}; got shape "
                f"{list(coefficients.shape)}"
            )
    single = values.dtype in (np.dtype("complex64"), np.dtype("float32"))
    eigenvalues = jnp.asarray(values, np.complex64 if single else jnp.result_type(complex))
    unknown = jnp.full(len(values), jnp.nan, eigenvalues.real.dtype)
    pairs = Eigenpairs(
        eigenvalues=eigenvalues,
        residuals=unknown,
        rounding=unknown,
        coefficients=jnp.asarray(coefficients, eigenvalues.dtype),
        dictionary=dictionary,
    )
    return pairs if snapshots is None else _with_residuals(pairs, snapshots)


def from_pydmd(dmd: Any, dictionary: Dictionary, *, snapshots: Snapshots | None = None) -> Eigenpairs:
    r"""Take the eigenpairs of a PyDMD model that was fitted to lifted data, `fit(psi_x.T, psi_y.T)`.

    PyDMD's matrix acts on the values, $\psi(F(x))\approx A\psi(x)$, so that its modes are right eigenvectors of $A$ and
    the eigenfunctions its *left* ones: the rows of the (pseudo-)inverse of the matrix of modes.

    **Arguments:**

    - `dmd`: an object with `modes`, `[N, k]`, and `eigs`, `[k]`.
    - `dictionary`, `snapshots`: as in [`koopman_verify.interop.from_eigenvectors`][].

    **Returns:** [`koopman_verify.Eigenpairs`][].

    **Raises:** `ValueError` if the modes are zero or nearly dependent. Exact modes (`exact=True`) are the images of
    eigenvectors divided by the eigenvalue: near the eigenvalue zero they are rounding errors, and the inverse of a matrix
    that has such columns spoils all eigenfunctions, those of the good eigenvalues too.

    !!! Example

        ```python
        dmd = pydmd.DMD(svd_rank=-1, exact=False).fit(psi_x.T, psi_y.T)
        koopman_verify.certify(interop.from_pydmd(dmd, dictionary), fresh_snapshots)
        ```
    """
    modes = np.asarray(_attribute("dmd", dmd, "modes"))
    # Modes of very different lengths are common; a pseudo-inverse would drop the short ones.
    lengths = np.linalg.norm(modes, axis=0)
    if not np.all(lengths > 0):
        raise ValueError("`dmd` has a mode that is zero, which no eigenfunction belongs to")
    modes = modes / lengths
    eigenvalues = np.abs(np.asarray(_attribute("dmd", dmd, "eigs")))
    eps = np.finfo(modes.dtype).eps
    # The option is kept under a private name; a model without it is taken to hold projected modes, which are always right.
    if getattr(dmd, "_exact", False) and eigenvalues.min() <= eps**0.5 * eigenvalues.max():
        raise ValueError(
            "`dmd` has exact modes, and eigenvalues near zero, whose exact modes are rounding errors: no eigenfunctions can "
            "be had from them; fit with exact=False, or with a smaller `svd_rank`"
        )
    sigma = np.linalg.svd(modes, compute_uv=False)
    limit = 0.01 / eps
    if modes.shape[1] > modes.shape[0] or sigma[0] > limit * sigma[-1]:
        raise ValueError(
            f"`dmd` has modes that depend on each other (condition number {sigma[0] / max(sigma[-1], 1e-300):.1e}, at most "
            f"{limit:.1e} is usable), so that no eigenfunctions can be had from them: fit with a smaller `svd_rank`"
        )
    inverse = np.linalg.pinv(modes)
    return from_eigenvectors(_attribute("dmd", dmd, "eigs"), inverse.T, dictionary, snapshots=snapshots)


def from_deeptime(model: Any, dictionary: Dictionary, *, snapshots: Snapshots | None = None) -> Eigenpairs:
    r"""Take the eigenpairs of a deeptime EDMD model.

    Its `operator` is the matrix $K$ with $\Psi_Y\approx\Psi_XK$, whose right eigenvectors are the eigenfunctions; its
    `modes` are these, transposed. (deeptime forms Gram matrices without conjugation: for a complex dictionary the
    eigenvectors belong to another inner product. They are judged all the same.)

    **Arguments:**

    - `model`: a fitted estimator (with `fetch_model`) or a model with `operator`, `[N, N]`, and perhaps `eigenvalues`,
        `[k]`, and `modes`, `[k, N]`. Estimated for the Koopman operator, not for Perron and Frobenius's.
    - `dictionary`, `snapshots`: as in [`koopman_verify.interop.from_eigenvectors`][].

    **Returns:** [`koopman_verify.Eigenpairs`][].

    !!! Example

        ```python
        model = deeptime.decomposition.EDMD(basis).fit((x, y)).fetch_model()
        koopman_verify.certify(interop.from_deeptime(model, dictionary), fresh_snapshots)
        ```
    """
    fetch = getattr(model, "fetch_model", None)
    model = fetch() if callable(fetch) else model
    values, modes = getattr(model, "eigenvalues", None), getattr(model, "modes", None)
    if values is None or modes is None:
        values, vectors = np.linalg.eig(np.asarray(_attribute("model", model, "operator")))
    else:
        vectors = np.asarray(modes).T
    return from_eigenvectors(values, vectors, dictionary, snapshots=snapshots)


def from_kooplearn(model: Any, dictionary: Dictionary, *, snapshots: Snapshots | None = None) -> Eigenpairs:
    r"""Take the eigenpairs of a kooplearn linear model (`kooplearn.linear_model.Ridge`) fitted to lifted data.

    `model.eig(eval_right_on=z)` gives the right eigenfunctions at lifted states `z`; at the unit vectors these are the
    coefficients.

    **Arguments:**

    - `model`: a fitted object with `eig` and the number of features, `n_features_in_`.
    - `dictionary`, `snapshots`: as in [`koopman_verify.interop.from_eigenvectors`][].

    **Returns:** [`koopman_verify.Eigenpairs`][].

    !!! Example

        ```python
        model = kooplearn.linear_model.Ridge(n_components=20).fit(psi_of_trajectory)
        koopman_verify.certify(interop.from_kooplearn(model, dictionary), fresh_snapshots)
        ```
    """
    eig, size = _attribute("model", model, "eig"), int(_attribute("model", model, "n_features_in_"))
    values, coefficients = eig(eval_right_on=np.eye(size))
    return from_eigenvectors(values, coefficients, dictionary, snapshots=snapshots)


def _attribute(argument: str, value: Any, name: str) -> Any:
    found = getattr(value, name, None)
    if found is None:
        raise TypeError(f"`{argument}` must be a fitted model with `{name}`; {type(value).__name__} has none")
    return found


def _with_residuals(pairs: Eigenpairs, snapshots: Snapshots) -> Eigenpairs:
    values = pointwise(pairs, snapshots)
    residuals = jnp.sqrt(jnp.mean(values.n, axis=0) / jnp.mean(values.d, axis=0))
    return Eigenpairs(
        eigenvalues=pairs.eigenvalues,
        residuals=residuals,
        rounding=values.rounding,
        coefficients=pairs.coefficients,
        dictionary=pairs.dictionary,
        witnesses=snapshots.x[:: max(1, len(snapshots.x) // 64)][:64],
        num_snapshots=snapshots.num_snapshots,
        kind=snapshots.kind,
    )
