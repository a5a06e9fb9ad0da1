import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._custom_types import BoolScalar, FloatScalar, IntScalar
from ._newton import Hessian, newton_direction
from ._scaling import (
    anchor,
    Dense,
    log_ratio,
    lost_range,
    move,
    row_error,
    Scaling,
    sinkhorn_step,
    weighted_sum,
)
from ._solver import AbstractSolver, check_positive, ending, Outcome, tolerance


# No problem that was measured is sensitive to a factor of two in these.
_FIRST_EPSILON = 0.06  # of the cost's range
_STAGE_TOLERANCE = 3e-2
_STAGE_NEWTON_STEPS = 10
_STAGE_GATE = 0.3
_FINAL_GATE = 0.05
_GATE_STEPS = 200
_HALVINGS = 20
# Newton steps in the final stage without an error a tenth smaller: the rounding floor.
_PATIENCE = 12


class SparseNewton(AbstractSolver):
    r"""Sinkhorn-Newton-Sparse, made adaptive. The default, and the one to use.

    1. *Annealing*: solve roughly at $4^k \varepsilon$, then at each quarter of it, down to
        $\varepsilon$.
    2. *Gate*: Sinkhorn iterations until $\chi^2 = \sum_i (a_i - r_i)^2 / r_i$ is small. This replaces
        the paper's fixed number of warm-up iterations; Newton from a cold start diverges.
    3. *Newton* on the semi-dual: truncated conjugate gradients, preconditioned by the diagonal of
        the Schur complement, with a forcing term that shrinks with the error (so convergence is
        superlinear), and a backtracking line search. Where it pays, the Hessian is sparsified
        within an error budget with exact diagonals, so it stays positive semidefinite.

    **Arguments:**

    - `tol`: stop when the 1-norm of both marginals' errors, relative to the total mass, is at
        most this. `None` is 1e-9 in float64 and 1e-5 in float32, where less is out of reach.
    - `hessian`: `"auto"`, `"dense"` or `"sparse"`. `"auto"` uses a sparse Hessian for large, hard
        problems whose plan has few entries that matter, else a dense one. `"sparse"` always
        sparsifies, and exceeds the error budget where `nnz_per_row` leaves no room.
    - `nnz_per_row`: room for this many entries of the plan a row, on average.
    - `annealing_factor`: the ratio of consecutive regularisations, above one.
    - `max_cg_steps`: the limit of conjugate-gradient steps for one Newton step.

    ```python
    import jax.numpy as jnp
    import ot_sns

    problem = ot_sns.EntropicOT(ot_sns.DenseCost(jnp.array([[0.0, 1.0], [1.0, 0.0]])), epsilon=0.1)
    solution = ot_sns.solve(problem, ot_sns.SparseNewton())
    ```

    ??? cite "Reference"

        ```bibtex
        @inproceedings{tang2024accelerating,
            author={Xun Tang and Michael Shavlovsky and Holakou Rahmanian and Elisa Tardini and
                    Kiran Koshy Thekumparampil and Tesi Xiao and Lexing Ying},
            title={Accelerating Sinkhorn Algorithm with Sparse Newton Iterations},
            booktitle={International Conference on Learning Representations},
            year={2024},
            note={arXiv:2401.12253},
        }
        ```
    """

    tol: float | None = None
    hessian: Hessian = eqx.field(default="auto", static=True)
    nnz_per_row: int = eqx.field(default=128, static=True)
    annealing_factor: float = 4.0
    max_cg_steps: int = eqx.field(default=1000, static=True)

    def __check_init__(self):
        if self.hessian not in ("auto", "dense", "sparse"):
            raise ValueError(
                f'`hessian` must be "auto", "dense" or "sparse", got {self.hessian!r}.'
            )
        check_positive(
            tol=self.tol, nnz_per_row=self.nnz_per_row, max_cg_steps=self.max_cg_steps
        )
        if isinstance(self.annealing_factor, float | int) and not self.annealing_factor > 1:
            raise ValueError(
                f"`annealing_factor` must be above one, got {self.annealing_factor}."
            )

    def run(self, problem: Dense, f: Float[Array, " n"] | None, max_steps: int) -> Outcome:
        """Anneal from `f`, or from zero. See [`ot_sns.AbstractSolver`][]."""
        tol = tolerance(self.tol, problem.cost.dtype)
        end = jax.lax.while_loop(
            lambda s: ~s.done & (s.num_newton + s.num_sinkhorn < max_steps),
            lambda s: self._iterate(problem, tol, max_steps, s),
            self._start(problem, f),
        )
        stats = dict(
            num_steps=end.num_newton + end.num_sinkhorn,
            num_newton=end.num_newton,
            num_cg=end.num_cg,
            num_sinkhorn=end.num_sinkhorn,
            num_stages=end.num_stages,
            hessian_nnz=end.hessian_nnz,
            tol=tol,
        )
        # Where the annealing was cut short, its last potential is all there is.
        f = jnp.where(jnp.isfinite(end.best_error), end.best_f, self._f(problem, end))
        result = ending(end.best_error, tol, end.done, finite=~end.nonfinite)
        return Outcome(f, result, stats)

    def _epsilon(self, problem: Dense, stages_left: IntScalar) -> FloatScalar:
        factor = jnp.asarray(self.annealing_factor, problem.cost.dtype)
        return problem.epsilon * factor**stages_left

    def _f(self, problem: Dense, state: "_State") -> Float[Array, " n"]:
        return state.scaling.f(self._epsilon(problem, state.stages_left))

    def _start(self, problem: Dense, f: Float[Array, " n"] | None) -> "_State":
        dtype = problem.cost.dtype
        spread = jnp.max(problem.cost) - jnp.min(problem.cost)
        first = jnp.maximum(_FIRST_EPSILON * spread / problem.epsilon, 1)
        stages = jnp.floor(jnp.log(first) / jnp.log(jnp.asarray(self.annealing_factor, dtype)))
        stages = stages.astype(jnp.int32)
        if f is None:
            f = jnp.zeros_like(problem.a)
        else:
            # A start that is already near the solution must not be heated up again.
            near = _chi_square(problem, anchor(problem, f)) <= 1
            stages = jnp.where(near, 0, stages)
        zero = jnp.array(0, jnp.int32)
        infinity = jnp.array(jnp.inf, dtype)
        return _State(
            stages_left=stages,
            scaling=anchor(problem.at(self._epsilon(problem, stages)), f),
            best_f=f,
            best_error=infinity,
            since_best=zero,
            stage_newton=zero,
            last_cg=zero,
            num_newton=zero,
            num_cg=zero,
            num_sinkhorn=zero,
            num_stages=zero + 1,
            hessian_nnz=zero,
            done=jnp.array(False),
            nonfinite=jnp.array(False),
        )

    def _iterate(
        self, problem: Dense, tol: FloatScalar, max_steps: int, state: "_State"
    ) -> "_State":
        """Pass the gate; then stop, go to the next stage, or make a Newton step."""
        final = state.stages_left == 0
        staged = problem.at(self._epsilon(problem, state.stages_left))
        gate = jnp.where(final, _FINAL_GATE, _STAGE_GATE).astype(tol.dtype)
        limit = jnp.minimum(_GATE_STEPS, max_steps - state.num_newton - state.num_sinkhorn)
        scaling, num_sinkhorn = _pass_gate(staged, state.scaling, gate, limit)
        error = row_error(staged, scaling)
        improved = final & (error < state.best_error)
        since_best = jnp.where(~final | (error < 0.9 * state.best_error), 0, state.since_best + 1)
        stage_tol = jnp.where(final, tol, jnp.asarray(_STAGE_TOLERANCE, tol.dtype))
        reached = error <= stage_tol
        nonfinite = ~jnp.isfinite(error)
        stop = nonfinite | (final & (reached | (since_best >= _PATIENCE)))
        leave = ~final & (reached | (state.stage_newton >= _STAGE_NEWTON_STEPS))
        state = _replace(
            state,
            scaling=scaling,
            best_f=jnp.where(improved, scaling.f(staged.epsilon), state.best_f),
            best_error=jnp.where(improved, error, state.best_error),
            since_best=since_best,
            num_sinkhorn=state.num_sinkhorn + num_sinkhorn,
            done=stop,
            nonfinite=nonfinite,
        )
        branch = jnp.where(stop, 0, jnp.where(leave, 1, 2))
        return jax.lax.switch(
            branch,
            [
                lambda s: s,
                lambda s: self._next_stage(problem, s),
                lambda s: self._newton_step(staged, stage_tol, error, s),
            ],
            state,
        )

    def _next_stage(self, problem: Dense, state: "_State") -> "_State":
        f = self._f(problem, state)
        stages_left = state.stages_left - 1
        return _replace(
            state,
            stages_left=stages_left,
            scaling=anchor(problem.at(self._epsilon(problem, stages_left)), f),
            stage_newton=jnp.array(0, jnp.int32),
            num_stages=state.num_stages + 1,
        )

    def _newton_step(
        self, problem: Dense, tol: FloatScalar, error: FloatScalar, state: "_State"
    ) -> "_State":
        # The forcing term that keeps convergence superlinear, but never digits beyond `tol`.
        forcing = jnp.maximum(jnp.minimum(0.1, error), 0.3 * tol / error)
        direction = newton_direction(
            problem,
            state.scaling,
            rtol=forcing,
            budget=0.1 * jnp.minimum(1, error),
            hessian=self.hessian,
            capacity=min(problem.cost.size, self.nnz_per_row * problem.cost.shape[0]),
            max_cg_steps=self.max_cg_steps,
            expected_cg_steps=state.last_cg,
        )
        return _replace(
            state,
            scaling=_line_search(problem, state.scaling, direction.x),
            stage_newton=state.stage_newton + 1,
            last_cg=direction.num_cg,
            num_newton=state.num_newton + 1,
            num_cg=state.num_cg + direction.num_cg,
            hessian_nnz=direction.nnz,
        )


class _State(eqx.Module):
    stages_left: IntScalar
    scaling: Scaling
    best_f: Float[Array, " n"]
    best_error: FloatScalar
    since_best: IntScalar
    stage_newton: IntScalar
    last_cg: IntScalar
    num_newton: IntScalar
    num_cg: IntScalar
    num_sinkhorn: IntScalar
    num_stages: IntScalar
    hessian_nnz: IntScalar
    done: BoolScalar
    nonfinite: BoolScalar


def _replace(state: _State, **fields: object) -> _State:
    return _State(**{**vars(state), **fields})


def _chi_square(problem: Dense, scaling: Scaling) -> FloatScalar:
    positive = scaling.row_sums > 0
    terms = (problem.a - scaling.row_sums) ** 2 / jnp.where(positive, scaling.row_sums, 1)
    # A row that has mass and carries none is as far from the gate as can be.
    terms = jnp.where(positive, terms, jnp.where(problem.a > 0, jnp.inf, 0))
    return jnp.sum(terms) / jnp.sum(problem.a)


def _pass_gate(
    problem: Dense, scaling: Scaling, gate: FloatScalar, limit: IntScalar
) -> tuple[Scaling, IntScalar]:
    def going(carry: tuple[Scaling, IntScalar]) -> BoolScalar:
        scaling, count = carry
        closed = lost_range(problem, scaling) | ~(_chi_square(problem, scaling) <= gate)
        return closed & (count < limit)

    def step(carry: tuple[Scaling, IntScalar]) -> tuple[Scaling, IntScalar]:
        return sinkhorn_step(problem, carry[0]), carry[1] + 1

    return jax.lax.while_loop(going, step, (scaling, jnp.array(0, jnp.int32)))


def _line_search(problem: Dense, before: Scaling, x: Float[Array, " n"]) -> Scaling:
    """Backtrack along `x` until the dual has increased enough; failing that, a Sinkhorn step.

    Near convergence the increase falls below the rounding of the dual, where an exact Armijo test
    rejects good steps; the slack is that rounding.
    """
    epsilon = problem.epsilon
    slope = epsilon * jnp.sum((problem.a - before.row_sums) * x)
    size = weighted_sum(problem.a, jnp.abs(before.f(epsilon)))
    size += weighted_sum(problem.b, jnp.abs(before.g(epsilon)))
    slack = 100 * jnp.finfo(x.dtype).eps * size

    def accepts(step: FloatScalar, dual: FloatScalar) -> BoolScalar:
        return dual >= before.dual + 1e-4 * step * slope - slack

    def going(carry: tuple[FloatScalar, Scaling, IntScalar]) -> BoolScalar:
        step, scaling, count = carry
        return (count < _HALVINGS) & ~accepts(step, scaling.dual)

    def halve(
        carry: tuple[FloatScalar, Scaling, IntScalar],
    ) -> tuple[FloatScalar, Scaling, IntScalar]:
        step, scaling, count = carry
        step = 0.5 * step
        return step, move(problem, scaling, before.log_u + step * x), count + 1

    trial = move(problem, before, before.log_u + x)
    start = (jnp.ones_like(slope), trial, jnp.array(0, jnp.int32))
    step, scaling, _ = jax.lax.while_loop(going, halve, start)
    usable = accepts(step, scaling.dual) & (slope > 0)
    fallback = before.log_u + log_ratio(problem.a, before.row_sums)
    return jax.lax.cond(usable, lambda s: s, lambda s: move(problem, s, fallback), scaling)
