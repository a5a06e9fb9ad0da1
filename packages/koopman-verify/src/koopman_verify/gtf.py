"""Generalised teacher forcing: learn a simulator of chaotic data, score it, and bound it (arXiv:2306.04406)."""

from ._gtf.forcing import (
    AbstractForcing,
    AnnealedForcing,
    ConstantForcing,
    alpha_star,
    forced_orbit,
    jacobian_growth,
    loss,
)
from ._gtf.lyapunov import lyapunov_exponent, lyapunov_exponents
from ._gtf.metrics import hellinger_spectrum, prediction_error, state_space_divergence
from ._gtf.plrnn import (
    AbstractObservation,
    AbstractSimulator,
    IdentityObservation,
    LinearObservation,
    ShallowPLRNN,
    orbit,
)
from ._gtf.recordings import FlowMap, Recording, load, lorenz63, lorenz63_field, lorenz96, lorenz96_field
from ._gtf.train import Training, TrainState, exponential_radam, train, train_step


__all__ = [
    "AbstractForcing",
    "AbstractObservation",
    "AbstractSimulator",
    "AnnealedForcing",
    "ConstantForcing",
    "FlowMap",
    "IdentityObservation",
    "LinearObservation",
    "Recording",
    "ShallowPLRNN",
    "TrainState",
    "Training",
    "alpha_star",
    "exponential_radam",
    "forced_orbit",
    "hellinger_spectrum",
    "jacobian_growth",
    "load",
    "lorenz63",
    "lorenz63_field",
    "lorenz96",
    "lorenz96_field",
    "loss",
    "lyapunov_exponent",
    "lyapunov_exponents",
    "orbit",
    "prediction_error",
    "state_space_divergence",
    "train",
    "train_step",
]
