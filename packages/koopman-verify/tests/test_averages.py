"""Moments of a trajectory, the split into point and continuous part, and Laplace averages, against exact answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from koopman_verify.measures import (
    autocorrelations,
    filter_values,
    laplace_average,
    moment_atoms,
    moment_density,
    rage,
    rage_series,
)


GOLDEN = (np.sqrt(5) - 1) / 2
FILTERS = ("fejer", "cosine", "vandeven", "sharpened", "bump")


def rotation(num: int) -> np.ndarray:
    """Return e^{ix} + e^{-2ix} / 2 along the golden rotation: masses 1 at the angle, 1/4 at minus twice the angle."""
    x = 0.3 + 2 * np.pi * GOLDEN * np.arange(num)
    return np.exp(1j * x) + 0.5 * np.exp(-2j * x)


def test_autocorrelations_are_the_sums():
    """The transform gives the sums of the definition, complex and real."""
    rng = np.random.default_rng(0)
    g = rng.normal(size=50) + 1j * rng.normal(size=50)
    for series in (g, g.real):
        direct = np.array([np.mean(series[n:] * series[: 50 - n].conj()) for n in range(20)])
        np.testing.assert_allclose(autocorrelations(series, 20), direct, atol=1e-13)
    assert autocorrelations(g.real, 20).dtype == jnp.float64
    assert autocorrelations(g.astype(np.complex64), 3).dtype == jnp.complex64


@pytest.mark.parametrize("name", FILTERS)
def test_filters(name):
    """Each filter is one at zero, zero at one, one half or as published in between, and falls."""
    x = np.linspace(0, 1, 101)
    values = np.asarray(filter_values(name, x))
    np.testing.assert_allclose(values[[0, 50, 100]], [1, 0.5, 0], atol=1e-13)
    assert np.all(np.diff(values) <= 1e-12)
    np.testing.assert_allclose(filter_values(name, -x), values)


@pytest.mark.parametrize(("name", "order"), [("fejer", 1), ("cosine", 2), ("vandeven", 4), ("sharpened", 8)])
def test_filter_orders(name, order):
    """On the density (1.25 + cos) / 2 pi, whose moments are 1.25, 1/2, 0, ..., the error falls like N^-order."""
    theta = np.array([0.0, 1.0, 3.0])
    truth = (1.25 + np.cos(theta)) / (2 * np.pi)
    moments = lambda n: np.array([1.25, 0.5] + [0.0] * (n - 2))
    errors = [np.abs(moment_density(moments(n), theta, name) - truth).max() for n in (8, 16)]
    assert order - 0.4 < np.log2(errors[0] / errors[1]) < order + 0.4
    np.testing.assert_allclose(moment_density(moments(16), theta, "bump"), truth, atol=1e-14)


def test_atoms_on_the_right_side():
    """A complex observable tells theta from -theta: the atoms are at the angle and at minus twice the angle."""
    turn = 2 * np.pi * GOLDEN
    moments = autocorrelations(rotation(4000), 400)
    masses = moment_atoms(moments, [turn, -2 * turn, -turn, 2 * turn, 0.4])
    np.testing.assert_allclose(masses, [1, 0.25, 0, 0, 0], atol=5e-3)
    density = np.asarray(moment_density(moments, np.array([turn, -turn])))
    assert density[0] > 50
    assert abs(density[1]) < 0.1


def test_rage_of_rotation_times_cat():
    """On rotation x cat, R(n, L) |g|^2 = |a|^2 + |b|^2 min(n, L) / L for g = a e^{i theta} + b e_k."""
    p, q, num, length, a, b = 8, 25, 5, 12, 0.8, 0.5
    cat = np.array([[2, 1], [1, 1]])
    t, i, j = (m.ravel() for m in np.meshgrid(np.arange(p), np.arange(q), np.arange(q), indexing="ij"))
    frequency, images = np.array([1, 0]), []
    for _ in range(length):
        images.append(np.exp(2j * np.pi * ((frequency[0] * i + frequency[1] * j) % q) / q))
        frequency = cat.T @ frequency % q
    circle = np.exp(2j * np.pi * t / p)
    orbit = np.stack([a * circle * np.exp(1j * n) + b * image for n, image in enumerate(images)], 1)
    share = rage(np.stack([circle, *images[:num]], 1), orbit).share
    n, steps = np.arange(num + 1)[:, None], np.arange(1, length + 1)[None]
    exact = (a**2 + b**2 * np.minimum(n, steps) / steps) / (a**2 + b**2)
    np.testing.assert_allclose(share, exact, rtol=1e-12)
    weighted = rage(np.stack([circle, *images[:num]], 1), orbit, weights=np.full(len(t), 0.3))
    np.testing.assert_allclose(weighted.share, exact, rtol=1e-12)


def test_rage_of_a_series_equals_the_matrices():
    """The correlations give what the stored matrices give; a quasi-periodic series is all point part."""
    rng = np.random.default_rng(1)
    g = rng.normal(size=300)
    num, delays, stride, steps = 300 - 39, 4, 3, 40
    functions = np.stack([g[s : s + num] for s in stride * np.arange(delays)], 1)
    orbit = np.stack([g[n : n + num] for n in range(steps)], 1)
    series = rage_series(g, num_delays=delays, stride=stride, num_steps=steps)
    np.testing.assert_allclose(series.share, rage(functions, orbit).share, rtol=1e-10)
    assert float(series.value) < 0.2
    point = rage_series(rotation(600), num_delays=2, num_steps=200)
    np.testing.assert_allclose(point.value, 1, rtol=1e-2)


def test_weighted_birkhoff_average():
    """Golden rotation, n = 200: the bump weights give a trigonometric mean to 1.5e-14, uniform weights to 5e-3."""
    x = 0.3 + 2 * np.pi * GOLDEN * np.arange(2000)
    bump = laplace_average(1 + np.cos(x[:200]), jnp.array([1.0]))
    uniform = laplace_average(1 + np.cos(x[:200]), jnp.array([1.0]), weight="uniform")
    assert abs(complex(bump.values[0]) - 1) <= 1.5e-14
    assert 1e-3 < abs(complex(uniform.values[0]) - 1) < 1e-2
    assert float(bump.change[0]) < 1e-8 < float(uniform.change[0])
    # All Fourier coefficients of an analytic function need more steps, for the small denominators: I_0(1) and I_1(1).
    g, turn = np.exp(np.cos(x)), np.exp(2j * np.pi * GOLDEN)
    exact = [np.i0(1.0), 0.5651591039924851 * np.exp(0.3j)]
    both = laplace_average(g, jnp.array([1.0, turn]))
    np.testing.assert_allclose(both.values, exact, atol=1e-13)
    np.testing.assert_array_equal(both.num_steps, [2000, 2000])
    single = laplace_average(g.astype(np.float32), jnp.array([1.0 + 0j]))
    assert single.values.dtype == jnp.complex64
    np.testing.assert_allclose(single.values, exact[:1], rtol=1e-5)


def test_dissipative_peeling():
    """For 1, 0.7 and 0.5 the components are peeled one after the other, over fewer and fewer steps, which is reported."""
    k = np.arange(400)[:, None]
    parts, z = np.array([[1.0, -2.0], [0.5, 1.5], [2.0, 0.3]]), np.array([0.5, 1.0, 0.7])
    found = laplace_average(sum(size**k * part for size, part in zip(z, parts, strict=True)), z)
    assert found.values.shape == (3, 2)
    errors = np.abs(np.asarray(found.values) - parts).max(axis=1)
    assert errors[1] < 1e-9
    assert errors[2] < 0.05
    assert errors[0] < 0.1
    assert errors[1] <= found.change[1]
    last, first, middle = found.num_steps
    assert 2 <= last < middle < 50
    assert first == 400


def test_transforms_and_single_precision():
    """Batches are loops, and float32 stays float32 with errors of its size."""
    rng = np.random.default_rng(2)
    g, z, theta = rng.normal(size=(2, 60)), np.array([1.0, 0.5j]), np.linspace(0, 3, 4)

    def everything(s):
        density = moment_density(autocorrelations(s, 8), theta)
        return rage_series(s, num_delays=3, num_steps=10).share, laplace_average(s, z).values, density

    batch = jax.jit(jax.vmap(everything))(jnp.asarray(g))
    for rows, row in zip(batch, jax.jit(everything)(jnp.asarray(g[1])), strict=True):
        np.testing.assert_allclose(np.asarray(rows)[1], row, rtol=1e-10)
    shares, _, densities = map(np.asarray, batch)
    single = jnp.asarray(g[1], jnp.float32)
    share = rage_series(single, num_delays=3, num_steps=10).share
    assert share.dtype == jnp.float32
    np.testing.assert_allclose(share, shares[1], rtol=1e-4)
    alone = moment_density(autocorrelations(single, 8), theta)
    assert alone.dtype == jnp.float32
    np.testing.assert_allclose(alone, densities[1], rtol=1e-4, atol=1e-6)
    slope = jax.jit(jax.grad(lambda m: jnp.sum(moment_density(m, theta) ** 2)))(np.ones(8))
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: autocorrelations(np.ones((3, 2)), 2), "series"),
        (lambda: autocorrelations(np.ones(3), 4), "num_lags"),
        (lambda: autocorrelations([1.0, np.nan], 1), "series"),
        (lambda: moment_density([np.nan], [0.0]), "moments"),
        (lambda: moment_density([1.0], [np.inf]), "theta"),
        (lambda: moment_density([1.0], 0.0), "theta"),
        (lambda: rage(np.ones((3, 4)), np.ones((3, 1))), "functions"),
        (lambda: rage(np.ones((3, 1)), np.ones((4, 1))), "orbit"),
        (lambda: rage(np.ones((3, 1)), np.ones((3, 1)), weights=np.ones(2)), "weights"),
        (lambda: rage_series(np.ones(9), num_delays=5, num_steps=9), "series"),
        (lambda: laplace_average(np.ones(9), [[1.0]]), "eigenvalues"),
        (lambda: laplace_average(np.ones(1), [1.0]), "values"),
    ],
)
def test_bad_input(call, named):
    """Wrong arguments raise by name."""
    with pytest.raises(ValueError, match=f"`{named}`"):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rage(np.ones((5, 2)), np.ones((5, 1))), "depend linearly"),
        (lambda: rage_series(np.ones(50), num_delays=2, num_steps=3), "depend linearly"),
        (lambda: rage(np.arange(1.0, 6)[:, None], np.zeros((5, 1))), "vanishes"),
        (lambda: rage(np.full((5, 1), np.nan), np.ones((5, 1))), "functions"),
        (lambda: rage(np.ones((5, 1)), np.ones((5, 1)), weights=-np.ones(5)), "weights"),
        (lambda: laplace_average(np.ones(9), [0.0]), "eigenvalues"),
        (lambda: laplace_average(np.full(9, np.inf), [1.0]), "values"),
    ],
)
def test_bad_values(call, message):
    """Wrong values raise at run time."""
    with pytest.raises(RuntimeError, match=message):
        call()
