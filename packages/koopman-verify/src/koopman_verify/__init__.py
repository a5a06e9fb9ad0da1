"""Koopman spectra that come with a certificate, or a refusal."""

from . import adversary, gtf, interop, kernels, loss, measures, plot, problems, sci
from ._certificates.certificate import Certificate
from ._certificates.certify import MeasureAudit, audit_measure_preserving, certify
from ._certificates.evidence import ExactIntegrals, KnownModulus
from ._dictionaries.compose import Concatenate, Constant, Delay, Product
from ._dictionaries.dictionary import AbstractDictionary, Fourier
from ._dictionaries.hats import Hats
from ._dictionaries.index_sets import index_products, index_set
from ._dictionaries.learned import LearnedDictionary, TrainedDictionary, train_dictionary
from ._dictionaries.polynomials import Chebyshev, Hermite, Legendre, Monomials
from ._dictionaries.radial import RBF, kmeans
from ._factor.factor import Factor, factor
from ._factor.snapshots import Snapshots
from ._factor.stochastic import ExpectedResidual, StochasticFactor, stochastic_factor
from ._forecast import Forecast, forecast, modal_forecast
from ._kernels.kernel_factor import KernelSections, kernel_factor
from ._measures.laplace import LaplaceAverage, laplace_average
from ._measures.mpedmd import MeasurePreserving, mpedmd
from ._measures.rage import PointPart, rage
from ._measures.spectral_measure import resolution, spectral_measure, wave_packet
from ._results import RESULTS
from ._spectra.edmd import Eigenpairs, edmd
from ._spectra.eigenpair import Sensitivity, eigenpair, sensitivity
from ._spectra.pseudospectrum import Region, pseudoeigenfunction, pseudospectrum, pseudospectrum_region
from ._spectra.spectrum import Spectrum, polar_grid, rectangle_grid, verified_spectrum


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
    "TrainedDictionary",
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
