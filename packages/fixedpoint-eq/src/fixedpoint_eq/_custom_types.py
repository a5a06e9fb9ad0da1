from typing import TypeAlias, TypeVar

from jaxtyping import ArrayLike, Bool, Float, Int, Real


Y = TypeVar("Y")
"""A state: a pytree of real or complex arrays."""

RealScalar: TypeAlias = Real[ArrayLike, ""]
FloatScalar: TypeAlias = Float[ArrayLike, ""]
IntScalar: TypeAlias = Int[ArrayLike, ""]
BoolScalar: TypeAlias = Bool[ArrayLike, ""]
