"""Curvature of a loss without its Hessian: trace, norms, extreme eigenvalues, density, and the stability of SGD."""

from ._hessian import gauss_newton, hessian
from ._lanczos import Density, Eigenvalue, Eigenvalues, density, lambda_max, top_k
from ._stability import StepLimit, gd_margin, mean_square_map, sgd_eta_max, sgd_margin_b1
from ._trace import Estimate, frobenius, trace


__all__ = [
    "Density",
    "Eigenvalue",
    "Eigenvalues",
    "Estimate",
    "StepLimit",
    "density",
    "frobenius",
    "gauss_newton",
    "gd_margin",
    "hessian",
    "lambda_max",
    "mean_square_map",
    "sgd_eta_max",
    "sgd_margin_b1",
    "top_k",
    "trace",
]
