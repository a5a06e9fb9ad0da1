"""The central path: the gradient flow of features under the best classifier, from class statistics alone."""

from ._central_path import CentralPath, flow, solve
from ._statistics import Statistics


__all__ = ["CentralPath", "Statistics", "flow", "solve"]
