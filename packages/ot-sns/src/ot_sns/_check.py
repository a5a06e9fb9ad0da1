"""Refusing bad values at the earliest point: eagerly where they are known, else at run time."""

from typing import TypeVar

import equinox as eqx
import jax.core
import jax.numpy as jnp
from jaxtyping import Array


T = TypeVar("T", bound=Array)


def require(x: T, ok: Array, message: str, **got: Array) -> T:
    """Return `x`, having made sure that `ok` holds.

    Outside `jit` the values are known, so the error is a `ValueError` that quotes them.
    Under a transformation it is Equinox's run-time error, which cannot quote them.
    """
    if isinstance(ok, jax.core.Tracer):
        return eqx.error_if(x, jnp.logical_not(ok), message)
    if not bool(ok):
        values = ", ".join(f"{name} = {float(value):.9g}" for name, value in got.items())
        raise ValueError(f"{message} Got {values}." if values else message)
    return x


def as_float(x: object, name: str) -> Array:
    """Return `x` as a real floating-point array, or raise a `TypeError` naming it."""
    array = jnp.asarray(x)
    if jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(jnp.result_type(float))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"`{name}` must hold real numbers, got dtype {array.dtype}.")
    if jnp.finfo(array.dtype).bits < 32:
        raise TypeError(
            f"`{name}` must be float32 or float64, got {array.dtype}: entropic transport needs at least float32."
        )
    return array
