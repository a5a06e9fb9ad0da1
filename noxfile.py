#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["nox[uv]>=2025.2.9"]
# ///
"""Every check of the repository. `nox` runs the defaults, `nox -l` lists all, `nox -k "tests and ot_sns"` takes one package.

`uv run` uses one shared environment, which is fast and leaky. The sessions here are the truth: each builds its own
environment from what the package under test declares.
"""

import dataclasses
import functools as ft
import json
import os
import pathlib
import shutil
import subprocess
import tarfile
import tomllib
from typing import Any

import nox


nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "no"
# A missing interpreter must not pass for a green check where it counts, and must not get in the way elsewhere.
nox.options.error_on_missing_interpreters = bool(os.environ.get("CI"))
nox.options.download_python = "never"

ROOT = pathlib.Path(__file__).parent.resolve()
DIST = ROOT / "dist"
RELEASED = ROOT / "released"  # sdists of earlier releases, where the index does not serve them
TESTKIT = ROOT / "integration_tests" / "testkit"
# Two Pythons, because they give two generations of JAX: jax 0.11 and later need Python 3.12.
PYTHONS = ["3.11", "3.13"]


@dataclasses.dataclass(frozen=True)
class Package:
    """One distribution of the workspace, as its `pyproject.toml` describes it."""

    path: pathlib.Path

    @ft.cached_property
    def project(self) -> dict[str, Any]:
        """The `[project]` table."""
        return tomllib.loads((self.path / "pyproject.toml").read_text())["project"]

    @property
    def name(self) -> str:
        """The distribution's name."""
        return self.project["name"]

    @property
    def module(self) -> str:
        """The import name."""
        return self.name.replace("-", "_")

    @property
    def wheel(self) -> pathlib.Path:
        """Where `build` puts the wheel."""
        return DIST / f"{self.module}-{self.project['version']}-py3-none-any.whl"

    @property
    def demo(self) -> str:
        """The extra that the demonstration, the tests and the README need, in brackets, if the package has it."""
        return "[demo]" if "demo" in self.project.get("optional-dependencies", {}) else ""


CORE = Package(ROOT / "shared")
PACKAGES = [CORE, *(Package(p.parent) for p in sorted(ROOT.glob("packages/*/pyproject.toml")))]
BENCHES = [p for p in PACKAGES if (p.path / "benchmarks").is_dir()]
each_package = nox.parametrize("package", [nox.param(p, id=p.name, tags=[p.module]) for p in PACKAGES])
each_dependant = nox.parametrize("package", [nox.param(p, id=p.name, tags=[p.module]) for p in PACKAGES[1:]])
each_bench = nox.parametrize("package", [nox.param(p, id=p.name, tags=[p.module]) for p in BENCHES or [CORE]])


def _reveal_interpreters() -> None:
    # pyenv's shims answer for versions that are not active, and then fail. Put the real ones in front of them.
    entries = os.environ.get("PATH", "").split(os.pathsep)
    for i, entry in enumerate(entries):
        versions = pathlib.Path(entry).parent / "versions"
        if entry.endswith("shims") and versions.is_dir():
            found = [str(b) for v in PYTHONS for b in sorted(versions.glob(f"{v}.*/bin"), reverse=True)]
            os.environ["PATH"] = os.pathsep.join([*entries[:i], *found, *entries[i:]])
            return


_reveal_interpreters()


def _editable(*packages: Package) -> list[str]:
    # uv honours the workspace here: a package's core is the one of this tree.
    return [arg for p in packages for arg in ("-e", f"{p.path}{p.demo}")]


def _test_tools() -> list[str]:
    return ["-e", str(TESTKIT), "--group", "test-public"]


def _pytest(session: nox.Session, *args: str | pathlib.Path, cache: bool = True) -> None:
    # Two processes share the cores: a second thread of LAPACK in each would only spin.
    env = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    if cache and not os.environ.get("CI"):
        # Compiled programs outlive the environments, so a second local run compiles next to nothing.
        env["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".nox" / "jax-cache")
        env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        env["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    # Most of the time goes into compiling, which a second process halves; a file's tests share what they compile.
    workers = ["-n", str(min(2, os.cpu_count() or 1)), "--dist", "loadfile"]
    session.run("python", "-m", "pytest", *workers, *map(str, args), *session.posargs, env=env)


def _pytest_away(session: nox.Session, tests: pathlib.Path) -> None:
    """Run a copy of `tests` where no source tree is in reach, with the repository's pytest settings."""
    away = pathlib.Path(session.create_tmp()).resolve() / "away"
    away.mkdir(exist_ok=True)
    shutil.copytree(tests, away / "tests", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    session.chdir(away)
    _pytest(session, "-c", ROOT / "pyproject.toml", f"--rootdir={away}", away / "tests", cache=False)


def _from_site_packages(session: nox.Session, *packages: Package) -> None:
    for p in packages:
        code = f"import {p.module} as m; print(m.__file__); assert 'site-packages' in m.__file__"
        session.run("python", "-c", code)


@nox.session
def lint(session: nox.Session) -> None:
    """Format, style, layers, declared dependencies and types. `-- --fix` repairs what it can."""
    session.install(*_editable(*PACKAGES), *_test_tools(), "--group", "lint", "--group", "docs", "nox")
    fix = "--fix" in session.posargs
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    contracts = pathlib.Path(session.create_tmp()).resolve() / "importlinter.toml"
    contracts.write_text(_contracts())
    session.run("lint-imports", "--no-cache", str(contracts))
    for p in PACKAGES:
        # deptry does not understand workspaces: it is run from inside each member.
        session.chdir(p.path)
        session.run("deptry", "src")
    session.chdir(ROOT)
    python = pathlib.Path(session.bin) / "python"
    session.run("pyright", "--pythonpath", str(python), env={"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"})


def _contracts() -> str:
    """Write import-linter's settings from the tree, so that a new package is fenced without being listed."""
    modules = [p.module for p in PACKAGES]
    layers = [" | ".join(modules[1:]), CORE.module] if modules[1:] else [CORE.module]
    forbidden = ["jaxopt", "ott", "torch", "pytest", "stationary_testkit"]
    return f"""
[tool.importlinter]
root_packages = {json.dumps(modules)}
include_external_packages = true

[[tool.importlinter.contracts]]
name = "packages stand side by side on the core"
type = "layers"
layers = {json.dumps(layers)}

[[tool.importlinter.contracts]]
name = "no rival library and no test tool in a package"
type = "forbidden"
source_modules = {json.dumps(modules)}
forbidden_modules = {json.dumps(forbidden)}
"""


@nox.session(python=PYTHONS)
@each_package
def tests(session: nox.Session, package: Package) -> None:
    """Each package alone: an undeclared import, or an import of a sibling, fails here."""
    session.install(*_editable(package), *_test_tools())
    _pytest(session, package.path / "README.md", package.path / "tests")


@nox.session(python=PYTHONS)
def integration(session: nox.Session) -> None:
    """Packages compose, the workspace is consistent, the test kit itself is right, the front page runs."""
    session.install(*_editable(*PACKAGES), *_test_tools())
    _pytest(session, "README.md", "integration_tests")


@nox.session(python="3.11", default=False)
@each_package
def lowest(session: nox.Session, package: Package) -> None:
    """The declared floors of third parties are true."""
    session.install("--resolution=lowest-direct", *_editable(package), *_test_tools())
    _pytest(session, package.path / "tests", cache=False)


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build every sdist and wheel as they would be published, into `dist/`."""
    shutil.rmtree(DIST, ignore_errors=True)
    for p in PACKAGES:
        session.run("uv", "build", "--quiet", "--no-sources", "--out-dir", str(DIST), str(p.path), external=True)
        with tarfile.open(next(DIST.glob(f"{p.module}-*.tar.gz"))) as archive:
            if not any("/tests/test_" in name for name in archive.getnames()):
                session.error(f"{p.name}: the sdist lacks its tests, which `skew` will need")
    session.log("built " + ", ".join(f.name for f in sorted(DIST.iterdir()) if f.suffix in (".whl", ".gz")))


def _wheel(package: Package, *, extras: bool = True) -> str:
    return f"{package.name}{package.demo if extras else ''} @ {package.wheel.as_uri()}"


@nox.session(python=PYTHONS, default=False, requires=["build"])
@each_package
def wheels(session: nox.Session, package: Package) -> None:
    """The wheel is complete: it imports with nothing but its own dependencies, and its tests pass away from here."""
    wanted = [package] if package is CORE else [CORE, package]
    session.install("--no-sources", *(_wheel(p, extras=False) for p in wanted))
    _from_site_packages(session, *wanted)
    session.install("--no-sources", *map(_wheel, wanted), *_test_tools())
    _pytest_away(session, package.path / "tests")


@nox.session(python="3.11", default=False, requires=["build"])
@each_dependant
def floor(session: nox.Session, package: Package) -> None:
    """This package on the oldest released core that it allows, which nothing else in the repository ever sees."""
    requirement = next(r for r in package.project["dependencies"] if r.startswith(CORE.name))
    oldest = requirement.split(">=")[1].split(",")[0].strip()
    if oldest == CORE.project["version"]:
        core = _wheel(CORE)  # the floor is the core that this tree is about to release
    elif oldest in _tags(CORE) or any(RELEASED.glob(f"{CORE.module}-{oldest}*")):
        core = f"{CORE.name}=={oldest}"
    else:
        session.error(f"{package.name} requires {CORE.name}>={oldest}, which was never released")
    links = ["--find-links", str(RELEASED)] if RELEASED.is_dir() else []
    session.install("--no-sources", "--resolution=lowest-direct", *links, core, _wheel(package), *_test_tools())
    _from_site_packages(session, CORE, package)
    _pytest_away(session, package.path / "tests")


@nox.session(python=PYTHONS, default=False, requires=["build"])
@each_dependant
def skew(session: nox.Session, package: Package) -> None:
    """The last released package, with its released tests, on the core of this tree: run before each core release."""
    sdist = _last_sdist(session, package)
    if sdist is None:
        session.skip(f"no release of {package.name} yet: no tag {package.name}-v*, no sdist in released/")
    released = f"{package.name}{package.demo} @ {sdist.as_uri()}"
    session.install("--no-sources", _wheel(CORE), released, *_test_tools())
    _from_site_packages(session, CORE, package)
    unpacked = pathlib.Path(session.create_tmp()).resolve() / "sdist"
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    _pytest_away(session, unpacked / sdist.name.removesuffix(".tar.gz") / "tests")


def _tags(package: Package) -> list[str]:
    """Versions of `package` released from this repository, newest first."""
    command = ["git", "tag", "--list", f"{package.name}-v*", "--sort=-version:refname"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return [tag.removeprefix(f"{package.name}-v") for tag in listed.split()]


def _last_sdist(session: nox.Session, package: Package) -> pathlib.Path | None:
    local = sorted(RELEASED.glob(f"{package.module}-*.tar.gz"), key=lambda f: f.stat().st_mtime)
    if local:
        return local[-1]
    # Only a tag of ours says that the name on the index is ours: never install a stranger's package by guess.
    for version in _tags(package)[:1]:
        target = pathlib.Path(session.create_tmp()).resolve()
        session.install("pip", "uv-build")
        what = [f"{package.name}=={version}", "--no-deps", "--no-binary", package.name, "--no-build-isolation"]
        session.run("python", "-m", "pip", "download", "-q", "-d", str(target), *what)
        return next(target.glob("*.tar.gz"))
    return None


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Run every example page and build the site; a warning is an error. `-- --serve` serves it instead."""
    session.install(*_editable(*PACKAGES), "--group", "docs")
    session.run("python", "docs/render_examples.py")
    verb = ["serve"] if "--serve" in session.posargs else ["build", "--strict"]
    session.run("mkdocs", *verb, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(default=False)
@each_bench
def bench(session: nox.Session, package: Package) -> None:
    """Time ours and the peers. Arguments after `--` go to the package's `python -m benchmarks`."""
    if package not in BENCHES:
        session.skip("no package has benchmarks")
    peers = package.path / "benchmarks" / "requirements.txt"
    # pip users may keep wheels on disk (a CPU build of torch, say); uv reads its own variable only.
    links = os.environ.get("PIP_FIND_LINKS")
    env = {"UV_FIND_LINKS": ",".join(links.split())} if links and "UV_FIND_LINKS" not in os.environ else {}
    session.install(*_editable(package), *(["-r", str(peers)] if peers.exists() else []), env=env)
    session.chdir(package.path)
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(default=False)
def tour(session: nox.Session) -> None:
    """Run every package's flagship on real input; write one page, `tour/index.html`, and a table on the terminal."""
    session.install(*_editable(*PACKAGES))
    session.run("python", "docs/build_tour.py", *session.posargs)


@nox.session(venv_backend="none", default=False)
def constraints(session: nox.Session) -> None:
    """Write `.github/constraints/`: the versions that resolve today, to be committed when the tests are green."""
    metadata = [str(p.path / "pyproject.toml") for p in PACKAGES]
    ours = [arg for p in PACKAGES for arg in ("--no-emit-package", p.name)]
    groups = [arg for name in ("test-public", "lint", "docs") for arg in ("--group", name)]
    for python in PYTHONS:
        out = ROOT / ".github" / "constraints" / f"py{python.replace('.', '')}.txt"
        flags = ["--quiet", "--upgrade", "--python-version", python, "--no-annotate", "--no-header"]
        where = ["--no-emit-index-url", "--no-emit-find-links", "--output-file", str(out)]
        command = ["uv", "pip", "compile", *flags, *where, *ours, *groups, "--extra", "demo", *metadata]
        session.run(*command, external=True, silent=True)
        # Names and versions only: a path or an address belongs to the machine that wrote it.
        lines = [line for line in out.read_text().splitlines() if "==" in line and "://" not in line]
        out.write_text("\n".join(lines) + "\n")


@nox.session(venv_backend="none", default=False)
def gpu(session: nox.Session) -> None:
    """Tests marked `gpu`, on a JAX that the machine already has: nothing is installed, no network is used.

    The interpreter is `STATIONARY_GPU_PYTHON`, or the first one on the PATH whose JAX sees a GPU.
    """
    python = next((p for p in _pythons() if _sees_gpu(p)), None)
    if python is None:
        line = "!" * 78
        session.warn(f"\n{line}\n!! NO GPU: no interpreter here has a JAX that sees one. NOTHING WAS TESTED.\n{line}")
        session.skip("no GPU in reach of any JAX on this machine")
    # Sources by path, and the plugin by name: nothing needs to be installed, so no metadata is at hand.
    sources = os.pathsep.join(str(p / "src") for p in [*(p.path for p in PACKAGES), TESTKIT])
    env = {"PYTHONPATH": sources, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    flags = ["-c", str(ROOT / "pyproject.toml"), "--noconftest", "-p", "stationary_testkit._plugin", "-m", "gpu"]
    paths = [str(p.path / "tests") for p in PACKAGES]
    session.run(python, "-m", "pytest", *flags, *paths, *session.posargs, env=env, external=True)


def _pythons() -> list[str]:
    named = os.environ.get("STATIONARY_GPU_PYTHON")
    entries = os.environ.get("PATH", "").split(os.pathsep)
    found = [shutil.which(name, path=entry) for entry in entries for name in ("python3", "python")]
    return [named] if named else [python for python in found if python]


def _sees_gpu(python: str) -> bool:
    code = "import sys, jax; sys.exit(jax.default_backend() != 'gpu')"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    nox.main()
