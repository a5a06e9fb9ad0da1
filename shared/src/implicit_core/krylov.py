"""Krylov solvers as Lineax solvers; the bare loop of conjugate gradients, `pcg`; and parts to write more from."""

from ._deflated import Deflated
from ._directions import ConjugateDirections
from ._fgmres import FGMRES
from ._minres import MINRES
from ._misc import real_dtype, stack_combine, stack_dot, stop_gradient, tree_axpy, tree_dot, tree_norm
from ._pcg import PCG
from ._pcg_kernel import PCGInfo, pcg
from ._refined import Refined


__all__ = [
    "FGMRES",
    "MINRES",
    "PCG",
    "ConjugateDirections",
    "Deflated",
    "PCGInfo",
    "Refined",
    "pcg",
    "real_dtype",
    "stack_combine",
    "stack_dot",
    "stop_gradient",
    "tree_axpy",
    "tree_dot",
    "tree_norm",
]
