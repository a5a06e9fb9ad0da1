"""Refusing bad values at the earliest point: eagerly where they are known, else at run time."""

from typing import TypeVar

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array


T = TypeVar("T", bound=Array)


class RefusedValue(ValueError):
    """A value that no answer can be computed from: what a training run may meet, unlike a wrong argument."""


def known(*arrays: Array) -> bool:
    """Whether the values can be looked at: outside of every transformation."""
    return not any(isinstance(x, jax.core.Tracer) for x in arrays)


def require(x: T, ok: Array, message: str, **got: Array) -> T:
    """Return `x`, having made sure that `ok` holds.

    Outside `jit` the values are known, so the error is a `ValueError` that quotes them.
    Under a transformation it is Equinox's run-time error, which cannot quote them.
    """
    if not known(ok):
        return eqx.error_if(x, jnp.logical_not(ok), message)
    if not bool(ok):
        values = ", ".join(f"{name} = {value.tolist()}" for name, value in got.items())
        raise RefusedValue(f"{message} Got {values}." if values else message)
    return x


def matrix(x: object, name: str, rows: int, columns: int, meaning: str) -> Array:
    """Return `x` as a floating-point matrix of the given shape, or raise an error naming it."""
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"`{name}` must hold real floating-point numbers, got dtype {array.dtype}.")
    if array.shape != (rows, columns):
        raise ValueError(f"`{name}` must have shape ({rows}, {columns}), {meaning}; got {array.shape}.")
    return array
