"""Koopman spectra that come with a certificate, or a refusal."""

from . import adversary, gtf, interop, kernels, loss, measures, plot, problems, sci
from ._certificate import Certificate
from ._certify import MeasureAudit, audit_measure_preserving, certify
from ._compose import Concatenate, Constant, Delay, Product
from ._dictionary import AbstractDictionary, Fourier
from ._edmd import Eigenpairs, edmd
from ._eigenpair import Sensitivity, eigenpair, sensitivity
from ._evidence import ExactIntegrals, KnownModulus
from ._factor import Factor, factor
from ._forecast import Forecast, forecast, modal_forecast
from ._hats import Hats
from ._index_sets import index_products, index_set
from ._kernel_factor import KernelSections, kernel_factor
from ._laplace import LaplaceAverage, laplace_average
from ._learned import LearnedDictionary, Training, train_dictionary
from ._mpedmd import MeasurePreserving, mpedmd
from ._polynomials import Chebyshev, Hermite, Legendre, Monomials
from ._pseudospectrum import Region, pseudoeigenfunction, pseudospectrum, pseudospectrum_region
from ._radial import RBF, kmeans
from ._rage import PointPart, rage
from ._results import RESULTS
from ._snapshots import Snapshots
from ._spectral_measure import resolution, spectral_measure, wave_packet
from ._spectrum import Spectrum, polar_grid, rectangle_grid, verified_spectrum
from ._stochastic import ExpectedResidual, StochasticFactor, stochastic_factor


__all__ = [
    "RBF",
    "RESULTS",
    "AbstractDictionary",
    "Certificate",
    "Chebyshev",
    "Concatenate",
    "Constant",
    "Delay",
    "Eigenpairs",
    "ExactIntegrals",
    "ExpectedResidual",
    "Factor",
    "Forecast",
    "Fourier",
    "Hats",
    "Hermite",
    "KernelSections",
    "KnownModulus",
    "LaplaceAverage",
    "LearnedDictionary",
    "Legendre",
    "MeasureAudit",
    "MeasurePreserving",
    "Monomials",
    "PointPart",
    "Product",
    "Region",
    "Sensitivity",
    "Snapshots",
    "Spectrum",
    "StochasticFactor",
    "Training",
    "adversary",
    "audit_measure_preserving",
    "certify",
    "edmd",
    "eigenpair",
    "factor",
    "forecast",
    "gtf",
    "index_products",
    "index_set",
    "interop",
    "kernel_factor",
    "kernels",
    "kmeans",
    "laplace_average",
    "loss",
    "measures",
    "modal_forecast",
    "mpedmd",
    "plot",
    "polar_grid",
    "problems",
    "pseudoeigenfunction",
    "pseudospectrum",
    "pseudospectrum_region",
    "rage",
    "rectangle_grid",
    "resolution",
    "sci",
    "sensitivity",
    "spectral_measure",
    "stochastic_factor",
    "train_dictionary",
    "verified_spectrum",
    "wave_packet",
]
