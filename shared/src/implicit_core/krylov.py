"""Krylov solvers: the bare loop [`implicit_core.krylov.pcg`][] and the Lineax solver built on it."""

from ._misc import tree_dot
from ._pcg_kernel import PCGInfo, pcg


__all__ = ["PCGInfo", "pcg", "tree_dot"]
