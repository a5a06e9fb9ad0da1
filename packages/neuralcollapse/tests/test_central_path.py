"""The reduced gradient flow against the full one: oracle O11 of the specification."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from neuralcollapse import central_path
from neuralcollapse._results import RESULTS
from neuralcollapse._statistics import sample_moments


class Moments(eqx.Module):
    """The smallest object with class statistics."""

    counts: jax.Array
    mean: jax.Array
    cov: jax.Array

    def means(self):
        return self.mean

    def within_cov(self):
        return self.cov


def draw(key, counts, dim, dtype=float):
    labels = jnp.repeat(jnp.arange(len(counts)), np.array(counts), total_repeat_length=sum(counts))
    k1, k2 = jr.split(key)
    centres = jr.normal(k1, (len(counts), dim), dtype)
    return centres[labels] + 0.7 * jr.normal(k2, (sum(counts), dim), dtype), labels


def statistics(features, labels, size):
    return Moments(*sample_moments(features, labels, size))


COUNTS = {"balanced": [6, 6, 6, 6], "counts": [10, 7, 4, 3]}


@pytest.mark.parametrize("weights", ["balanced", "counts"])
def test_reduced_flow_is_the_full_flow(weights, getkey):
    counts, lam_W, lam_H = COUNTS[weights], 0.05, 0.03
    features, labels = draw(getkey(), counts, 7)
    y = jnp.eye(4)[labels]
    # Every sample by itself, with the classifier that minimises the weighted loss.
    share = jnp.full(24, 1 / 24)

    def velocity(t, h, args):
        gram = (h * share[:, None]).T @ h + lam_W / 4 * jnp.eye(7)
        w = jnp.linalg.solve(gram, (h * share[:, None]).T @ y).T
        return -((h @ w.T - y) @ w + lam_H * h)

    full = eqx.filter_jit(dfx.diffeqsolve)(
        dfx.ODETerm(velocity), dfx.Dopri8(), 0.0, 3.0, 0.01, features,
        stepsize_controller=dfx.PIDController(rtol=1e-11, atol=1e-13), max_steps=4096,
    )  # fmt: skip
    assert full.ys is not None
    _, means, within = sample_moments(full.ys[-1], labels, 4)
    path = central_path.solve(
        statistics(features, labels, 4), lam_W, lam_H, 3.0, weights="counts", rtol=1e-11, atol=1e-13, num_points=11
    )
    np.testing.assert_allclose(path.means[-1], means, atol=1e-8)
    np.testing.assert_allclose(path.within_cov[-1], within, atol=1e-8)
    assert path.result == RESULTS.successful
    assert path.stop_time == 3.0
    if weights == "balanced":
        again = central_path.solve(
            statistics(features, labels, 4),
            lam_W,
            lam_H,
            3.0,
            weights="balanced",
            rtol=1e-11,
            atol=1e-13,
            num_points=11,
        )
        np.testing.assert_allclose(again.means, path.means, atol=1e-13)


def test_monotone_for_equal_classes():
    # Theorem 3.1: nc1 and e^(2 lam t) tr(S_W) fall, e^(2 lam t) tr(S_B) rises.
    for seed in range(8):
        lam_W, lam_H = (float(10 ** np.random.default_rng([seed, i]).uniform(-3, -1)) for i in range(2))
        path = central_path.solve(statistics(*draw(jr.key(seed), [6] * 4, 7), 4), lam_W, lam_H, 2.0, num_points=11)
        grown = jnp.exp(2 * lam_H * path.ts)
        assert (jnp.diff(path.nc1) < 0).all()
        assert (jnp.diff(grown * path.trace_within) < 0).all()
        assert (jnp.diff(grown * path.trace_between) > 0).all()


def test_stops_at_a_quotient(getkey):
    stats = statistics(*draw(getkey(), [6] * 4, 7), 4)
    start = central_path.solve(stats, 0.05, 0.03, 1e-3, num_points=11).nc1[0]
    path = central_path.solve(stats, 0.05, 0.03, 20.0, stop_nc1=start / 2, num_points=11)
    assert path.result == RESULTS.nc1_reached
    assert path.stop_time < 20
    assert path.nc1[-1] < start / 2
    assert jnp.isfinite(path.means).all()


def test_gradients_and_vmap(getkey):
    stats = statistics(*draw(getkey(), [6] * 4, 7), 4)

    def final(lam_H):
        return central_path.solve(stats, 0.05, lam_H, 1.0, num_points=11).nc1[-1]

    lam, step = jnp.array(0.03), 1e-4
    run = final
    numerical = (run(lam + step) - run(lam - step)) / (2 * step)
    np.testing.assert_allclose(eqx.filter_jit(jax.grad(final))(lam), numerical, rtol=1e-4)
    both = eqx.filter_jit(jax.vmap(final))(jnp.array([0.03, 0.1]))
    np.testing.assert_allclose(both[0], run(lam), rtol=1e-6)


def test_float32(getkey):
    key = getkey()
    single = central_path.solve(statistics(*draw(key, [6] * 4, 7, jnp.float32), 4), 0.05, 0.03, 2.0, num_points=11)
    assert single.means.dtype == jnp.float32
    stats = Moments(jnp.full(4, 6), single.means[0].astype(float), single.within_cov[0].astype(float))
    double = central_path.solve(stats, 0.05, 0.03, 2.0, num_points=11)
    np.testing.assert_allclose(single.means, double.means, atol=1e-3)


def test_failure_is_reported(getkey):
    stats = statistics(*draw(getkey(), [6] * 4, 7), 4)
    path = central_path.solve(stats, 1e-6, 0.0, 10.0, num_points=11, max_steps=4, throw=False)
    assert path.result == RESULTS.nonlinear_max_steps_reached
    with pytest.raises(RuntimeError):
        central_path.solve(stats, 1e-6, 0.0, 10.0, num_points=11, max_steps=4)


GOOD = Moments(jnp.array([3, 2]), jnp.eye(2, 3), jnp.eye(3))


@pytest.mark.parametrize(
    ("stats", "change", "message"),
    [
        (Moments(jnp.array([3, 0]), jnp.eye(2, 3), jnp.eye(3)), {}, "empty class"),
        (Moments(jnp.array([3, 2]), jnp.nan * jnp.eye(2, 3), jnp.eye(3)), {}, "must be finite"),
        (Moments(jnp.array([3, 2]), jnp.zeros((2, 3)), jnp.eye(3)), {}, "must not all be zero"),
        (Moments(jnp.array([3, 2]), jnp.eye(2, 3), jnp.eye(4)), {}, "a full covariance"),
        (GOOD, dict(lam_W=0.0), "`lam_W` must be positive"),
        (GOOD, dict(lam_H=-1.0), "`lam_H` must be non-negative"),
        (GOOD, dict(t1=0.0), "`t1` must be positive"),
        (GOOD, dict(num_points=1), "`num_points` must be at least 2"),
        (GOOD, dict(stop_nc1=-1.0), "`stop_nc1` must be positive"),
    ],
)
def test_bad_input(stats, change, message):
    with pytest.raises(ValueError, match=message):
        central_path.solve(stats, **{**dict(lam_W=0.1, lam_H=0.1, t1=1.0), **change})
