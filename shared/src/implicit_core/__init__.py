"""Primitives shared by the Stationary packages: implicit derivatives, linear solves, result codes, certificates."""

from . import krylov
from ._results import RESULTS


__all__ = ["RESULTS", "krylov"]
