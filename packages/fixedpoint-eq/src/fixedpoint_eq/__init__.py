"""Equilibria: fixed points that solve fast, differentiate exactly, and learn without a backward pass."""

from . import diagnostics, ep, graph, layers, plot, problems
from ._adjoints import Implicit, ImplicitFP, Neumann, OneStep, Phantom, Unrolled
from ._anderson import Anderson
from ._broyden import Broyden
from ._newton_krylov import NewtonKrylov
from ._picard import Damped, Picard
from ._relaxation import Relaxation
from ._results import RESULTS
from ._reversible import Reversible, ReversibleAdjoint
from ._solution import Solution
from ._solve import solve
from ._solver import AbstractSolver


__all__ = [
    "RESULTS",
    "AbstractSolver",
    "Anderson",
    "Broyden",
    "Damped",
    "Implicit",
    "ImplicitFP",
    "Neumann",
    "NewtonKrylov",
    "OneStep",
    "Phantom",
    "Picard",
    "Relaxation",
    "Reversible",
    "ReversibleAdjoint",
    "Solution",
    "Unrolled",
    "diagnostics",
    "ep",
    "graph",
    "layers",
    "plot",
    "problems",
    "solve",
]
