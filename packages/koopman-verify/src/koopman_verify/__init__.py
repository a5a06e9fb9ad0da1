"""Koopman spectra that come with a certificate, or a refusal."""

from ._dictionary import AbstractDictionary, Fourier
from ._edmd import Eigenpairs, edmd
from ._factor import Factor, factor
from ._snapshots import Snapshots


__all__ = ["AbstractDictionary", "Eigenpairs", "Factor", "Fourier", "Snapshots", "edmd", "factor"]
