"""Benchmarks of koopman-verify and its peers: run `python -m benchmarks` in this package's folder.

Importing this package limits the process to one thread, which must happen before NumPy or JAX load.
"""

from .environment import pin


pin()
