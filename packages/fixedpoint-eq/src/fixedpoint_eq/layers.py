"""Layers for Equinox models whose output is an equilibrium, and penalties that keep it easy to find."""

from ._layers import DEQ, MonotoneDEQ, ReversibleDEQ, fixed_point_correction, jacobian_regulariser


__all__ = ["DEQ", "MonotoneDEQ", "ReversibleDEQ", "fixed_point_correction", "jacobian_regulariser"]
