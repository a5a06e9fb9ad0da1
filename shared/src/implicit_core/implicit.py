"""Implicit differentiation: derivatives of solutions from the equations that they solve, not from the solver."""

from ._adapter import ImplicitAdjoint
from ._decorators import ImplicitFunction, argmin, fixed_point, least_squares, root
from ._kkt import KKTConditions, KKTPoint, KKTReport, kkt
from ._probe import AdjointState


__all__ = [
    "AdjointState",
    "ImplicitAdjoint",
    "ImplicitFunction",
    "KKTConditions",
    "KKTPoint",
    "KKTReport",
    "argmin",
    "fixed_point",
    "kkt",
    "least_squares",
    "root",
]
