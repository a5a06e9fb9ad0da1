"""Run every README's Python blocks as tests, and check annotations at run time in every test run in the checkout."""

import importlib.util
import pathlib

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

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["README.md"]).pytest()
