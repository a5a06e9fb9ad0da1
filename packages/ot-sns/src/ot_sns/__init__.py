"""Entropic optimal transport to machine precision, by Sinkhorn-Newton-Sparse."""

from ._geometry import AbstractGeometry, DenseCost, PointCloud, rescale_cost
from ._problem import EntropicOT
from ._results import RESULTS
from ._scaling import DenseProblem
from ._sinkhorn import Sinkhorn
from ._sns import SNS
from ._solution import Solution
from ._solve import solve
from ._solver import AbstractSolver, Outcome
from ._sparse_newton import SparseNewton


__all__ = [
    "RESULTS",
    "SNS",
    "AbstractGeometry",
    "AbstractSolver",
    "DenseCost",
    "DenseProblem",
    "EntropicOT",
    "Outcome",
    "PointCloud",
    "Sinkhorn",
    "Solution",
    "SparseNewton",
    "rescale_cost",
    "solve",
]
