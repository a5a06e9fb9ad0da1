"""Koopman spectra that come with a certificate, or a refusal."""

from . import gtf
from ._dictionary import AbstractDictionary, Fourier
from ._snapshots import Snapshots


__all__ = ["AbstractDictionary", "Fourier", "Snapshots", "gtf"]
