import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._custom_types import BoolScalar, FloatScalar, IntScalar
from ._scaling import DenseProblem, Point, Semidual, log_row_step
from ._solver import AbstractSolver, Outcome, check_positive, ending, tolerance


# This many iterations without a better error are the rounding floor: Sinkhorn's error decreases
# monotonically in exact arithmetic, however slowly.
_PATIENCE = 200


class Sinkhorn(AbstractSolver):
    r"""Sinkhorn's alternating projections, in the absorption form that needs no exponentials.

    First order: near the solution the error shrinks by $\sigma_2^2$ an iteration, with $\sigma_2$ the
    second singular value of $\mathrm{diag}(a)^{-1/2} P \, \mathrm{diag}(b)^{-1/2}$. It is the baseline
    of [`ot_sns.SparseNewton`][], and its warm-up.

    **Arguments:**

    - `tol`: stop when the 1-norm of both marginals' errors, relative to the total mass, is at
        most this. `None` is 1e-9 in float64 and 1e-5 in float32.
    - `relaxation`: over-relaxation in `[1, 2)`; `f` moves by this multiple of Sinkhorn's update.
        One is Sinkhorn; more is faster where it is slow, but only locally convergent.

    ```python
    import jax.numpy as jnp
    import ot_sns

    problem = ot_sns.EntropicOT(ot_sns.DenseCost(jnp.array([[0.0, 1.0], [1.0, 0.0]])), epsilon=0.1)
    solution = ot_sns.solve(problem, ot_sns.Sinkhorn())
    ```

    ??? cite "Reference"

        ```bibtex
        @inproceedings{cuturi2013sinkhorn,
            author={Marco Cuturi},
            title={Sinkhorn Distances: Lightspeed Computation of Optimal Transport},
            booktitle={Advances in Neural Information Processing Systems 26},
            year={2013},
        }
        ```
    """

    tol: float | None = None
    relaxation: float = 1.0

    def __check_init__(self):
        check_positive(tol=self.tol)
        if isinstance(self.relaxation, float | int) and not 1 <= self.relaxation < 2:
            raise ValueError(f"`relaxation` must be in [1, 2), got {self.relaxation}.")

    def run(self, problem: DenseProblem, f: Float[Array, " n"] | None, max_steps: IntScalar) -> Outcome:
        """Iterate from `f`, or from zero. See [`ot_sns.AbstractSolver`][]."""
        tol = tolerance(self.tol, problem.cost.dtype)

        def going(state: _State) -> BoolScalar:
            alive = (state.num_steps < max_steps) & (state.since_best < _PATIENCE)
            return alive & ~(state.error <= tol)

        def run_on_one_kernel(state: _State) -> _State:
            semidual = Semidual(problem, state.f)

            def step(carry: tuple[Point, _State]) -> tuple[Point, _State]:
                point, state = carry
                point = semidual.sinkhorn_step(point, self.relaxation)
                return point, _advance(state, point.f, semidual.error(point))

            point = semidual.anchor_point()
            state = _State(state.f, semidual.error(point), state.best, state.since_best, state.num_steps)
            point, state = jax.lax.while_loop(
                lambda carry: going(carry[1]) & ~semidual.lost(carry[0]), step, (point, state)
            )
            # The scaling has left the kernel's range, or it is done.
            f = jax.lax.cond(
                going(state),
                lambda: log_row_step(problem, point.g),
                lambda: point.f,
            )
            counted = state.num_steps + going(state).astype(jnp.int32)
            return _State(f, state.error, state.best, state.since_best, counted)

        zero = jnp.array(0, jnp.int32)
        infinity = jnp.array(jnp.inf, tol.dtype)
        f = jnp.zeros_like(problem.a) if f is None else f
        end = jax.lax.while_loop(going, run_on_one_kernel, _State(f, infinity, infinity, zero, zero))
        result = ending(end.error, tol, end.since_best >= _PATIENCE, finite=jnp.isfinite(end.error))
        stats = dict(num_steps=end.num_steps, num_sinkhorn=end.num_steps, tol=tol)
        return Outcome(end.f, result, stats)


class _State(eqx.Module):
    f: Float[Array, " n"]
    error: FloatScalar
    best: FloatScalar
    since_best: IntScalar
    num_steps: IntScalar


def _advance(state: _State, f: Float[Array, " n"], error: FloatScalar) -> _State:
    since_best = jnp.where(error < state.best, 0, state.since_best + 1)
    best = jnp.minimum(error, state.best)
    return _State(f, error, best, since_best, state.num_steps + 1)
