"""Run every README's Python blocks as tests, and check annotations at run time in every test run in the checkout."""

import importlib.util
import pathlib
from typing import Any

import jax
from jaxtyping import install_import_hook
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser


_root = pathlib.Path(__file__).parent
_packages = [
    p.parent.name
    for p in sorted(_root.glob("*/src/*/__init__.py")) + sorted(_root.glob("packages/*/src/*/__init__.py"))
]
# Only what this environment has: each package is also tested alone.
install_import_hook([p for p in _packages if importlib.util.find_spec(p)], "stationary_testkit.typecheck")


def _as_users(_: dict[str, Any]) -> None:
    # A README is run as its readers run it; Optax, for one, does not know strict promotion.
    jax.config.update("jax_numpy_dtype_promotion", "standard")


def _as_tests(_: dict[str, Any]) -> None:
    jax.config.update("jax_numpy_dtype_promotion", "strict")


_parsers = [PythonCodeBlockParser(), SkipParser()]
pytest_collect_file = Sybil(parsers=_parsers, patterns=["README.md"], setup=_as_users, teardown=_as_tests).pytest()
