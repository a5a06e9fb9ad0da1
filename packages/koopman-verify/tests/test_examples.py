"""The pages of the gallery run, and draw. They lie beside these tests in the checkout and in the sdist."""

import os
import pathlib
import subprocess
import sys

import pytest


EXAMPLES = sorted((pathlib.Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
SHOWS = """
import sys, runpy, matplotlib.pyplot as plt
runpy.run_path(sys.argv[1], run_name="__main__")
assert plt.get_fignums(), "the example draws nothing"
"""


@pytest.mark.skipif(not EXAMPLES, reason="the examples are not beside these tests (a copy away from the checkout)")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs_and_draws(path):
    # As its readers run it: a fresh interpreter, JAX's default settings.
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-c", SHOWS, str(path)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip(), "the example prints nothing"
