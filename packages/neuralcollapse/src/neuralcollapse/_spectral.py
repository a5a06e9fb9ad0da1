"""Functions of singular values, with derivatives that hold where singular values coincide (every balanced problem)."""

import functools as ft
from collections.abc import Callable
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


# `fn(s, theta)`, elementwise in the singular values `s`, which come in descending order.
Elementwise = Callable[[Array, Any], Array]


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def spectral_map(fn: Elementwise, matrix: Float[Array, "k k"], theta: Any) -> Float[Array, "k k"]:
    r"""Return $U f(s) V^\top$ of a square matrix $U s V^\top$."""
    u, s, vt = jnp.linalg.svd(matrix)
    return (u * fn(s, theta)[None]) @ vt


@spectral_map.defjvp
def _spectral_map_jvp(fn, primals, tangents):
    matrix, theta = primals
    u, s, vt = _svd(matrix)
    f, df, moved = _values(fn, s, theta, tangents[1])
    p = u.T @ tangents[0] @ vt.T
    # Daleckii and Krein's formula: divided differences, of f where rotations of U and V agree, of its odd extension
    # where they oppose each other.
    even = _divided(f[:, None] - f[None], s[:, None] - s[None], (df[:, None] + df[None]) / 2)
    odd = _divided(f[:, None] + f[None], s[:, None] + s[None], (df[:, None] + df[None]) / 2)
    inner = even * (p + p.T) / 2 + odd * (p - p.T) / 2
    return (u * f[None]) @ vt, u @ (inner + jnp.diag(moved)) @ vt


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def left_gram(fn: Elementwise, matrix: Float[Array, "k k"], theta: Any) -> Float[Array, "k k"]:
    r"""Return $U f(s) U^\top$ of a square matrix $U s V^\top$; $f$ must vanish near zero if the matrix is singular."""
    u, s, _ = jnp.linalg.svd(matrix)
    return (u * fn(s, theta)[None]) @ u.T


@left_gram.defjvp
def _left_gram_jvp(fn, primals, tangents):
    matrix, theta = primals
    u, s, vt = _svd(matrix)
    f, df, moved = _values(fn, s, theta, tangents[1])
    p = (u.T @ tangents[0] @ vt.T) * s[None]
    half = _divided(df, 2 * s, 0 * s)
    square = s**2
    change = _divided(f[:, None] - f[None], square[:, None] - square[None], (half[:, None] + half[None]) / 2)
    return (u * f[None]) @ u.T, u @ (change * (p + p.T) + jnp.diag(moved)) @ u.T


def _svd(matrix):
    # The rules are exact to first order. A second derivative would differentiate U and V, which do not exist at ties.
    return eqxi.nondifferentiable(
        jnp.linalg.svd(matrix), msg="Second derivatives of functions of singular values are not available."
    )


def _values(fn, s, theta, t_theta):
    f, df = jax.jvp(lambda s: fn(s, theta), (s,), (jnp.ones_like(s),))
    _, moved = jax.jvp(lambda theta: fn(s, theta), (theta,), (t_theta,))
    return f, df, moved


def _divided(difference, distance, limit):
    scale = jnp.max(jnp.abs(distance))
    tie = jnp.abs(distance) <= 1e3 * jnp.finfo(distance.dtype).eps * scale
    return jnp.where(tie, jnp.broadcast_to(limit, distance.shape), difference / jnp.where(tie, 1, distance))
