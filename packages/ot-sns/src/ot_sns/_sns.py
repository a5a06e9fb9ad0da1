import equinox as eqx
import jax
import jax.numpy as jnp
from implicit_core import krylov
from implicit_core.operators import SparseOperator
from jaxtyping import Array, Float

from ._custom_types import BoolScalar, FloatScalar, IntScalar
from ._scaling import DenseProblem, log_row_step, weighted_sum
from ._solver import AbstractSolver, Outcome, check_positive, ending, tolerance


_SMALLEST_STEP = 1e-6


class SNS(AbstractSolver):
    r"""Sinkhorn-Newton-Sparse as published, for reproduction (arXiv 2401.12253, Algorithm 1).

    `num_warmup` Sinkhorn iterations, then `num_newton` Newton steps on both potentials, each with
    the Hessian's plan block cut down to its largest entries, by conjugate gradients and a line
    search. Fixed counts fail on most problems (use [`ot_sns.SparseNewton`][]), and a failure is
    reported as such.

    **Arguments:**

    - `num_warmup`: the number of Sinkhorn iterations $N_1$; the paper uses 20.
    - `num_newton`: the number of Newton steps $N_2$ at most.
    - `nnz_per_row`: how many entries of the plan to keep a row, on average. The paper's $\lambda = 2/n$
        read literally is 2, which converges linearly; its published counts need about 6.
    - `tol`: stop early when the 1-norm of both marginals' errors is at most this. `None` is the
        dtype's default (1e-9 in float64).

    ```python
    import jax
    import ot_sns

    cost = jax.random.uniform(jax.random.key(0), (20, 20))
    problem = ot_sns.EntropicOT(ot_sns.DenseCost(cost), epsilon=0.05)
    solution = ot_sns.solve(problem, ot_sns.SNS(num_newton=10))
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

    num_warmup: int = eqx.field(default=20, static=True)
    num_newton: int = eqx.field(default=20, static=True)
    nnz_per_row: int = eqx.field(default=6, static=True)
    tol: float | None = None

    def __check_init__(self):
        check_positive(
            num_warmup=self.num_warmup,
            num_newton=self.num_newton,
            nnz_per_row=self.nnz_per_row,
            tol=self.tol,
        )

    def run(self, problem: DenseProblem, f: Float[Array, " n"] | None, max_steps: IntScalar) -> Outcome:
        """Run Algorithm 1 from `f`, or from zero. See [`ot_sns.AbstractSolver`][]."""
        tol = tolerance(self.tol, problem.cost.dtype)
        f = jnp.zeros_like(problem.a) if f is None else f
        num_warmup = jnp.minimum(self.num_warmup, max_steps)

        def sinkhorn(carry: tuple[IntScalar, Array, Array]) -> tuple[IntScalar, Array, Array]:
            count, _, g = carry
            f = log_row_step(problem, g)
            return count + 1, f, _column_step(problem, f)

        def unfinished(carry: tuple[IntScalar, Array, Array]) -> BoolScalar:
            count, f, g = carry
            return (count < num_warmup) & ~(_evaluate(problem, f, g).error <= tol)

        start = (jnp.array(0, jnp.int32), f, _column_step(problem, f))
        count, f, g = jax.lax.while_loop(unfinished, sinkhorn, start)
        num_newton = jnp.minimum(self.num_newton, max_steps - count)

        def going(state: _State) -> BoolScalar:
            return (state.num_newton < num_newton) & ~(state.error <= tol) & ~state.stalled

        zero = jnp.array(0, jnp.int32)
        end = jax.lax.while_loop(
            going,
            lambda state: self._newton_step(problem, state),
            _State(f, g, _evaluate(problem, f, g).error, zero, zero, jnp.array(False)),
        )
        stats = dict(
            num_steps=count + end.num_newton,
            num_sinkhorn=count,
            num_newton=end.num_newton,
            num_cg=end.num_cg,
            tol=tol,
        )
        result = ending(end.error, tol, end.stalled, finite=jnp.isfinite(end.error))
        return Outcome(end.f, result, stats)

    def _newton_step(self, problem: DenseProblem, state: "_State") -> "_State":
        n, m = problem.cost.shape
        here = _evaluate(problem, state.f, state.g)
        # Sparsify: the plan's `nnz_per_row * n` largest entries; the diagonal is kept exactly.
        capacity = min(self.nnz_per_row * n, n * m)
        values, index = jax.lax.top_k(here.plan.reshape(-1), capacity)
        block = SparseOperator(values, index // m, index % m, (n, m))
        block_t = block.T

        def hessian(z: tuple[Array, Array]) -> tuple[Array, Array]:
            x, y = z
            return here.rows * x + block.mv(y), block_t.mv(x) + here.columns * y

        gradient = (problem.a - here.rows, problem.b - here.columns)
        (x, y), info = krylov.pcg(hessian, gradient, rtol=1e-12, max_steps=n + m)
        slope = problem.epsilon * (jnp.sum(gradient[0] * x) + jnp.sum(gradient[1] * y))
        slack = 100 * float(jnp.finfo(x.dtype).eps) * jnp.abs(here.dual)

        def moved(step: FloatScalar) -> tuple[Array, Array]:
            scale = step * problem.epsilon
            return state.f + scale * x, state.g + scale * y

        def rejected(step: FloatScalar) -> BoolScalar:
            dual = _evaluate(problem, *moved(step)).dual
            return ~(dual >= here.dual + 1e-4 * step * slope - slack)

        step = jax.lax.while_loop(lambda s: rejected(s) & (s > _SMALLEST_STEP), lambda s: s / 2, jnp.ones_like(slope))
        stalled = ~(step > _SMALLEST_STEP) | ~(slope > 0)
        f, g = jax.tree.map(lambda new, old: jnp.where(stalled, old, new), moved(step), (state.f, state.g))
        error = _evaluate(problem, f, g).error
        num_newton, num_cg = state.num_newton + 1, state.num_cg + info.num_steps
        return _State(f, g, error, num_newton, num_cg, stalled)


class _Point(eqx.Module):
    plan: Float[Array, "n m"]
    rows: Float[Array, " n"]
    columns: Float[Array, " m"]
    dual: FloatScalar
    error: FloatScalar


class _State(eqx.Module):
    f: Float[Array, " n"]
    g: Float[Array, " m"]
    error: FloatScalar
    num_newton: IntScalar
    num_cg: IntScalar
    stalled: BoolScalar


def _column_step(problem: DenseProblem, f: Float[Array, " n"]) -> Float[Array, " m"]:
    flipped = DenseProblem(problem.cost.T, problem.b, problem.a, problem.epsilon)
    return log_row_step(flipped, f)


def _evaluate(problem: DenseProblem, f: Float[Array, " n"], g: Float[Array, " m"]) -> _Point:
    plan = jnp.exp((f[:, None] + g[None, :] - problem.cost) / problem.epsilon)
    rows, columns = jnp.sum(plan, axis=1), jnp.sum(plan, axis=0)
    error = jnp.sum(jnp.abs(problem.a - rows)) + jnp.sum(jnp.abs(problem.b - columns))
    dual = weighted_sum(problem.a, f) + weighted_sum(problem.b, g) - problem.epsilon * jnp.sum(rows)
    return _Point(plan, rows, columns, dual, error / jnp.sum(problem.a))
