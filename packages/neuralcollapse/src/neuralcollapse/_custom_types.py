from typing import Literal, TypeAlias

from jaxtyping import Array, Bool, Float, Int


FloatScalar: TypeAlias = Float[Array, ""]
IntScalar: TypeAlias = Int[Array, ""]
BoolScalar: TypeAlias = Bool[Array, ""]

Within: TypeAlias = Literal["full", "diag", "trace", "low-rank"]
"""How much of the within-class covariance is kept."""
