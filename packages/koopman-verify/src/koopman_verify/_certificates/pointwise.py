"""The residual of each pair at each snapshot, and what else one pass over the data can measure."""

import functools as ft
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._factor.factor import Factor, factor, promoted
from .._factor.snapshots import Snapshots
from .._spectra.edmd import Eigenpairs


_AT_ONCE = 2**26  # bytes of the dictionary's values that are in memory at one time


class Pointwise(eqx.Module):
    r"""$n = w|g(y)-\lambda g(x)|^2$ and $d = w|g(x)|^2$ at each snapshot, with weights of mean one."""

    n: Float[Array, "M k"]
    d: Float[Array, "M k"]
    rounding: Float[Array, " k"]
    constant: Bool[Array, " k"]
    duplicates: Bool[Array, ""]
    outside: Float[Array, ""]

    def defect(self, pairs: Eigenpairs, holdout: Snapshots) -> Float[Array, ""]:
        """Return the isometry defect of the dictionary on the given snapshots."""
        return _defect(factor(pairs.dictionary, holdout))


@eqx.filter_jit
def _defect(of: Factor) -> Array:
    return of.isometry_defect


@eqx.filter_jit
def pointwise(pairs: Eigenpairs, snapshots: Snapshots) -> Pointwise:
    """Evaluate in blocks of rows: memory is `[M, k]`, whatever the size of the dictionary."""
    x, y, lam = snapshots.x, snapshots.y, pairs.eigenvalues
    w = jnp.ones_like(x[:, 0]) if snapshots.weights is None else snapshots.weights
    w = w / jnp.mean(w)
    origin = pairs.functions(x[0])
    like = jax.eval_shape(pairs.dictionary, jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    rows = max(1, min(len(x), _AT_ONCE // (2 * like.shape[0] * like.dtype.itemsize)))

    def at(point: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        state, successor, weight = point
        before, after, v = promoted(pairs.dictionary(state), pairs.dictionary(successor), pairs.coefficients)
        dot = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        g, moved = dot(before, v).astype(lam.dtype), dot(after, v).astype(lam.dtype)
        size = dot(jnp.abs(after), jnp.abs(v)) + jnp.abs(lam) * dot(jnp.abs(before), jnp.abs(v))
        square = lambda z: (weight * jnp.abs(z) ** 2).astype(weight.dtype)
        return square(moved - lam * g), square(g), square(size), square(g - origin)

    everywhere = jax.vmap(at) if rows == len(x) else ft.partial(jax.lax.map, at, batch_size=rows)
    n, d, size, spread = everywhere((x, y, w))
    norm = jnp.mean(d, axis=0)
    # The running error of a sum of N products, with sqrt(N) for N as in the factor's allowance.
    growth = 4 * math.sqrt(pairs.size) * float(jnp.finfo(n.dtype).eps)
    return Pointwise(
        n=n,
        d=d,
        rounding=growth * jnp.sqrt(jnp.mean(size, axis=0) / norm),
        constant=jnp.mean(spread, axis=0) <= 1e-6 * norm,
        duplicates=_duplicates(x),
        outside=_outside(x, y),
    )


def _duplicates(x: Float[Array, "M d"]) -> Bool[Array, ""]:
    order = jnp.lexsort(tuple(x.T))
    ordered = x[order]
    return jnp.any(jnp.all(ordered[1:] == ordered[:-1], axis=1))


def _outside(x: Array, y: Array) -> Any:
    low, high = jnp.min(x, axis=0, keepdims=True), jnp.max(x, axis=0, keepdims=True)
    return jnp.mean(jnp.any((y < low) | (y > high), axis=1), dtype=x.dtype)
