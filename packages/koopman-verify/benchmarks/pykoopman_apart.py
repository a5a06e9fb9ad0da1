"""pykoopman, whose requirements cannot be installed beside the others: run by its own Python, with nothing of ours.

`PYKOOPMAN_PYTHON` names a Python with `pykoopman==1.2.1` and `setuptools<80`; `benchmarks.peers` then runs this file with two
arguments, the lifted data in and the fit out.
"""

import importlib.metadata
import statistics
import sys
import time
import warnings

import numpy as np


def main(source: str, target: str, repeats: int) -> None:
    """Fit extended DMD to lifted pairs, and write eigenvalues and the median of the CPU seconds."""
    warnings.simplefilter("ignore")
    import pykoopman

    data, seconds = np.load(source), []
    for _ in range(repeats + 1):
        start = time.process_time()
        model = pykoopman.Koopman(observables=pykoopman.observables.Identity(), regressor=pykoopman.regression.EDMD())
        model.fit(data["a"], data["b"])
        seconds.append(time.process_time() - start)
    # Eigenvalues only: its matrix is in coordinates of its own, and which functions belong to them is not documented.
    values = np.linalg.eigvals(np.asarray(model.A))
    version = importlib.metadata.version("pykoopman")
    np.savez(target, values=values, seconds=statistics.median(seconds[1:]), version=version)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
