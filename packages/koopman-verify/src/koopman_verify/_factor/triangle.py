"""The triangular factor of $W^{1/2}[\\Psi_X\\ \\Psi_Y]$: at once, block by block, or over several devices."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsp
from jaxtyping import Array

from .snapshots import Snapshots


_AT_ONCE = 2**23  # bytes of rows that are factorised in one go: more leave the cache, and take twice the time


@eqx.filter_jit
def triangle_of(dictionary: Any, snapshots: Snapshots, *, block: int | None, start: Array | None = None) -> Array:
    """Factorise the rows of `snapshots` (with weights one if it has none), beginning from the triangle `start`."""
    return _reduce(dictionary, snapshots.x, snapshots.y, _scale(snapshots), block, start)


@eqx.filter_jit
def sharded_triangle_of(dictionary: Any, snapshots: Snapshots, *, block: int | None, mesh: jax.sharding.Mesh) -> Array:
    """Factorise with the rows split over all devices of `mesh`: each its own triangle, then one of the triangles."""
    # Of automatic axes, whatever kind the mesh came with: explicit ones would want the rows placed beforehand.
    mesh = jax.sharding.Mesh(mesh.devices, mesh.axis_names)
    axes, spec = mesh.axis_names, jax.sharding.PartitionSpec
    arrays = (snapshots.x, snapshots.y, _scale(snapshots))
    arrays = tuple(_padded(a, -len(a) % mesh.size) for a in arrays)
    params, static = eqx.partition(dictionary, eqx.is_array)

    def local(params: Any, x: Array, y: Array, scale: Array) -> Array:
        triangle = _reduce(eqx.combine(params, static), x, y, scale, block, None)
        return _triangle(jax.lax.all_gather(triangle, axes, tiled=True))

    split = spec(axes)
    # The gathered triangles are the same everywhere, which JAX cannot see by itself: hence no check.
    run = jax.shard_map(local, mesh=mesh, in_specs=(spec(), split, split, split), out_specs=spec(), check_vma=False)
    return run(params, *arrays)


def _reduce(dictionary: Any, x: Array, y: Array, scale: Array, block: int | None, start: Array | None) -> Array:
    num = len(x)
    values = jax.eval_shape(dictionary, jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    width = 2 * values.shape[0]
    rows = block
    if rows is None:
        at_once = _AT_ONCE // (width * values.dtype.itemsize)
        # A triangle of `width` rows is factorised again with each block: four times as many new rows keep that cheap.
        whole = start is None and num <= max(at_once, 16 * width)
        rows = num if whole else max(4 * width, min(at_once, 2048))
        rows = -(-num // -(-num // rows))  # equal blocks, so that few rows are padding
    if start is None and rows >= num >= width:
        return _triangle(_rows(dictionary, x, y, scale))
    pieces = tuple(_blocks(a, min(rows, num)) for a in (x, y, scale))
    first = jnp.zeros((width, width), values.dtype) if start is None else start

    def step(triangle: Array, piece: tuple[Array, ...]) -> tuple[Array, None]:
        return _triangle(jnp.concatenate([triangle, _rows(dictionary, *piece)])), None

    return jax.lax.scan(step, first, pieces)[0]


@jax.custom_jvp
def _triangle(rows: Array) -> Array:
    """Return the triangular factor, differentiated up to a rotation from the left.

    The derivative of a triangle divides by the triangle, and $R_{22}=0$ wherever the span is invariant. What is asked of
    it in the end depends on $R^*R$ alone, for which $dR=Q^*\\,d(\\text{rows})$ is as good and divides by nothing.
    """
    return jnp.linalg.qr(rows, mode="r")


@_triangle.defjvp
def _triangle_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (rows,), (change,) = primals, tangents
    q, r = jnp.linalg.qr(rows)
    return r, q.conj().T @ change


@jax.custom_jvp
def settled(triangle: Array) -> Array:
    """Return a triangle as it is, its derivative brought to the form [[triangular, full], [0, full]].

    Then the derivatives of $R_{11}$, $R_{12}$, and so of $A$, are those of the numbers themselves. That of $R_{22}$, and
    so of $B$, stays free up to a rotation from the left, which no norm $\\lVert Bu\\rVert$ sees. Only $R_{11}$ divides.
    """
    return triangle


@settled.defjvp
def _settled_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (triangle,), (change,) = primals, tangents
    q, r = jnp.linalg.qr(triangle)
    change, n = q.conj().T @ change, triangle.shape[1] // 2
    over = jsp.solve_triangular(r[:n, :n], change[:, :n].T, trans="T").T
    below = jnp.tril(over[:n], -1)
    # Q turns by an antihermitian matrix: these blocks of it make dR11 triangular with a real diagonal, and dR21 zero.
    turn = below - below.conj().T
    if jnp.iscomplexobj(turn):
        imaginary = jnp.diagonal(over[:n]).imag
        turn = turn + jnp.diag(jax.lax.complex(jnp.zeros_like(imaginary), imaginary))
    top = (over[:n] - turn) @ r[:n, :n]
    right = change[:n, n:] - turn @ r[:n, n:] + over[n:].conj().T @ r[n:, n:]
    corner = change[n:, n:] - over[n:] @ r[:n, n:]
    return r, jnp.block([[jnp.triu(top), right], [jnp.zeros_like(change[n:, :n]), corner]])


def _rows(dictionary: Any, x: Array, y: Array, scale: Array) -> Array:
    psi = jax.vmap(dictionary)
    both = jnp.concatenate([psi(x), psi(y)], axis=1)
    # A row of weight zero is padding: whatever the dictionary says there (an infinity, say) counts nothing.
    return jnp.where(scale[:, None] == 0, jnp.zeros_like(both), both * scale[:, None].astype(both.dtype))


def _scale(snapshots: Snapshots) -> Array:
    if snapshots.weights is None:
        return jnp.ones(len(snapshots.x), snapshots.x.dtype)
    w = snapshots.weights
    return jnp.sqrt(eqx.error_if(w, ~jnp.all(w > 0), "`weights` must be positive and finite."))


def _blocks(array: Array, block: int) -> Array:
    """Cut the first axis into blocks; the last is filled up with zeros."""
    return _padded(array, -len(array) % block).reshape(-1, block, *array.shape[1:])


def _padded(array: Array, num: int) -> Array:
    return jnp.pad(array, [(0, num)] + [(0, 0)] * (array.ndim - 1))
