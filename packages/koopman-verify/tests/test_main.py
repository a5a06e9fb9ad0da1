import json

import matplotlib as mpl
import pytest
from koopman_verify import __main__ as script


mpl.use("Agg")


def test_the_demonstration_judges_eigenvalues(capsys, tmp_path):
    picture = tmp_path / "spectra.png"
    assert script.main(["pendulum", "--functions", "16", "--seed", "1", "--json", "--plot", str(picture)]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert "adversary ..." in err
    assert "16 functions, 800 snapshots" in answer["title"]
    assert len(answer["rows"]) == 12
    residuals = [row["residual"] for row in answer["rows"]]
    assert residuals == sorted(residuals)
    assert {row["status"] for row in answer["rows"]} <= {"certified", "refuted", "uncertifiable"}
    # None that is far from the circle is certified: that is what the package is for.
    assert "; 0 of them are certified" in answer["summary"]
    assert "oscillated 2 times" in answer["adversary"]
    assert answer["figures"] == [str(picture)]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_table_is_aligned():
    rows = [{"eigenvalue": "+1.0000+0.0000i", "bound": None}, {"eigenvalue": "+0.5000-0.5000i", "bound": 0.25}]
    text = script._text({"title": "t", "summary": "s", "rows": rows, "fact": 1, "figures": ["a.png"]})
    lines = text.splitlines()
    assert len({len(line) for line in lines[2:5]}) == 1
    assert lines[3].endswith(" -")
    assert lines[-2:] == ["fact: 1", "picture: a.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--functions", "5"], "`--functions` must be in 10 .. 2000, got 5"),
        (["--seed", "-1"], "`--seed` must not be negative, got -1"),
        (["--plot", "a.txt"], "`--plot` must name a file that ends in .png, .svg or .pdf, got a.txt"),
        (["--plot", "nowhere/a.png"], "there is no folder nowhere"),
    ],
)
def test_bad_options_are_one_clear_line(capsys, arguments, message):
    assert script.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_an_unknown_system_is_an_exit_code(capsys):
    with pytest.raises(SystemExit) as ended:
        script.main(["lorenz"])
    assert ended.value.code == 1
    assert "invalid choice: 'lorenz'" in capsys.readouterr().err
