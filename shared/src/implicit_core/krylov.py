"""Krylov solvers: the bare loop [`implicit_core.krylov.pcg`][] and the Lineax solver [`implicit_core.krylov.PCG`][]."""

from ._misc import tree_dot
from ._pcg import PCG
from ._pcg_kernel import PCGInfo, pcg


__all__ = ["PCG", "PCGInfo", "pcg", "tree_dot"]
