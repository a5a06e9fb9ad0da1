"""Executable impossibility: systems that finitely many snapshots cannot tell apart, and whose spectra differ.

Two area-preserving maps of the disc agree on every snapshot, with spectra {1, -1} and the whole circle; a game makes any
black box oscillate between them; a skew product of the torus gains and loses its eigenfunctions below every precision.
"""

from ._adversary.disc_maps import (
    Conjugacy,
    ConjugatedTwist,
    Gaps,
    Involution,
    Twist,
    involution_through,
    twist_vs_rotation,
)
from ._adversary.game import (
    Coin,
    Play,
    QueryBudgetError,
    coin,
    hausdorff_to_circle,
    hausdorff_to_two_points,
    play,
)
from ._adversary.torus import CircleRotation, LiouvilleTorus
from ._adversary.undetermined import Determination, determined


__all__ = [
    "CircleRotation",
    "Coin",
    "Conjugacy",
    "ConjugatedTwist",
    "Determination",
    "Gaps",
    "Involution",
    "LiouvilleTorus",
    "Play",
    "QueryBudgetError",
    "Twist",
    "coin",
    "determined",
    "hausdorff_to_circle",
    "hausdorff_to_two_points",
    "involution_through",
    "play",
    "twist_vs_rotation",
]
