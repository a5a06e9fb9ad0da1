from typing import TypeAlias, TypeVar

from jaxtyping import ArrayLike, Int, Real


Vector = TypeVar("Vector")
"""A pytree of arrays: an element of the space that an operator acts on."""

RealScalar: TypeAlias = Real[ArrayLike, ""]
IntScalar: TypeAlias = Int[ArrayLike, ""]
