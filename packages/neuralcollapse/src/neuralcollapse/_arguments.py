"""Arguments that are numbers: checked, in one dtype."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from ._check import require


Scalar: TypeAlias = float | int | Real[Array, ""] | Real[np.ndarray, ""] | np.generic
# Class sizes: a list, or an array that may be traced and differentiated.
Counts: TypeAlias = Sequence[int] | Sequence[float] | Real[Array, " K"] | Real[np.ndarray, " K"]


def as_float(x: Any, name: str) -> Array:
    """Return `x` as a real array of at least float32, or raise a `TypeError` naming it."""
    array = jnp.asarray(x)
    if jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(jnp.result_type(float))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"`{name}` must hold real numbers, got dtype {array.dtype}.")
    if jnp.finfo(array.dtype).bits < 32:
        raise TypeError(f"`{name}` must be float32 or float64, got {array.dtype}.")
    return array


def finite(x: Any, name: str, ndim: int | None = None) -> Array:
    """Return `x` as a float array without NaN or infinity, of the given number of axes."""
    array = as_float(x, name)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"`{name}` must have {ndim} axes, got shape {array.shape}.")
    return require(array, jnp.all(jnp.isfinite(array)), f"`{name}` must be finite, but has NaN or infinite entries.")


def positive(x: Any, name: str, dtype: Any, *, allow_zero: bool = False) -> Float[Array, ""]:
    """Return `x` as a finite scalar above zero of this dtype."""
    value = jnp.asarray(x, dtype)
    if value.shape != ():
        raise ValueError(f"`{name}` must be a scalar, got shape {value.shape}.")
    ok = jnp.isfinite(value) & ((value >= 0) if allow_zero else (value > 0))
    word = "non-negative" if allow_zero else "positive"
    return require(value, ok, f"`{name}` must be {word} and finite.", **{name: value})


def class_counts(counts: Any) -> Float[Array, " K"]:
    """Return the class sizes as a float vector: at least two classes, none of them empty."""
    array = as_float(counts, "counts")
    if array.ndim != 1 or array.shape[0] < 2:
        raise ValueError(f"`counts` must be a vector of at least two class sizes, got shape {array.shape}.")
    ok = jnp.all(jnp.isfinite(array) & (array > 0))
    return require(array, ok, "`counts` must be positive: an empty class has no features.", counts=array)


def equal_counts(counts: Float[Array, " K"], what: str) -> Float[Array, ""]:
    """Return the common class size, or raise: `what` is only known for balanced classes."""
    ok = jnp.all(counts == counts[0])
    return require(counts[0], ok, f"{what} is only known for classes of equal size.", counts=counts)


def check_depth(depth: int) -> None:
    """Raise unless `depth` is a whole number of at least one."""
    if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
        raise ValueError(f"`depth` must be a whole number of weight matrices, at least 1; got {depth!r}.")
