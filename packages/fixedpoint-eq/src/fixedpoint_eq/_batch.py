"""A view of a function of the whole batch, sample by sample.

`fn` is called with the whole batch, so it may use any array that it captures; the solvers are written for one sample. Under
`jax.vmap` over the samples, with a named axis, a sample gathers the batch, which costs nothing because it *is* the batch;
calls `fn` once on it; and takes its own row.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from implicit_core.operators import AbstractOperator
from jaxtyping import Array


_AXIS = "fixedpoint_eq.batch"


class _Tag:
    def __init__(self, name: str):
        self.name = name

    def __repr__(self):
        return self.name


# Lineax tags. Lineax carries those that it does not know from a driver to the solver of the derivative, which is all that
# is asked of it. The first says that the operator is block diagonal, with one block for each index of the leading axis of
# every leaf; the second that where a block's system is not solved, zero is wanted, and no error.
samples_tag, zero_tag = _Tag("samples_tag"), _Tag("zero_tag")


def lanes(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Map `fn`, in which [`own`][] may be called, over the samples of all its arguments."""
    return jax.vmap(fn, axis_name=_AXIS)


def own(fn: Callable[[Any], Any], y: Any) -> Any:
    """Return this sample's part of `fn`, a function of the whole batch."""
    out = fn(jtu.tree_map(lambda leaf: jax.lax.all_gather(leaf, _AXIS), y))
    index = jax.lax.axis_index(_AXIS)
    return jtu.tree_map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, 0, keepdims=False), out)


class SampleFn(eqx.Module):
    """One sample's view of `fn(y, args) -> (y, aux)`."""

    fn: Callable[[Any, Any], Any]

    def __call__(self, y: Any, args: Any) -> tuple[Any, Any]:
        """Return the sample's row of the function's value; what is auxiliary is dropped."""
        return own(lambda batch: self.fn(batch, args)[0], y), None


class SampleOperator(AbstractOperator):
    """One sample's block of an operator that is block diagonal over the samples."""

    operator: lx.AbstractLinearOperator
    tags: frozenset[object] = eqx.field(static=True)

    def mv(self, vector: Any) -> Any:
        """Return the product with a vector."""
        return own(self.operator.mv, vector)

    def as_matrix(self) -> Array:
        """Return the dense matrix, by one product a column."""
        return dense(self)

    def transpose(self) -> "SampleOperator":
        """Return the transpose."""
        return SampleOperator(operator=self.operator.transpose(), tags=lx.transpose_tags(self.tags))

    def in_structure(self) -> Any:
        """Return the structure of what the block acts on."""
        return _row(self.operator.in_structure())

    def out_structure(self) -> Any:
        """Return the structure of its products."""
        return _row(self.operator.out_structure())


# Never a dense matrix of the whole batch.
lx.materialise.register(SampleOperator, lambda operator: operator)


def dense(operator: lx.AbstractLinearOperator) -> Array:
    """Return the matrix of an operator whose leaves have one dtype, by one product a column."""
    zero = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), operator.in_structure())
    flat, unravel = jfu.ravel_pytree(zero)
    columns = jax.vmap(lambda v: jfu.ravel_pytree(operator.mv(unravel(v)))[0])
    return columns(jnp.eye(flat.size, dtype=flat.dtype)).T


def _row(structure: Any) -> Any:
    return jtu.tree_map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), structure)
