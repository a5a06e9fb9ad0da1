"""Primitives shared by the Stationary packages: implicit derivatives, linear solves, result codes, certificates."""

from . import batched, certify, dist, implicit, krylov, operators, precond
from ._results import RESULTS


__all__ = ["RESULTS", "batched", "certify", "dist", "implicit", "krylov", "operators", "precond"]
