"""Certificates: what is bounded, by how much, of which kind, under which assumptions."""

from ._certificate import Certificate
from ._condition import condition, residual


__all__ = ["Certificate", "condition", "residual"]
