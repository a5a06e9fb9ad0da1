"""Koopman spectra that come with a certificate, or a refusal."""

from . import adversary as adversary, sci as sci
from ._dictionary import AbstractDictionary, Fourier
from ._snapshots import Snapshots


__all__ = [
    "AbstractDictionary",
    "Fourier",
    "Snapshots",
    "adversary",
    "sci",
]
