"""Bridges to other libraries, none of which is needed: PyTorch tensors, metrics for `clu` and `metrax`."""

from ._clu import clu_metric
from ._torch import from_torch


__all__ = ["clu_metric", "from_torch"]
