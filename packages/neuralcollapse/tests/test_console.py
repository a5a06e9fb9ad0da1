import json
import os
import subprocess
import sys

import jax
import pytest
from neuralcollapse.__main__ import main


# O16 of the specification, in a run of half the length: the network finds the optimum that theory gives.
@pytest.mark.slow
def test_digits_reach_the_oracle(tmp_path):
    picture, page = tmp_path / "out.png", tmp_path / "out.html"
    # Another process: what is tested is the script, with nothing switched on that the test kit switches on.
    arguments = ("--json", "--plot", str(picture), "--html", str(page))
    command = [sys.executable, "-m", "neuralcollapse", *arguments]
    env = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {"title", "summary", "rows", "figures"} <= set(answer)
    assert [row["samples"] for row in answer["rows"]] == [100, 80, 60, 50, 40, 30, 20, 10, 5, 3]
    for row in answer["rows"]:
        assert row["own logit"] == pytest.approx(row["predicted"], abs=5e-3)
        assert row["|mean|^2"] == pytest.approx(row["predicted |mean|^2"], rel=0.01)
        assert row["|w|^2"] == pytest.approx(row["predicted |w|^2"], rel=0.01)
    # 1 - N lambda / sqrt(n), by hand for the largest and the smallest class.
    assert answer["rows"][0]["predicted"] == pytest.approx(1 - 0.398 / 10, abs=1e-4)
    assert answer["rows"][9]["predicted"] == pytest.approx(1 - 0.398 / 3**0.5, abs=1e-4)
    excess = float(answer["summary"].split(" is ")[1].split(" %")[0])
    assert -0.01 < excess < 0.5
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert "data:image/png;base64," in text
    assert "% above the optimum over all features and heads" in text
    assert answer["figures"] == [str(picture)]


def test_a_deep_head_is_compared_with_the_optimum_of_its_depth(capsys):
    # Too few steps to get near, enough to say how far.
    with jax.numpy_dtype_promotion("standard"):
        assert main(["--json", "--steps", "40", "--depth", "2", "--lam", "5e-3"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert "heads of depth 2" in answer["summary"]
    assert answer["classes that the optimum gives up"] == "7, 8, 9"
    parts = answer["above the optimum, % of it, by part"]
    assert "head layer 2" in parts
    assert answer["rows"][9]["predicted"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depth", "0"], "`--depth` must be at least 1, got 0"),
        (["--lam", "-1"], "`--lam` must be positive and finite, got -1.0"),
        (["--seed", "-1"], "`--seed` must not be negative, got -1"),
        (["--steps", "0"], "`--steps` must be at least 1, got 0"),
        (["--plot", "out.txt"], "`--plot` must name a file that ends in .png or .svg or .pdf, got out.txt"),
        (["--html", "nowhere/out.html"], "`--html`: there is no folder nowhere"),
        (["mnist"], "invalid choice: 'mnist'"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_one(capsys, arguments, message):
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("neuralcollapse: error: ")
    assert len(said.splitlines()) == 1
