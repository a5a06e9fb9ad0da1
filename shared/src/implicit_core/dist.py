"""Solves over several devices: arrays on a mesh under `jax.jit` (the global view), or solvers inside `jax.shard_map`."""

from ._dist import mesh, shard
from ._shard_cg import Solution, cg
from ._shard_lm import least_squares, levenberg_marquardt


__all__ = ["Solution", "cg", "least_squares", "levenberg_marquardt", "mesh", "shard"]
