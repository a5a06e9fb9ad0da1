"""Certificates: what is bounded, by how much, of which kind, under which assumptions."""

from ._certificate import Certificate
from ._condition import condition, residual
from ._gradient_error import gradient_error


__all__ = ["Certificate", "condition", "gradient_error", "residual"]
