"""Candidates for the spectrum, each with a residual: eigenpairs, pseudospectra, points of a grid."""
