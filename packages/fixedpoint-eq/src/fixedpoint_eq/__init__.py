"""Equilibria: fixed points that solve fast, differentiate exactly, and learn without a backward pass."""
