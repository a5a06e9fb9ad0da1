"""Neural collapse: measured in one pass over the data, and compared with what theory says of the optimum."""

from . import interop, metrics, sinks, taps
from ._class_stats import ClassStats
from ._convention import Convention
from ._monitor import Monitor
from ._ncc import NCCStats
from ._record import Record


__all__ = [
    "ClassStats",
    "Convention",
    "Monitor",
    "NCCStats",
    "Record",
    "interop",
    "metrics",
    "sinks",
    "taps",
]
