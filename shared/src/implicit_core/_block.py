import functools as ft
from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Float, Inexact, PyTree

from ._custom_types import RealScalar
from ._misc import real_dtype, same_structure
from ._operator import (
    AbstractOperator,
    AbstractSquareOperator,
    as_tags,
    check_operator,
    common_dtype,
    dense,
    dense_by_products,
    diagonal,
    freeze,
    one_of,
    ravel,
    tags_of,
    thaw,
    unravel,
)


class BlockOperator(AbstractOperator):
    r"""A matrix of operators, which acts on tuples: $(A v)_i = \sum_j A_{ij} v_j$.

    Bordered systems (derivatives of eigenpairs) and block-arrow Hessians need it.

    **Arguments:**

    - `blocks`: the rows, a sequence of sequences of Lineax operators, with `None` for a block of zeros. Every row and
        every column has at least one operator, from which its structure is taken. A block may itself be a
        `BlockOperator`.
    - `tags`: Lineax tags of the whole, unchecked.

    **Raises:**

    `ValueError` if the rows are not of one length, a row or column has only `None`, or structures do not match;
    `TypeError` if a block is neither an operator nor `None`.

    !!! Example

        ```python
        bordered = BlockOperator([[matrix, column], [row, None]])
        x, multiplier = bordered.mv((jnp.ones(5), jnp.ones(1)))
        ```
    """

    blocks: tuple[tuple[lx.AbstractLinearOperator | None, ...], ...]
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(
        self, blocks: Sequence[Sequence[lx.AbstractLinearOperator | None]], *, tags: object | Iterable[object] = ()
    ):
        self.blocks = tuple(tuple(row) for row in blocks)
        self.tags = as_tags(tags)
        if not self.blocks or not self.blocks[0] or len({len(row) for row in self.blocks}) != 1:
            raise ValueError(f"`blocks` must have rows of one length; got lengths {[len(row) for row in self.blocks]}")
        for i, row in enumerate(self.blocks):
            for j, block in enumerate(row):
                if block is not None:
                    check_operator(f"blocks[{i}][{j}]", block)
        for kind, lines, structure in (
            ("row", self.blocks, lambda op: op.out_structure()),
            ("column", zip(*self.blocks, strict=True), lambda op: op.in_structure()),
        ):
            for k, line in enumerate(lines):
                found = [structure(block) for block in line if block is not None]
                if not found:
                    raise ValueError(f"{kind} {k} of `blocks` has only `None`, so its structure is unknown")
                if not all(same_structure(found[0], other) for other in found):
                    raise ValueError(f"the operators in {kind} {k} of `blocks` must share a structure; got {found}")

    def mv(self, vector: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the product with a tuple of vectors."""

        def row_mv(row):
            products = [block.mv(v) for block, v in zip(row, vector, strict=True) if block is not None]
            return jtu.tree_map(lambda *leaves: sum(leaves[1:], leaves[0]), *products)

        return tuple(row_mv(row) for row in self.blocks)

    def as_matrix(self) -> Inexact[Array, "m n"]:
        """Return the dense matrix."""
        rows, cols = self.out_structure(), self.in_structure()
        dtype = common_dtype(rows, cols)

        def matrix(block, row, col):
            if block is not None:
                return dense(block).astype(dtype)
            return jnp.zeros([sum(leaf.size for leaf in jtu.tree_leaves(side)) for side in (row, col)], dtype)

        lines = zip(self.blocks, rows, strict=True)
        return jnp.block([[matrix(b, row, col) for b, col in zip(line, cols, strict=True)] for line, row in lines])

    def transpose(self) -> "BlockOperator":
        """Return the transpose, the blocks transposed."""
        if lx.is_symmetric(self):
            return self
        columns = zip(*self.blocks, strict=True)
        blocks = [[None if block is None else block.transpose() for block in column] for column in columns]
        return BlockOperator(blocks, tags=lx.transpose_tags(self.tags))

    def in_structure(self) -> tuple[PyTree[jax.ShapeDtypeStruct], ...]:
        """Return the structures of the columns."""
        columns = zip(*self.blocks, strict=True)
        return tuple(next(block.in_structure() for block in column if block is not None) for column in columns)

    def out_structure(self) -> tuple[PyTree[jax.ShapeDtypeStruct], ...]:
        """Return the structures of the rows."""
        return tuple(next(block.out_structure() for block in row if block is not None) for row in self.blocks)


class SaddleOperator(AbstractSquareOperator):
    r"""The symmetric saddle point operator $\begin{pmatrix} H & C^\top \\ C & -\delta I\end{pmatrix}$, on pairs `(x, y)`.

    Layers with hard constraints and Newton steps under equality constraints need it. It is indefinite: use `lineax.LU`, or MINRES with [`implicit_core.precond.saddle`][]; not PCG.

    **Arguments:**

    - `H`: a symmetric operator, the Hessian of the Lagrangian. Need not be definite.
    - `C`: an operator from the space of `H`, the Jacobian of the constraints.
    - `delta`: non-negative, a number or scalar array. Makes the operator nonsingular where constraints are redundant.

    **Raises:**

    `ValueError` if `H` is not symmetric by its tags, `C` does not act on the same space, or `delta` is a negative
    number; `TypeError` if `H` or `C` is not an operator.

    !!! Example

        ```python
        operator = SaddleOperator(lx.DiagonalLinearOperator(jnp.ones(3)), lx.MatrixLinearOperator(jnp.ones((1, 3))))
        x, y = lx.linear_solve(operator, (jnp.ones(3), jnp.zeros(1)), lx.LU()).value
        ```
    """

    H: lx.AbstractLinearOperator
    C: lx.AbstractLinearOperator
    delta: Float[Array, ""]
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(self, H: lx.AbstractLinearOperator, C: lx.AbstractLinearOperator, delta: RealScalar = 0.0):
        check_operator("H", H, square=True)
        check_operator("C", C)
        if not lx.is_symmetric(H):
            raise ValueError(
                "`H` must be tagged symmetric, or definite and real. If it is, say so with "
                "`lineax.TaggedLinearOperator(H, lineax.symmetric_tag)`."
            )
        if not same_structure(H.in_structure(), C.in_structure()):
            raise ValueError(
                f"`C` must act on the space of `H`, {H.in_structure()}; got one that acts on {C.in_structure()}"
            )
        if isinstance(delta, int | float) and delta < 0:
            raise ValueError(f"`delta` must be non-negative; got {delta}")
        self.H = H
        self.C = C
        self.delta = jnp.asarray(delta, real_dtype(C.out_structure()))
        self.tags = frozenset({lx.symmetric_tag})

    def mv(self, vector: tuple[Any, Any]) -> tuple[Any, Any]:
        """Return the product with a pair."""
        x, y = vector
        top = jtu.tree_map(jnp.add, self.H.mv(x), self.C.transpose().mv(y))
        return top, jtu.tree_map(lambda c, v: c - self.delta.astype(v.dtype) * v, self.C.mv(x), y)

    def as_matrix(self) -> Inexact[Array, "n n"]:
        """Return the dense matrix."""
        dtype = common_dtype(self.in_structure())
        H, C = dense(self.H).astype(dtype), dense(self.C).astype(dtype)
        return jnp.block([[H, C.T], [C, -self.delta.astype(dtype) * jnp.eye(C.shape[0], dtype=dtype)]])

    def transpose(self) -> "SaddleOperator":
        """Return the operator itself."""
        return self

    def in_structure(self) -> tuple[PyTree[jax.ShapeDtypeStruct], PyTree[jax.ShapeDtypeStruct]]:
        """Return the structures of `x` and of `y`."""
        return self.H.in_structure(), self.C.out_structure()


@lx.diagonal.register(SaddleOperator)
def _(operator):
    structure = operator.in_structure()
    dtype = common_dtype(structure)
    lower = jnp.broadcast_to(-operator.delta.astype(dtype), (operator.C.out_size(),))
    return jnp.concatenate([diagonal(operator.H).astype(dtype), lower])


class BatchedOperator(AbstractOperator):
    """Many operators of one kind as one: block-diagonal, on vectors with a leading batch axis.

    Solves that stop example by example need it (`batched.solve`), and preconditioners made of small blocks.

    **Arguments:**

    - `operator`: an operator whose arrays all have a leading batch axis, as made by `equinox.filter_vmap`. Outside of
        `vmap` it is of no use by itself; here it is the attribute `operator`, the number of members is `size`.

    The members' tags are the tags of the whole.

    **Raises:**

    `TypeError` if `operator` is not an operator, `ValueError` if it has no arrays or they do not share a leading axis.

    !!! Example

        ```python
        operator = BatchedOperator(eqx.filter_vmap(lx.MatrixLinearOperator)(jnp.ones((10, 3, 3))))
        operator.mv(jnp.ones((10, 3)))
        ```
    """

    operator: lx.AbstractLinearOperator
    size: int = eqx.field(static=True)
    tags: frozenset[object] = eqx.field(static=True)
    # Found once: the methods of `operator` can only be called under `vmap`.
    _structures: tuple = eqx.field(static=True)

    def __init__(self, operator: lx.AbstractLinearOperator):
        check_operator("operator", operator)
        shapes = [leaf.shape for leaf in jtu.tree_leaves(operator) if eqx.is_array(leaf)]
        if not shapes or () in shapes or len({shape[0] for shape in shapes}) != 1:
            raise ValueError(f"the arrays of `operator` must share a leading batch axis; got shapes {shapes}")
        tags = frozenset()

        def member(operator):
            nonlocal tags
            tags = tags_of(operator)
            structures = operator.in_structure(), operator.out_structure()
            return jtu.tree_map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structures)

        structures = eqx.filter_eval_shape(eqx.filter_vmap(member), operator)
        self.operator = operator
        self.size = shapes[0][0]
        self.tags = tags
        self._structures = freeze(structures)

    def mv(self, vector: PyTree[Inexact[Array, "..."]]) -> PyTree[Inexact[Array, "..."]]:
        """Return the members' products with the members' vectors."""
        return eqx.filter_vmap(lambda operator, v: operator.mv(v))(self.operator, vector)

    def as_matrix(self) -> Inexact[Array, "m n"]:
        """Return the dense matrix, in the order of the flattened structure."""
        return dense_by_products(self)

    def transpose(self) -> "BatchedOperator":
        """Return the members' transposes."""
        return self if lx.is_symmetric(self) else _map(lambda operator: operator.transpose(), self)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Return the members' structure, each leaf with the batch axis in front."""
        return thaw(self._structures)[0]

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Return the structure of the products, each leaf with the batch axis in front."""
        return thaw(self._structures)[1]

    def member_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Return the structure of what one member acts on."""
        return one_of(self.in_structure())


def _map(fn, operator):
    return BatchedOperator(eqx.filter_vmap(fn)(operator.operator))


for _fn in (lx.linearise, lx.materialise, lx.conj):
    _fn.register(BatchedOperator)(ft.partial(_map, _fn))


@lx.diagonal.register(BatchedOperator)
def _(operator):
    if not same_structure(operator.in_structure(), operator.out_structure()):
        return jnp.diagonal(operator.as_matrix())
    return ravel(unravel(eqx.filter_vmap(diagonal)(operator.operator), operator.member_structure()))
