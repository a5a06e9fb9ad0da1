"""Spectral measures beyond [`koopman_verify.spectral_measure`][]: from moments, on the line, and point against continuous."""

from ._measures.laplace import LaplaceAverage, laplace_average
from ._measures.moments import autocorrelations, filter_values, moment_atoms, moment_density
from ._measures.mpedmd import MeasurePreserving, mpedmd
from ._measures.rage import PointPart, rage, rage_series
from ._measures.spectral_measure import circle_density, line_measure, resolution, spectral_measure, wave_packet


__all__ = [
    "LaplaceAverage",
    "MeasurePreserving",
    "PointPart",
    "autocorrelations",
    "circle_density",
    "filter_values",
    "laplace_average",
    "line_measure",
    "moment_atoms",
    "moment_density",
    "mpedmd",
    "rage",
    "rage_series",
    "resolution",
    "spectral_measure",
    "wave_packet",
]
