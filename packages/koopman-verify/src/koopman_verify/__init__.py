"""Koopman spectra that come with a certificate, or a refusal."""

from . import measures
from ._compose import Concatenate, Constant, Delay, Product
from ._dictionary import AbstractDictionary, Fourier
from ._edmd import Eigenpairs, edmd
from ._factor import Factor, factor
from ._forecast import Forecast, forecast, modal_forecast
from ._hats import Hats
from ._index_sets import index_products, index_set
from ._laplace import LaplaceAverage, laplace_average
from ._mpedmd import MeasurePreserving, mpedmd
from ._polynomials import Chebyshev, Hermite, Legendre, Monomials
from ._radial import RBF, kmeans
from ._rage import PointPart, rage
from ._snapshots import Snapshots
from ._spectral_measure import resolution, spectral_measure, wave_packet
from ._stochastic import ExpectedResidual, StochasticFactor, stochastic_factor


__all__ = [
    "RBF",
    "AbstractDictionary",
    "Chebyshev",
    "Concatenate",
    "Constant",
    "Delay",
    "Eigenpairs",
    "ExpectedResidual",
    "Factor",
    "Forecast",
    "Fourier",
    "Hats",
    "Hermite",
    "LaplaceAverage",
    "Legendre",
    "MeasurePreserving",
    "Monomials",
    "PointPart",
    "Product",
    "Snapshots",
    "StochasticFactor",
    "edmd",
    "factor",
    "forecast",
    "index_products",
    "index_set",
    "kmeans",
    "laplace_average",
    "measures",
    "modal_forecast",
    "mpedmd",
    "rage",
    "resolution",
    "spectral_measure",
    "stochastic_factor",
    "wave_packet",
]
