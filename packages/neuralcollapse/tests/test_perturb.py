"""The perturbation model: oracles O9 and O10 of the specification, and its link to the central path."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from neuralcollapse import central_path, perturb
from neuralcollapse._results import RESULTS
from stationary_testkit import converges_at_order, vjp_matches_jvp


K, n, d = 3, 4, 6
LAM_W, LAM_H = 0.6, 0.3
LABELS = jnp.repeat(jnp.arange(K), n, total_repeat_length=K * n)
PROX = eqx.filter_jit(lambda h0, beta: perturb.prox(h0, LABELS, LAM_W, LAM_H, beta, num_classes=K))


@pytest.fixture
def frame(getkey):
    return jnp.linalg.qr(jr.normal(getkey(), (d, K)))[0]


def collapsed(frame):
    means, w = perturb.collapsed_frame(frame, LAM_W, LAM_H)
    return means[LABELS], w


def full_objective(w, h, h0, beta):
    y = jnp.eye(K)[LABELS]
    terms = jnp.sum((h @ w.T - y) ** 2) + LAM_H * jnp.sum(h**2) + beta * jnp.sum((h - h0) ** 2)
    return (terms / (K * n) + LAM_W / K * jnp.sum(w**2)) / 2


@pytest.mark.parametrize("beta", [0.5, 5.0])
def test_response_is_the_schur_complement_of_the_whole_hessian(beta, frame, getkey):
    h, w = collapsed(frame)
    blocks = jax.jit(jax.hessian(full_objective, argnums=(0, 1)))(w, h, h, beta)
    (ww, wh), (hw, hh) = blocks
    ww, wh, hw, hh = (
        ww.reshape(K * d, -1), wh.reshape(K * d, -1), hw.reshape(K * n * d, -1), hh.reshape(K * n * d, -1)
    )  # fmt: skip
    schur = hh - hw @ jnp.linalg.solve(ww, wh)
    change = jr.normal(getkey(), (K, n, d))
    expected = beta / (K * n) * jnp.linalg.solve(schur, change.reshape(-1))
    expected_w = -jnp.linalg.solve(ww, wh @ expected).reshape(K, d)
    got = perturb.response(LAM_W, LAM_H, beta, K, frame, change)
    np.testing.assert_allclose(got.reshape(-1), expected, atol=1e-10)
    exact, exact_w = perturb.diagonal_response(LAM_W, LAM_H, beta, frame, change)
    np.testing.assert_allclose(exact.reshape(-1), expected, atol=1e-10)
    np.testing.assert_allclose(exact_w, expected_w, atol=1e-10)
    other = perturb.response(LAM_W, LAM_H, beta, K, frame, change, solver=lx.CG(rtol=1e-13, atol=1e-13))
    np.testing.assert_allclose(other, exact, atol=1e-10)


def test_spectrum_and_multiplicities(frame):
    beta = 0.7
    basis = jnp.eye(n * d).reshape(n * d, n, d)
    push = jax.vmap(
        lambda v, k: perturb.diagonal_response(LAM_W, LAM_H, beta, frame, jnp.zeros((K, n, d)).at[k].set(v))[0],
        in_axes=(0, None),
    )
    columns = push(basis, 0)
    same, other = columns[:, 0].reshape(n * d, n * d), columns[:, 1].reshape(n * d, n * d)
    predicted = perturb.spectrum(LAM_W, LAM_H, beta, num_classes=K, class_size=n, dim=d)
    assert sum(predicted.multiplicities) == n * d
    values = jnp.sort(jnp.repeat(predicted.same, jnp.array(predicted.multiplicities), total_repeat_length=n * d))[::-1]
    np.testing.assert_allclose(jnp.linalg.svd(same, compute_uv=False), values, atol=1e-9)
    rank_one = jnp.linalg.svd(other, compute_uv=False)
    np.testing.assert_allclose(rank_one, jnp.zeros(n * d).at[0].set(predicted.other), atol=1e-9)
    # Theorem 4.2, to first order in 1/beta.
    for large in (1e4, 1e5):
        block = perturb.spectrum(LAM_W, LAM_H, large, num_classes=K, class_size=n, dim=d)
        c = np.sqrt(LAM_W * LAM_H)
        assert block.same[0] == 1
        np.testing.assert_allclose(block.same[4], 1 - np.sqrt(LAM_H / LAM_W) / large, atol=1 / large**2)
        np.testing.assert_allclose(block.other, 2 * LAM_H * (1 - c) / large, atol=1 / large**2)


def test_prox_is_a_stationary_point_of_the_whole_problem(getkey):
    h0 = jr.normal(getkey(), (K * n, d))
    for beta in (0.5, 5.0):
        step = PROX(h0, beta)
        value, gradient = jax.value_and_grad(full_objective, argnums=(0, 1))(step.W, step.features, h0, beta)
        np.testing.assert_allclose(step.value, value, rtol=1e-12)
        assert max(jnp.max(jnp.abs(g)) for g in gradient) < 1e-12
        assert step.result == RESULTS.successful


def test_prox_linearises_to_the_response(frame, getkey):
    h, _ = collapsed(frame)
    direction = jr.normal(getkey(), (K, n, d))
    exact = perturb.response(LAM_W, LAM_H, 0.5, K, frame, direction)
    sizes = [1e-2, 1e-3, 1e-4]
    errors = []
    for size in sizes:
        moved = PROX(h + size * direction.reshape(-1, d), 0.5).features - h
        errors.append(float(jnp.max(jnp.abs(moved / size - exact.reshape(-1, d)))))
    assert converges_at_order(errors, 1, steps=sizes)
    # At any other prox the response is the derivative of the prox itself.
    h0 = jr.normal(getkey(), (K * n, d))
    flat = direction.reshape(-1, d)
    at, derivative = jax.jvp(lambda h0: PROX(h0, 2.0).features, (h0,), (flat,))
    linear = perturb.response_at(at, LABELS, flat, LAM_W, LAM_H, 2.0, num_classes=K)
    np.testing.assert_allclose(derivative, linear, atol=1e-8)


def test_prox_is_fixed_at_collapse_and_differentiable(frame, getkey):
    h, w = collapsed(frame)
    step = PROX(h, 1.5)
    np.testing.assert_allclose(step.features, h, atol=1e-10)
    np.testing.assert_allclose(step.W, w, atol=1e-10)

    def outputs(h0, lam_W, lam_H, beta):
        step = perturb.prox(h0, LABELS, lam_W, lam_H, beta, num_classes=K)
        return step.features, step.value

    h0 = jr.normal(getkey(), (K * n, d))
    primals = h0, jnp.array(LAM_W), jnp.array(LAM_H), jnp.array(2.0)
    run = jax.jit(outputs)
    tangents = 0.1 * h0, jnp.array(0.1), jnp.array(-0.2), jnp.array(0.3)
    _, exact = jax.jvp(run, primals, tangents)
    up, down = (run(*(p + s * t for p, t in zip(primals, tangents, strict=True))) for s in (1e-5, -1e-5))
    for got, a, b in zip(exact, up, down, strict=True):
        np.testing.assert_allclose(got, (a - b) / 2e-5, atol=1e-7)
    assert vjp_matches_jvp(run, primals, key=getkey())


def test_nc1_ratio_and_beta(frame, getkey):
    h, _ = collapsed(frame)
    change = 1e-3 * jr.normal(getkey(), (K * n, d))
    for beta in (0.5, 5.0, 50.0):
        after = PROX(h + change, beta).features
        ratio = nc1_pinv(after) / nc1_pinv(h + change)
        predicted = perturb.predict_nc1_ratio(LAM_W, LAM_H, beta)
        np.testing.assert_allclose(ratio, predicted, rtol=5e-3)
        fitted = perturb.estimate_beta(jnp.array([1.0, predicted]), LAM_W, LAM_H)
        np.testing.assert_allclose(fitted, beta, rtol=1e-12)
    assert jnp.isinf(perturb.estimate_beta(jnp.array([0.1, 0.2]), LAM_W, LAM_H)).all()


def nc1_pinv(features):
    means = jnp.stack([features[k == LABELS].mean(0) for k in range(K)])
    centred = means - means.mean(0, keepdims=True)
    residual = features - means[LABELS]
    within = residual.T @ residual / (K * n)
    u, s, _ = jnp.linalg.svd(centred.T, full_matrices=False)
    u, s = u[:, : K - 1], s[: K - 1]
    return jnp.sum(jnp.sum(u * (within @ u), axis=0) / s**2)


def test_prox_follows_the_central_path_to_first_order(getkey):
    h0 = jr.normal(getkey(), (K * n, d))

    class Stats(eqx.Module):
        counts: jax.Array
        h: jax.Array

        def means(self):
            return jnp.stack([self.h[k == LABELS].mean(0) for k in range(K)])

        def within_cov(self):
            residual = self.h - self.means()[LABELS]
            return residual.T @ residual / (K * n)

    stats = Stats(jnp.full(K, n), h0)
    betas, errors = [10.0, 100.0, 1000.0], []
    for beta in betas:
        path = central_path.solve(stats, LAM_W, LAM_H, 1 / beta, num_points=2)
        step = PROX(h0, beta).features
        here = jnp.stack([step[k == LABELS].mean(0) for k in range(K)])
        errors.append(float(jnp.linalg.norm(here - path.means[-1]) / jnp.linalg.norm(path.means[-1] - path.means[0])))
        # Corollary 3.2: the step lowers the quotient.
        after = Stats(stats.counts, step)
        assert jnp.trace(after.within_cov()) / between(after) < path.nc1[0]
    assert converges_at_order(errors, 1, steps=[1 / b for b in betas])


def between(stats):
    means = stats.means()
    return jnp.sum((means - means.mean(0, keepdims=True)) ** 2) / K


def test_float32_and_vmap(frame, getkey):
    change = jr.normal(getkey(), (K, n, d))
    single = perturb.response(LAM_W, LAM_H, 1.0, K, frame.astype(jnp.float32), change.astype(jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, perturb.response(LAM_W, LAM_H, 1.0, K, frame, change), atol=1e-5)
    step = perturb.prox(change.reshape(-1, d).astype(jnp.float32), LABELS, LAM_W, LAM_H, 1.0, num_classes=K)
    np.testing.assert_allclose(step.features, PROX(change.reshape(-1, d), 1.0).features, atol=1e-3)
    many = jax.vmap(lambda beta: perturb.attenuation(LAM_W, LAM_H, beta).within_span)(jnp.array([0.5, 5.0]))
    np.testing.assert_allclose(many[1], perturb.attenuation(LAM_W, LAM_H, 5.0).within_span)


def test_bad_input(frame):
    h = jnp.ones((K * n, d))
    good: dict[str, Any] = dict(lam_W=0.6, lam_H=0.3, beta=1.0, num_classes=K)
    with pytest.raises(ValueError, match="must be below one"):
        perturb.attenuation(2.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="`beta` must be positive"):
        perturb.attenuation(0.5, 0.5, 0.0)
    with pytest.raises(ValueError, match="orthonormal columns"):
        perturb.response(0.6, 0.3, 1.0, K, 2 * frame, jnp.ones((K, n, d)))
    with pytest.raises(ValueError, match="`R` must have shape"):
        perturb.response(0.6, 0.3, 1.0, K + 1, frame, jnp.ones((K, n, d)))
    with pytest.raises(ValueError, match="below 3"):
        perturb.prox(h, LABELS + 1, **good)
    with pytest.raises(ValueError, match="at least 0"):
        perturb.prox(h, LABELS - 1, **good)
    with pytest.raises(ValueError, match="empty class"):
        perturb.prox(h, LABELS, **{**good, "num_classes": K + 1})
    with pytest.raises(ValueError, match="`H0` must be finite"):
        perturb.prox(h.at[0, 0].set(jnp.nan), LABELS, **good)
    with pytest.raises(ValueError, match="`labels` must be 12 whole numbers"):
        perturb.prox(h, LABELS[:3], **good)
    with pytest.raises(ValueError, match="at least two layers"):
        perturb.estimate_beta(jnp.array([0.1]), 0.5, 0.5)
    with pytest.raises(ValueError, match="`nc1` must be positive"):
        perturb.estimate_beta(jnp.array([0.1, 0.0]), 0.5, 0.5)
    with pytest.raises(ValueError, match="`dim` must be at least"):
        perturb.spectrum(0.5, 0.5, 1.0, num_classes=3, class_size=2, dim=2)
