"""Primitives shared by the Stationary packages: implicit derivatives, linear solves, result codes, certificates."""

from . import certify, dist, implicit, krylov, operators
from ._results import RESULTS


__all__ = ["RESULTS", "certify", "dist", "implicit", "krylov", "operators"]
