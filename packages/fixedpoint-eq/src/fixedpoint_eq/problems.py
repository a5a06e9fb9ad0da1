"""Named problems: fixed points with what is known of them, digits to learn, and readers of the papers' own data sets."""

from ._data import Split, cifar10, digits, idx, tu_dataset
from ._problems import FixedPointProblem, affine, complex_field, tanh_deq


__all__ = [
    "FixedPointProblem",
    "Split",
    "affine",
    "cifar10",
    "complex_field",
    "digits",
    "idx",
    "tanh_deq",
    "tu_dataset",
]
