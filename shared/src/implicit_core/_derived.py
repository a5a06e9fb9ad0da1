from collections.abc import Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, Float, Inexact, Num, PyTree

from ._custom_types import RealScalar
from ._misc import real_dtype
from ._operator import (
    AbstractSquareOperator,
    as_tags,
    check_operator,
    common_dtype,
    dense,
    diagonal,
    matmul,
    ravel,
    tags_of,
    tree_conj,
)


# What survives a change of the diagonal.
_TRIANGULAR = (lx.lower_triangular_tag, lx.upper_triangular_tag)
_PATTERNS = (lx.symmetric_tag, lx.diagonal_tag, lx.tridiagonal_tag, *_TRIANGULAR)


class _AbstractDerived(AbstractSquareOperator):
    operator: eqx.AbstractVar[lx.AbstractLinearOperator]

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Return the structure of what `operator` acts on."""
        return self.operator.in_structure()


class MaskedOperator(_AbstractDerived):
    r"""$D A D + (I - D)$ for a 0/1 diagonal $D$: the operator where the mask holds, the identity elsewhere.

    Problems whose active set changes while shapes may not need it: an inactive row becomes that of the identity, and its solution is its right-hand side. Tags are kept, except that of negative semidefiniteness.

    **Arguments:**

    - `operator`: an operator from a space to itself.
    - `mask`: a pytree of boolean arrays of its structure, where an array may be a scalar for a whole leaf. May be traced.

    **Raises:**

    `ValueError` if the operator is not from a space to itself or the mask not of its structure, `TypeError` if the mask
    is not boolean.

    !!! Example

        ```python
        operator = MaskedOperator(lx.MatrixLinearOperator(2 * jnp.eye(3)), jnp.array([True, False, True]))
        operator.mv(jnp.ones(3))  # [2. 1. 2.]
        ```
    """

    operator: lx.AbstractLinearOperator
    mask: PyTree[Bool[Array, "..."]]
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(self, operator: lx.AbstractLinearOperator, mask: PyTree[Bool[ArrayLike, "..."]]):
        check_operator("operator", operator, square=True)
        structure = operator.in_structure()
        if jtu.tree_structure(mask) != jtu.tree_structure(structure):
            raise ValueError(f"`mask` must have the tree of the operator, {structure}; got {mask}")

        def expand(mask, leaf):
            mask = jnp.asarray(mask)
            if mask.dtype != bool:
                raise TypeError(f"`mask` must be boolean; got {mask.dtype}")
            if mask.shape not in ((), leaf.shape):
                raise ValueError(f"`mask` must have the shapes of the operator; got {mask.shape} for {leaf.shape}")
            return jnp.broadcast_to(mask, leaf.shape)

        self.operator = operator
        self.mask = jtu.tree_map(expand, mask, structure)
        self.tags = tags_of(operator, *_PATTERNS, lx.unit_diagonal_tag, lx.positive_semidefinite_tag)

    def mv(self, vector: PyTree[Inexact[Array, "..."]]) -> PyTree[Inexact[Array, "..."]]:
        """Return the product with a vector."""
        inside = jtu.tree_map(lambda m, v: jnp.where(m, v, 0), self.mask, vector)
        return jtu.tree_map(jnp.where, self.mask, self.operator.mv(inside), vector)

    def as_matrix(self) -> Inexact[Array, "n n"]:
        """Return the dense matrix."""
        mask, matrix = ravel(self.mask), dense(self.operator)
        return jnp.where(mask[:, None] & mask[None, :], matrix, jnp.diag((~mask).astype(matrix.dtype)))

    def transpose(self) -> "MaskedOperator":
        """Return the transpose, with the same mask."""
        return self if lx.is_symmetric(self) else MaskedOperator(self.operator.transpose(), self.mask)


@lx.diagonal.register(MaskedOperator)
def _(operator):
    return jnp.where(ravel(operator.mask), diagonal(operator.operator), 1)


class ShiftedOperator(_AbstractDerived):
    r"""$A + \sigma I$.

    Ridge terms, Levenberg-Marquardt and resolvents need it. Tags on the pattern of entries are kept. That of
    definiteness is kept where `sigma` is a Python number of the right sign; otherwise promise it with `tags`.

    **Arguments:**

    - `operator`: an operator from a space to itself.
    - `sigma`: the shift, a number or scalar array, complex only if the operator is.
    - `tags`: further Lineax tags of the sum, unchecked.

    **Raises:**

    `TypeError` if `operator` is not an operator, `ValueError` if it is not from a space to itself.

    !!! Example

        ```python
        operator = ShiftedOperator(lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag), 0.1)
        ```
    """

    operator: lx.AbstractLinearOperator
    sigma: Inexact[Array, ""]
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(
        self, operator: lx.AbstractLinearOperator, sigma: Num[ArrayLike, ""], *, tags: object | Iterable[object] = ()
    ):
        check_operator("operator", operator, square=True)
        kept = list(_PATTERNS)
        if isinstance(sigma, int | float):
            kept += [lx.positive_semidefinite_tag] * (sigma >= 0) + [lx.negative_semidefinite_tag] * (sigma <= 0)
        structure = operator.in_structure()
        self.operator = operator
        self.sigma = jnp.asarray(sigma, common_dtype(structure) if jnp.iscomplexobj(sigma) else real_dtype(structure))
        self.tags = tags_of(operator, *kept) | as_tags(tags)

    def mv(self, vector: PyTree[Inexact[Array, "..."]]) -> PyTree[Inexact[Array, "..."]]:
        """Return the product with a vector."""
        return jtu.tree_map(lambda a, v: a + self.sigma.astype(v.dtype) * v, self.operator.mv(vector), vector)

    def as_matrix(self) -> Inexact[Array, "n n"]:
        """Return the dense matrix."""
        matrix = dense(self.operator)
        return matrix + self.sigma.astype(matrix.dtype) * jnp.eye(matrix.shape[0], dtype=matrix.dtype)

    def transpose(self) -> "ShiftedOperator":
        """Return the transpose, with the same shift."""
        if lx.is_symmetric(self):
            return self
        return ShiftedOperator(self.operator.transpose(), self.sigma, tags=lx.transpose_tags(self.tags))


@lx.diagonal.register(ShiftedOperator)
def _(operator):
    inner = diagonal(operator.operator)
    return inner + operator.sigma.astype(inner.dtype)


class NormalOperator(_AbstractDerived):
    r"""$A^* A + \rho I$, tagged positive semidefinite. The operator may be rectangular.

    Regularised least squares needs it: dynamic mode decomposition, Gauss-Newton. A product makes one with $A$ and one
    with its adjoint; the condition number is that of $A$ squared, so where it is large use `lineax.LSMR`.

    **Arguments:**

    - `operator`: any operator.
    - `ridge`: $\rho \ge 0$, a number or scalar array.

    **Raises:**

    `TypeError` if `operator` is not an operator, `ValueError` if `ridge` is a negative number.

    !!! Example

        ```python
        operator = NormalOperator(lx.MatrixLinearOperator(features), ridge=1e-3)
        lx.linear_solve(operator, features.T @ targets, PCG())
        ```
    """

    operator: lx.AbstractLinearOperator
    ridge: Float[Array, ""]
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(self, operator: lx.AbstractLinearOperator, ridge: RealScalar = 0.0):
        check_operator("operator", operator)
        if isinstance(ridge, int | float) and ridge < 0:
            raise ValueError(f"`ridge` must be non-negative; got {ridge}")
        self.operator = operator
        self.ridge = jnp.asarray(ridge, real_dtype(operator.in_structure()))
        self.tags = frozenset({lx.positive_semidefinite_tag})

    def mv(self, vector: PyTree[Inexact[Array, "..."]]) -> PyTree[Inexact[Array, "..."]]:
        """Return the product with a vector."""
        product = tree_conj(self.operator.transpose().mv(tree_conj(self.operator.mv(vector))))
        return jtu.tree_map(lambda a, v: a + self.ridge.astype(v.dtype) * v, product, vector)

    def as_matrix(self) -> Inexact[Array, "n n"]:
        """Return the dense matrix."""
        matrix = dense(self.operator)
        eye = jnp.eye(matrix.shape[1], dtype=matrix.dtype)
        return matmul(matrix.conj().T, matrix) + self.ridge.astype(matrix.dtype) * eye

    def transpose(self) -> lx.AbstractLinearOperator:
        """Return the transpose, which is the conjugate, and the operator itself if that is real."""
        return self if lx.is_symmetric(self) else lx.conj(self)


@lx.diagonal.register(NormalOperator)
def _(operator):
    matrix = dense(operator.operator)
    return (jnp.sum(jnp.real(matrix * matrix.conj()), axis=0) + operator.ridge).astype(matrix.dtype)
