"""Batches of solves, each example to its own end."""

from ._batched import solve


__all__ = ["solve"]
