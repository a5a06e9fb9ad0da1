"""Unconstrained-features models: exact global minima, certified convex solutions, thresholds of minority collapse."""

from ._optimality import Optimality, optimality
from ._ufm_convex import ConvexSolution, solve_convex
from ._ufm_deep_ce import UpperBound, deep_ce_cross_polytope, deep_ce_etf, deep_ce_search
from ._ufm_fit import Fit, fit
from ._ufm_minimiser import Minimiser
from ._ufm_mse import MSESolution, from_tirer, solve_mse, solve_mse_targets
from ._ufm_scalar import fitted_fraction, spinodal, threshold


__all__ = [
    "ConvexSolution",
    "Fit",
    "MSESolution",
    "Minimiser",
    "Optimality",
    "UpperBound",
    "deep_ce_cross_polytope",
    "deep_ce_etf",
    "deep_ce_search",
    "fit",
    "fitted_fraction",
    "from_tirer",
    "optimality",
    "solve_convex",
    "solve_mse",
    "solve_mse_targets",
    "spinodal",
    "threshold",
]
