"""Simulators learned by generalised teacher forcing, and how to measure them."""
