import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._custom_types import BoolScalar, FloatScalar, IntScalar
from ._newton import Hessian, newton_direction
from ._scaling import DenseProblem, Point, Semidual, log_row_step, weighted_sum
from ._solver import AbstractSolver, Outcome, check_positive, ending, tolerance


# No problem that was measured is sensitive to a factor of two in these.
_FIRST_EPSILON = 0.06  # of the cost's range
_STAGE_TOLERANCE = 3e-2
_STAGE_NEWTON_STEPS = 10
_STAGE_GATE = 0.3
_FINAL_GATE = 0.05
_GATE_STEPS = 200
_HALVINGS = 20
# A stage that took this many Newton steps was too far from the last: cool down more slowly.
_HARD_STAGE = 4
# The smallest trust radius, in units of `log_u`: below it a Newton step is worth no more than one
# of Sinkhorn's.
_MIN_RADIUS = 1.0
# Newton steps in the final stage without an error a tenth smaller: the rounding floor.
_PATIENCE = 12


class SparseNewton(AbstractSolver):
    r"""Sinkhorn-Newton-Sparse, made adaptive. The default, and the one to use.

    1. *Annealing*: solve roughly at a large regularisation, then at a quarter of it, and so on down
        to $\varepsilon$; in smaller steps after a stage that turned out to be hard.
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
    - `annealing_factor`: the largest ratio of consecutive regularisations, above one.
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
    nnz_per_row: int = eqx.field(default=256, static=True)
    annealing_factor: float = 4.0
    max_cg_steps: int = eqx.field(default=1000, static=True)

    def __check_init__(self):
        if self.hessian not in ("auto", "dense", "sparse"):
            raise ValueError(f'`hessian` must be "auto", "dense" or "sparse", got {self.hessian!r}.')
        check_positive(tol=self.tol, nnz_per_row=self.nnz_per_row, max_cg_steps=self.max_cg_steps)
        if isinstance(self.annealing_factor, float | int) and not self.annealing_factor > 1:
            raise ValueError(f"`annealing_factor` must be above one, got {self.annealing_factor}.")

    def run(self, problem: DenseProblem, f: Float[Array, " n"] | None, max_steps: IntScalar) -> Outcome:
        """Anneal from `f`, or from zero. See [`ot_sns.AbstractSolver`][]."""
        tol = tolerance(self.tol, problem.cost.dtype)
        end = jax.lax.while_loop(
            lambda s: ~s.done & (s.num_steps < max_steps),
            lambda s: self._run_on_one_kernel(problem, tol, max_steps, s),
            self._start(problem, f),
        )
        stats = dict(
            num_steps=end.num_steps,
            num_newton=end.num_newton,
            num_cg=end.num_cg,
            num_sinkhorn=end.num_steps - end.num_newton,
            num_stages=end.num_stages,
            hessian_nnz=end.hessian_nnz,
            tol=tol,
        )
        # Where the annealing was cut short, its last potential is all there is.
        f = jnp.where(jnp.isfinite(end.best_error), end.best_f, end.f)
        finite = jnp.isfinite(end.error) | (end.num_steps == 0)
        return Outcome(f, ending(end.best_error, tol, end.done, finite=finite), stats)

    def _start(self, problem: DenseProblem, f: Float[Array, " n"] | None) -> "_State":
        dtype = problem.cost.dtype
        spread = jnp.max(problem.cost) - jnp.min(problem.cost)
        ratio = jnp.maximum(_FIRST_EPSILON * spread / problem.epsilon, 1)
        factor = jnp.asarray(self.annealing_factor, dtype)
        # Whole stages, so that the last one does not fall short.
        epsilon = problem.epsilon * factor ** jnp.floor(jnp.log(ratio) / jnp.log(factor))
        if f is None:
            f = jnp.zeros_like(problem.a)
        else:
            # A start that is already near the solution must not be heated up again.
            semidual = Semidual(problem, f)
            near = semidual.chi_square(semidual.anchor_point()) <= 1
            epsilon = jnp.where(near, problem.epsilon, epsilon)
        zero = jnp.array(0, jnp.int32)
        infinity = jnp.array(jnp.inf, dtype)
        return _State(
            f=f,
            error=infinity,
            best_f=f,
            best_error=infinity,
            milestone=infinity,
            since_milestone=zero,
            epsilon=epsilon,
            factor=factor,
            stage_newton=zero,
            gate_steps=zero,
            radius=infinity,
            last_cg=zero,
            num_steps=zero,
            num_newton=zero,
            num_cg=zero,
            num_stages=zero + 1,
            hessian_nnz=zero,
            done=jnp.array(False),
        )

    def _run_on_one_kernel(
        self, problem: DenseProblem, tol: FloatScalar, max_steps: IntScalar, state: "_State"
    ) -> "_State":
        """Anchor the kernel, then iterate until the stage ends or the kernel's range is left.

        The kernel is in no loop's carry, so it is never copied.
        """
        final = state.epsilon <= problem.epsilon
        staged = problem.at(state.epsilon)
        stage_tol = jnp.where(final, tol, jnp.asarray(_STAGE_TOLERANCE, tol.dtype))
        gate = jnp.where(final, _FINAL_GATE, _STAGE_GATE).astype(tol.dtype)
        semidual = Semidual(staged, state.f)

        def unfinished(state: _State) -> BoolScalar:
            more = jnp.where(final, state.since_milestone < _PATIENCE, state.stage_newton < _STAGE_NEWTON_STEPS)
            return more & ~(state.error <= stage_tol) & (state.num_steps < max_steps)

        def going(carry: tuple[Point, _State]) -> BoolScalar:
            point, state = carry
            return unfinished(state) & ~semidual.lost(point)

        def step(carry: tuple[Point, _State]) -> tuple[Point, _State]:
            point, state = carry
            closed = semidual.chi_square(point) > gate
            point, state = jax.lax.cond(
                closed & (state.gate_steps < _GATE_STEPS),
                lambda p, s: (semidual.sinkhorn_step(p), s.count_sinkhorn()),
                lambda p, s: self._newton_step(semidual, p, stage_tol, s),
                point,
                state,
            )
            return point, state.observe(point, semidual.error(point), final)

        point = semidual.anchor_point()
        state = state.observe(point, semidual.error(point), final)
        point, state = jax.lax.while_loop(going, step, (point, state))
        # A kernel whose range was left is anchored anew at a Sinkhorn step in the log domain.
        lost = unfinished(state)
        f = jax.lax.cond(lost, lambda: log_row_step(staged, point.g), lambda: point.f)
        cooler = ~lost & ~final & (state.num_steps < max_steps)
        factor, epsilon = self._cool(problem, state)
        stagnated = state.since_milestone >= _PATIENCE
        broken = ~jnp.all(jnp.isfinite(f) | (problem.a == 0))
        return state.replace(
            f=f,
            epsilon=jnp.where(cooler, epsilon, state.epsilon),
            factor=jnp.where(cooler, factor, state.factor),
            num_stages=state.num_stages + cooler.astype(jnp.int32),
            stage_newton=jnp.where(cooler, 0, state.stage_newton),
            num_steps=state.num_steps + lost.astype(jnp.int32),
            done=(final & ((state.error <= tol) | stagnated)) | broken,
        )

    def _cool(self, problem: DenseProblem, state: "_State") -> tuple[FloatScalar, FloatScalar]:
        """Choose the next stage's regularisation from how hard the last one was."""
        largest = jnp.asarray(self.annealing_factor, state.factor.dtype)
        hard = state.stage_newton >= _HARD_STAGE
        factor = jnp.where(
            hard,
            jnp.maximum(jnp.sqrt(state.factor), jnp.sqrt(jnp.sqrt(largest))),
            jnp.minimum(state.factor**2, largest),
        )
        epsilon = state.epsilon / factor
        # A last step that would be tiny is joined to the one before it.
        joined = epsilon <= jnp.sqrt(jnp.sqrt(largest)) * problem.epsilon
        return factor, jnp.where(joined, problem.epsilon, epsilon)

    def _newton_step(
        self, semidual: Semidual, point: Point, tol: FloatScalar, state: "_State"
    ) -> tuple[Point, "_State"]:
        error = state.error
        # The forcing term that keeps convergence superlinear, but never digits beyond `tol`.
        forcing = jnp.maximum(jnp.minimum(0.1, error), 0.3 * tol / error)
        n, m = semidual.kernel.shape
        direction = newton_direction(
            semidual,
            point,
            radius=state.radius,
            rtol=forcing,
            budget=jnp.maximum(0.1 * jnp.minimum(1, error), 0.01 * forcing),
            hessian=self.hessian,
            capacity=min(n * m, self.nnz_per_row * n),
            max_cg_steps=self.max_cg_steps,
            expected_cg_steps=state.last_cg,
        )
        after, length = _line_search(semidual, point, direction.x)
        state = state.replace(
            radius=_next_radius(state.radius, length, direction.x),
            stage_newton=state.stage_newton + 1,
            since_milestone=state.since_milestone + 1,
            gate_steps=jnp.zeros_like(state.gate_steps),
            last_cg=direction.num_cg,
            num_steps=state.num_steps + 1,
            num_newton=state.num_newton + 1,
            num_cg=state.num_cg + direction.num_cg,
            hessian_nnz=direction.nnz,
        )
        return after, state


class _State(eqx.Module):
    f: Float[Array, " n"]
    error: FloatScalar
    best_f: Float[Array, " n"]
    best_error: FloatScalar
    milestone: FloatScalar  # the error when it had last fallen by a tenth, and the Newton steps since
    since_milestone: IntScalar
    epsilon: FloatScalar
    factor: FloatScalar
    stage_newton: IntScalar
    gate_steps: IntScalar
    radius: FloatScalar
    last_cg: IntScalar
    num_steps: IntScalar
    num_newton: IntScalar
    num_cg: IntScalar
    num_stages: IntScalar
    hessian_nnz: IntScalar
    done: BoolScalar

    def replace(self, **fields: object) -> "_State":
        return _State(**{**vars(self), **fields})

    def count_sinkhorn(self) -> "_State":
        return self.replace(num_steps=self.num_steps + 1, gate_steps=self.gate_steps + 1)

    def observe(self, point: Point, error: FloatScalar, final: BoolScalar) -> "_State":
        """Note the error at a point, and in the last stage how it compares with the best so far."""
        best = final & (error < self.best_error)
        # Against the last milestone, not the best: slow but steady progress is no stagnation.
        fell = error < 0.9 * self.milestone
        return self.replace(
            error=error,
            best_f=jnp.where(best, point.f, self.best_f),
            best_error=jnp.where(best, error, self.best_error),
            milestone=jnp.where(final & fell, error, self.milestone),
            since_milestone=jnp.where(final & ~fell, self.since_milestone, 0),
        )


def _next_radius(radius: FloatScalar, length: FloatScalar, x: Float[Array, " n"]) -> FloatScalar:
    """Widen the trust region after a full step; after a short one, shrink it to what was moved."""
    moved = length * jnp.max(jnp.abs(x))
    shrunk = jnp.maximum(jnp.minimum(2 * moved, radius / 2), _MIN_RADIUS)
    return jnp.where(length >= 1, 4 * radius, jnp.where(length > 0.25, radius, shrunk))


def _line_search(semidual: Semidual, before: Point, x: Float[Array, " n"]) -> tuple[Point, FloatScalar]:
    """Backtrack along `x` until the dual has increased enough; failing that, a Sinkhorn step.

    The step length is returned too, zero for a Sinkhorn step.

    Near convergence the increase falls below the rounding of the dual, where an exact Armijo test
    rejects good steps; the slack is that rounding.
    """
    problem = semidual.problem
    slope = problem.epsilon * jnp.sum((problem.a - before.row_sums) * x)
    size = weighted_sum(problem.a, jnp.abs(before.f))
    size += weighted_sum(problem.b, jnp.abs(before.g))
    slack = 100 * float(jnp.finfo(x.dtype).eps) * size

    def accepts(length: FloatScalar, point: Point) -> BoolScalar:
        # A column whose every row underflows has an infinite dual: no increase.
        enough = point.dual >= before.dual + 1e-4 * length * slope - slack
        return enough & jnp.isfinite(point.dual)

    def going(carry: tuple[FloatScalar, Point, IntScalar]) -> BoolScalar:
        length, point, count = carry
        return (count < _HALVINGS) & ~accepts(length, point)

    def halve(
        carry: tuple[FloatScalar, Point, IntScalar],
    ) -> tuple[FloatScalar, Point, IntScalar]:
        length, _, count = carry
        return length / 2, semidual.at(before.log_u + length / 2 * x), count + 1

    trial = semidual.at(before.log_u + x)
    start = (jnp.ones_like(slope), trial, jnp.array(0, jnp.int32))
    length, point, _ = jax.lax.while_loop(going, halve, start)
    usable = accepts(length, point) & (slope > 0)
    after = jax.lax.cond(usable, lambda: point, lambda: semidual.sinkhorn_step(before))
    return after, jnp.where(usable, length, 0)
