"""Neural collapse: measured in one pass over the data, and compared with what theory says of the optimum."""

from . import metrics
from ._class_stats import ClassStats
from ._convention import Convention
from ._ncc import NCCStats


__all__ = [
    "ClassStats",
    "Convention",
    "NCCStats",
    "metrics",
]
