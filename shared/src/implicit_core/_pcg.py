from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import lineax as lx
from jaxtyping import Array

from ._custom_types import RealScalar
from ._krylov import AbstractKrylov, Mode, Run, preconditioner
from ._misc import stop_gradient, tree_dot
from ._pcg_kernel import pcg_loop


class PCG(AbstractKrylov):
    r"""Solve a positive (or negative) definite system by preconditioned conjugate gradients, and say how well.

    Unlike `lineax.CG` it stops on the 2-norm of the residual, relative to that of the right-hand side, whatever the
    scale of either; it recomputes the true residual at the end and refines if rounding made the recurrence drift;
    its preconditioner lives in the solver, so it reaches derivatives; and it is never NaN for finite input. It takes
    pytrees and complex Hermitian operators, and works under `jit`, `vmap`, forward and reverse mode.

    The operator must carry `lineax.positive_semidefinite_tag` or `lineax.negative_semidefinite_tag`. As with
    `lineax.CG`, `options` may hold a `"preconditioner"` (which then replaces `precond`) and a first iterate `"y0"`.

    **Arguments:**

    - `rtol`: stop when $\lVert b - A x\rVert_2 \le \max(\text{rtol}\lVert b\rVert_2, \text{atol})$. `None` means
        `eps ** 0.75` of the dtype: 6e-6 in float32, 2e-12 in float64.
    - `atol`: the absolute tolerance.
    - `max_steps`: limit on the number of steps over all rounds. `None` means `min(10 n, 10_000)`, at least 100.
    - `precond`: an approximation of the *inverse* of the operator, a `lineax.AbstractLinearOperator` of the same
        structure with `lineax.positive_semidefinite_tag`. For a negative definite operator: of the inverse of its
        negative.
    - `mode`: in `"strict"` a solve whose *true* residual misses ten times the tolerance reports failure, which
        `lineax.linear_solve` raises unless `throw=False`. In `"soft"` it reports success whatever happened, so that a
        backward pass never raises, and the truth is in `stats`; only non-finite numbers still raise.
    - `stagnation`: number of steps without progress after which to stop.
    - `dot`: real inner product of two pytrees; see [`implicit_core.krylov.pcg`][].
    - `lower_bound`: a positive number that is known to be at most the smallest eigenvalue of the operator, or of
        $M A$ with a preconditioner $M$ (a ridge, a modulus of strong convexity). With it the certificate holds
        `error_lower` and `error_upper` on $\lVert x - x_*\rVert_A$, at the price of one more product. For a negative
        definite operator: of its negative.
    - `compact`: make `jax.vmap` drop examples that are done; set by [`implicit_core.batched.solve`][].

    The `stats` of the solution hold `num_steps`, `num_matvecs`, `result` (an [`implicit_core.RESULTS`][], honest in
    either mode) and `certificate` (a [`implicit_core.certify.Certificate`][] on the relative residual).

    **Raises:**

    `ValueError` for negative tolerances, an unknown `mode`, an operator that is not square or not tagged definite, and
    a preconditioner that is not tagged or not of the operator's structure.

    !!! Example

        ```python
        operator = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
        solution = lx.linear_solve(operator, b, PCG(rtol=1e-6))
        solution.stats["certificate"].true_relres
        ```

    ??? cite "Reference"

        Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49 (1952); the error bounds: Golub and Meurant, "Matrices,
        moments and quadrature II", BIT 37 (1997).
    """

    rtol: RealScalar | None = eqx.field(default=None, converter=stop_gradient)
    atol: RealScalar = eqx.field(default=0.0, converter=stop_gradient)
    max_steps: int | None = eqx.field(default=None, static=True)
    precond: lx.AbstractLinearOperator | None = eqx.field(default=None, converter=stop_gradient)
    mode: Mode = eqx.field(default="strict", static=True)
    stagnation: int = eqx.field(default=50, static=True)
    dot: Callable[[Any, Any], Array] = eqx.field(default=tree_dot, static=True)
    lower_bound: RealScalar | None = eqx.field(default=None, converter=stop_gradient)
    compact: bool = eqx.field(default=False, static=True, kw_only=True)

    _minimises_residual: ClassVar[bool] = False
    # Refinement restarts from the true residual: two are enough to reach the floor whenever one would help at all.
    _max_rounds: ClassVar[int] = 3
    _progress: ClassVar[float] = 0.5

    def __check_init__(self):
        if self.stagnation < 1:
            raise ValueError(f"`stagnation` must be at least one step; got {self.stagnation}")
        if isinstance(self.lower_bound, int | float) and not self.lower_bound > 0:
            raise ValueError(f"`lower_bound` must be positive; got {self.lower_bound}")

    def _prepare(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> tuple[Any, int]:
        negative = lx.is_negative_semidefinite(operator)
        if not (negative or lx.is_positive_semidefinite(operator)):
            raise ValueError(
                "`PCG` needs an operator that is tagged positive or negative semidefinite. If it is, say so with "
                "`lineax.TaggedLinearOperator(operator, lineax.positive_semidefinite_tag)`; if it is symmetric only, "
                "use `MINRES`."
            )
        return preconditioner(self.precond, operator, options), -1 if negative else 1

    def _run(self, mv: Callable[[Any], Any], aux: Any, r: Any, rnorm: Array, tol: Array, max_steps: Array) -> Run:
        c = pcg_loop(
            mv,
            r,
            rnorm,
            precond_mv=None if aux is None else aux.mv,
            tol=tol,
            max_steps=max_steps,
            stagnation=self.stagnation,
            dot=self.dot,
            lower_bound=self.lower_bound,
            compact=self.compact,
        )
        return Run(
            x=c.x,
            rnorm=c.rnorm,
            num_steps=c.k,
            num_matvecs=c.k,
            norm_estimate=c.norm_estimate,
            cond=c.watched.high / c.ritz_min(self.dot),
            indefinite=c.indefinite,
            nonfinite=c.nonfinite,
            tail=None if self.lower_bound is None else (c.gauss, c.g, c.r),
        )
