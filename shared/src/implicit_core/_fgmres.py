from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Bool, Float, Inexact, Int

from ._batched import loop
from ._custom_types import RealScalar
from ._krylov import AbstractKrylov, Mode, Run, preconditioner
from ._misc import stack_combine, stack_dot, stop_gradient, tree_norm, tree_scale


class FGMRES(AbstractKrylov):
    r"""Solve any square system by flexible GMRES with restarts.

    The preconditioner is applied on the right, so the residual that is minimised is the true one; it need not be linear,
    nor the same at every step. Orthogonalisation is done twice, and a cycle ends as soon as the tolerance is met. One
    product a step; memory for `restart` vectors, twice as many with a preconditioner. Stopping, outcomes and `stats` are those of
    [`implicit_core.krylov.PCG`][]. Reach for `PCG` or `MINRES` where the operator is symmetric.

    **Arguments:**

    - `rtol`, `atol`, `max_steps`, `mode`: as for [`implicit_core.krylov.PCG`][].
    - `precond`: an approximation of the inverse, a `lineax.AbstractLinearOperator`, which needs no tag. It is transposed
        for reverse mode.
    - `restart`: the number of steps after which to start again from the residual. Larger is more robust, and dearer:
        a step makes about `4 n restart` multiplications beside the product.

    A cycle that lowers the residual by less than one per cent ends the solve.

    **Raises:**

    `ValueError` as [`implicit_core.krylov.PCG`][], and for a `restart` below one.

    !!! Example

        ```python
        operator = lx.MatrixLinearOperator(jnp.array([[1.0, 2.0], [0.0, 1.0]]))
        lx.linear_solve(operator, jnp.ones(2), FGMRES(rtol=1e-6)).value  # [-1. 1.]
        ```

    ??? cite "Reference"

        Saad, "A flexible inner-outer preconditioned GMRES algorithm", SIAM J. Sci. Comput. 14 (1993), Algorithm 2.2.
    """

    rtol: RealScalar | None = eqx.field(default=None, converter=stop_gradient)
    atol: RealScalar = eqx.field(default=0.0, converter=stop_gradient)
    max_steps: int | None = eqx.field(default=None, static=True)
    precond: lx.AbstractLinearOperator | None = eqx.field(default=None, converter=stop_gradient)
    mode: Mode = eqx.field(default="strict", static=True)
    restart: int = eqx.field(default=30, static=True)
    compact: bool = eqx.field(default=False, static=True, kw_only=True)

    _minimises_residual: ClassVar[bool] = True
    _max_rounds: ClassVar[int] = 1_000_000
    _progress: ClassVar[float] = 0.99

    def __check_init__(self):
        if self.restart < 1:
            raise ValueError(f"`restart` must be at least one step; got {self.restart}")

    def _prepare(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> tuple[Any, int]:
        return preconditioner(self.precond, operator, options, definite=False), 1

    def _run(self, mv: Callable[[Any], Any], aux: Any, r: Any, rnorm: Array, tol: Array, max_steps: Array) -> Run:
        m = min(self.restart, sum(leaf.size for leaf in jtu.tree_leaves(r)))
        precond_mv = None if aux is None else aux.mv

        def active(c: _Cycle) -> Array:
            return (c.rnorm > tol) & (c.k < jnp.minimum(m, max_steps)) & c.sound

        c = loop(active, lambda c: _step(c, mv, precond_mv), _init(r, rnorm, m, precond_mv), compact=self.compact)
        # Columns that were not reached are unit vectors with nothing on the right: they add nothing.
        rhs = jnp.where(jnp.arange(m, dtype=jnp.int32) < c.k, c.g[:m], 0)
        y = jax.scipy.linalg.solve_triangular(c.R, rhs)
        basis = jtu.tree_map(lambda leaf: leaf[:m], c.V) if c.Z is None else c.Z
        diagonal = jnp.where(jnp.arange(m, dtype=jnp.int32) < c.k, jnp.abs(jnp.diagonal(c.R)), jnp.nan)
        cond = jnp.nanmax(diagonal) / jnp.nanmin(diagonal)
        false = c.rnorm < 0
        return Run(stack_combine(y, basis), c.rnorm, c.k, c.k, c.norm, cond, false, c.nonfinite)


class _Cycle(eqx.Module):
    k: Int[Array, ""]
    V: Any  # the orthonormal basis, in leaves with a leading axis of l = m + 1
    Z: Any  # M V, with m; `None` without a preconditioner
    Q: Inexact[Array, "l l"]  # the product of the Givens rotations
    R: Inexact[Array, "m m"]  # Q H, upper triangular
    g: Inexact[Array, " l"]  # Q e_1 |r|
    rnorm: Float[Array, ""]
    norm: Float[Array, ""]  # estimate of that of the preconditioned operator
    sound: Bool[Array, ""]
    nonfinite: Bool[Array, ""]


def _init(r, rnorm, m, precond_mv) -> _Cycle:
    unit = tree_scale(1 / jnp.where(rnorm > 0, rnorm, 1), r)
    V = jtu.tree_map(lambda x: jnp.zeros((m + 1, *x.shape), x.dtype).at[0].set(x), unit)
    dtype = jax.eval_shape(stack_dot, V, r).dtype
    return _Cycle(
        k=jnp.zeros((), jnp.int32),
        V=V,
        Z=None if precond_mv is None else jtu.tree_map(lambda x: jnp.zeros((m, *x.shape), x.dtype), r),
        Q=jnp.eye(m + 1, dtype=dtype),
        R=jnp.eye(m, dtype=dtype),
        g=jnp.zeros(m + 1, dtype).at[0].set(rnorm.astype(dtype)),
        rnorm=rnorm,
        norm=0 * rnorm,
        sound=jnp.isfinite(rnorm),
        nonfinite=~jnp.isfinite(rnorm),
    )


def _step(c: _Cycle, mv, precond_mv) -> _Cycle:
    eps = float(jnp.finfo(c.rnorm.dtype).eps)
    k, dtype = c.k, c.g.dtype
    v = jtu.tree_map(lambda leaf: leaf[k], c.V)
    z = v if precond_mv is None else precond_mv(v)
    w = mv(z)
    length = tree_norm(w)
    # Gram-Schmidt twice: once loses orthogonality in proportion to the condition number.
    h = jnp.zeros_like(c.g)
    for _ in range(2):
        more = stack_dot(c.V, w)
        w = jtu.tree_map(jnp.subtract, w, stack_combine(more, c.V))
        h = h + more
    rest = tree_norm(w)
    # What is left after cancellation is rounding: the space is invariant, and the solution in it exact.
    rest = jnp.where(rest > 10 * eps * length, rest, 0)
    column = c.Q @ h.at[k + 1].set(rest.astype(dtype))
    # A Givens rotation of rows k and k + 1 makes the new column upper triangular.
    a, b = column[k], column[k + 1]
    rho = jnp.hypot(jnp.abs(a), jnp.abs(b))
    finite = jnp.isfinite(length) & jnp.isfinite(rho)
    norm = jnp.maximum(c.norm, length)
    # Where the column is dependent on the others the operator is singular, and this direction of no use.
    sound = finite & (rho > eps ** (2 / 3) * norm)
    safe = jnp.where(sound, rho, 1).astype(dtype)
    rotation = jnp.stack([jnp.stack([jnp.conj(a), jnp.conj(b)]), jnp.stack([-b, a])]) / safe
    pair = jnp.stack([k, k + 1])
    column = column.at[pair].set(jnp.stack([rho.astype(dtype), jnp.zeros((), dtype)]))
    g = c.g.at[pair].set(rotation @ c.g[pair])

    def put(stack, leaf, index):
        return jax.lax.dynamic_update_index_in_dim(stack, leaf.astype(stack.dtype), index, 0)

    unit = tree_scale(1 / jnp.where(rest > 0, rest, 1), w)
    new = _Cycle(
        k=k + 1,
        V=jtu.tree_map(lambda stack, leaf: put(stack, jnp.where(rest > 0, leaf, 0), k + 1), c.V, unit),
        Z=None if c.Z is None else jtu.tree_map(lambda stack, leaf: put(stack, leaf, k), c.Z, z),
        Q=c.Q.at[pair].set(rotation @ c.Q[pair]),
        R=c.R.at[:, k].set(column[:-1]),
        g=g,
        rnorm=jnp.abs(g[k + 1]),
        norm=norm,
        sound=sound & (rest > 0),
        nonfinite=c.nonfinite | ~finite,
    )
    small = lambda cycle: (cycle.k, cycle.Q, cycle.R, cycle.g, cycle.rnorm)
    # A step that cannot be trusted is not taken; the basis beyond `k` is never read.
    kept = jtu.tree_map(lambda u, v: jnp.where(sound, u, v), small(new), small(c))
    return eqx.tree_at(small, new, kept)
