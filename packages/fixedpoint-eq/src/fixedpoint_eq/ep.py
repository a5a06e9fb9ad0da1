"""Equilibrium propagation: gradients of networks that settle, from perturbed equilibria instead of a backward pass."""

from ._ep_estimators import (
    RBP,
    AbstractEstimator,
    AsymEP,
    Cauchy,
    Dyadic,
    ExactResponse,
    OneSided,
    Oscillating,
    Symmetric,
)
from ._ep_field import MSE, AbstractLoss, AbstractVectorField, CrossEntropy, HolomorphicLoss
from ._ep_gradient import EPInfo, gradient, predict
from ._ep_homeostasis import homeostatic_loss
from ._ep_layers import AbstractConnection, Conv, Dense, Network, convnet, dsilu, mlp, sigma4, softmax_pool
from ._ep_phases import Settle


__all__ = [
    "MSE",
    "RBP",
    "AbstractConnection",
    "AbstractEstimator",
    "AbstractLoss",
    "AbstractVectorField",
    "AsymEP",
    "Cauchy",
    "Conv",
    "CrossEntropy",
    "Dense",
    "Dyadic",
    "EPInfo",
    "ExactResponse",
    "HolomorphicLoss",
    "Network",
    "OneSided",
    "Oscillating",
    "Settle",
    "Symmetric",
    "convnet",
    "dsilu",
    "gradient",
    "homeostatic_loss",
    "mlp",
    "predict",
    "sigma4",
    "softmax_pool",
]
