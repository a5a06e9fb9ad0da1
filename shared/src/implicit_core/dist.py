"""Solves over several devices: put the arrays on a mesh, then call the solvers under `jax.jit` as usual."""

from ._dist import mesh, shard


__all__ = ["mesh", "shard"]
