from typing import TypeAlias

from jaxtyping import Array, Bool, Float, Int


FloatScalar: TypeAlias = Float[Array, ""]
IntScalar: TypeAlias = Int[Array, ""]
BoolScalar: TypeAlias = Bool[Array, ""]
