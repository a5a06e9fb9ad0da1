"""Neural collapse: measured in one pass over the data, and compared with what theory says of the optimum."""

from . import central_path, interop, metrics, numerics, perturb, plot, sharpness, sinks, taps, ufm
from ._class_stats import ClassStats
from ._convention import Convention
from ._monitor import Monitor
from ._ncc import NCCStats
from ._record import Record
from ._results import RESULTS


__all__ = [
    "RESULTS",
    "ClassStats",
    "Convention",
    "Monitor",
    "NCCStats",
    "Record",
    "central_path",
    "interop",
    "metrics",
    "numerics",
    "perturb",
    "plot",
    "sharpness",
    "sinks",
    "taps",
    "ufm",
]
