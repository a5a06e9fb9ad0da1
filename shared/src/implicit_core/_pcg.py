from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._certificate import Certificate
from ._custom_types import RealScalar
from ._misc import real_dtype, tree_axpy, tree_dot, tree_scale
from ._pcg_kernel import pcg_loop, scale_of
from ._results import RESULTS


_State: TypeAlias = tuple[lx.AbstractLinearOperator, lx.AbstractLinearOperator | None, eqxi.Static]

# Refinement restarts from the true residual: two are enough to reach the floor whenever one would help at all.
_MAX_ROUNDS = 3


def _frozen(x: Any) -> Any:
    # Neither a preconditioner nor a tolerance changes the solution, so neither has a derivative.
    dynamic, static = eqx.partition(x, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(dynamic), static)


class _Rounds(eqx.Module):
    count: Int[Array, ""]
    x: Any
    r: Any  # the true residual b - A x
    rnorm: Float[Array, ""]
    recurrence: Float[Array, ""]
    num_steps: Int[Array, ""]
    cond: Float[Array, ""]
    go_on: Bool[Array, ""]
    indefinite: Bool[Array, ""]
    nonfinite: Bool[Array, ""]


class PCG(lx.AbstractLinearSolver[_State]):
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

        Sections 4.1 and 5.1 of the core's specification.
    """

    rtol: RealScalar | None = eqx.field(default=None, converter=_frozen)
    atol: RealScalar = eqx.field(default=0.0, converter=_frozen)
    max_steps: int | None = eqx.field(default=None, static=True)
    precond: lx.AbstractLinearOperator | None = eqx.field(default=None, converter=_frozen)
    mode: Literal["strict", "soft"] = eqx.field(default="strict", static=True)
    stagnation: int = eqx.field(default=50, static=True)
    dot: Callable[[Any, Any], Array] = eqx.field(default=tree_dot, static=True)

    def __check_init__(self):
        for name, tolerance in (("rtol", self.rtol), ("atol", self.atol)):
            if isinstance(tolerance, int | float) and not tolerance >= 0:
                raise ValueError(f"`{name}` must be non-negative; got {tolerance}")
        if self.mode not in ("strict", "soft"):
            raise ValueError(f'`mode` must be "strict" or "soft"; got {self.mode!r}')
        if self.stagnation < 1:
            raise ValueError(f"`stagnation` must be at least one step; got {self.stagnation}")
        if self.max_steps is not None and self.max_steps < 0:
            raise ValueError(f"`max_steps` must be non-negative; got {self.max_steps}")

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> _State:
        """Check the operator and linearise it. See `lineax.AbstractLinearSolver.init`."""
        if not _same_structure(operator.in_structure(), operator.out_structure()):
            raise ValueError(
                "`PCG` needs a square operator; got one from "
                f"{operator.in_structure()} to {operator.out_structure()}. Use `lineax.Normal(PCG(...))`."
            )
        negative = lx.is_negative_semidefinite(operator)
        if not (negative or lx.is_positive_semidefinite(operator)):
            raise ValueError(
                "`PCG` needs an operator that is tagged positive or negative semidefinite. If it is, say so with "
                "`lineax.TaggedLinearOperator(operator, lineax.positive_semidefinite_tag)`."
            )
        precond = options.get("preconditioner", self.precond)
        if precond is not None:
            if not lx.is_positive_semidefinite(precond):
                raise ValueError(
                    "`precond` must be tagged positive semidefinite. If it is, say so with "
                    "`lineax.TaggedLinearOperator(precond, lineax.positive_semidefinite_tag)`."
                )
            if not _same_structure(precond.in_structure(), operator.in_structure()):
                raise ValueError(
                    f"`precond` must have the operator's structure {operator.in_structure()}; "
                    f"got {precond.in_structure()}"
                )
            precond = lx.linearise(precond)
        return lx.linearise(operator), precond, eqxi.Static(negative)

    def compute(
        self, state: _State, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        """Solve against `vector`. See `lineax.AbstractLinearSolver.compute`."""
        operator, precond, negative = state
        y0 = options.get("y0")
        dtype = real_dtype(vector)
        # lineax calls this under `vmap` with the dtypes of the operator: nothing here may promote.
        sign = -1 if negative.value else 1

        def mv(v):
            return tree_scale(jnp.asarray(sign, dtype), operator.mv(v)) if negative.value else operator.mv(v)

        scale = scale_of(vector, self.dot)
        b = tree_scale(sign / scale, vector)
        bnorm = jnp.sqrt(self.dot(b, b))
        rtol = float(jnp.finfo(dtype).eps) ** 0.75 if self.rtol is None else self.rtol
        tol = jnp.maximum(jnp.asarray(rtol, dtype) * bnorm, jnp.asarray(self.atol, dtype) / scale)
        max_steps = _default_max_steps(vector) if self.max_steps is None else self.max_steps
        x = tree_scale(jnp.zeros((), dtype), b)
        r = b
        if y0 is not None:
            x = tree_axpy(jnp.where(bnorm > 0, 1 / scale, 0), y0, x)
            r = tree_axpy(-jnp.ones((), dtype), mv(x), b)
        rounds = self._refine(mv, precond, b, x, r, tol, max_steps)
        result, code = self._outcome(rounds, bnorm, tol, max_steps)
        relative = 1 / jnp.where(bnorm > 0, bnorm, 1)
        certificate = Certificate(
            quantity="relative residual |b - A x| / |b|",
            value=rounds.rnorm * relative,
            kind="proved",
            assumptions=("up to the rounding of one product with the operator",),
            true_relres=rounds.rnorm * relative,
            recurrence_relres=rounds.recurrence * relative,
            cond_estimate=rounds.cond,
        )
        stats = {
            "num_steps": rounds.num_steps,
            "num_matvecs": rounds.num_steps + rounds.count + (0 if y0 is None else 1),
            "result": result,
            "certificate": certificate,
        }
        return tree_scale(scale, rounds.x), code, stats

    def _refine(self, mv, precond, b, x, r, tol, max_steps) -> _Rounds:
        rnorm = jnp.sqrt(self.dot(r, r))
        eps = float(jnp.finfo(rnorm.dtype).eps)
        count = jnp.zeros((), jnp.int32)
        false = rnorm < 0

        def body(c: _Rounds) -> _Rounds:
            run = pcg_loop(
                mv,
                c.r,
                precond_mv=None if precond is None else precond.mv,
                tol=tol,
                max_steps=max_steps - c.num_steps,
                stagnation=self.stagnation,
                dot=self.dot,
            )
            x = tree_axpy(jnp.ones((), rnorm.dtype), run.x, c.x)
            r = tree_axpy(-jnp.ones((), rnorm.dtype), mv(x), b)
            new = jnp.sqrt(self.dot(r, r))
            # A refinement that does not lower the true residual is thrown away. The first round always counts: its
            # residual may be larger than that of zero while its error is smaller.
            keep = jnp.isfinite(new) & ((c.count == 0) | (new < c.rnorm))
            x, r = jtu.tree_map(lambda u, v: jnp.where(keep, u, v), (x, r), (c.x, c.r))
            # Storing x in this precision alone leaves a residual of about eps |A| |x|.
            floor = 10 * eps * run.watched.norm_estimate * jnp.sqrt(self.dot(x, x))
            worthwhile = keep & (new > floor) & ((c.count == 0) | (new < 0.5 * c.rnorm))
            return _Rounds(
                count=c.count + 1,
                x=x,
                r=r,
                rnorm=jnp.where(keep, new, c.rnorm),
                recurrence=jnp.where(keep, run.rnorm, c.recurrence),
                num_steps=c.num_steps + run.k,
                cond=jnp.where(c.count == 0, run.watched.high / run.watched.ritz_min, c.cond),
                go_on=worthwhile & ~(run.indefinite | run.nonfinite),
                indefinite=c.indefinite | run.indefinite,
                nonfinite=c.nonfinite | run.nonfinite | ~jnp.isfinite(new),
            )

        def active(c: _Rounds) -> Array:
            return (c.rnorm > tol) & c.go_on & (c.count < _MAX_ROUNDS) & (c.num_steps < max_steps)

        nonfinite = ~jnp.isfinite(rnorm)
        start = _Rounds(count, x, r, rnorm, rnorm, count, jnp.nan * rnorm, ~false, false, nonfinite)
        return jax.lax.while_loop(active, body, start)

    def _outcome(self, c: _Rounds, bnorm, tol, max_steps) -> tuple[RESULTS, lx.RESULTS]:
        def pick(results: Any, indefinite: Any, nonfinite: Any, nonfinite_input: Any) -> Any:
            out = results.where(c.num_steps >= max_steps, results.max_steps_reached, results.stagnation)
            out = results.where(c.indefinite, indefinite, out)
            out = results.where(c.rnorm <= 10 * tol, results.successful, out)
            out = results.where(c.nonfinite, nonfinite, out)
            return results.where(~jnp.isfinite(bnorm), nonfinite_input, out)

        result = pick(RESULTS, RESULTS.indefinite, RESULTS.nonfinite, RESULTS.nonfinite)
        if self.mode == "soft":
            return result, lx.RESULTS.successful
        # Lineax only knows its own members.
        return result, pick(lx.RESULTS, lx.RESULTS.breakdown, lx.RESULTS.singular, lx.RESULTS.nonfinite_input)

    def transpose(self, state: _State, options: dict[str, Any]) -> tuple[_State, dict[str, Any]]:
        """Transpose operator and preconditioner. See `lineax.AbstractLinearSolver.transpose`."""
        operator, precond, negative = state
        precond = None if precond is None else precond.transpose()
        return (operator.transpose(), precond, negative), _without_guess(options, lambda op: op.transpose())

    def conj(self, state: _State, options: dict[str, Any]) -> tuple[_State, dict[str, Any]]:
        """Conjugate operator and preconditioner. See `lineax.AbstractLinearSolver.conj`."""
        operator, precond, negative = state
        precond = None if precond is None else lx.conj(precond)
        return (lx.conj(operator), precond, negative), _without_guess(options, lx.conj)

    def assume_full_rank(self) -> bool:
        """Return `True`: a definite operator is nonsingular."""
        return True


def _without_guess(options: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    # A guess for one system is none for its transpose.
    return {name: change(value) for name, value in options.items() if name == "preconditioner"}


def _same_structure(x: Any, y: Any) -> bool:
    leaves_x, treedef_x = jtu.tree_flatten(x)
    leaves_y, treedef_y = jtu.tree_flatten(y)
    return treedef_x == treedef_y and all(
        a.shape == b.shape and a.dtype == b.dtype for a, b in zip(leaves_x, leaves_y, strict=True)
    )


def _default_max_steps(vector: Any) -> int:
    size = sum(leaf.size for leaf in jtu.tree_leaves(vector))
    return min(max(10 * size, 100), 10_000)
