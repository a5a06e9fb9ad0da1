"""The certified convex solver at depth 1: oracle O7 of the specification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neuralcollapse import ufm
from neuralcollapse._results import RESULTS
from stationary_testkit import finite_difference_jvp, vjp_matches_jvp


COUNTS = ([10, 10, 10, 10], [12, 8, 4, 2], [40, 40, 2, 2])
STRENGTHS = ((1e-3, 2e-3), (1e-2, 1e-2), (3e-2, 1e-1))


@pytest.fixture(scope="module")
def cross_entropy():
    return jax.jit(lambda n, a, b: ufm.solve_convex("ce", n, a, b))


def test_balanced_cross_entropy_has_a_closed_form(cross_entropy):
    for lam_W, lam_H in STRENGTHS:
        found = cross_entropy(jnp.full(4, 10.0), lam_W, lam_H)
        c = np.sqrt(10 * lam_W * lam_H)
        alpha = np.log(1 / c - 3) if c < 0.25 else 0.0
        np.testing.assert_allclose(found.loss, np.log1p(3 * np.exp(-alpha)) + 3 * c * alpha, atol=1e-12)
        frame = np.eye(4) - 0.25
        np.testing.assert_allclose(found.logits, alpha * frame, atol=1e-7)
        means = np.sqrt(lam_W / lam_H) * alpha / np.sqrt(10) * frame
        np.testing.assert_allclose(found.gram_means, means, atol=1e-7)
        rows = np.sqrt(lam_H / lam_W) * alpha * np.sqrt(10) * frame
        np.testing.assert_allclose(found.gram_classifier, rows, atol=1e-6)
        assert bool(found.collapsed.all()) == (alpha == 0)


def test_certificate_at_any_balance(cross_entropy):
    for counts in COUNTS:
        for lam_W, lam_H in STRENGTHS:
            found = cross_entropy(jnp.array(counts, float), lam_W, lam_H)
            assert found.certificate.kind == "proved"
            np.testing.assert_allclose(found.certificate.value, found.gap)
            assert found.result == RESULTS.successful
            assert found.gap <= 6e-14
            assert found.dual_norm <= 1 + 1e-7
            assert found.collapsed.all() or found.dual_norm >= 1 - 1e-7


def test_agrees_with_joint_optimisation_of_classifier_and_features():
    from scipy.optimize import minimize

    counts, lam_W, lam_H = [12, 8, 4, 2], 1e-2, 1e-2
    n = jnp.array(counts, float)

    @jax.jit
    def objective(flat):
        w, h = flat[:24].reshape(4, 6), flat[24:].reshape(4, 6)
        losses = -jnp.diag(jax.nn.log_softmax(h @ w.T))
        return jnp.sum(n * losses) / jnp.sum(n) + (lam_W * jnp.sum(w**2) + lam_H * jnp.sum(n[:, None] * h**2)) / 2

    start = np.random.default_rng(0).normal(size=48)
    both = minimize(
        jax.value_and_grad(objective), start, jac=True, method="L-BFGS-B", options=dict(maxiter=9000, ftol=1e-16)
    )
    found = ufm.solve_convex("ce", counts, lam_W, lam_H)
    np.testing.assert_allclose(found.loss, both.fun, atol=1e-12)
    w = both.x[:24].reshape(4, 6)
    np.testing.assert_allclose(found.gram_classifier, w @ w.T, atol=1e-3)


def test_squared_loss_agrees_with_the_closed_form():
    run = jax.jit(lambda n, a, b: ufm.solve_convex("mse", n, a, b))
    for counts in COUNTS:
        for lam_W, lam_H in STRENGTHS:
            found, exact = run(jnp.array(counts, float), lam_W, lam_H), ufm.solve_mse(counts, 1, lam_W, lam_H)
            np.testing.assert_allclose(found.loss, exact.loss, atol=1e-14)
            np.testing.assert_allclose(found.logits, exact.logits, atol=1e-12)
            np.testing.assert_allclose(found.gram_means, exact.gram_means, atol=1e-10)


def test_the_gap_bounds_the_error_of_an_unfinished_solve():
    exact = ufm.solve_convex("ce", [12, 8, 4, 2], 1e-2, 1e-2)
    early = ufm.solve_convex("ce", [12, 8, 4, 2], 1e-2, 1e-2, max_steps=10, throw=False)
    assert early.result == RESULTS.nonlinear_max_steps_reached
    assert 0 < early.loss - exact.loss <= early.gap
    with pytest.raises(RuntimeError):
        ufm.solve_convex("ce", [12, 8, 4, 2], 1e-2, 1e-2, max_steps=10)
    stuck = ufm.solve_convex("ce", [12, 8, 4, 2], 1e-2, 1e-2, tol=1e-30, throw=False)
    assert stuck.result in (RESULTS.gap_stagnation, RESULTS.successful)
    assert stuck.gap < 1e-13


def test_smoothing_and_offsets():
    offsets = jnp.log(jnp.array([12.0, 8, 4, 2]) / 26)
    run = jax.jit(lambda smoothing, offsets: ufm.solve_convex(
        "ce", [12, 8, 4, 2], 1e-2, 1e-2, smoothing=smoothing, offsets=offsets))  # fmt: skip
    plain, smooth, adjusted = run(0.0, 0 * offsets), run(0.1, 0 * offsets), run(0.0, offsets)
    for found in (plain, smooth, adjusted):
        assert found.gap <= 6e-14
    assert jnp.max(smooth.logits) < jnp.max(plain.logits)
    # Logit adjustment makes the minority's own logits larger.
    assert adjusted.logits[3, 3] > plain.logits[3, 3]


def test_implicit_derivatives(getkey):
    def everything(n, lam_W, lam_H):
        s = ufm.solve_convex("ce", n, lam_W, lam_H)
        return s.loss, s.logits, s.gram_means, s.gram_classifier

    fn = jax.jit(everything)
    tangents = jnp.array([1.0, 2.0, -1.0, 0.5]), jnp.array(1e-2), jnp.array(-1e-3)
    # With equal classes all the singular values coincide.
    for counts in COUNTS[:2]:
        primals = jnp.array(counts, float), jnp.array(1e-2), jnp.array(2e-2)
        _, exact = jax.jvp(fn, primals, tangents)
        approximate = finite_difference_jvp(fn, primals, tangents, step=1e-3)
        for got, expected in zip(exact, approximate, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5 * float(jnp.max(jnp.abs(expected))))
        assert vjp_matches_jvp(fn, primals, key=getkey())


def test_float32_and_vmap():
    lams = jnp.array([1e-3, 1e-2, 5e-2], jnp.float32)
    counts = jnp.array([12, 8, 4, 2], jnp.float32)
    many = jax.vmap(lambda lam: ufm.solve_convex("ce", counts, lam, lam))(lams)
    assert many.loss.dtype == jnp.float32
    assert (many.gap < 1e-4).all()
    for lam, loss in zip(lams, many.loss, strict=True):
        double = ufm.solve_convex("ce", [12, 8, 4, 2], float(lam), float(lam)).loss
        np.testing.assert_allclose(loss, double, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(counts=[3, 0]), "empty class"),
        (dict(lam_W=0.0), "`lam_W` must be positive"),
        (dict(lam_H=float("nan")), "`lam_H` must be positive"),
        (dict(smoothing=1.0), "`smoothing` must be in"),
        (dict(offsets=jnp.zeros(3)), "`offsets` must have shape"),
        (dict(tol=0.0), "`tol` must be positive"),
        (dict(loss="mse", smoothing=0.1), 'belong to the loss "ce"'),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        ufm.solve_convex(**{**dict(loss="ce", counts=[3, 2], lam_W=1e-2, lam_H=1e-2), **change})
