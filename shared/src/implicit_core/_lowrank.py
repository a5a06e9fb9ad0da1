import dataclasses
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy as jsp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Bool, Inexact

from ._operator import AbstractOperator, as_tags, check_operator, common_dtype, dense, diagonal, matmul, tags_of


class LowRankUpdate(AbstractOperator):
    r"""$B + U C V^\top$, for a few columns of $U$ and $V$. Solve with [`implicit_core.operators.Woodbury`][].

    Within-class scatter matrices (neural collapse) and the inverse Jacobians of Broyden's method need it. Columns of
    zeros are harmless. The transpose is meant even for complex `V`: a Hermitian update has `V = U.conj()`.

    **Arguments:**

    - `base`: $B$, an operator on arrays of one axis.
    - `U`, `V`: arrays of shape `(rows, k)` and `(columns, k)`; `V` is `U` if `None`.
    - `C`: array of shape `(k, k)`, need not be invertible; the identity if `None`.
    - `tags`: Lineax tags of the sum, unchecked. They need not be given where `C` and `V` are `None`: then symmetry is
        that of `base`, and for real arrays so is positive semidefiniteness.

    **Raises:**

    `ValueError` if the shapes do not fit or `base` is not on arrays of one axis, `TypeError` if it is not an operator.

    !!! Example

        ```python
        base = lx.DiagonalLinearOperator(jnp.ones(5))
        operator = LowRankUpdate(base, jnp.ones((5, 1)))
        lx.linear_solve(operator, jnp.ones(5), Woodbury()).value  # 1/6 each
        ```
    """

    base: lx.AbstractLinearOperator
    U: Inexact[Array, "m k"]
    C: Inexact[Array, "k k"] | None
    V: Inexact[Array, "n k"] | None
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(
        self,
        base: lx.AbstractLinearOperator,
        U: Inexact[Array, "..."],
        C: Inexact[Array, "..."] | None = None,
        V: Inexact[Array, "..."] | None = None,
        *,
        tags: object | Iterable[object] = (),
    ):
        check_operator("base", base)
        rows, cols = (jtu.tree_leaves(s) for s in (base.out_structure(), base.in_structure()))
        if [leaf.ndim for leaf in rows + cols] != [1, 1]:
            raise ValueError(f"`base` must act on arrays of one axis; got one from {cols} to {rows}")
        rank = U.shape[-1] if U.ndim else 0
        wanted = (("U", U, (rows[0].size, rank)), ("C", C, (rank, rank)), ("V", V, (cols[0].size, rank)))
        for name, array, shape in wanted:
            if array is not None and (array.shape != shape or rank == 0):
                raise ValueError(f"`{name}` must have shape {shape} with at least one column; got {array.shape}")
        if V is None and rows[0].size != cols[0].size:
            raise ValueError(f"`V` must be given for a `base` that is not square; got one from {cols} to {rows}")
        kept = []
        if C is None and V is None:
            kept = [lx.symmetric_tag] + [lx.positive_semidefinite_tag] * (not jnp.iscomplexobj(U))
        self.base = base
        self.U = U
        self.C = C
        self.V = V
        self.tags = as_tags(tags) | (tags_of(base, *kept) if kept else frozenset())

    def mv(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        """Return the product with a vector."""
        _, right = self.factors()
        return self.base.mv(vector) + matmul(self.U, matmul(right.T, vector))

    def as_matrix(self) -> Inexact[Array, "m n"]:
        """Return the dense matrix."""
        left, right = self.factors()
        return dense(self.base) + matmul(left, right.T)

    def transpose(self) -> "LowRankUpdate":
        """Return the transpose."""
        if lx.is_symmetric(self):
            return self
        C = None if self.C is None else self.C.T
        V = self.U if self.V is None else self.V
        return LowRankUpdate(self.base.transpose(), V, C, self.U, tags=lx.transpose_tags(self.tags))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Return the shape and dtype of what the operator acts on."""
        return self.base.in_structure()

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """Return the shape and dtype of its products."""
        return self.base.out_structure()

    def factors(self) -> tuple[Inexact[Array, "m k"], Inexact[Array, "n k"]]:
        r"""Return $U$ and $V C^\top$: the update is the first times the transpose of the second."""
        V = self.U if self.V is None else self.V
        return self.U, V if self.C is None else matmul(V, self.C.T)


@lx.diagonal.register(LowRankUpdate)
def _(operator):
    left, right = operator.factors()
    inner = diagonal(operator.base)
    return inner + jnp.sum(left[: inner.size] * right[: inner.size], axis=1)


class _State(eqx.Module):
    operator: LowRankUpdate
    inner: Any  # the state of the inner solver, for `base` or its transpose
    solved: Array  # base^-1 U, never transposed
    right: Array  # V C^T
    factor: tuple[Array, Array]  # LU of the scaled capacitance matrix
    scales: tuple[Array, Array]
    singular: Bool[Array, ""]
    columns: Any  # the `lineax.RESULTS` of base^-1 U
    transposed: bool = eqx.field(static=True, default=False)
    conjugated: bool = eqx.field(static=True, default=False)


class Woodbury(lx.AbstractLinearSolver[_State]):
    r"""Solve with a [`implicit_core.operators.LowRankUpdate`][] through solves with its base. A Lineax solver.

    $(B + U W^\top)^{-1} = B^{-1} - Z (I + W^\top Z)^{-1} W^\top B^{-1}$ with $W = V C^\top$ and $Z = B^{-1} U$, which is
    computed once. Both the base and the sum must be well-conditioned for the digits at hand: cancellation loses as many
    as the update is larger than the base. A singular capacitance matrix $I + W^\top Z$, or a residual above a tenth of
    the right-hand side, is reported as `lineax.RESULTS.singular`; what the inner solver reports is passed on.

    **Arguments:**

    - `inner`: the solver for the base. It gets no `options`: what it needs must be in itself.

    !!! Example

        ```python
        lx.linear_solve(LowRankUpdate(lx.DiagonalLinearOperator(d), U), b, Woodbury())
        ```

    ??? cite "Reference"

        Hager, "Updating the inverse of a matrix", SIAM Review 31 (1989).
    """

    inner: lx.AbstractLinearSolver = lx.AutoLinearSolver(well_posed=True)

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> _State:
        """Solve for the columns of the update. See `lineax.AbstractLinearSolver.init`."""
        del options
        while isinstance(operator, lx.TaggedLinearOperator):
            operator = operator.operator
        if not isinstance(operator, LowRankUpdate) or operator.in_size() != operator.out_size():
            raise ValueError(f"`Woodbury` needs a square `LowRankUpdate`; got {type(operator).__name__}")
        inner = self.inner.init(operator.base, {})
        left, right = operator.factors()
        dtype = common_dtype(operator.in_structure(), left, right)

        def column(u):
            x, result, _ = self.inner.compute(inner, u, {})
            return x, result

        solved, results = jax.vmap(column, in_axes=1, out_axes=(1, 0))(left)
        worst = jnp.argmax(results != lx.RESULTS.successful)
        update = matmul(right.T, solved).astype(dtype)
        eye = jnp.eye(update.shape[0], dtype=dtype)
        # Singular means that the sum is small against its terms, whatever the scales of the columns.
        terms = jnp.abs(update) + jnp.abs(eye)
        rows = 1 / jnp.max(terms, axis=1)
        cols = 1 / jnp.max(rows[:, None] * terms, axis=0)
        scales = rows.astype(dtype), cols.astype(dtype)
        factor = jsp.linalg.lu_factor(scales[0][:, None] * (eye + update) * scales[1][None, :])
        pivots = jnp.abs(jnp.diagonal(factor[0]))
        singular = ~(jnp.min(pivots) > 8 * eye.shape[0] * float(jnp.finfo(dtype).eps))
        factor = jtu.tree_map(lambda a, b: jnp.where(singular, a, b), jsp.linalg.lu_factor(eye), factor)
        # With these the correction is zero.
        scales = jtu.tree_map(lambda scale: jnp.where(singular, 0, scale), scales)
        columns = jtu.tree_map(lambda leaf: leaf[worst], results)
        return _State(operator, inner, solved, right, factor, scales, singular, columns)

    def compute(
        self, state: _State, vector: Inexact[Array, " m"], options: dict[str, Any]
    ) -> tuple[Inexact[Array, " n"], lx.RESULTS, dict[str, Any]]:
        """Solve against `vector`. See `lineax.AbstractLinearSolver.compute`."""
        del options
        # Not the inner solver's `conj`: that of `lineax.LU` 0.1.1 transposes as well.
        b = vector.conj() if state.conjugated else vector
        x, result, stats = self._solve(state, b)
        operator = state.operator.transpose() if state.transposed else state.operator
        wrong = state.singular | ~(jnp.linalg.norm(b - operator.mv(x)) <= 0.1 * jnp.linalg.norm(b))
        ok = lx.RESULTS.successful
        result = lx.RESULTS.where(result == ok, state.columns, result)
        wrong = wrong & (result == ok)
        result = lx.RESULTS.where(wrong, lx.RESULTS.singular, result)
        return x.conj() if state.conjugated else x, result, stats

    def _solve(self, state, b):
        trans = int(state.transposed)
        rows, cols = state.scales if not trans else state.scales[::-1]

        def small(c):
            return cols * jsp.linalg.lu_solve(state.factor, rows * c, trans=trans)

        if state.transposed:
            b = b - matmul(state.right, small(matmul(state.solved.T, b)))
            return self.inner.compute(state.inner, b, {})
        x, result, stats = self.inner.compute(state.inner, b, {})
        return x - matmul(state.solved, small(matmul(state.right.T, x))), result, stats

    def transpose(self, state: _State, options: dict[str, Any]) -> tuple[_State, dict[str, Any]]:
        """Transpose; nothing is solved anew. See `lineax.AbstractLinearSolver.transpose`."""
        inner, _ = self.inner.transpose(state.inner, {})
        return dataclasses.replace(state, inner=inner, transposed=not state.transposed), options

    def conj(self, state: _State, options: dict[str, Any]) -> tuple[_State, dict[str, Any]]:
        """Conjugate; nothing is solved anew. See `lineax.AbstractLinearSolver.conj`."""
        return dataclasses.replace(state, conjugated=not state.conjugated), options

    def assume_full_rank(self) -> bool:
        """Return `True`: base and capacitance matrix are nonsingular."""
        return True
