from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx

from ._linear import RealOperator


def jacobian(fn: Callable[[Any], Any], z: Any) -> lx.AbstractLinearOperator:
    """Return the derivative of `fn` at `z`, linearised once."""
    tangent = jax.linearize(fn, z)[1]
    return lx.FunctionLinearOperator(tangent, jax.eval_shape(lambda: z))


def real_jacobian(fn: Callable[[Any], Any], z: Any) -> lx.AbstractLinearOperator:
    """Return the derivative of `fn` at `z`, on real and imaginary parts if there are complex ones."""
    operator = jacobian(fn, z)
    return RealOperator(operator=operator) if any(map(jnp.iscomplexobj, jtu.tree_leaves(z))) else operator
