import functools as ft
import math
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, PyTree

from ._misc import same_structure


class AbstractOperator(lx.AbstractLinearOperator):
    """Make a subclass a complete Lineax operator: every dispatch function of Lineax is registered for this class.

    A subclass has the methods of `lineax.AbstractLinearOperator` and the attribute `tags`. What Lineax asks by its
    `is_*` functions is answered by the tags. `lineax.linearise`, `lineax.materialise` and `lineax.conj` are passed on
    to the operators among the fields, `lineax.conj` to the arrays as well; `lineax.diagonal` and `lineax.tridiagonal`
    form the dense matrix. Where a subclass can do better, it registers itself with the function in question.

    Every product has a second form, `mm`, for many vectors at once.
    """

    tags: eqx.AbstractVar[frozenset[object]]

    def mm(self, matrix: Any) -> Any:
        """Return the product with every column of a matrix, or of a pytree with one more, trailing, axis."""
        return columns(self, matrix)


class AbstractSquareOperator(AbstractOperator):
    """An operator from a space to itself."""

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Return the same as `in_structure`."""
        return self.in_structure()


@ft.singledispatch
def columns(operator: Any, matrix: Any) -> Any:
    """Apply any Lineax operator to vectors along the trailing axis."""
    return jax.vmap(operator.mv, in_axes=-1, out_axes=-1)(matrix)


# What Lineax answers from tags, and the tags that say as much as the one in question.
_CHECKS = {
    lx.symmetric_tag: (lx.is_symmetric, {lx.diagonal_tag}),
    lx.diagonal_tag: (lx.is_diagonal, set()),
    lx.tridiagonal_tag: (lx.is_tridiagonal, {lx.diagonal_tag}),
    lx.unit_diagonal_tag: (lx.has_unit_diagonal, set()),
    lx.lower_triangular_tag: (lx.is_lower_triangular, set()),
    lx.upper_triangular_tag: (lx.is_upper_triangular, set()),
    lx.positive_semidefinite_tag: (lx.is_positive_semidefinite, set()),
    lx.negative_semidefinite_tag: (lx.is_negative_semidefinite, set()),
}
_DEFINITE = {lx.positive_semidefinite_tag, lx.negative_semidefinite_tag}


def as_tags(tags: object | Iterable[object]) -> frozenset[object]:
    """Return one tag, or several, as a set."""
    return frozenset(tags) if isinstance(tags, Iterable) else frozenset([tags])


def tags_of(operator: lx.AbstractLinearOperator, *among: object) -> frozenset[object]:
    """Return those of the tags `among` (of all tags if empty) that Lineax affirms of an operator."""
    return frozenset(tag for tag, (check, _) in _CHECKS.items() if (not among or tag in among) and check(operator))


def check_operator(name: str, operator: Any, *, square: bool = False) -> None:
    """Raise unless `operator` is a Lineax operator, and one from a space to itself if it must be `square`."""
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise TypeError(f"`{name}` must be a `lineax.AbstractLinearOperator`; got {type(operator).__name__}")
    if square and not same_structure(operator.in_structure(), operator.out_structure()):
        raise ValueError(
            f"`{name}` must map a space to itself; got an operator from {operator.in_structure()} "
            f"to {operator.out_structure()}"
        )


def common_dtype(*trees: Any) -> np.dtype:
    """Return the dtype that holds every leaf. By NumPy's rules: JAX may be told to refuse mixed ones."""
    return np.result_type(*(leaf.dtype for leaf in jtu.tree_leaves(trees)))


matmul = ft.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def dense_by_products(operator: lx.AbstractLinearOperator) -> Array:
    """Return the matrix of an operator by its products with the unit vectors."""
    structure = operator.in_structure()
    eye = jnp.eye(operator.in_size(), dtype=common_dtype(structure))
    return ravel(jax.vmap(operator.mv)(unravel(eye, structure)), lead=1).T


def dense(operator: lx.AbstractLinearOperator) -> Array:
    """Return the matrix of any operator, in its own dtype: that of an identity would have the default one."""
    return operator.as_matrix().astype(common_dtype(operator.in_structure(), operator.out_structure()))


def diagonal(operator: lx.AbstractLinearOperator) -> Array:
    """Return the diagonal of any operator, in its own dtype."""
    return lx.diagonal(operator).astype(common_dtype(operator.in_structure(), operator.out_structure()))


def tree_conj(tree: Any) -> Any:
    """Conjugate every complex leaf."""
    return jtu.tree_map(lambda leaf: leaf.conj() if jnp.iscomplexobj(leaf) else leaf, tree)


def one_of(tree: Any) -> Any:
    """Return the structure of one of the pytrees that lie along the leading axis of `tree`."""
    return jtu.tree_map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)


def freeze(structure: Any) -> tuple:
    """Make of a structure something hashable, for a static field."""
    leaves, treedef = jtu.tree_flatten(structure)
    return treedef, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)


def thaw(frozen: tuple) -> Any:
    """Undo `freeze`."""
    treedef, leaves = frozen
    return treedef.unflatten(leaves)


def unravel(flat: Array, structure: Any) -> Any:
    """Cut the trailing axis of `flat` into the leaves of `structure`; the inverse of Lineax's flattening."""
    leaves, treedef = jtu.tree_flatten(structure)
    splits = np.cumsum([math.prod(leaf.shape) for leaf in leaves[:-1]])
    lead = flat.shape[:-1]
    parts = jnp.split(flat, splits, axis=-1)
    return treedef.unflatten(
        part.reshape(lead + leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)
    )


def ravel(tree: Any, lead: int = 0) -> Array:
    """Flatten a pytree to an array, all but the `lead` leading axes of every leaf."""
    leaves = jtu.tree_leaves(tree)
    dtype = common_dtype(leaves)
    return jnp.concatenate([leaf.reshape(*leaf.shape[:lead], -1).astype(dtype) for leaf in leaves], axis=-1)


def _rebuild(
    operator: AbstractOperator, change: Callable[[Any], Any], change_array: Callable[[Array], Array] | None = None
) -> AbstractOperator:
    # The fields say what a composite is made of, so its parts can be replaced without knowing which operator it is.
    def is_part(x):
        return x is not operator and isinstance(x, lx.AbstractLinearOperator)

    def replace(leaf):
        if is_part(leaf):
            return change(leaf)
        return change_array(leaf) if change_array is not None and eqx.is_inexact_array(leaf) else leaf

    if change_array is None and not any(map(is_part, jtu.tree_leaves(operator, is_leaf=is_part))):
        return operator
    return jtu.tree_map(replace, operator, is_leaf=is_part)


@lx.linearise.register(AbstractOperator)
def _(operator):
    return _rebuild(operator, lx.linearise)


@lx.materialise.register(AbstractOperator)
def _(operator):
    # Nothing that Lineax materialises for needs a dense matrix of the whole: it is called where `mv` of a function
    # would cost too much.
    return _rebuild(operator, lx.materialise)


@lx.conj.register(AbstractOperator)
def _(operator):
    return _rebuild(operator, lx.conj, jnp.conj)


@lx.diagonal.register(AbstractOperator)
def _(operator):
    return jnp.diagonal(operator.as_matrix())


@lx.tridiagonal.register(AbstractOperator)
def _(operator):
    matrix = operator.as_matrix()
    return jnp.diagonal(matrix), jnp.diagonal(matrix, offset=-1), jnp.diagonal(matrix, offset=1)


def _register(tag, check, implied_by):
    @check.register(AbstractOperator)
    def _(operator):
        affirmed = not operator.tags.isdisjoint({tag} | implied_by)
        if tag is lx.symmetric_tag and not operator.tags.isdisjoint(_DEFINITE):
            # Definite means Hermitian, which is symmetric for real values only.
            affirmed |= common_dtype(operator.in_structure(), operator.out_structure()).kind != "c"
        if tag is lx.diagonal_tag:
            affirmed |= operator.in_size() == operator.out_size() == 1
        return affirmed


for _tag, (_check, _implied_by) in _CHECKS.items():
    _register(_tag, _check, _implied_by)
