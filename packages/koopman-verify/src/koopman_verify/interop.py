"""Eigenpairs of other libraries, for [`koopman_verify.certify`][] to judge. None of them is imported here."""

from ._certificates.interop import from_deeptime, from_eigenvectors, from_kooplearn, from_pydmd


__all__ = ["from_deeptime", "from_eigenvectors", "from_kooplearn", "from_pydmd"]
