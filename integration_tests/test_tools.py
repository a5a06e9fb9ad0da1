"""The scripts that build pages and choose CI jobs."""

import importlib.util
import pathlib
import types

import pytest


ROOT = pathlib.Path(__file__).resolve().parent.parent


def _load(path: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["packages/ot-sns/src/ot_sns/_solve.py"], ["ot-sns"]),
        (["README.md", "docs/index.md"], []),
        ([], []),
        (["shared/tests/test_pcg.py"], "all"),
        (["noxfile.py"], "all"),
        ([".github/constraints/py311.txt", "packages/ot-sns/README.md"], "all"),
    ],
)
def test_affected(changed, expected):
    affected = _load(".github/affected.py")
    every = list(affected.folders().values())
    assert "implicit-core" in every
    assert affected.affected(changed) == (every if expected == "all" else expected)


def test_examples_split_into_prose_and_code():
    pytest.importorskip("matplotlib")
    split = _load("docs/render_examples.py").split
    source = "# # Title\n#\n# Prose.\n\nx = 1\n# a comment, not prose\ny = 2\n\n# More prose.\n\nprint(x)\n"
    assert split(source) == [
        ("prose", "# # Title\n#\n# Prose."),
        ("code", "x = 1\n# a comment, not prose\ny = 2"),
        ("prose", "# More prose."),
        ("code", "print(x)"),
    ]


def test_tour_takes_any_answer(tmp_path, monkeypatch):
    tour = _load("docs/build_tour.py")
    monkeypatch.setattr(tour, "TOUR", tmp_path)
    (tmp_path / "x.png").write_bytes(b"png")
    rows = [{"problem": "a <b>", "error": 1.23456e-10}, {"problem": "c", "more": None, "ok": True}]
    full = tour.section("x", "what it is", {"title": "T", "rows": rows, "seed": 0, "seconds": 1.0})
    assert "a &lt;b&gt;" in full
    assert "1.235e-10" in full
    assert "data:image/png;base64,cG5n" in full
    assert "what it is" in tour.section("x", "what it is", {"seconds": 1.0})
    assert "exit code 3" in tour.section("x", "what it is", {"failed": "`x` ended with exit code 3", "seconds": 1.0})
    assert tour.text_table(rows).splitlines()[2].split() == ["a", "<b>", "1.235e-10", "-", "-"]


def test_every_flagship_is_found():
    found = _load("docs/build_tour.py").flagships()
    assert "ot-sns" in found
    assert "implicit-core" not in found
