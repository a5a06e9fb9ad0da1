"""Koopman spectra that come with a certificate, or a refusal."""

from ._compose import Concatenate, Constant, Delay, Product
from ._dictionary import AbstractDictionary, Fourier
from ._edmd import Eigenpairs, edmd
from ._factor import Factor, factor
from ._hats import Hats
from ._index_sets import index_products, index_set
from ._mpedmd import MeasurePreserving, mpedmd
from ._polynomials import Chebyshev, Hermite, Legendre, Monomials
from ._radial import RBF, kmeans
from ._snapshots import Snapshots
from ._spectral_measure import resolution, spectral_measure, wave_packet


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
    "Legendre",
    "MeasurePreserving",
    "Monomials",
    "Product",
    "Snapshots",
    "edmd",
    "factor",
    "index_products",
    "index_set",
    "kmeans",
    "mpedmd",
    "resolution",
    "spectral_measure",
    "wave_packet",
]
