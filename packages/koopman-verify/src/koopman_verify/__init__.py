"""Koopman spectra that come with a certificate, or a refusal."""

from . import loss
from ._compose import Concatenate, Constant, Delay, Product
from ._dictionary import AbstractDictionary, Fourier
from ._edmd import Eigenpairs, edmd
from ._eigenpair import Sensitivity, eigenpair, sensitivity
from ._factor import Factor, factor
from ._hats import Hats
from ._index_sets import index_products, index_set
from ._learned import LearnedDictionary, Training, train_dictionary
from ._polynomials import Chebyshev, Hermite, Legendre, Monomials
from ._radial import RBF, kmeans
from ._snapshots import Snapshots


__all__ = [
    "RBF",
    "AbstractDictionary",
    "Chebyshev",
    "Concatenate",
    "Constant",
    "Delay",
    "Eigenpairs",
    "Factor",
    "Fourier",
    "Hats",
    "Hermite",
    "LearnedDictionary",
    "Legendre",
    "Monomials",
    "Product",
    "Sensitivity",
    "Snapshots",
    "Training",
    "edmd",
    "eigenpair",
    "factor",
    "index_products",
    "index_set",
    "kmeans",
    "loss",
    "sensitivity",
    "train_dictionary",
]
