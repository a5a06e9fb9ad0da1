"""Curvature without Hessians, and stability of SGD: oracle O14 of the specification."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from neuralcollapse import sharpness, ufm


def network(dtype=float):
    r = np.random.default_rng(0)
    x, y = jnp.asarray(r.normal(size=(20, 4)), dtype), jnp.asarray(r.normal(size=(20, 3)), dtype)
    params = {
        "w": jnp.asarray(0.6 * r.normal(size=(4, 8)), dtype),
        "v": jnp.asarray(0.6 * r.normal(size=(8, 3)), dtype),
    }

    def loss(p):
        return jnp.mean((jnp.tanh(x @ p["w"]) @ p["v"] - y) ** 2)

    return loss, params


LOSS, PARAMS = network()


@pytest.fixture(scope="module")
def dense():
    flat, unravel = ravel_pytree(PARAMS)
    return np.asarray(jax.jit(jax.hessian(lambda v: LOSS(unravel(v))))(flat))


@pytest.fixture(scope="module")
def operator(dense):
    return lx.MatrixLinearOperator(jnp.asarray(dense), lx.symmetric_tag)


def test_extreme_eigenvalues_have_a_bound(dense, getkey):
    exact = np.linalg.eigvalsh(dense)[::-1]
    run = jax.jit(lambda key: sharpness.top_k(LOSS, PARAMS, k=3, key=key, num_steps=25))
    found = run(getkey())
    for value, residual in zip(found.values, found.residuals, strict=True):
        assert np.min(np.abs(exact - float(value))) <= residual + 1e-12
    np.testing.assert_allclose(found.values, exact[:3], rtol=1e-8)
    np.testing.assert_allclose(found.values[0], exact[0], rtol=1e-12)
    # The vectors live where the parameters do.
    vector, _ = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], found.vectors))
    np.testing.assert_allclose(jnp.linalg.norm(dense @ vector - exact[0] * vector), found.residuals[0], atol=1e-10)
    assert jnp.linalg.norm(vector) == pytest.approx(1, abs=1e-12)
    # A short run is below, and says how far off it may be.
    short = sharpness.lambda_max(LOSS, PARAMS, key=getkey(), num_steps=4)
    assert short.value <= exact[0] + 1e-12
    assert np.min(np.abs(exact - float(short.value))) <= short.residual


def test_operators_with_few_or_no_distinct_eigenvalues(getkey):
    # The Krylov space is exhausted at once; the method goes on from elsewhere.
    for diagonal in ([2.0] * 6, [0.0] * 6, [-3.0, -1, -1, -1, -1, -3], [5.0, 5, 1, 1, 1, 1]):
        op = lx.MatrixLinearOperator(jnp.diag(jnp.array(diagonal)), lx.symmetric_tag)
        found = sharpness.top_k(op, k=2, key=getkey())
        np.testing.assert_allclose(found.values, sorted(diagonal)[::-1][:2], atol=1e-12)


def test_trace_and_frobenius_norm(operator, dense, getkey):
    keys = jr.split(getkey(), 200)
    for estimate, exact in ((sharpness.trace, np.trace(dense)), (sharpness.frobenius, np.sum(dense**2))):
        many = jax.jit(jax.vmap(lambda key, f=estimate: f(operator, key=key, num_matvecs=30)))(keys)
        error = np.asarray(many.value) - exact
        # Unbiased, with an honest standard error.
        assert abs(error.mean()) < 4 * error.std() / np.sqrt(200)
        assert 0.8 < np.sqrt(np.mean(np.asarray(many.standard_error) ** 2)) / error.std() < 1.25
    plain = jax.jit(jax.vmap(lambda key: sharpness.trace(operator, key=key, num_matvecs=30, method="hutchinson")))(keys)
    deflated = jax.jit(jax.vmap(lambda key: sharpness.trace(operator, key=key, num_matvecs=30)))(keys)
    assert np.std(deflated.value) < np.std(plain.value)
    low, high = deflated.interval(0.95)
    hits = np.mean((low <= np.trace(dense)) & (np.trace(dense) <= high))
    assert 0.90 <= hits <= 0.99


def test_trace_is_exact_where_it_can_be(dense, getkey):
    exact = sharpness.trace(LOSS, PARAMS, key=getkey(), num_matvecs=60)
    np.testing.assert_allclose(exact.value, np.trace(dense), rtol=1e-12)
    assert exact.num_matvecs == 56
    assert exact.interval() == (exact.value, exact.value)
    low = jr.normal(getkey(), (40, 3))
    op = lx.MatrixLinearOperator(low @ low.T, lx.symmetric_tag)
    estimate = sharpness.trace(op, key=getkey(), num_matvecs=12)
    np.testing.assert_allclose(estimate.value, jnp.sum(low**2), rtol=1e-10)


def test_hessian_trace_of_the_features_model(getkey):
    # tr = (K/N) |H|^2 + |W|^2 + lam_W K d + lam_H d N at any point of the model of depth one.
    counts, lam_W, lam_H, d = [3, 2], 1e-2, 2e-2, 3
    labels = np.repeat(np.arange(2), counts)
    w, h = jr.normal(getkey(), (2, d)), jr.normal(getkey(), (5, d))

    def loss(p):
        w, h = p
        error = h @ w.T - jnp.eye(2)[labels]
        return jnp.sum(error**2) / 10 + (lam_W * jnp.sum(w**2) + lam_H * jnp.sum(h**2)) / 2

    got = sharpness.trace(loss, (w, h), key=getkey()).value
    formula = 2 / 5 * jnp.sum(h**2) + jnp.sum(w**2) + lam_W * 2 * d + lam_H * d * 5
    np.testing.assert_allclose(got, formula, rtol=1e-12)
    # At the global minimum there is no negative curvature.
    point = ufm.solve_mse(counts, 1, lam_W, lam_H, widths=d).construct(getkey())
    at = sharpness.top_k(lambda p: -loss(p), (point.weights[0], point.features[labels]), k=1, key=getkey())
    assert at.values[0] <= 1e-12


def test_gauss_newton_is_the_hessian_at_an_interpolating_minimum(getkey):
    x, w = jr.normal(getkey(), (6, 4)), jr.normal(getkey(), (4, 3))

    def model(w):
        return jnp.tanh(x @ w)

    def loss(z):
        return jnp.mean((z - target) ** 2) / 2

    target = model(w)
    gn = sharpness.gauss_newton(model, loss, w)
    v = jr.normal(getkey(), w.shape)
    np.testing.assert_allclose(gn.mv(v), sharpness.hessian(lambda w: loss(model(w)), w).mv(v), atol=1e-12)
    assert lx.is_positive_semidefinite(gn)


def test_density(operator, dense, getkey):
    spectrum = sharpness.density(operator, key=getkey(), num_probes=64, num_steps=20)
    exact = np.linalg.eigvalsh(dense)
    np.testing.assert_allclose(spectrum.moment(0), 1, rtol=1e-12)
    np.testing.assert_allclose(spectrum.moment(1), exact.mean(), rtol=0.15)
    grid = jnp.linspace(exact[0] - 1, exact[-1] + 1, 2000)
    curve = spectrum.evaluate(grid, 0.1)
    np.testing.assert_allclose(jnp.trapezoid(curve, grid), 1, atol=1e-3)
    np.testing.assert_allclose(spectrum.below(0.05), np.mean(exact < 0.05), atol=0.08)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_stability_of_sgd_with_orthogonal_gradients(batch):
    n = 5
    limit = sharpness.sgd_eta_max(3.0 * jnp.eye(n), batch)
    np.testing.assert_allclose(limit.eta * limit.trace, 2 * n / (1 - 1 / batch + n / batch), rtol=1e-8)
    if batch == 1:
        # Twice: the trace condition of batch size one is tight here, and the margin zero.
        np.testing.assert_allclose(sharpness.sgd_margin_b1(limit.eta, limit.trace), 0, atol=1e-8)
    elif batch == 8:
        assert sharpness.sgd_margin_b1(limit.eta, limit.trace) < 0


def test_stability_limit_is_where_the_spectral_radius_is_one(getkey):
    @jax.jit
    def matrix(x, eta, batch):
        p = x.shape[1]
        basis = jnp.eye(p * p).reshape(-1, p, p)
        return jax.vmap(lambda e: sharpness.mean_square_map(e, x, eta, batch))(basis).reshape(p * p, -1)

    # Fewer gradients than parameters: directions in which nothing moves must not count.
    for shape, batch in (((6, 4), 2), ((3, 4), 1)):
        x = jr.normal(getkey(), shape)
        limit = sharpness.sgd_eta_max(x, batch)
        inside, outside = (
            np.max(np.abs(np.linalg.eigvals(np.asarray(matrix(x, factor * limit.eta, batch)))))
            for factor in (0.999, 1.001)
        )
        assert inside <= 1 + 1e-10
        assert outside > 1 + 1e-6
        assert limit.eta <= 2 / limit.lambda_max + 1e-10
        if batch == 1:
            assert limit.eta * limit.trace <= 2 + 1e-10


def test_stability_limit_of_the_full_batch_and_of_many_outputs(getkey):
    x = jr.normal(getkey(), (6, 4))
    full = sharpness.sgd_eta_max(x, 6, replace=False)
    np.testing.assert_allclose(full.eta, 2 / full.lambda_max, rtol=1e-8)
    np.testing.assert_allclose(sharpness.gd_margin(full.eta, full.lambda_max), 0, atol=1e-8)
    one = sharpness.sgd_eta_max(x[:, None], 2)
    np.testing.assert_allclose(one.eta, sharpness.sgd_eta_max(x, 2).eta, rtol=1e-10)
    several = sharpness.sgd_eta_max(jr.normal(getkey(), (5, 2, 12)), 2)
    assert 0 < several.eta < 2 / several.lambda_max


def test_float32(getkey):
    loss, params = network(jnp.float32)
    double = sharpness.lambda_max(LOSS, PARAMS, key=getkey(), num_steps=40).value
    single = sharpness.lambda_max(loss, params, key=getkey(), num_steps=40)
    assert single.value.dtype == jnp.float32
    np.testing.assert_allclose(single.value, double, rtol=1e-5)
    trace = sharpness.trace(loss, params, key=getkey(), num_matvecs=30)
    assert trace.value.dtype == trace.interval()[0].dtype == jnp.float32
    limit = sharpness.sgd_eta_max(jnp.eye(5, dtype=jnp.float32), 2)
    np.testing.assert_allclose(limit.eta * limit.trace, 10 / 3, rtol=1e-5)


def test_bad_input(getkey):
    key = getkey()
    with pytest.raises(ValueError, match="`params` is missing"):
        sharpness.trace(LOSS, key=key)
    with pytest.raises(ValueError, match="must return a scalar"):
        sharpness.lambda_max(lambda w: w, jnp.ones(3), key=key)
    with pytest.raises(ValueError, match="tagged symmetric"):
        sharpness.trace(lx.MatrixLinearOperator(jnp.eye(3)), key=key)
    with pytest.raises(ValueError, match="goes with a loss"):
        sharpness.trace(lx.IdentityLinearOperator(jax.ShapeDtypeStruct((3,), jnp.float32)), jnp.ones(3), key=key)
    with pytest.raises(ValueError, match="at least 6"):
        sharpness.trace(LOSS, PARAMS, key=key, num_matvecs=3)
    with pytest.raises(ValueError, match="`k` must be"):
        sharpness.top_k(LOSS, PARAMS, k=9, key=key, num_steps=4)
    with pytest.raises(ValueError, match="not finite"):
        sharpness.trace(lambda w: jnp.sum(jnp.nan * w**2), jnp.ones(3), key=key)
    with pytest.raises(ValueError, match="not finite"):
        sharpness.lambda_max(lambda w: jnp.sum(jnp.nan * w**2), jnp.ones(3), key=key)
    with pytest.raises(ValueError, match="must not all be zero"):
        sharpness.sgd_eta_max(jnp.zeros((3, 3)), 1)
    with pytest.raises(ValueError, match="`batch_size` must be"):
        sharpness.sgd_eta_max(jnp.eye(3), 4, replace=False)
    with pytest.raises(ValueError, match="`eta` must be positive"):
        sharpness.gd_margin(0.0, 1.0)
    with pytest.raises(ValueError, match="`level` must be"):
        sharpness.trace(LOSS, PARAMS, key=key).interval(1.0)
