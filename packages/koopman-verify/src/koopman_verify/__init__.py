"""Koopman spectra that come with a certificate, or a refusal."""

from . import adversary, gtf, interop, kernels, loss, measures, plot, problems, sci
from ._forecast import Forecast, forecast, modal_forecast
from ._results import RESULTS


__all__ = [
    "RESULTS",
    "Forecast",
    "adversary",
    "forecast",
    "gtf",
    "interop",
    "kernels",
    "loss",
    "measures",
    "modal_forecast",
    "plot",
    "problems",
    "sci",
]
