"""Benchmarks of neuralcollapse against its peers: run `python -m benchmarks` in this package's folder.

Importing this package pins the process to one core and one thread, which must happen before NumPy, JAX or PyTorch load.
"""

from .environment import pin


pin()
