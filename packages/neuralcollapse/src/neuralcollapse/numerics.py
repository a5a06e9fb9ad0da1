"""Floating point at the end of training: softmax collapse, losses and steps that avoid it, and what it does to grokking."""

from ._grokking import GrokkingRun, ModularData, grok, modular_addition
from ._perp_grad import Alignment, nlm_alignment, perp_grad
from ._softmax_collapse import (
    collapse_onset,
    log_stablemax,
    softmax_collapse_fraction,
    softmax_collapsed,
    stablemax,
    stablemax_cross_entropy,
)


__all__ = [
    "Alignment",
    "GrokkingRun",
    "ModularData",
    "collapse_onset",
    "grok",
    "log_stablemax",
    "modular_addition",
    "nlm_alignment",
    "perp_grad",
    "softmax_collapse_fraction",
    "softmax_collapsed",
    "stablemax",
    "stablemax_cross_entropy",
]
