"""Implicit differentiation: derivatives of solutions from the equations that they solve, not from the solver."""

from ._adapter import ImplicitAdjoint, root


__all__ = ["ImplicitAdjoint", "root"]
