"""Linear operators that Lineax does not have, each registered with all of its dispatch."""

from ._sparse import SparseOperator


__all__ = ["SparseOperator"]
