"""Preconditioners: approximate inverses, as Lineax operators, for the `precond` of the Krylov solvers."""

from ._precond import block_jacobi, deflation, jacobi, nystrom, saddle


__all__ = ["block_jacobi", "deflation", "jacobi", "nystrom", "saddle"]
