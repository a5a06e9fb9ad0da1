"""Koopman spectra that come with a certificate, or a refusal."""

from . import interop
from ._certificate import Certificate
from ._certify import MeasureAudit, audit_measure_preserving, certify
from ._dictionary import AbstractDictionary, Fourier
from ._edmd import Eigenpairs, edmd
from ._evidence import ExactIntegrals, KnownModulus
from ._factor import Factor, factor
from ._snapshots import Snapshots


__all__ = [
    "AbstractDictionary",
    "Certificate",
    "Eigenpairs",
    "ExactIntegrals",
    "Factor",
    "Fourier",
    "KnownModulus",
    "MeasureAudit",
    "Snapshots",
    "audit_measure_preserving",
    "certify",
    "edmd",
    "factor",
    "interop",
]
