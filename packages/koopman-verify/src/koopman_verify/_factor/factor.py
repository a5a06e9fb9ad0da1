import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.scipy.linalg as jsp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Inexact, Int

from .snapshots import Kind, Snapshots, num_distinct
from .triangle import settled, sharded_triangle_of, triangle_of


Dictionary: TypeAlias = Callable[[Any], Any]
Space: TypeAlias = Literal["L2", "rkhs"]
Operator: TypeAlias = Literal["koopman", "perron-frobenius"]

_WITNESSES = 64  # training states that a factor remembers, so that they are recognised in a hold-out set


class Factor(eqx.Module):
    r"""The Koopman operator on the span of a dictionary, and what it throws out of it, in orthonormal coordinates.

    From the joint factorisation

    $$W^{1/2}\,[\Psi_X\ \Psi_Y] = Q\begin{bmatrix}R_{11} & R_{12}\\ 0 & R_{22}\end{bmatrix}$$

    come $A = R_{12}R_{11}^{-1}$, the compression of $K$ to the span $V_N$, and $B = R_{22}R_{11}^{-1}$, with
    $\lVert Bu\rVert = \lVert(I-P)Kg\rVert$ for the function $g$ of coordinates $u$. A residual is the norm of a vector,
    $\lVert[(A-z)u;\,Bu]\rVert$, and never the root of a difference, which would lose half of the digits.

    Made by [`koopman_verify.factor`][].

    **Attributes:**

    - `A`: the compression `[r, r]`; real if the dictionary is.
    - `B`: the part outside of the span, `[s, r]`.
    - `basis`: `[N, r]`: coordinates $u$ are those of the function $\sum_j\psi_j v_j$ with $v$ = `basis @ u`.
    - `R11`: `[N, N]`, with $\lVert R_{11}v\rVert$ the norm of the function with coefficients $v$.
    - `cond`: the condition number of $W^{1/2}\Psi_X$ with columns of length one, on the part that was kept.
    - `scales`: norms of $R_{11}$, $R_{12}$, $R_{22}$ and of the inverse of $R_{11}$, the columns scaled alike: what
        rounding errors are measured by.
    - `witnesses`: some training states `[k, d]`, by which [`koopman_verify.certify`][] recognises data that was used.
    - `num_snapshots`, `kind`: $M$ and where the snapshots came from. `num_distinct`: how many of them differ, as far
        as a look at some 16,000 of them (of each block of a stream) tells; `None` if nobody looked. `space`, `operator`: `"L2"` and `"koopman"`, or
        what a kernel factor speaks of.
    - `rank`, `size`: $r$ and $N$.

    !!! Example

        ```python
        factor = koopman_verify.factor(Fourier(range(-8, 9)), snapshots)
        print(factor.rank, factor.cond, factor.isometry_defect)
        ```
    """

    dictionary: Dictionary
    A: Inexact[Array, "r r"]
    B: Inexact[Array, "s r"]
    basis: Inexact[Array, "N r"]
    R11: Inexact[Array, "N N"]
    cond: Float[Array, ""]
    num_snapshots: int = eqx.field(static=True)
    kind: Kind = eqx.field(static=True)
    scales: Float[Array, "4"] | None = None
    witnesses: Float[Array, "k d"] | None = None
    num_distinct: Int[Array, ""] | None = None
    space: Space = eqx.field(static=True, default="L2")
    operator: Operator = eqx.field(static=True, default="koopman")

    @property
    def size(self) -> int:
        """The number of functions in the dictionary, $N$."""
        return self.basis.shape[0]

    @property
    def rank(self) -> int:
        """The dimension of the space that was kept, $r$."""
        return self.A.shape[0]

    @property
    def isometry_defect(self) -> Float[Array, ""]:
        r"""$\lVert A^*A + B^*B - I\rVert_2$: zero for a measure-preserving map and exact integrals."""
        gram = self.A.conj().T @ self.A + self.B.conj().T @ self.B
        return jnp.linalg.norm(gram - jnp.eye(self.rank, dtype=gram.dtype), 2)

    def rounding(self, z: Inexact[Array, "*k"], u: Inexact[Array, "..."] | None = None) -> Float[Array, "*k"]:
        r"""Return the allowance $\tau(z)$ for rounding errors in a residual at $z$.

        $\tau = 4\sqrt N\,\mathrm{eps}\,(\lVert R_{12}\rVert + \lVert R_{22}\rVert + |z|\lVert R_{11}\rVert)
        \lVert R_{11}^{-1}\rVert$: the backward error of the QR factorisation, carried to orthonormal coordinates. Errors
        in the dictionary's own values are not in it.

        Of a kernel factor it is the largest value of any function; with coordinates `u`, `[r, k]`, that of the given
        functions, see [`koopman_verify.kernels.rounding`][].
        """
        eps = jnp.finfo(self.cond.dtype).eps
        if self.scales is None:
            r11, r12, r22, inverse = (
                jnp.ones_like(self.cond),
                jnp.linalg.norm(self.A, 2),
                jnp.linalg.norm(self.B, 2),
                self.cond,
            )
        else:
            r11, r12, r22, inverse = self.scales
        growth = 4 * math.sqrt(self.size) * float(eps)
        worst = growth * (r12 + r22 + jnp.abs(z) * r11) * inverse
        if u is None or self.space != "rkhs":
            return worst
        basis, columns = promoted(self.basis, u)
        share = jnp.linalg.norm(basis @ columns, axis=0) / jnp.linalg.norm(columns, axis=0)
        return worst * share / jnp.linalg.norm(self.basis, 2)

    def residual(self, z: Inexact[Array, " k"], u: Inexact[Array, "r k"]) -> Float[Array, " k"]:
        r"""Return $\lVert(K-z_j)g_j\rVert/\lVert g_j\rVert$ for functions $g_j$ of coordinates $u_j$ (columns).

        A norm has no derivative at zero: there it is taken as zero, the least of its subgradients.
        """
        u, z = promoted(u, z)
        a, b = self.A.astype(u.dtype), self.B.astype(u.dtype)
        return _lengths(jnp.concatenate([a @ u - u * z[None], b @ u])) / jnp.linalg.norm(u, axis=0)


def _lengths(columns: Inexact[Array, "n k"]) -> Float[Array, " k"]:
    squares = (
        jnp.sum(columns.real**2 + columns.imag**2, axis=0) if jnp.iscomplexobj(columns) else jnp.sum(columns**2, axis=0)
    )
    zero = squares == 0
    return jnp.where(zero, jnp.zeros_like(squares), jnp.sqrt(jnp.where(zero, jnp.ones_like(squares), squares)))


def checked_factor(value: Any) -> None:
    """Raise if something else than a factor is given where one is wanted."""
    if not isinstance(value, Factor):
        raise TypeError(f"`factor` must be a `Factor`, from `koopman_verify.factor`; got {type(value).__name__}")


def promoted(*arrays: Any) -> tuple[Array, ...]:
    """Bring arrays to their common dtype, where strict promotion would refuse."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*arrays)
    return tuple(jnp.asarray(a, dtype) for a in arrays)


def factor(
    dictionary: Dictionary,
    snapshots: Snapshots | Iterable[Snapshots],
    *,
    rank_tol: float | None = None,
    block: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Factor:
    r"""Factorise the weighted snapshot matrices of a dictionary: the ground of everything else here.

    **Arguments:**

    - `dictionary`: a callable from one state `[d]` to $N$ values, real or complex.
    - `snapshots`: [`koopman_verify.Snapshots`][], or an iterable of them (blocks of one long data set, of any lengths;
        equal lengths compile once), which is consumed one block at a time: memory is $O(N^2)$ and one block.
    - `rank_tol`: functions that depend linearly on each other are an error, unless this is given: then the directions
        whose singular value (columns of length one) is at most `rank_tol` times the largest are left out, and the rank
        that is kept is the factor's `rank`. A shape is decided by values, so not under `jit`.
    - `block`: the number of rows that are factorised at once; by default some MiB of them, which stay in the cache.
    - `mesh`: devices over which the rows are split. The answer is the same up to rounding.

    **Returns:** a [`koopman_verify.Factor`][].

    **Raises:** `ValueError` if there are no more snapshots than functions, or the functions depend on each other on the
    snapshots; a run-time error if a value of the dictionary is not finite.

    !!! warning "Several factors in one `vmap` on a CPU"

        JAX's CPU backend (0.10) runs a batched LAPACK call on one worker of a pool and waits there for the others: a program
        under `vmap` that has as many *independent* calls as the pool has workers can lock up. One factor makes one call
        at a time, and with its eigenpairs and certificate is safe on two workers or more. For several independent
        factors in one program use `jax.lax.map`, or set the environment variable `NPROC` (the number of workers) higher.

    ??? cite "Reference"

        Colbrook and Townsend, *Rigorous data-driven computation of spectral properties of Koopman operators*,
        arXiv:2111.14889, gives the residual; the factorisation in place of its Gram matrices is ours.

    !!! Example

        ```python
        x = 2 * jnp.pi * jnp.arange(64)[:, None] / 64
        koopman_verify.factor(Fourier(range(-8, 9)), Snapshots(x, x + 1.0, kind="quadrature")).rank
        ```
    """
    if block is not None and block < 1:
        raise ValueError(f"`block` must be positive; got {block}")
    if isinstance(snapshots, Snapshots) and mesh is None and rank_tol is None:
        parts, fine, sigma = _whole(dictionary, snapshots, block)
        return Factor(
            dictionary=dictionary,
            num_snapshots=snapshots.num_snapshots,
            kind=snapshots.kind,
            **_refused_unless(fine, sigma, parts),
        )
    if isinstance(snapshots, Snapshots):
        first, num = snapshots, snapshots.num_snapshots
        _check_num(dictionary, first, num)
        distinct = num_distinct(first, _size(dictionary, first))
        if mesh is None:
            triangle = triangle_of(dictionary, first, block=block)
        else:
            triangle = sharded_triangle_of(dictionary, first, block=block, mesh=mesh)
    else:
        if mesh is not None:
            raise ValueError("`mesh` splits one `Snapshots` over devices; got an iterable of blocks as well")
        triangle, first, num, distinct = _consume(dictionary, snapshots, block)
        _check_num(dictionary, first, num)
    length = 1.0 if first.weights is not None else math.sqrt(num)
    parts: dict[str, Any]
    if rank_tol is None:
        parts = _coordinates(triangle, length, distinct)
    else:
        parts = _truncated(triangle / length, rank_tol) | {"num_distinct": distinct}
        _raise_unless_enough(distinct, triangle.shape[1] // 2)
    return Factor(dictionary=dictionary, num_snapshots=num, kind=first.kind, witnesses=witnesses_of(first.x), **parts)


@eqx.filter_jit
def _whole(dictionary: Dictionary, snapshots: Snapshots, block: int | None) -> tuple[dict[str, Any], Array, Array]:
    """Go from snapshots to the parts of a factor in one program: on small problems, calls cost more than the work."""
    num = snapshots.num_snapshots
    _check_num(dictionary, snapshots, num)
    triangle = triangle_of(dictionary, snapshots, block=block)
    parts, fine, sigma = _parts(triangle if snapshots.weights is not None else triangle / math.sqrt(num))
    distinct = num_distinct(snapshots, len(sigma))
    return parts | {"witnesses": witnesses_of(snapshots.x), "num_distinct": distinct}, fine, sigma


@eqx.filter_jit
def witnesses_of(x: Float[Array, "M d"]) -> Float[Array, "w d"]:
    """Return a few of the training states, by which they are recognised in a hold-out set."""
    return x[:: max(1, len(x) // _WITNESSES)][:_WITNESSES]


def evaluate(dictionary: Dictionary, x: Float[Array, "M d"]) -> Inexact[Array, "M N"]:
    """Return the dictionary's values at every state."""
    return jax.vmap(dictionary)(x)


def _size(dictionary: Dictionary, like: Snapshots) -> int:
    if not callable(dictionary):
        raise TypeError(
            f"`dictionary` must be a callable from one state [d] to values [N]; got {type(dictionary).__name__}"
        )
    try:
        out = jax.eval_shape(dictionary, jax.ShapeDtypeStruct(like.x.shape[1:], like.x.dtype))
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise TypeError("`dictionary` must be written in JAX (jax.numpy in place of numpy, no float(...))") from error
    is_vector = isinstance(out, jax.ShapeDtypeStruct) and len(out.shape) == 1 and out.shape[0] > 0
    if not (is_vector and jnp.issubdtype(out.dtype, jnp.inexact)):
        raise ValueError(
            f"`dictionary` must map a state of shape {list(like.x.shape[1:])} to values of shape [N], real or complex; "
            f"got {out}"
        )
    return out.shape[0]


def _check_num(dictionary: Dictionary, like: Snapshots, num: int) -> None:
    size = _size(dictionary, like)
    if num <= size:
        raise ValueError(
            f"`snapshots` must hold more pairs than `dictionary` has functions; got M = {num} for N = {size}. With "
            "M <= N every residual is zero, and means nothing. For a certificate, M >= 10 N is advised."
        )


def _raise_unless_enough(distinct: Array, size: int) -> None:
    """Raise if there are no more different pairs than functions: then every residual is zero, as for M <= N."""
    if int(distinct) <= size:
        raise ValueError(
            "`snapshots` must hold more pairs that differ than `dictionary` has functions; got "
            f"{int(distinct)} different pairs for N = {size}. Likely cause: repeated snapshots, which add nothing, so "
            "that every residual is zero."
        )


def _consume(
    dictionary: Dictionary, stream: Iterable[Snapshots], block: int | None
) -> tuple[Array, Snapshots, int, Array]:
    if not isinstance(stream, Iterable):
        raise TypeError(f"`snapshots` must be a `Snapshots` or an iterable of them; got {type(stream).__name__}")
    triangle, first, num, size, distinct = None, None, 0, 0, jnp.zeros((), int)
    for piece in stream:
        if not isinstance(piece, Snapshots):
            raise TypeError(f"`snapshots` must be a `Snapshots` or an iterable of them; met {type(piece).__name__}")
        if first is None:
            first = piece
            size = _size(dictionary, first)
        if piece.x.shape[1] != first.x.shape[1] or piece.x.dtype != first.x.dtype:
            raise ValueError(
                "`snapshots`: all blocks must have states of one dimension and dtype; got "
                f"{first.x.shape[1]} ({first.x.dtype}) and {piece.x.shape[1]} ({piece.x.dtype})"
            )
        if (piece.weights is None) != (first.weights is None) or piece.kind != first.kind:
            raise ValueError("`snapshots`: all blocks must be of one kind, and either all or none must have weights")
        triangle = triangle_of(dictionary, piece, block=block, start=triangle)
        num += piece.num_snapshots
        distinct = distinct + num_distinct(piece, size)
    if triangle is None or first is None:
        raise ValueError("`snapshots` is an iterable without a single block")
    return triangle, first, num, distinct


def _column_lengths(r11: Array) -> Array:
    """Return the lengths of the columns as a row in the dtype of the matrix; one where a column is zero."""
    lengths = jnp.linalg.norm(r11, axis=0, keepdims=True)
    return jnp.where(lengths == 0, jnp.ones_like(lengths), lengths).astype(r11.dtype)


def _split(triangle: Array) -> tuple[Array, Array, Array]:
    n = triangle.shape[1] // 2
    return triangle[:n, :n], triangle[:n, n:], triangle[n:, n:]


def _norms(r11: Array, r12: Array, r22: Array, lengths: Array, smallest: Array) -> Array:
    # Frobenius norms: a bound on the spectral ones, without three more decompositions.
    root = math.sqrt(r11.shape[0])
    return jnp.stack([*(jnp.linalg.norm(r / lengths) / root for r in (r11, r12, r22)), root / smallest])


def _coordinates(triangle: Array, length: float, distinct: Array) -> dict[str, Any]:
    """Return the operator in the coordinates $u = R_{11}v$, if the functions are independent; rows are `length` too long."""
    # An array, so that another number of snapshots is not another program.
    parts, fine, sigma = _parts(triangle / jnp.asarray(length, triangle.dtype))
    return _refused_unless(fine, sigma, parts | {"num_distinct": distinct})


@eqx.filter_jit
def _parts(triangle: Array) -> tuple[dict[str, Any], Bool[Array, "2"], Float[Array, " N"]]:
    """Return the parts, whether the values are finite and the functions independent, and the singular values."""
    triangle = settled(triangle)
    r11, r12, r22 = _split(triangle)
    lengths = _column_lengths(r11)
    sigma = jnp.linalg.svd(r11 / lengths, compute_uv=False)
    fine = jnp.stack([jnp.all(jnp.isfinite(sigma)), sigma[-1] > _tolerance(sigma) * sigma[0]])
    n = len(r11)
    # One solve for all three, which waits for the singular values. Under `vmap` JAX's CPU backend runs each batched LAPACK
    # call on a worker of the pool whose other workers it waits for: as many independent calls as workers lock up.
    after = jnp.where(jnp.isfinite(sigma[-1]), r11, jnp.nan)
    rows = jnp.concatenate([r12, r22, jnp.eye(n, dtype=r11.dtype)])
    solved = jsp.solve_triangular(after, rows.T, trans="T").T
    scales = _norms(r11, r12, r22, lengths, sigma[-1])
    cond = sigma[0] / sigma[-1]
    parts = dict(A=solved[:n], B=solved[n:-n], basis=solved[-n:], R11=r11, cond=cond, scales=scales)
    return parts, fine, sigma


def _tolerance(sigma: Array) -> float:
    return 2 * len(sigma) * float(jnp.finfo(sigma.dtype).eps)


def _refused_unless(fine: Array, sigma: Array, parts: dict[str, Any]) -> dict[str, Any]:
    size, distinct = len(sigma), parts["num_distinct"]
    if isinstance(fine, Tracer) or isinstance(distinct, Tracer):
        # On all the parts: a check of what is not used is not made.
        few = "`snapshots` must hold more pairs that differ than `dictionary` has functions."
        parts = eqx.error_if(parts, distinct <= size, few)
        parts = eqx.error_if(parts, ~fine[0], _NONFINITE)
        return eqx.error_if(parts, ~fine[1], _DEPENDENT)
    _raise_unless_enough(distinct, size)
    finite, full = np.asarray(fine).tolist()
    _raise_unless(finite, full, sigma, _tolerance(sigma))
    return parts


def _truncated(triangle: Array, rank_tol: float) -> dict[str, Any]:
    """Return the operator on the directions whose singular value is above `rank_tol` times the largest."""
    if isinstance(triangle, Tracer):
        raise TypeError("`rank_tol` decides a shape from values: call `factor` outside of `jit`, or leave it out")
    if not 0 < rank_tol < 1:
        raise ValueError(f"`rank_tol` must be between 0 and 1; got {rank_tol}")
    directions, finite = _directions(triangle)
    if not bool(finite):
        raise ValueError(_NONFINITE)
    sigma = np.asarray(directions[2])
    if sigma[0] == 0:
        raise ValueError("`dictionary`: all of its functions are zero on `snapshots`")
    return _kept(triangle, directions, int(np.sum(sigma > rank_tol * sigma[0])))


@eqx.filter_jit
def _directions(triangle: Array) -> tuple[tuple[Array, ...], Array]:
    r11, _, _ = _split(triangle)
    lengths = _column_lengths(r11)
    return (lengths, *jnp.linalg.svd(r11 / lengths)), jnp.all(jnp.isfinite(triangle))


@eqx.filter_jit
def _kept(triangle: Array, directions: tuple[Array, ...], rank: int) -> dict[str, Any]:
    r11, r12, r22 = _split(triangle)
    lengths, left, sigma, right = directions
    basis = (right[:rank] / sigma[:rank, None].astype(right.dtype)).conj().T / lengths.T
    image = left.conj().T @ (r12 @ basis)
    # What leaves the smaller space is outside of it too.
    outside = jnp.linalg.qr(jnp.concatenate([image[rank:], r22 @ basis]), mode="r")
    scales = _norms(r11, r12, r22, lengths, sigma[rank - 1])
    return dict(A=image[:rank], B=outside, basis=basis, R11=r11, cond=sigma[0] / sigma[rank - 1], scales=scales)


_DEPENDENT = "`dictionary`: its functions depend linearly on each other on `snapshots`."
_NONFINITE = "`dictionary` returned a value that is not finite on `snapshots` (or the map `y` left its domain)."


def _raise_unless(finite: bool, full: bool, sigma: Array, tolerance: float) -> None:
    if not finite:
        raise ValueError(_NONFINITE)
    if not full and isinstance(sigma, Tracer):  # a derivative is being taken
        raise ValueError(_DEPENDENT)
    if not full and float(sigma[0]) == 0:
        raise ValueError("`dictionary`: all of its functions are zero on `snapshots`")
    if not full:
        rank = int(jnp.sum(sigma > tolerance * sigma[0]))
        raise ValueError(
            f"`dictionary`: {len(sigma)} functions span only {rank} dimensions on `snapshots` (smallest singular value "
            f"{float(sigma[-1] / sigma[0]):.1e} of the largest). Likely causes: dependent functions, or repeated "
            f"snapshots. Take fewer functions, or pass `rank_tol` (say {max(1e-10, 10 * tolerance):.0e}) to leave the "
            "dependent directions out."
        )
