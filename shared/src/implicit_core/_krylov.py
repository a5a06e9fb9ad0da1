import abc
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, cast, runtime_checkable

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._certificate import Certificate
from ._custom_types import RealScalar
from ._misc import real_dtype, same_structure, scale_of, tree_axpy, tree_dot, tree_scale
from ._results import RESULTS


Mode: TypeAlias = Literal["strict", "soft"]
# The operator, what the solver prepared beside it (a preconditioner, say), and the sign of the operator.
State: TypeAlias = tuple[lx.AbstractLinearOperator, Any, eqxi.Static]


class Run(eqx.Module):
    """What one run of a kernel on `A d = r`, from zero, gives back."""

    x: Any
    rnorm: Float[Array, ""]  # by the recurrence
    num_steps: Int[Array, ""]
    num_matvecs: Int[Array, ""]
    norm_estimate: Float[Array, ""]  # of A
    cond: Float[Array, ""]
    indefinite: Bool[Array, ""]
    nonfinite: Bool[Array, ""]
    tail: Any = None  # Gauss-Radau: its coefficient, <r, M r> and r of the recurrence


# Whether there is to be another round, and if not, why.
_GOING, _DONE, _INDEFINITE, _NONFINITE = range(4)


class _Rounds(eqx.Module):
    count: Int[Array, ""]
    x: Any
    r: Any  # the true residual b - A x
    rnorm: Float[Array, ""]
    last: Run  # all but its `x`
    status: Int[Array, ""]


@runtime_checkable
class _Settings(Protocol):
    # Every solver has these. As abstract fields of the base class they would come first among the arguments of each.
    rtol: RealScalar | None
    atol: RealScalar
    max_steps: int | None
    mode: Mode


class AbstractKrylov(lx.AbstractLinearSolver[State]):
    """What all our iterative solvers share: scaling, tolerances, the true residual, restarts, outcomes.

    A subclass has a kernel, `_run`, that solves `A d = r` from zero. Around it `b` is scaled by a power of two; the
    residual is computed anew after each run; while it misses the tolerance, and a restart helps, the kernel runs again on
    it (which is iterative refinement, or the restarts of GMRES); and the outcome is judged by the true residual.
    """

    _minimises_residual: ClassVar[bool]
    _max_rounds: ClassVar[int]
    _progress: ClassVar[float]  # by how much a run must shrink the residual for another to be worthwhile

    def _settings(self) -> _Settings:
        return cast(_Settings, self)

    def __check_init__(self):
        settings = self._settings()
        for name, tolerance in (("rtol", settings.rtol), ("atol", settings.atol)):
            if isinstance(tolerance, int | float) and not tolerance >= 0:
                raise ValueError(f"`{name}` must be non-negative; got {tolerance}")
        if settings.mode not in ("strict", "soft"):
            raise ValueError(f'`mode` must be "strict" or "soft"; got {settings.mode!r}')
        if settings.max_steps is not None and settings.max_steps < 0:
            raise ValueError(f"`max_steps` must be non-negative; got {settings.max_steps}")

    @abc.abstractmethod
    def _prepare(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> tuple[Any, int]:
        """Check the operator; return what the kernel needs beside it, and minus one if it is to be given the negative."""

    @abc.abstractmethod
    def _run(self, mv: Callable[[Any], Any], aux: Any, r: Any, rnorm: Array, tol: Array, max_steps: Array) -> Run:
        """Solve `A d = r` from zero until the norm of the residual, `rnorm` at first, is below `tol`."""

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> State:
        """Check the operator and linearise it. See `lineax.AbstractLinearSolver.init`."""
        if not same_structure(operator.in_structure(), operator.out_structure()):
            raise ValueError(
                f"`{type(self).__name__}` needs a square operator; got one from {operator.in_structure()} to "
                f"{operator.out_structure()}. Solve the normal equations, `lineax.Normal(PCG(...))`, or use `lineax.LSMR`."
            )
        operator = lx.linearise(operator)
        aux, sign = self._prepare(operator, options)
        return operator, aux, eqxi.Static(sign)

    def compute(
        self, state: State, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        """Solve against `vector`. See `lineax.AbstractLinearSolver.compute`."""
        operator, aux, sign = state
        settings = self._settings()
        y0 = options.get("y0")
        dtype = real_dtype(vector)

        def mv(v):
            # lineax calls this under `vmap` with the dtypes of the operator: nothing here may promote.
            out = operator.mv(v)
            return tree_scale(jnp.asarray(-1, dtype), out) if sign.value < 0 else out

        # Only some have these.
        dot, lower_bound = getattr(self, "dot", tree_dot), getattr(self, "lower_bound", None)
        scale = scale_of(vector, dot)

        def scaled(count):
            # Formed anew in every round: for a large vector, room for a copy costs more than the multiplication. XLA
            # would move it out of the loop, were it not for a condition on the round, which never holds.
            return tree_scale(jnp.where(count < 0, 1, sign.value / scale), vector)

        b = scaled(0)
        bnorm = jnp.sqrt(dot(b, b))
        rtol = float(jnp.finfo(dtype).eps) ** 0.75 if settings.rtol is None else settings.rtol
        tol = jnp.maximum(jnp.asarray(rtol, dtype) * bnorm, jnp.asarray(settings.atol, dtype) / scale)
        max_steps = default_max_steps(vector) if settings.max_steps is None else settings.max_steps
        x, r = tree_scale(jnp.zeros((), dtype), b), b
        if y0 is not None:
            x = tree_axpy(jnp.where(bnorm > 0, 1 / scale, 0), y0, x)
            r = tree_axpy(-jnp.ones((), dtype), mv(x), b)
        rounds = self._iterate(mv, aux, scaled, x, r, tol, max_steps, dot)
        result, code = self._outcome(rounds, bnorm, tol, max_steps)
        relative = 1 / jnp.where(bnorm > 0, bnorm, 1)
        lower, upper, known = None, None, ()
        if lower_bound is not None:
            lower, upper = _error_bounds(mv, aux, rounds, lower_bound, dot)
            known = ("for the error: `lower_bound` is at most the smallest eigenvalue of the preconditioned operator",)
        certificate = Certificate(
            quantity="relative residual |b - A x| / |b|",
            value=rounds.rnorm * relative,
            kind="proved",
            assumptions=("up to the rounding of one product with the operator", *known),
            true_relres=rounds.rnorm * relative,
            recurrence_relres=rounds.last.rnorm * relative,
            cond_estimate=rounds.last.cond,
            error_lower=None if lower is None else lower * scale,
            error_upper=None if upper is None else upper * scale,
            error_norm=None if lower is None else "energy norm",
        )
        stats = {
            "num_steps": rounds.last.num_steps,
            "num_matvecs": rounds.last.num_matvecs + rounds.count + (0 if y0 is None else 1),
            "result": result,
            "certificate": certificate,
        }
        return tree_scale(scale, rounds.x), code, stats

    def _iterate(self, mv, aux, b, x, r, tol, max_steps, dot) -> _Rounds:
        rnorm = jnp.sqrt(dot(r, r))
        eps = float(jnp.finfo(rnorm.dtype).eps)
        count = jnp.zeros((), jnp.int32)

        def active(c: _Rounds) -> Array:
            going = (c.status == _GOING) & (c.count < self._max_rounds) & (c.last.num_steps < max_steps)
            return (c.rnorm > tol) & going

        def body(c: _Rounds) -> _Rounds:
            # Under `vmap` an example that is done stays in the loop: an infinite tolerance makes it stay for nothing.
            run_tol = jnp.where(active(c), tol, jnp.inf)
            run = self._run(mv, aux, c.r, c.rnorm, run_tol, max_steps - c.last.num_steps)
            x = jtu.tree_map(jnp.add, c.x, run.x)
            r = jtu.tree_map(jnp.subtract, b(c.count), mv(x))
            new = jnp.sqrt(dot(r, r))
            # A run that does not lower the true residual is thrown away; but where the energy is minimised, the first
            # counts: its residual may be larger than that of zero while its error is smaller.
            first = c.count == 0
            keep = jnp.isfinite(new) & ((new < c.rnorm) | (first & (not self._minimises_residual)))
            x, kept = jtu.tree_map(lambda u, v: jnp.where(keep, u, v), (x, new), (c.x, c.rnorm))
            if run.tail is not None:  # else a residual that is not kept is not used either
                r = jtu.tree_map(lambda u, v: jnp.where(keep, u, v), r, c.r)
            # Storing x in this precision alone leaves a residual of about eps |A| |x|.
            floor = 10 * eps * run.norm_estimate * jnp.sqrt(dot(x, x))
            worthwhile = keep & (new > floor) & (first | (new < self._progress * c.rnorm))
            status = jnp.where(worthwhile, _GOING, _DONE)
            status = jnp.where(run.indefinite, _INDEFINITE, status)
            status = jnp.where(run.nonfinite | ~jnp.isfinite(new), _NONFINITE, status)
            last = Run(
                x=None,
                rnorm=jnp.where(keep, run.rnorm, c.last.rnorm),
                num_steps=c.last.num_steps + run.num_steps,
                num_matvecs=c.last.num_matvecs + run.num_matvecs,
                norm_estimate=run.norm_estimate,
                cond=jnp.where(first, run.cond, c.last.cond),
                indefinite=run.indefinite,
                nonfinite=run.nonfinite,
                tail=jtu.tree_map(lambda u, v: jnp.where(keep, u, v), run.tail, c.last.tail),
            )
            return _Rounds(c.count + 1, x, r, kept, last, status)

        zero = 0 * rnorm
        false = rnorm < 0
        tail = None if getattr(self, "lower_bound", None) is None else (zero, zero, tree_scale(zero, r))
        last = Run(None, rnorm, count, count, zero, jnp.nan * zero, false, false, tail)
        status = jnp.where(jnp.isfinite(rnorm), _GOING, _NONFINITE)
        return jax.lax.while_loop(active, body, _Rounds(count, x, r, rnorm, last, status))

    def _outcome(self, c: _Rounds, bnorm, tol, max_steps) -> tuple[RESULTS, lx.RESULTS]:
        def pick(results: Any, indefinite: Any, nonfinite: Any, nonfinite_input: Any) -> Any:
            out = results.where(c.last.num_steps >= max_steps, results.max_steps_reached, results.stagnation)
            out = results.where(c.status == _INDEFINITE, indefinite, out)
            out = results.where(c.rnorm <= 10 * tol, results.successful, out)
            out = results.where(c.status == _NONFINITE, nonfinite, out)
            return results.where(~jnp.isfinite(bnorm), nonfinite_input, out)

        result = pick(RESULTS, RESULTS.indefinite, RESULTS.nonfinite, RESULTS.nonfinite)
        if self._settings().mode == "soft":
            return result, lx.RESULTS.successful
        # Lineax only knows its own members.
        return result, pick(lx.RESULTS, lx.RESULTS.breakdown, lx.RESULTS.singular, lx.RESULTS.nonfinite_input)

    def transpose(self, state: State, options: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        """Transpose operator and preconditioner. See `lineax.AbstractLinearSolver.transpose`."""
        operator, aux, sign = state
        return (operator.transpose(), turn(aux, "transpose"), sign), _without_guess(options, "transpose")

    def conj(self, state: State, options: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        """Conjugate operator and preconditioner. See `lineax.AbstractLinearSolver.conj`."""
        operator, aux, sign = state
        return (lx.conj(operator), turn(aux, "conj"), sign), _without_guess(options, "conj")

    def assume_full_rank(self) -> bool:
        """Return `True`: derivatives are those of a nonsingular system."""
        return True


def _error_bounds(mv, aux, c: _Rounds, lower_bound, dot) -> tuple[Array, Array]:
    """Bound the error in the energy norm, from below and from above. See `PCG.lower_bound`."""
    gauss, g, recurrence = c.last.tail
    # The recurrence's residual has drifted from the true one by `drift`. In the norm of the inverse of A, which is at
    # most 1 / lower_bound times that of M, the triangle inequality makes up for it.
    drift = tree_axpy(-jnp.ones((), g.dtype), recurrence, c.r)
    z, turned = (c.r, drift) if aux is None else (aux.mv(c.r), aux.mv(drift))
    upper = jnp.sqrt(gauss * g) + jnp.sqrt(dot(drift, turned) / jnp.asarray(lower_bound, g.dtype))
    # What one more step, straight down the preconditioned residual, would gain: the error is at least that.
    rz, zaz = dot(c.r, z), dot(z, mv(z))
    lower = rz / jnp.sqrt(jnp.where(zaz > 0, zaz, jnp.inf))
    # Where the recurrence broke down nothing is known.
    return lower, jnp.where((c.status <= _DONE) & jnp.isfinite(upper), upper, jnp.inf)


def turn(aux: Any, name: Literal["transpose", "conj"]) -> Any:
    """Return the transpose or conjugate of an operator, or `None` of `None`."""
    if aux is None:
        return None
    if isinstance(aux, lx.AbstractLinearOperator) and name == "conj":
        return lx.conj(aux)
    return getattr(aux, name)()


def preconditioner(
    default: lx.AbstractLinearOperator | None,
    operator: lx.AbstractLinearOperator,
    options: dict[str, Any],
    *,
    definite: bool = True,
) -> lx.AbstractLinearOperator | None:
    """Return the linearised preconditioner of a solve, after checking it. Options win over what the solver holds."""
    precond = options.get("preconditioner", default)
    if precond is None:
        return None
    if definite:
        check_definite("precond", precond)
    if not same_structure(precond.in_structure(), operator.in_structure()):
        raise ValueError(
            f"`precond` must have the operator's structure {operator.in_structure()}; got {precond.in_structure()}"
        )
    return lx.linearise(precond)


def check_definite(name: str, operator: lx.AbstractLinearOperator) -> None:
    """Raise unless `operator` is tagged positive semidefinite."""
    if not lx.is_positive_semidefinite(operator):
        raise ValueError(
            f"`{name}` must be tagged positive semidefinite. If it is, say so with "
            f"`lineax.TaggedLinearOperator({name}, lineax.positive_semidefinite_tag)`."
        )


def default_max_steps(vector: Any) -> int:
    """Ten steps an unknown, at least 100 and at most 10,000."""
    size = sum(leaf.size for leaf in jtu.tree_leaves(vector))
    return min(max(10 * size, 100), 10_000)


def _without_guess(options: dict[str, Any], name: Literal["transpose", "conj"]) -> dict[str, Any]:
    # A guess for one system is none for its transpose.
    return {key: turn(value, name) for key, value in options.items() if key == "preconditioner"}
