import functools as ft
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.linalg as jsp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Complex, Float, Shaped

from .._factor.factor import Factor, checked_factor
from .edmd import Eigenpairs, pairs_of


Method: TypeAlias = str  # "auto", "svd", "iterative"

# On a processor the iteration takes as long as the SVD at dimension 60, and a third of it at 100.
_SVD_UP_TO = 64
_BLOCK, _DEPTH = 4, 3  # vectors that are iterated together, and applications of the inverse before each projection
_MAX_STEPS = 12


def pseudospectrum(factor: Factor, z: Any, *, method: Method = "auto", chunk: int | None = None) -> Float[Array, "*k"]:
    r"""Return $h_N(z) = \sigma_{\min}\begin{bmatrix}A - z\\ B\end{bmatrix}$, an upper bound on $\sigma_{\inf}(K-z)$.

    So $\{z : h_N(z)\le\epsilon\}$ lies inside the approximate point $\epsilon$-pseudospectrum (with exact integrals, and
    up to `factor.rounding(z)`). The squared matrix, of which other codes take the least eigenvalue, loses half of the
    digits; it is never the source of a value here. $h_N$ falls as the dictionary grows, and
    $|h_N(z)-h_N(w)|\le|z-w|$.

    **Arguments:**

    - `factor`: from [`koopman_verify.factor`][].
    - `z`: complex numbers of any shape. For a real dictionary, of each conjugate pair only one is computed (if `z` is
        not traced).
    - `method`: `"svd"`, by singular values; `"iterative"`, by block inverse iteration that goes from one point of `z` to
        the next (so give neighbours in a row), whose value is the residual of the function that was found. That is an
        upper bound whether or not the iteration converged, which it is made to do. `"auto"` takes the faster.
    - `chunk`: how many points `"svd"` handles at once; by default as many as fit 32 MiB.

    **Returns:** real numbers of the shape of `z`.

    **Raises:** `ValueError` for an unknown `method`, or a `z` that is not finite.

    ??? cite "Reference"

        Colbrook and Townsend, arXiv:2111.14889, Algorithm 3 (the function; the factorisation is ours).

    !!! Example

        ```python
        koopman_verify.pseudospectrum(factor, jnp.exp(1j * jnp.linspace(0, 3.1, 100)))
        ```
    """
    z = checked_points("z", z, factor)
    if chunk is not None and chunk < 1:
        raise ValueError(f"`chunk` must be positive; got {chunk}")
    method = _method(method, factor)
    shape, flat = z.shape, jnp.ravel(z)
    if not isinstance(flat, Tracer) and not jnp.iscomplexobj(factor.A):
        upper = np.asarray(flat)
        upper = np.real(upper) + 1j * np.abs(np.imag(upper))
        first, inverse = _distinct(upper)
        if len(first) < len(upper):
            flat = jnp.asarray(upper[first], z.dtype)
            # On the host, as the number of distinct points is: an index there would be a program for every number.
            found = np.asarray(_values(_bare(factor), flat, method, chunk))
            return jnp.asarray(found[inverse].reshape(shape))
    return _values(_bare(factor), flat, method, chunk).reshape(shape)


def pseudoeigenfunction(factor: Factor, z: Any, *, method: Method = "auto") -> Eigenpairs:
    r"""Return, for each $z$, the function of the span whose residual $\lVert(K-z)g\rVert/\lVert g\rVert$ is least.

    **Arguments:**

    - `factor`, `z`, `method`: as for [`koopman_verify.pseudospectrum`][]; a `z` of more dimensions is flattened.

    **Returns:** [`koopman_verify.Eigenpairs`][] with `eigenvalues` $z$ and `residuals` $h_N(z)$.

    **Raises:** as [`koopman_verify.pseudospectrum`][].

    !!! Example

        ```python
        g = koopman_verify.pseudoeigenfunction(factor, jnp.exp(0.7j))
        print(g.residuals, g.functions(x))
        ```
    """
    z = jnp.ravel(checked_points("z", z, factor))
    return _functions(factor, z, _method(method, factor))


@eqx.filter_jit
def _functions(factor: Factor, z: Array, method: str) -> Eigenpairs:
    if method == "svd":
        stacked = _stack(factor)
        u = jax.lax.map(lambda point: jnp.linalg.svd(stacked(point), full_matrices=False)[2][-1].conj(), z).T
    else:
        u = _minimisers(factor, z)
    return pairs_of(factor, z, u)


def _bare(factor: Factor) -> Factor:
    """Return a factor without what the values do not depend on, so that factors of one shape share a program."""
    a, b = factor.A, factor.B
    return Factor(dictionary=abs, A=a, B=b, basis=a, R11=a, cond=factor.cond, num_snapshots=1, kind="iid")


@eqx.filter_jit
def _values(factor: Factor, z: Array, method: str, chunk: int | None) -> Array:
    if method == "iterative":
        return factor.residual(z, _minimisers(factor, z))
    stacked = _stack(factor)
    if chunk is None:
        chunk = max(1, 2**25 // (2 * factor.rank**2 * z.dtype.itemsize))
    least = lambda point: jnp.linalg.svd(stacked(point), compute_uv=False)[-1]
    return jax.lax.map(least, z, batch_size=max(1, min(chunk, len(z))))


def _stack(factor: Factor) -> Callable[[Array], Array]:
    """Return the map from $z$ to $[A - z; B]$."""
    a, b = _complex(factor)
    identity = jnp.eye(factor.rank, dtype=a.dtype)
    return lambda z: jnp.concatenate([a - z * identity, b])


def _complex(factor: Factor) -> tuple[Array, Array]:
    b = factor.B
    if b.shape[0] > factor.rank:
        b = jnp.linalg.qr(b, mode="r")
    dtype = _dtype(factor)
    return factor.A.astype(dtype), b.astype(dtype)


def _minimisers(factor: Factor, z: Shaped[Array, " k"]) -> Shaped[Array, "r k"]:
    r"""Return the right singular vectors of the least singular values, each found from its predecessor's.

    The inverse that is iterated is that of the shifted $(A-z)^*(A-z)+B^*B+\delta$: a Cholesky factorisation, a tenth of
    the cost of a QR factorisation of the stacked matrix. It only proposes directions; which of them is best is decided
    by the singular values of the stacked matrix on their span, to full accuracy. Where the least value is so small that
    the squares hide it, the triangular factor of the stacked matrix takes over.
    """
    # The derivative of a least singular value does not need that of its vectors.
    a, b, z = jax.lax.stop_gradient((*_complex(factor), z))
    gram = a.conj().T @ a + b.conj().T @ b
    eps = jnp.finfo(a.dtype).eps
    delta = 4 * factor.rank * eps * (jnp.linalg.norm(gram, 2) + 1)
    identity = jnp.eye(factor.rank, dtype=a.dtype)
    width = min(_BLOCK, factor.rank)
    apply = lambda point, v: jnp.concatenate([a @ v - point * v, b @ v])

    def by_squares(point: Array, block: Array) -> tuple[Array, Array]:
        size = jnp.abs(point) ** 2 + delta * (1 + jnp.abs(point) ** 2)
        square = gram - point * a.conj().T - jnp.conj(point) * a + size.astype(a.dtype) * identity
        lower = jnp.linalg.cholesky(square, symmetrize_input=False)
        return _project(ft.partial(apply, point), _inverse(lower, lower=True), block)

    def by_triangle(point: Array, block: Array) -> tuple[Array, Array]:
        upper = jnp.linalg.qr(apply(point, identity), mode="r")
        tiny = eps * jnp.linalg.norm(upper)
        diagonal = jnp.diag(upper)
        floor = jnp.where(jnp.abs(diagonal) < tiny, tiny.astype(a.dtype), jnp.zeros((), a.dtype))
        return _project(ft.partial(apply, point), _inverse(upper + jnp.diag(floor), lower=False), block)

    def step(block: Array, point: Array) -> tuple[Array, Array]:
        block, value = by_squares(point, block)
        hidden = value**2 < 100 * delta * (1 + jnp.abs(point) ** 2)
        block = jax.lax.cond(hidden, lambda v: by_triangle(point, v)[0], lambda v: v, block)
        return block, block[:, 0]

    start = jr.normal(jr.key(0), (factor.rank, width), a.real.dtype).astype(a.dtype)
    return jax.lax.scan(step, jnp.linalg.qr(start)[0], z.astype(a.dtype))[1].T


def _inverse(triangle: Array, *, lower: bool) -> Callable[[Array], Array]:
    """Return the action of the inverse of $LL^*$, or of $R^*R$."""
    first, second = (0, 2) if lower else (2, 0)
    solve = ft.partial(jsp.solve_triangular, triangle, lower=lower)
    return lambda v: solve(solve(v, trans=first), trans=second)


def _project(apply: Callable[[Array], Array], inverse: Callable[[Array], Array], block: Array) -> tuple[Array, Array]:
    """Iterate: a block Krylov space of the inverse, then the smallest singular values of the stacked matrix on it."""
    width, rank = block.shape[1], block.shape[0]
    depth = min(_DEPTH, max(1, rank // width - 1))
    rtol = float(jnp.finfo(block.dtype).eps) ** 0.5

    def sweep(state: tuple[Array, Array, Array, Any]) -> tuple[Array, Array, Array, Any]:
        block, value, _, steps = state
        blocks = [block]
        for _ in range(depth):
            blocks.append(jnp.linalg.qr(inverse(blocks[-1]))[0])
        space = jnp.linalg.qr(jnp.concatenate(blocks, axis=1)[:, :rank])[0]
        small = jnp.linalg.qr(apply(space), mode="r")
        _, sigma, right = jnp.linalg.svd(small, full_matrices=False)
        block = space @ right[::-1][:width].conj().T
        return block, sigma[-1], value, steps + 1

    def going(state: tuple[Array, Array, Array, Any]) -> Array:
        _, value, before, steps = state
        # The values fall, and their error is the square of the vectors': two equal ones in a row are the end of it.
        return (steps < 1) | ((steps < _MAX_STEPS) & (before - value > rtol * value))

    infinite = jnp.array(jnp.inf, block.real.dtype)
    block, value, _, _ = jax.lax.while_loop(going, sweep, sweep((block, infinite, infinite, 0)))
    return block, value


class Region(eqx.Module):
    r"""The sublevel set $\{h_N\le\epsilon\}$ in a rectangle, at the points of the finest cells that may meet it.

    **Attributes:**

    - `points`, `values`: centres of the finest cells that were not excluded, `[k]`, and $h_N$ there.
    - `inside`: which of them have a value, rounding included, of at most $\epsilon$.
    - `epsilon`, `spacing`: $\epsilon$, and the distance of neighbouring points.
    - `num_evaluations`, `num_grid`: how often $h_N$ was computed, and how many points the full grid has.
    - `levels`: how often the rectangle was split.

    !!! Example

        ```python
        region = koopman_verify.pseudospectrum_region(factor, -1.5 - 1.5j, 1.5 + 1.5j, epsilon=0.3)
        region.points[region.inside]
        ```
    """

    points: Complex[Array, " k"]
    values: Float[Array, " k"]
    inside: Bool[Array, " k"]
    epsilon: float = eqx.field(static=True)
    spacing: tuple[float, float] = eqx.field(static=True)
    num_evaluations: int = eqx.field(static=True)
    num_grid: int = eqx.field(static=True)
    levels: int = eqx.field(static=True)


def pseudospectrum_region(
    factor: Factor,
    lower: complex | float | int,
    upper: complex | float | int,
    *,
    epsilon: float | int,
    spacing: float | int = 0.05,
    measure_preserving: bool = False,
    method: Method = "auto",
) -> Region:
    r"""Find the sublevel set $\{h_N\le\epsilon\}$ in a rectangle with fewer evaluations than a full grid takes.

    $h_N$ changes by at most $|z-w|$: a cell of half-diagonal $\rho$ about $z$ with $h_N(z)>\epsilon+\rho$ meets the
    set nowhere, and is never split. The other cells are split in four, down to `spacing`. The smaller $\epsilon$, the
    fewer evaluations. For a real dictionary and a rectangle symmetric about the real axis, only the upper half is
    computed. A loop on the host decides which cells to split, so this is not for `jit`.

    **Arguments:**

    - `factor`: from [`koopman_verify.factor`][].
    - `lower`, `upper`: the corners at the lower left and the upper right.
    - `epsilon`: the level; `spacing`: sides of the finest cells, made smaller to fit.
    - `measure_preserving`: declare that $K$ is an isometry, and use $\max(h_N, |1-|z||)$.
    - `method`: see [`koopman_verify.pseudospectrum`][]. With `"iterative"` an iteration that has not converged could
        exclude a cell wrongly (points that are reported stay right).

    **Returns:** a [`koopman_verify.Region`][].

    **Raises:** `ValueError` for an empty rectangle, or an `epsilon` or `spacing` that is not positive.

    !!! Example

        ```python
        koopman_verify.pseudospectrum_region(factor, -1.5 - 1.5j, 1.5 + 1.5j, epsilon=0.1).num_evaluations
        ```
    """
    checked_factor(factor)
    lower, upper = complex(lower), complex(upper)
    extent = upper - lower
    if not (extent.real > 0 and extent.imag > 0 and np.isfinite(extent)):
        raise ValueError(f"`upper` must be above and to the right of `lower`; got {lower} and {upper}")
    if not (epsilon > 0 and spacing > 0):
        raise ValueError(f"`epsilon` and `spacing` must be positive; got {epsilon} and {spacing}")
    # A chequered board of nearly square cells, each of which is split `levels` times.
    levels = max(0, int(np.ceil(np.log2(min(extent.real, extent.imag) / spacing) - 1e-9)) - 2)
    count = [int(np.ceil(side / (spacing * 2**levels) - 1e-9)) for side in (extent.real, extent.imag)]
    side = np.array([extent.real / count[0], extent.imag / count[1]])
    x, y = (np.arange(n) + 0.5 for n in count)
    cells = lower + (x[:, None] * side[0] + 1j * y[None] * side[1]).ravel()
    num_evaluations, values = 0, np.zeros(0)
    for level in range(levels + 1):
        values = _in_pieces(factor, cells, method)
        num_evaluations += len(
            np.unique(np.real(cells) + 1j * np.abs(np.imag(cells))) if jnp.isrealobj(factor.A) else cells
        )
        values = np.maximum(values, np.abs(1 - np.abs(cells))) if measure_preserving else values
        keep = values <= epsilon + np.hypot(*side) / 2
        cells, values = cells[keep], values[keep]
        if level < levels:
            side = side / 2
            quarters = np.array([-1 - 1j, 1 - 1j, -1 + 1j, 1 + 1j])
            cells = (
                cells[:, None] + (np.real(quarters) * side[0] + 1j * np.imag(quarters) * side[1])[None] / 2
            ).ravel()
    rounding = np.asarray(factor.rounding(jnp.asarray(cells, _dtype(factor))))
    real = jnp.finfo(_dtype(factor)).dtype
    return Region(
        points=jnp.asarray(cells, _dtype(factor)),
        values=jnp.asarray(values, real),
        inside=jnp.asarray(values + rounding <= epsilon),
        epsilon=float(epsilon),
        spacing=(float(side[0]), float(side[1])),
        num_evaluations=num_evaluations,
        num_grid=count[0] * count[1] * 4**levels,
        levels=levels,
    )


def _in_pieces(factor: Factor, cells: np.ndarray, method: Method) -> np.ndarray:
    """Evaluate in pieces of two sizes, so that there are two programs to compile however the numbers change."""
    if jnp.isrealobj(factor.A):
        upper = np.real(cells) + 1j * np.abs(np.imag(cells))
        first, inverse = _distinct(upper)
        cells = upper[first]
    else:
        inverse = slice(None)
    out, start = [], 0
    while start < len(cells):
        size = 256 if len(cells) - start >= 256 else 32
        piece = cells[start : start + size]
        padded = np.pad(piece, (0, size - len(piece)), mode="edge")
        z = jnp.asarray(padded, _dtype(factor))
        out.append(np.asarray(_values(_bare(factor), z, _method(method, factor), None))[: len(piece)])
        start += size
    return np.concatenate([np.zeros(0), *out])[inverse]


def _dtype(factor: Factor) -> Any:
    return np.result_type(factor.A.dtype, np.complex64)


def checked_points(name: str, z: Any, factor: Factor) -> Array:
    """Return points of the complex plane in the factor's precision, or raise."""
    checked_factor(factor)
    try:
        z = jnp.asarray(z)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must hold complex numbers; got {type(z).__name__} ({error})") from error
    if not jnp.issubdtype(z.dtype, jnp.number):
        raise ValueError(f"`{name}` must hold numbers; got {z.dtype}")
    z = z.astype(_dtype(factor))
    if isinstance(z, Tracer):
        return eqx.error_if(z, ~jnp.all(jnp.isfinite(z)), f"`{name}` must be finite.")
    finite = np.isfinite(np.asarray(z))
    if not finite.all():
        raise ValueError(f"`{name}` must be finite; {np.sum(~finite)} of {z.size} values are not")
    return z


def _method(method: str, factor: Factor) -> str:
    if method not in ("auto", "svd", "iterative"):
        raise ValueError(f'`method` must be "auto", "svd" or "iterative"; got {method!r}')
    return ("svd" if factor.rank <= _SVD_UP_TO else "iterative") if method == "auto" else method


def _distinct(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each value occurs first, in the order of occurrence (which keeps neighbours together)."""
    _, first, inverse = np.unique(z, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[inverse.ravel()]
