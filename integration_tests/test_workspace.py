"""The rules of the workspace that no tool checks: metadata agree, folders are complete, layers hold."""

import ast
import importlib.metadata
import importlib.util
import pathlib
import re
import subprocess
import tomllib
from collections import defaultdict

import pytest


ROOT = pathlib.Path(__file__).resolve().parent.parent
MEMBERS = [ROOT / "shared", *(p.parent for p in sorted(ROOT.glob("packages/*/pyproject.toml")))]
each_member = pytest.mark.parametrize("member", MEMBERS, ids=lambda p: p.name)


def _toml(folder: pathlib.Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    return match[0]


def _module(member: pathlib.Path) -> str:
    return _toml(member)["project"]["name"].replace("-", "_")


@each_member
def test_folder_is_complete(member):
    module = _module(member)
    for name in (
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "changes",
        f"src/{module}/__init__.py",
        f"src/{module}/py.typed",
    ):
        assert (member / name).exists(), f"{member.name} lacks {name}"
    assert list((member / "tests").glob("test_*.py")), f"{member.name} has no tests"
    assert not list((member / "tests").rglob("__init__.py")), "tests are collected by path, never imported as a package"
    for conftest in (member / "tests").rglob("conftest.py"):
        text = conftest.read_text()
        assert f"import {module}" in text, "fixtures that do not speak of the package belong to the test kit"
        assert "def pytest_" not in text, "hooks and settings belong to the test kit"
    assert (member / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@each_member
def test_metadata(member):
    project = _toml(member)["project"]
    assert project["requires-python"] == ">=3.11", "one workspace, one Python floor, no cap"
    assert project["license"] == "Apache-2.0"
    assert {"Documentation", "Source", "Changelog"} <= set(project["urls"])
    for requirement in project["dependencies"]:
        assert ">=" in requirement, f"{requirement}: without a floor, `nox -s lowest` takes a decade-old release"
    if member.parent.name == "packages":
        assert project["name"] == member.name
        assert project["scripts"] == {member.name: f"{_module(member)}.__main__:main"}


def test_root_lists_every_member():
    # uv needs both lines; without the first, `uv sync` silently leaves the member out.
    root = _toml(ROOT)
    names = {_toml(m)["project"]["name"] for m in MEMBERS}
    assert names == {_name(r) for r in root["project"]["dependencies"]}
    assert names <= set(root["tool"]["uv"]["sources"])


def test_floors_agree():
    floors = defaultdict(dict)
    for member in [*MEMBERS, ROOT / "integration_tests" / "testkit"]:
        project = _toml(member)["project"]
        extras = [r for name, rs in project.get("optional-dependencies", {}).items() if "cuda" not in name for r in rs]
        for requirement in [*project["dependencies"], *extras]:
            floors[_name(requirement)][member.name] = requirement
    for name, by_member in floors.items():
        assert len(set(by_member.values())) == 1, f"members disagree about {name}: {by_member}"


@each_member
def test_core_requirement_admits_this_core_and_stops_at_the_next(member):
    core = _toml(ROOT / "shared")["project"]["version"]
    epoch, minor, _ = map(int, core.split("."))
    for requirement in _toml(member)["project"]["dependencies"]:
        if _name(requirement) == "implicit-core":
            floor, cap = re.fullmatch(r"implicit-core>=([\d.]+),<([\d.]+)", requirement).groups()  # pyright: ignore[reportOptionalMemberAccess]
            assert tuple(map(int, floor.split("."))) <= tuple(map(int, core.split(".")))
            assert cap == f"{epoch}.{minor + 1}"


@each_member
def test_layers(member):
    """No package imports another, the core imports none, and nobody takes a private name of the core."""
    ours, siblings = _module(member), {_module(m) for m in MEMBERS}
    allowed = {ours} if ours == "implicit_core" else {ours, "implicit_core"}
    for path in (member / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                first, *rest = name.split(".")
                assert first not in siblings - allowed, f"{path}: imports {name}"
                if first == "implicit_core" and ours != "implicit_core":
                    assert not any(part.startswith("_") for part in rest), f"{path}: {name} is private to the core"


@each_member
def test_imports_as_declared(member):
    project = _toml(member)["project"]
    module = importlib.import_module(_module(member))
    assert importlib.metadata.version(project["name"]) == project["version"]
    assert module.__all__, "the API check is blind without `__all__`"
    for name in module.__all__:
        assert getattr(module, name).__doc__, f"{module.__name__}.{name} has no docstring"


def test_committed_text_names_no_machine():
    """What is committed must work anywhere: no path of one machine, no registry address, no lock file."""
    # Written in pieces, so that this file passes its own test.
    banned = ["/ro" + "ot/", "/wo" + "rk/", "/opt/wh" + "eels", "pypi.o" + "rg/simple", "registry.npmjs.o" + "rg"]
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = listed.stdout.split()
    assert "uv.lock" not in names
    for inside in names:
        path = ROOT / inside
        if not path.is_file() or path.suffix in {".png", ".npz"}:
            continue
        text = path.read_text(errors="ignore")
        for word in banned:
            assert word not in text, f"{inside} names {word}"
