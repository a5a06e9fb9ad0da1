"""Krylov solvers as Lineax solvers, and the bare loop of conjugate gradients, [`implicit_core.krylov.pcg`][]."""

from ._deflated import Deflated
from ._directions import ConjugateDirections
from ._fgmres import FGMRES
from ._minres import MINRES
from ._misc import tree_dot
from ._pcg import PCG
from ._pcg_kernel import PCGInfo, pcg
from ._refined import Refined


__all__ = ["FGMRES", "MINRES", "PCG", "ConjugateDirections", "Deflated", "PCGInfo", "Refined", "pcg", "tree_dot"]
