"""The console script: what it prints and draws, and one clear line for what it cannot do."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from fixedpoint_eq import problems
from fixedpoint_eq.__main__ import main
from fixedpoint_eq._flagship import METHODS


tanh_deq = problems.tanh_deq


@pytest.fixture
def small(monkeypatch):
    """The flagship's problems, small enough to compile and run in seconds."""
    rng = np.random.default_rng(0)
    y = np.arange(60, dtype=np.int32) % 3
    x = (0.8 * np.eye(3, 6)[y] + 0.2 * rng.uniform(size=(60, 6))).astype(np.float32)
    split = problems.Split(x[:50], y[:50], x[50:], y[50:])
    monkeypatch.setattr(problems, "tanh_deq", lambda key, **kwargs: tanh_deq(key, 8, 3, **kwargs))
    monkeypatch.setattr(problems, "digits", lambda _: split)
    # Optax counts in integers, and multiplies them by its rates.
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_solvers_and_gradients(small, tmp_path, capsys):
    picture = tmp_path / "out.png"
    assert main(["deq", "--json", "--plot", str(picture)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["solver"] for row in answer["rows"]] == ["Picard", "Anderson", "Broyden", "NewtonKrylov"]
    assert all(row["residual, worst"] < 1e-3 for row in answer["rows"])
    assert answer["rows"][1]["steps, slowest"] <= answer["rows"][0]["steps, slowest"]
    assert answer["error of the gradient, implicit (default)"] < 1e-4
    assert answer["error of the gradient, one step"] > 1e-3
    assert answer["figures"] == [str(picture)]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_learning(small, tmp_path, capsys, monkeypatch):
    # One method of the four, as each takes seconds to compile.
    monkeypatch.setattr("fixedpoint_eq.__main__.METHODS", {"EP": METHODS["EP"]})
    picture = tmp_path / "out.svg"
    assert main(["digits", "--plot", str(picture), "--epochs", "2"]) == 0
    captured = capsys.readouterr()
    assert "digits, EP: " in captured.out
    assert "% of the test after 2 epochs" in captured.out
    assert "epoch 2 of 2" in captured.err
    assert picture.stat().st_size > 1000


def test_help_lists_the_experiments():
    # Another process: the script itself, with nothing switched on that the test kit switches on.
    command = [sys.executable, "-m", "fixedpoint_eq", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in ("deq", "deq-gauss", "complex-field", "digits", "idx"):
        assert f"\n  {name} " in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "no problem 'nonsense'"),
        (["idx"], "takes a FOLDER"),
        (["deq", "somewhere"], "takes a FOLDER"),
        (["idx", "no-such-folder"], "there must be a file train-images-idx3-ubyte"),
        (["--seed", "-1"], "negative"),
        (["--epochs", "0"], "at least 1; got 0"),
        (["--plot", "no-such-folder/x.png"], "no folder"),
        (["--plot", "x.doc"], ".png"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_one(arguments, said, capsys):
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("fixedpoint-eq: error: ")
    assert said in captured.err
