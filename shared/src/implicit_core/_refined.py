from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, DTypeLike

from ._custom_types import RealScalar
from ._krylov import AbstractKrylov, Mode, Run
from ._misc import stop_gradient, tree_norm, tree_scale


class Refined(AbstractKrylov):
    r"""Solve in low precision, and correct in high: iterative refinement around any square Lineax solver.

    `inner` works on a copy of the operator in `dtype`; the residual is computed in the operator's own precision, and the
    correction is solved for again, until the tolerance is met. It converges while the condition number is well below
    `1 / eps` of `dtype`. A dense float64 system is factored in float32, at half the memory. Stopping, outcomes and `stats` are
    those of [`implicit_core.krylov.PCG`][], where a step is one inner solve.

    **Arguments:**

    - `inner`: the solver, for instance `lineax.LU()` or `PCG(rtol=1e-3)`.
    - `dtype`: the precision in which it works; for complex operators its complex counterpart is taken.
    - `rtol`, `atol`, `mode`: as for [`implicit_core.krylov.PCG`][].
    - `max_steps`: limit on the number of corrections. `None` means 50.

    **Raises:**

    `ValueError` as [`implicit_core.krylov.PCG`][], and for an operator that cannot be converted because its precision is
    not that of its arrays (a function of unknown precision, say): materialise it first.

    !!! Example

        ```python
        lx.linear_solve(lx.MatrixLinearOperator(matrix), b, Refined(lx.LU(), rtol=1e-12))
        ```

    ??? cite "Reference"

        Higham, "Accuracy and Stability of Numerical Algorithms" (2002), chapter 12.
    """

    inner: lx.AbstractLinearSolver = eqx.field(converter=stop_gradient)
    dtype: DTypeLike = eqx.field(default=jnp.float32, static=True)
    rtol: RealScalar | None = eqx.field(default=None, converter=stop_gradient)
    atol: RealScalar = eqx.field(default=0.0, converter=stop_gradient)
    max_steps: int | None = eqx.field(default=50, static=True)
    mode: Mode = eqx.field(default="strict", static=True)

    _minimises_residual: ClassVar[bool] = True
    _max_rounds: ClassVar[int] = 1_000_000
    _progress: ClassVar[float] = 0.5

    def _prepare(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> tuple[Any, int]:
        low = jtu.tree_map(lambda leaf: leaf.astype(self._low(leaf)) if eqx.is_inexact_array(leaf) else leaf, operator)
        wanted = [self._low(leaf) for leaf in jtu.tree_leaves(operator.in_structure())]
        try:
            got = [leaf.dtype for leaf in jtu.tree_leaves(low.in_structure())]
        except (TypeError, ValueError):
            got = None
        if got != wanted:
            raise ValueError(
                f"`Refined` cannot convert a `{type(operator).__name__}` to {jnp.dtype(self.dtype)}: its structure does not "
                "follow its arrays. Materialise it, as a `lineax.MatrixLinearOperator`, say."
            )
        options = {} if "preconditioner" not in options else {"preconditioner": options["preconditioner"]}
        return _Inner(self.inner, self.inner.init(low, options)), 1

    def _low(self, leaf: Any) -> Any:
        dtype = jnp.dtype(self.dtype)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            return jnp.dtype(f"complex{2 * jnp.finfo(dtype).bits}")
        return dtype

    def _run(self, mv: Callable[[Any], Any], aux: Any, r: Any, rnorm: Array, tol: Array, max_steps: Array) -> Run:
        safe = jnp.where((rnorm > 0) & jnp.isfinite(rnorm), rnorm, 1)
        unit = jtu.tree_map(lambda leaf: leaf.astype(self._low(leaf)), tree_scale(1 / safe, r))
        del mv, tol, max_steps
        d, _, _ = self.inner.compute(aux.state, unit, {})
        d = tree_scale(safe, jtu.tree_map(lambda new, old: new.astype(old.dtype), d, r))
        size = tree_norm(d)
        one = jnp.ones((), jnp.int32)
        finite = jnp.isfinite(size)
        d = jtu.tree_map(lambda leaf: jnp.where(finite, leaf, 0), d)
        # |A| is not known; that no correction was of use shows that the floor is reached.
        return Run(d, rnorm, one, 0 * one, 0 * rnorm, jnp.nan * rnorm, rnorm < 0, ~finite)


class _Inner(eqx.Module):
    solver: lx.AbstractLinearSolver
    state: Any

    def transpose(self) -> "_Inner":
        return _Inner(self.solver, self.solver.transpose(self.state, {})[0])

    def conj(self) -> "_Inner":
        return _Inner(self.solver, self.solver.conj(self.state, {})[0])
