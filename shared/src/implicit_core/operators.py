"""Linear operators that Lineax does not have, each registered with all of its dispatch."""

from ._block import BatchedOperator, BlockOperator, SaddleOperator
from ._derived import MaskedOperator, NormalOperator, ShiftedOperator
from ._lowrank import LowRankUpdate, Woodbury
from ._operator import AbstractOperator
from ._sparse import SparseOperator


__all__ = [
    "AbstractOperator",
    "BatchedOperator",
    "BlockOperator",
    "LowRankUpdate",
    "MaskedOperator",
    "NormalOperator",
    "SaddleOperator",
    "ShiftedOperator",
    "SparseOperator",
    "Woodbury",
]
