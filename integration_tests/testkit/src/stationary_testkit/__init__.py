"""Test oracles of the Stationary packages. The pytest plugin beside them (`_plugin.py`) loads itself by entry point."""

from ._memory import max_live_bytes
from ._oracles import (
    converges_at_order,
    finite_difference_jvp,
    implicit_jacobian,
    no_retrace,
    tree_allclose,
    vjp_matches_jvp,
)
from ._typecheck import typecheck


__all__ = [
    "converges_at_order",
    "finite_difference_jvp",
    "implicit_jacobian",
    "max_live_bytes",
    "no_retrace",
    "tree_allclose",
    "typecheck",
    "vjp_matches_jvp",
]
