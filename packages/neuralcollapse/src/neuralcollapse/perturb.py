"""The perturbation model of neural collapse: how much of a perturbation one link of a network leaves."""

from ._attenuation import (
    Attenuation,
    BlockSpectrum,
    attenuation,
    collapsed_frame,
    diagonal_response,
    estimate_beta,
    predict_nc1_ratio,
    spectrum,
)
from ._prox import Prox, prox, response, response_at


__all__ = [
    "Attenuation",
    "BlockSpectrum",
    "Prox",
    "attenuation",
    "collapsed_frame",
    "diagonal_response",
    "estimate_beta",
    "predict_nc1_ratio",
    "prox",
    "response",
    "response_at",
    "spectrum",
]
