from typing import Any, cast

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from ._arguments import Scalar, positive
from ._check import require
from ._results import RESULTS, choose
from ._statistics import Statistics, Weights, class_weights, moments, nc1_quotient, ridge_classifier


class CentralPath(eqx.Module):
    """Where features flow from given ones, with the classifier at its optimum all along.

    After a stop by `stop_nc1` the entries of later times repeat the last state.

    **Attributes:**

    - `ts`: the times, `[T]`.
    - `means`: the class means, `[T, K, d]`.
    - `within_cov`: the covariance within classes, `[T, d, d]`.
    - `nc1`: the quotient of the traces of the covariances within and between classes, `[T]`.
    - `trace_within`, `trace_between`: those traces, `[T]`.
    - `stop_time`: where the integration ended: `t1`, unless `stop_nc1` was met.
    - `result`: `successful`, `nc1_reached` or what went wrong.
    - `stats`: `num_steps`.
    """

    ts: Float[Array, " T"]
    means: Float[Array, "T K d"]
    within_cov: Float[Array, "T d d"]
    nc1: Float[Array, " T"]
    trace_within: Float[Array, " T"]
    trace_between: Float[Array, " T"]
    stop_time: Float[Array, ""]
    result: RESULTS
    stats: dict[str, Array]


def solve(
    stats: Statistics,
    lam_W: Scalar,
    lam_H: Scalar,
    t1: Scalar,
    *,
    weights: Weights = "counts",
    num_points: int = 50,
    stop_nc1: Scalar | None = None,
    solver: dfx.AbstractSolver | None = None,
    rtol: Scalar | None = None,
    atol: Scalar | None = None,
    max_steps: int = 16_384,
    throw: bool = True,
) -> CentralPath:
    r"""Integrate the gradient flow of features with the classifier eliminated, from class statistics alone.

    The flow $\dot H = -(W^\top(WH - Y) + \lambda_H H)$, with $W$ the best linear classifier of the current features,
    closes on the class means $\bar H$ and the covariance within classes $S_W$:

    $$\dot{\bar H} = -(W^\top(W\bar H - I) + \lambda_H \bar H), \qquad
    \dot S_W = -(A S_W + S_W A), \quad A = W^\top W + \lambda_H I.$$

    So a state of size $dK + d^2$ tells where the features of any number of samples would go. Strengths are in the
    normalisation of Tirer et al. (see [`neuralcollapse.ufm.from_tirer`][]), time in that of their theorem. For equal
    classes the quotient `nc1` falls strictly (their Theorem 3.1); for unequal ones it need not.

    **Arguments:**

    - `stats`: class statistics, with `counts`, `means()` and `within_cov()` (a full covariance).
    - `lam_W`: the strength for the classifier, positive.
    - `lam_H`: the strength for the features, not negative.
    - `t1`: the time to integrate to, positive.
    - `weights`: `"counts"` weighs a class in the loss by its size, `"balanced"` gives all the same (the pooled
        covariance then stands for the mean of the classes' own).
    - `num_points`: how many times to return, equally spaced from zero to `t1`.
    - `stop_nc1`: end where the quotient falls below this; not differentiated through.
    - `solver`: a Diffrax solver; `None` is `diffrax.Dopri8`. With `lam_W` small the flow is stiff, at a rate of
        `1/lam_W`: `diffrax.Kvaerno5` for small dimensions.
    - `rtol`, `atol`: of the step size controller; `None` is 1e-8 and 1e-11, and for float32 1e-5 and 1e-7.
    - `max_steps`: the most steps made.
    - `throw`: raise where the integration fails; otherwise `result` says so.

    **Returns:**

    A [`neuralcollapse.central_path.CentralPath`][], differentiable in the statistics and strengths.

    **Raises:**

    `ValueError` for an empty class, statistics that are not finite, strengths out of range, or features that are all
    collapsed to zero.

    !!! Example

        ```python
        path = neuralcollapse.central_path.solve(stats, lam_W=1e-2, lam_H=1e-2, t1=10.0)
        path.nc1[-1] / path.nc1[0]
        ```

    ??? cite "Reference"

        Tirer, Huang, Niles-Weed, "Perturbation Analysis of Neural Collapse", arXiv:2210.16658, section 3. The
        reduction to class statistics is not in it.
    """
    counts, means, within = moments(stats)
    dtype = means.dtype
    p = class_weights(counts, weights)
    lam_W, lam_H = positive(lam_W, "lam_W", dtype), positive(lam_H, "lam_H", dtype, allow_zero=True)
    t1 = positive(t1, "t1", dtype)
    means = require(means, jnp.any(means != 0), "`stats.means()` must not all be zero: that is a fixed point.")
    if not isinstance(num_points, int) or num_points < 2:
        raise ValueError(f"`num_points` must be at least 2; got {num_points!r}.")
    double = dtype == np.float64
    # Arrays, so that other tolerances do not compile anew.
    rtol, atol = (
        positive(default if given is None else given, name, dtype)
        for name, given, default in (
            ("rtol", rtol, 1e-8 if double else 1e-5),
            ("atol", atol, 1e-11 if double else 1e-7),
        )
    )
    stop = None if stop_nc1 is None else positive(stop_nc1, "stop_nc1", dtype)
    path = _integrate(
        (p, lam_W, lam_H), (means, within), t1, stop, dfx.Dopri8() if solver is None else solver, rtol, atol,
        num_points, max_steps,
    )  # fmt: skip
    if throw:
        failed = (path.result != RESULTS.successful) & (path.result != RESULTS.nc1_reached)
        path = path.result.error_if(path, failed)
    return path


def flow(t: Any, state: tuple[Array, Array], args: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """Return the velocity of class means and covariance within classes."""
    del t
    means, within = state
    p, lam_W, lam_H = args
    w = ridge_classifier(means, within, p, lam_W)
    pull = w.T @ w + lam_H * jnp.eye(means.shape[1], dtype=means.dtype)
    shrink = pull @ within
    # One product and its transpose: the state stays symmetric to the last bit.
    return w - means @ pull, -(shrink + shrink.T)


@eqx.filter_jit
def _integrate(args, state, t1, stop_nc1, solver, rtol, atol, num_points, max_steps) -> CentralPath:
    p, _, _ = args

    def collapsed(t, y, args, **kwargs):
        del t, kwargs
        means, within = y
        return nc1_quotient(means, within, args[0])[2] < stop_nc1

    ts = jnp.linspace(0, t1, num_points)
    found = dfx.diffeqsolve(
        dfx.ODETerm(flow),
        solver,
        0 * t1,
        t1,
        None,
        state,
        args,
        saveat=dfx.SaveAt(ts=ts, t1=True),
        stepsize_controller=dfx.PIDController(rtol=rtol, atol=atol),
        event=None if stop_nc1 is None else dfx.Event(collapsed),
        max_steps=max_steps,
        throw=False,
    )
    # What was saved comes first, the end last; Diffrax leaves infinities behind it where the end came early.
    times, states = cast(tuple[Array, tuple[Array, Array]], (found.ts, found.ys))
    last = jnp.sum(jnp.isfinite(times)) - 1
    end = jtu.tree_map(lambda y: y[last], states)
    late = (jnp.arange(num_points) > last)[:, None, None]
    means, within = (jnp.where(late, e[None], y[:-1]) for e, y in zip(end, states, strict=True))
    trace = jax.vmap(nc1_quotient, in_axes=(0, 0, None))(means, within, p)
    stopped = found.result == dfx.RESULTS.event_occurred
    result = choose(found.result == dfx.RESULTS.max_steps_reached, RESULTS.nonlinear_max_steps_reached,
                           RESULTS.nonfinite)  # fmt: skip
    result = choose(found.result == dfx.RESULTS.successful, RESULTS.successful, result)
    result = choose(stopped, RESULTS.nc1_reached, result)
    result = choose(jnp.all(jnp.isfinite(end[0])), result, RESULTS.nonfinite)
    return CentralPath(
        ts=ts,
        means=means,
        within_cov=within,
        nc1=trace[:, 2],
        trace_within=trace[:, 0],
        trace_between=trace[:, 1],
        stop_time=times[last],
        result=result,
        stats={"num_steps": found.stats["num_steps"]},
    )
