"""Koopman spectra that come with a certificate, or a refusal."""

from ._dictionary import AbstractDictionary, Fourier
from ._edmd import Eigenpairs, edmd
from ._factor import Factor, factor
from ._pseudospectrum import Region, pseudoeigenfunction, pseudospectrum, pseudospectrum_region
from ._results import RESULTS
from ._snapshots import Snapshots
from ._spectrum import Spectrum, polar_grid, rectangle_grid, verified_spectrum


__all__ = [
    "RESULTS",
    "AbstractDictionary",
    "Eigenpairs",
    "Factor",
    "Fourier",
    "Region",
    "Snapshots",
    "Spectrum",
    "edmd",
    "factor",
    "polar_grid",
    "pseudoeigenfunction",
    "pseudospectrum",
    "pseudospectrum_region",
    "rectangle_grid",
    "verified_spectrum",
]
