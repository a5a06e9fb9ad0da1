from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Float, Inexact, PRNGKeyArray, PyTree

from ._block import BatchedOperator, BlockOperator
from ._custom_types import RealScalar
from ._krylov import check_definite
from ._misc import same_structure, scale_of, stack_combine, stack_dot, tree_dot, tree_norm, tree_scale
from ._operator import (
    AbstractSquareOperator,
    check_operator,
    common_dtype,
    dense,
    dense_by_products,
    diagonal,
    freeze,
    matmul,
    one_of,
    ravel,
    thaw,
    unravel,
)


_PSD = frozenset({lx.positive_semidefinite_tag})


def _check_precond(name: str, operator: Any) -> None:
    check_operator(name, operator, square=True)
    check_definite(name, operator)


def _safe(magnitude: Array) -> Array:
    # Numbers that can be divided by: where there is none, the largest of them.
    tiny = float(jnp.finfo(magnitude.dtype).tiny)
    largest = jnp.max(magnitude, axis=-1, keepdims=True)
    return jnp.where(magnitude >= tiny, magnitude, jnp.where(largest >= tiny, largest, 1))


def jacobi(op: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    r"""Precondition by the inverse of the diagonal, in magnitude.

    It wins where unknowns differ in scale: a diagonally dominant matrix of 200 rows, scaled over twelve orders of
    magnitude, takes 9 steps of PCG to 1e-8 instead of more than 3000. Where the diagonal is constant it does nothing.

    Negative entries count by their magnitude, so that the result is definite whatever the operator; an entry of zero
    counts as the largest one.

    **Arguments:**

    - `op`: an operator from a space to itself. Its diagonal is taken by `lineax.diagonal`, which for a function of $n$
        unknowns costs $n$ products; not so for [`implicit_core.operators.SparseOperator`][] and dense matrices.

    !!! Example

        ```python
        PCG(precond=jacobi(operator))
        ```
    """
    check_operator("op", op, square=True)
    inverse = unravel(1 / _safe(jnp.abs(diagonal(op))), op.in_structure())
    return lx.TaggedLinearOperator(lx.DiagonalLinearOperator(inverse), _PSD)


class _DenseBlocks(AbstractSquareOperator):
    # Block-diagonal and Hermitian. A member's vector is row `k` of every leaf, flattened.
    blocks: Inexact[Array, "k b b"]
    tags: frozenset[object] = eqx.field(static=True)
    structure: tuple = eqx.field(static=True)

    def mv(self, vector):
        size = self.blocks.shape[0]
        rows = jtu.tree_map(lambda leaf: leaf.reshape(size, -1), vector)
        out = matmul(self.blocks, ravel(rows, lead=1)[..., None])[..., 0]
        return jtu.tree_map(lambda new, old: new.reshape(old.shape), unravel(out, one_of(rows)), vector)

    def as_matrix(self):
        return dense_by_products(self)

    def transpose(self):
        return self if lx.is_symmetric(self) else lx.conj(self)

    def in_structure(self):
        return thaw(self.structure)


def block_jacobi(blocks: Inexact[Array, "..."] | BatchedOperator) -> lx.AbstractLinearOperator:
    r"""Precondition by the inverses of small diagonal blocks, in magnitude.

    It wins where unknowns couple strongly within groups and weakly between them; on a block-diagonal operator one step
    is enough. The inverses are formed once, so an application is one batched product.

    Blocks need not be definite: a block counts as $|B| = (B^2)^{1/2}$ after its diagonal is scaled to one (so that
    blocks of size one are [`implicit_core.precond.jacobi`][]); directions in which it is singular to rounding are
    only scaled.

    **Arguments:**

    - `blocks`: Hermitian blocks, an array `(k, b, b)`, for operators on arrays `(k * b,)`; or a
        [`implicit_core.operators.BatchedOperator`][] of `k` members, whose structure the result has.

    **Raises:**

    `ValueError` if the blocks are not square.

    !!! Example

        ```python
        PCG(precond=block_jacobi(hessian_blocks))
        ```
    """
    if isinstance(blocks, BatchedOperator):
        check_operator("blocks", blocks, square=True)
        structure = blocks.in_structure()
        matrices = eqx.filter_vmap(dense)(blocks.operator)
    else:
        if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2]:
            raise ValueError(f"`blocks` must have shape (k, b, b); got {blocks.shape}")
        structure = jax.ShapeDtypeStruct((blocks.shape[0] * blocks.shape[1],), blocks.dtype)
        matrices = blocks
    root = jax.lax.rsqrt(_safe(jnp.abs(jnp.diagonal(matrices, axis1=1, axis2=2)))).astype(matrices.dtype)
    values, vectors = jnp.linalg.eigh(root[:, :, None] * matrices * root[:, None, :])
    values = jnp.abs(values)
    floor = 8 * matrices.shape[1] * float(jnp.finfo(values.dtype).eps) * jnp.max(values, axis=1, keepdims=True)
    values = jnp.where(values > floor, values, 1)
    half = root[:, :, None] * vectors
    inverses = matmul(half / values[:, None, :].astype(half.dtype), jnp.conj(jnp.swapaxes(half, 1, 2)))
    return _DenseBlocks(blocks=inverses, structure=freeze(structure), tags=_PSD)


class _TwoLevel(AbstractSquareOperator):
    # Q M Q^* + V diag(weights) V^* with Q = I - V D^*. V (`basis`) has columns that are orthonormal or zero; D (`dual`)
    # is V, and M (`base`) the identity, if `None`.
    basis: PyTree[Inexact[Array, "k ..."]]
    dual: PyTree[Inexact[Array, "k ..."]] | None
    weights: Float[Array, " k"]
    base: lx.AbstractLinearOperator | None
    tags: frozenset[object] = eqx.field(static=True)

    def mv(self, vector):
        inside = stack_dot(self.basis, vector)
        weights = self.weights.astype(inside.dtype)
        if self.dual is None and self.base is None:
            return jtu.tree_map(jnp.add, vector, stack_combine((weights - 1) * inside, self.basis))
        dual = self.basis if self.dual is None else self.dual
        rest = jtu.tree_map(jnp.subtract, vector, stack_combine(inside, dual))
        rest = rest if self.base is None else self.base.mv(rest)
        inside = stack_combine(weights * inside - stack_dot(dual, rest), self.basis)
        return jtu.tree_map(jnp.add, rest, inside)

    def as_matrix(self):
        return dense_by_products(self)

    def transpose(self):
        return self if lx.is_symmetric(self) else lx.conj(self)

    def in_structure(self):
        return one_of(self.basis)


def nystrom(
    op: lx.AbstractLinearOperator, rank: int, *, key: PRNGKeyArray, shift: RealScalar = 0.0
) -> lx.AbstractLinearOperator:
    r"""Precondition $K + \mu I$ by a randomised low-rank approximation of $K$. Costs `rank` products, all at once.

    It wins where the spectrum of $K$ decays. Steps of PCG to 1e-8 for $n = 1000$, $\mu = 10^{-2}$: with eigenvalues
    $10^4/(1+i)^2$ 706 without, and 165, 96 and 53 at ranks 50, 100 and 200; with $10^4 e^{-i/15}$ more than 3000
    without, and 19 at rank 200. A few outliers PCG finds as fast by itself (15 steps without, 11 with). Choose the rank
    about twice $\operatorname{tr}(K (K + \mu I)^{-1})$.

    **Arguments:**

    - `op`: $K$, positive semidefinite, without the shift.
    - `rank`: number of vectors to sketch with, from 1 to $n$.
    - `key`: a random key.
    - `shift`: $\mu \ge 0$, a number or scalar array.

    **Raises:**

    `ValueError` if `rank` is out of range, `shift` is a negative number, or `op` is not from a space to itself.

    !!! Example

        ```python
        PCG(precond=nystrom(kernel, 100, key=key, shift=1e-2))  # for ShiftedOperator(kernel, 1e-2)
        ```

    ??? cite "Reference"

        Frangella, Tropp and Udell, "Randomized Nyström preconditioning", arXiv:2110.02820, algorithm 2.1 and (5.3).
    """
    check_operator("op", op, square=True)
    structure, size = op.in_structure(), op.in_size()
    if not 1 <= rank <= size:
        raise ValueError(f"`rank` must be between 1 and {size}; got {rank}")
    if isinstance(shift, int | float) and shift < 0:
        raise ValueError(f"`shift` must be non-negative; got {shift}")
    sketch, _ = jnp.linalg.qr(jr.normal(key, (size, rank), common_dtype(structure)))
    product = ravel(jax.vmap(op.mv)(unravel(sketch.T, structure)), lead=1).T
    # Where the reference shifts the core and takes its Cholesky factor, which may fail, this leaves out the directions
    # that are zero to rounding.
    core, vectors = jnp.linalg.eigh(matmul(sketch.conj().T, product))
    eps = float(jnp.finfo(core.dtype).eps)
    usable = core > rank * eps * core[-1]
    root = jnp.where(usable, jax.lax.rsqrt(jnp.where(usable, core, 1)), 0)
    product = matmul(product, vectors * root.astype(vectors.dtype)[None, :])
    basis, values, _ = jnp.linalg.svd(product, full_matrices=False)
    values = jnp.where(values > 0, values**2, 0)
    values = jnp.where(values > rank * eps * values[0], values, 0)
    shifted = values + jnp.asarray(shift, values.dtype)
    # Without a shift the least eigenvalue may be zero, and is then no measure of what is left out.
    least = jnp.min(jnp.where(values > 0, values, jnp.inf))
    level = jnp.where(shifted[-1] > 0, shifted[-1], least)
    weights = jnp.where(shifted > 0, level / jnp.where(shifted > 0, shifted, 1), 1)
    return _TwoLevel(basis=unravel(basis.T, structure), dual=None, weights=weights, base=None, tags=_PSD)


def deflation(
    op: lx.AbstractLinearOperator,
    W: PyTree[Inexact[Array, "k ..."]],
    base: lx.AbstractLinearOperator | None = None,
) -> lx.AbstractLinearOperator:
    r"""Precondition exactly on the span of a few given vectors, and by `base` on the rest. Costs $k + 2$ products.

    $M = Q M_0 Q^* + \tau\, W |E|^{-1} W^*$ with $E = W^* A W$ and $Q = I - W E^{-1} (A W)^*$, where $M_0$ is `base`. It
    wins where a few directions spoil the condition number and are known, if only roughly: eigenvectors, solutions of
    earlier systems (recycling). Two hundred eigenvalues in $[1, 2]$ and four between $10^{-3}$ and $10^3$ take 29 steps
    of PCG to 1e-8 without; with the four eigenvectors 11, as many as without the four eigenvalues; with an error of 1 %
    in the vectors 11, and of 10 % 15. $\tau$, about the size of the eigenvalues on the rest, makes this the same in all
    units.

    Vectors that are zero or depend on others are harmless, so a buffer may start with zeros. So are null vectors of
    `op` (gauge freedoms): they are projected out. Directions in which an indefinite `op` has no curvature count as not
    given. The result is positive semidefinite whatever `op` is.

    **Arguments:**

    - `op`: a Hermitian operator.
    - `W`: the vectors, a pytree of the operator's structure whose leaves have one more, leading, axis of length $k$.
    - `base`: a preconditioner for the rest, tagged positive semidefinite; the identity if `None`.

    **Raises:**

    `ValueError` if `W` does not have that structure or `base` is not tagged or not of the operator's structure.

    !!! Example

        ```python
        PCG(precond=deflation(operator, last_solutions, base=jacobi(operator)))
        ```

    ??? cite "Reference"

        Tang, Nabben, Vuik and Erlangga, "Comparison of two-level preconditioners derived from deflation, domain
        decomposition and multigrid methods", J. Sci. Comput. 39 (2009).
    """
    check_operator("op", op, square=True)
    structure = op.in_structure()
    members = one_of(W)
    counts = {leaf.shape[:1] for leaf in jtu.tree_leaves(W)}
    if not same_structure(members, structure) or len(counts) != 1 or (0,) in counts:
        raise ValueError(f"`W` must have the structure of `op`, {structure}, with one leading axis; got {members}")
    if base is not None:
        _check_precond("base", base)
        if not same_structure(base.in_structure(), structure):
            raise ValueError(f"`base` must have the structure of `op`, {structure}; got {base.in_structure()}")
    basis = unravel(_orthonormal(ravel(W, lead=1)), structure)
    images = jax.vmap(op.mv)(basis)
    energies, rotation = jnp.linalg.eigh(jax.vmap(stack_dot, in_axes=(None, 0), out_axes=1)(basis, images))
    basis, images = stack_combine(rotation.T, basis), stack_combine(rotation.T, images)
    sizes = jax.vmap(_norm)(images)
    eps = float(jnp.finfo(sizes.dtype).eps)
    # A random vector, for the scale of the operator and of what the preconditioner makes of the rest of it.
    leaves, treedef = jtu.tree_flatten(structure)
    keys = jr.split(jr.key(0), len(leaves))
    v = treedef.unflatten(jr.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True))
    cutoff = 8 * eps * jnp.maximum(jnp.max(sizes), _norm(op.mv(v)) / _norm(v))
    null = sizes <= cutoff
    kept = (jnp.abs(energies) > jnp.maximum(cutoff, eps**0.5 * sizes)) & ~null
    inverses = jnp.where(kept, 1 / jnp.where(kept, energies, 1), 0)
    # For a null vector the projection is the orthogonal one.
    dual = jtu.tree_map(jnp.add, _scale_rows(inverses, images), _scale_rows(null, basis))
    basis = _scale_rows(kept | null, basis)
    rest = _TwoLevel(basis=basis, dual=dual, weights=jnp.zeros_like(inverses), base=base, tags=_PSD)
    y = rest.mv(v)
    image, size = _unit(op.mv(y))
    level = size * jnp.sqrt(tree_dot(image, rest.mv(image)) / _nonzero(tree_dot(v, y)))
    # Where the vectors span everything, there is no rest to measure.
    level = jnp.where(tree_dot(basis, basis) < op.in_size() - 0.5, level, jnp.max(jnp.abs(energies)))
    weights = _nonzero(level) * jnp.abs(inverses)
    return _TwoLevel(basis=basis, dual=dual, weights=weights, base=base, tags=_PSD)


def _scale_rows(weights: Array, basis: Any) -> Any:
    return jtu.tree_map(lambda q: q * weights.astype(q.dtype).reshape(-1, *(1,) * (q.ndim - 1)), basis)


def _nonzero(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)


def _unit(tree: Any) -> tuple[Any, Array]:
    # Near one in size, so that squares neither overflow nor underflow; and what it was divided by.
    size = scale_of(tree, tree_dot)
    return tree_scale(1 / size, tree), size


def _norm(tree: Any) -> Array:
    unit, size = _unit(tree)
    return size * tree_norm(unit)


def _orthonormal(rows: Array) -> Array:
    # Rows that span the given ones, orthonormal; zero for what is dependent.
    for size in (lambda x: jnp.max(jnp.abs(x), axis=1), lambda x: jnp.linalg.norm(x, axis=1)):
        rows = rows / _nonzero(size(rows))[:, None].astype(rows.dtype)
    q, r = jnp.linalg.qr(rows.T)
    u, values, _ = jnp.linalg.svd(r, full_matrices=False)
    independent = values > 8 * rows.shape[0] * float(jnp.finfo(values.dtype).eps) * values[0]
    return _scale_rows(independent, matmul(q, u).T)


def saddle(H_inv: lx.AbstractLinearOperator, S_inv: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    r"""Precondition a [`implicit_core.operators.SaddleOperator`][] by its two diagonal blocks, for MINRES.

    With the exact inverses of $H$ (positive definite) and of $C H^{-1} C^\top$ the preconditioned operator has three
    eigenvalues, 1 and $(1 \pm \sqrt 5)/2$, so MINRES takes three steps; with approximations, as many as these are worth.

    **Arguments:**

    - `H_inv`: approximates the inverse of `H`, tagged positive semidefinite.
    - `S_inv`: approximates the inverse of $C H^{-1} C^\top + \delta I$, likewise.

    **Raises:**

    `ValueError` if either is not tagged.

    !!! Example

        ```python
        saddle(jacobi(H), jacobi(NormalOperator(C.T)))
        ```
    """
    _check_precond("H_inv", H_inv)
    _check_precond("S_inv", S_inv)
    return BlockOperator([[H_inv, None], [None, S_inv]], tags=_PSD)
