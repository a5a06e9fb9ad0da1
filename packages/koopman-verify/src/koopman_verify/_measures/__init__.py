"""Spectral measures of measure-preserving systems, and averages along orbits."""
