"""Forecasts: the error is above the truth where it is called a bound, and is not called one elsewhere."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from koopman_verify import Fourier, Snapshots, edmd, factor, forecast, modal_forecast


CAT = np.array([[2, 1], [1, 1]])
Q = 31


def box(n: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(-n, n + 1)] * 2, indexing="ij"), -1).reshape(-1, 2)


@pytest.fixture(scope="module")
def nodes():
    return np.stack(np.meshgrid(*[np.arange(Q)] * 2, indexing="ij"), -1).reshape(-1, 2)


def snapshots_of(nodes: np.ndarray, kind: str = "quadrature", dtype: type = np.float64) -> Snapshots:
    x, y = (np.asarray(2 * np.pi / Q * n, dtype) for n in (nodes, nodes @ CAT.T % Q))
    return Snapshots(x, y, kind=kind)


@pytest.fixture(scope="module")
def cat(nodes):
    """The cat map on 25 Fourier functions, whose images mostly leave their span, integrals exact."""
    return factor(Fourier(box(2)), snapshots_of(nodes))


def observable() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=25) + 1j * rng.normal(size=25)


def true_errors(cat, v, prediction, nodes, num: int) -> np.ndarray:
    """Root mean squares of K^n g - g_n over the grid, which are the norms of these trigonometric polynomials."""
    psi = jax.vmap(cat.dictionary)
    values, state = np.asarray(psi(jnp.asarray(2 * np.pi / Q * nodes))), nodes
    errors = []
    for n in range(num + 1):
        exact = np.asarray(psi(jnp.asarray(2 * np.pi / Q * state))) @ v
        errors.append(np.sqrt(np.mean(np.abs(exact - values @ np.asarray(prediction.coefficients[n])) ** 2)))
        state = state @ CAT.T % Q
    return np.array(errors)


def test_bound_is_above_the_error_and_attained_at_one_step(cat, nodes):
    """For an isometry the accumulated norms bound the error, and after one step they are the error."""
    v = observable()
    prediction = forecast(cat, v, 6, norm_bound=1.0)
    errors = true_errors(cat, v, prediction, nodes, 6)
    assert prediction.kind == "bound"
    assert prediction.bound is not None
    assert np.all(errors <= np.asarray(prediction.bound) + 1e-12)
    np.testing.assert_allclose(prediction.bound[1], errors[1], rtol=1e-10)
    np.testing.assert_allclose(errors[0], 0, atol=1e-13)
    assert float(prediction.bound[6]) < 3 * errors[6]


def test_what_may_be_called_a_bound(cat, nodes):
    """Without a norm of K, or with sampled data, the error is an estimate and there is no bound."""
    v = observable()
    without = forecast(cat, v, 3)
    assert (without.kind, without.bound) == ("estimate", None)
    assert "estimated" in without.assumptions[0]
    np.testing.assert_allclose(without.error, forecast(cat, v, 3, norm_bound=1.0).error, rtol=1e-10)
    sampled = factor(Fourier(box(2)), snapshots_of(nodes, "iid"))
    assert forecast(sampled, v, 3, norm_bound=1.0).bound is None
    modal = modal_forecast(edmd(sampled)[:2], np.ones(2), 3, norm_bound=1.0)
    assert (modal.kind, modal.bound) == ("estimate", None)
    foreign = eqx.tree_at(lambda p: p.coordinates, edmd(cat)[:2], None, is_leaf=lambda leaf: leaf is None)
    assert modal_forecast(foreign, np.ones(2), 3, norm_bound=1.0).bound is None


def test_rotation_is_predicted_exactly():
    """On an invariant space the prediction is the trajectory, and the error is only rounding."""
    x = 2 * np.pi * np.arange(40)[:, None] / 40
    rotation = factor(Fourier(range(-3, 4)), Snapshots(x, x + 1, kind="quadrature"))
    v = np.zeros((7, 2))
    v[4, 0], v[1, 1] = 1.0, 2.0
    start = np.array([[0.2], [1.0], [5.0]])
    prediction = forecast(rotation, v, 10, norm_bound=1.0, initial=start)
    assert prediction.mean.shape == (11, 3, 2)
    moved = start[None, :, 0] + np.arange(11)[:, None]
    np.testing.assert_allclose(prediction.mean[..., 0], np.exp(1j * moved), atol=1e-12)
    np.testing.assert_allclose(prediction.mean[..., 1], 2 * np.exp(-2j * moved), atol=1e-12)
    assert float(jnp.max(prediction.error)) < 1e-11
    assert bool(jnp.all(prediction.error[1:] > 0))


def test_growth_with_a_norm_above_one(cat):
    """The recursion is the sum of the formula, for any norm."""
    v = observable()
    a, b = np.asarray(cat.A), np.asarray(cat.B)
    u = np.asarray(cat.R11) @ v
    left = [np.linalg.norm(b @ np.linalg.matrix_power(a, j) @ u) for j in range(5)]
    direct = np.array([sum(1.7 ** (n - 1 - j) * left[j] for j in range(n)) for n in range(6)])
    np.testing.assert_allclose(forecast(cat, v, 5, norm_bound=1.7).error, direct, rtol=1e-9, atol=1e-11)


def test_modal_forecast(cat, nodes):
    """Sums of eigenfunctions are predicted within their residuals' bound."""
    pairs = edmd(cat)[:3]
    amplitudes = np.array([1.0, -0.5j, 0.3 + 0.2j])
    prediction = modal_forecast(pairs, amplitudes, 4, norm_bound=1.0, initial=np.zeros((1, 2)))
    v = np.asarray(pairs.coefficients) @ amplitudes
    errors = true_errors(cat, v, prediction, nodes, 4)
    assert prediction.bound is not None
    assert np.all(errors <= np.asarray(prediction.bound) + 1e-10)
    z, r = np.abs(pairs.eigenvalues), np.asarray(pairs.residuals)
    direct = np.sum(np.abs(amplitudes) * r * (1 + z + z**2))
    np.testing.assert_allclose(prediction.bound[3], direct, rtol=1e-9)
    np.testing.assert_allclose(
        prediction.mean[0, 0], pairs.functions(jnp.zeros(2)) @ jnp.asarray(amplitudes), rtol=1e-10
    )
    two = modal_forecast(pairs, np.stack([amplitudes, amplitudes], 1), 4, norm_bound=1.0)
    np.testing.assert_allclose(two.error[:, 1], prediction.error, rtol=1e-12)


def test_what_a_truncation_leaves_out_counts(nodes):
    """Where the kept space does not hold the observable, its own distance to that space is part of the error."""
    fourier = Fourier(box(1))
    nearly = lambda x: (e := fourier(x)).at[1].set(e[0] + 1e-8 * e[1])
    lengths = factor(nearly, snapshots_of(nodes), rank_tol=1e-6)
    assert lengths.rank == 8
    v = np.zeros(9)
    v[1], v[0] = 1e8, -1e8  # the function of norm one that was left out
    prediction = forecast(lengths, v, 1, norm_bound=1.0)
    np.testing.assert_allclose(prediction.error, [1, 1], rtol=1e-3)
    assert prediction.kind == "bound"


def test_single_precision_and_transforms(cat, nodes):
    """In float32 the dtype stays and the bound holds; a batch of observables is a loop; gradients are finite."""
    single = factor(Fourier(box(2)), snapshots_of(nodes, dtype=np.float32))
    v = observable()
    prediction = forecast(single, v.astype(np.complex64), 3, norm_bound=1.0)
    assert prediction.error.dtype == jnp.float32
    assert np.all(true_errors(cat, v, prediction, nodes, 3) <= np.asarray(prediction.error) + 1e-4)
    run = eqx.filter_jit(lambda c: forecast(cat, c, 3, norm_bound=1.0).error)
    batch = jnp.stack([jnp.asarray(v), jnp.asarray(v[::-1])])
    np.testing.assert_allclose(jax.vmap(run)(batch)[1], run(batch[1]), rtol=1e-12)
    slope = jax.grad(lambda c: run(c)[3])(jnp.asarray(np.real(v)))
    assert bool(jnp.all(jnp.isfinite(slope)))


def test_bad_input(cat):
    """Wrong arguments raise by name."""
    v = observable()
    for call, named in [
        (lambda: forecast(cat, v[1:], 3), "coefficients"),
        (lambda: forecast(cat, v * np.nan, 3), "coefficients"),
        (lambda: forecast(cat, v, -1), "num_steps"),
        (lambda: forecast(cat, v, 3, norm_bound=0.0), "norm_bound"),
        (lambda: forecast(cat, v, 3, norm_bound=np.inf), "norm_bound"),
        (lambda: forecast(cat, v, 3, initial=np.zeros(2)), "initial"),
        (lambda: forecast(cat, v, 3).mean, "initial"),
        (lambda: modal_forecast(edmd(cat), np.ones(3), 3), "amplitudes"),
    ]:
        with pytest.raises(ValueError, match=f"`{named}`"):
            call()
