import gzip
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from ot_sns.__main__ import main


# Small enough to take a few seconds, nearly all of them compilation.
_SMALL = ("gauss2d", "--num-points", "20", "--epsilon", "0.02")


def _run(*arguments):
    # Another process: what is tested is the script, with nothing switched on that the test kit switches on.
    env = {**os.environ, "MPLBACKEND": "Agg"}
    command = [sys.executable, "-m", "ot_sns", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_json_and_picture(tmp_path):
    picture = tmp_path / "out.png"
    done = _run(*_SMALL, "--json", "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {"title", "summary", "rows", "figures"} <= set(answer)
    ours, sinkhorn = answer["rows"]
    assert ours["method"] == "SparseNewton"
    assert ours["marginal error"] <= 1e-9
    assert ours["size"] == "20 x 20"
    assert sinkhorn["Sinkhorn"] > ours["Newton"] + ours["Sinkhorn"]
    assert sinkhorn["value"] == pytest.approx(ours["value"], abs=1e-8)
    assert answer["figures"] == [str(picture)]
    assert picture.read_bytes().startswith(b"\x89PNG")
    gradient = next(value for key, value in answer.items() if "derivative" in key)
    assert float(gradient.split("relative difference ")[1].rstrip(")")) < 1e-6


def test_images_from_a_file(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 6, 6), np.uint8)
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(b"\x00\x00\x08\x03" + struct.pack(">3I", *images.shape) + images.tobytes()))
    picture = tmp_path / "out.svg"
    done = _run("mnist", str(path), "--seed", "1", "--epsilon", "0.01", "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    assert "MNIST-L2-1-2" in done.stdout
    assert "converged" in done.stdout
    assert picture.stat().st_size > 1000


def test_help_lists_the_experiments(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    for name in ("lap", "digits-l2", "digits-l1", "gauss2d", "dens1d", "colors", "mnist"):
        assert name in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "no problem 'nonsense'"),
        (["mnist"], "takes a PATH"),
        (["lap", "somewhere"], "takes a PATH"),
        (["mnist", "no-such-file"], "no-such-file"),
        (["mnist", __file__], "not an idx file"),
        (["lap", "--num-points", "1"], "at least 2"),
        (["colors", "--num-points", "1000000"], "between 1 and"),
        (["digits-l2", "--num-points", "10"], "size of digits-l2"),
        (["digits-l2", "--seed", "1000000"], "--seed"),
        (["lap", "--epsilon", "-1"], "positive"),
        (["lap", "--epsilon", "nan"], "positive"),
        (["--seed", "-1"], "negative"),
        (["lap", "--seed", "3"], "one fixed problem"),
        (["--plot", "no-such-folder/x.png"], "no folder"),
        (["--plot", "x.doc"], ".png"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_one(arguments, said, capsys):
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    errors = [line for line in captured.err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith("ot-sns: error: ")
    assert said in errors[0]


@pytest.mark.parametrize("arguments", [["--epsilon", "much"], ["--nonsense"]])
def test_bad_options_too(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1
