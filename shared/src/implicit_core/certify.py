"""Certificates: what is bounded, by how much, of which kind, under which assumptions."""

from ._certificate import Certificate


__all__ = ["Certificate"]
