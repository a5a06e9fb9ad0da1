"""Koopman spectra that come with a certificate, or a refusal."""

from . import kernels, problems
from ._compose import Concatenate, Constant, Delay, Product
from ._dictionary import AbstractDictionary, Fourier
from ._edmd import Eigenpairs, edmd
from ._factor import Factor, factor
from ._hats import Hats
from ._index_sets import index_products, index_set
from ._kernel_factor import KernelSections, kernel_factor
from ._polynomials import Chebyshev, Hermite, Legendre, Monomials
from ._radial import RBF, kmeans
from ._snapshots import Snapshots


__all__ = [
    "RBF",
    "AbstractDictionary",
    "Chebyshev",
    "Concatenate",
    "Constant",
    "Delay",
    "Eigenpairs",
    "Factor",
    "Fourier",
    "Hats",
    "Hermite",
    "KernelSections",
    "Legendre",
    "Monomials",
    "Product",
    "Snapshots",
    "edmd",
    "factor",
    "index_products",
    "index_set",
    "kernel_factor",
    "kernels",
    "kmeans",
    "problems",
]
