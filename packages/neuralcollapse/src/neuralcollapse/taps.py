"""Feature taps: what enters or leaves the layers of Equinox and Flax models."""

from ._taps import Tapped, capture, from_intermediates


__all__ = ["Tapped", "capture", "from_intermediates"]
