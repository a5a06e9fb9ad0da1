"""Diagnostics of equilibria: contraction and what proves it, spectra, asymmetry, alignment of gradients."""

from ._contraction import Contraction, contraction, layer_contraction, perron_contraction
from ._diagnostics import Asymmetry, SpectralRadius, alignment, asymmetry, is_holomorphic, spectral_radius
from ._ep_radius import NudgeRadius, nudge_radius


__all__ = [
    "Asymmetry",
    "Contraction",
    "NudgeRadius",
    "SpectralRadius",
    "alignment",
    "asymmetry",
    "contraction",
    "is_holomorphic",
    "layer_contraction",
    "nudge_radius",
    "perron_contraction",
    "spectral_radius",
]
