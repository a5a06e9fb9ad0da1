"""Kernels, their matrices, and the scales and bounds that go with them."""

from ._kernels.kernel_factor import rounding
from ._kernels.kernels import (
    AbstractKernel,
    Gaussian,
    Laplacian,
    Lorentzian,
    Matern,
    Polynomial,
    Product,
    Sobolev,
    Sum,
    bandwidth,
    gram,
    pointwise_bound,
)


__all__ = [
    "AbstractKernel",
    "Gaussian",
    "Laplacian",
    "Lorentzian",
    "Matern",
    "Polynomial",
    "Product",
    "Sobolev",
    "Sum",
    "bandwidth",
    "gram",
    "pointwise_bound",
    "rounding",
]
