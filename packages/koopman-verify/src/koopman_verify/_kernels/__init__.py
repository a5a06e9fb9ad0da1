"""Kernels, and the factor that finitely many snapshots give exactly in their spaces."""
