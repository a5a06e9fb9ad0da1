"""Koopman spectra that come with a certificate, or a refusal."""

from ._dictionary import AbstractDictionary, Fourier
from ._edmd import Eigenpairs, edmd
from ._factor import Factor, factor
from ._mpedmd import MeasurePreserving, mpedmd
from ._snapshots import Snapshots
from ._spectral_measure import resolution, spectral_measure, wave_packet


__all__ = [
    "AbstractDictionary",
    "Eigenpairs",
    "Factor",
    "Fourier",
    "MeasurePreserving",
    "Snapshots",
    "edmd",
    "factor",
    "mpedmd",
    "resolution",
    "spectral_measure",
    "wave_packet",
]
