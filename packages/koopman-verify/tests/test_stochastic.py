"""Stochastic Koopman operators from two successors of each state, against systems whose spectrum is known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from koopman_verify import Fourier, Snapshots, edmd, stochastic_factor


def noisy_rotation(num: int, spread: float, seed: int = 0, dtype: type = np.float64):
    """Return snapshots of x + 1 + noise on the circle: K e^{ikx} = e^{ik - k^2 spread^2 / 2} e^{ikx}."""
    rng = np.random.default_rng(seed)
    x = 2 * np.pi * np.arange(num)[:, None] / num
    y, again = (np.asarray(x + 1 + spread * rng.normal(size=(num, 1)), dtype) for _ in range(2))
    return Snapshots(np.asarray(x, dtype), y, kind="quadrature"), again


@pytest.fixture(scope="module")
def rotation():
    return stochastic_factor(Fourier(range(-2, 3)), *noisy_rotation(20_000, 0.5))


def test_noisy_rotation(rotation):
    """Eigenvalue e^{ik - k^2 s^2 / 2}, variance residual sqrt(1 - |lambda|^2), expected residual zero to the noise."""
    pairs = edmd(rotation.variance)
    assert pairs.coordinates is not None
    for k in range(-2, 3):
        exact = np.exp(1j * k - k**2 / 8)
        at = int(jnp.argmin(jnp.abs(pairs.eigenvalues - exact)))
        assert abs(complex(pairs.eigenvalues[at]) - exact) < 2e-2
        variance = rotation.variance_residual(pairs.eigenvalues[at : at + 1], pairs.coordinates[:, at : at + 1])[0]
        np.testing.assert_allclose(variance, np.sqrt(1 - np.exp(-(k**2) / 4)), atol=1e-2)
        np.testing.assert_allclose(variance, pairs.residuals[at], rtol=1e-10)
        expected = rotation.expected_residual(pairs.eigenvalues[at : at + 1], pairs.coordinates[:, at : at + 1])
        assert abs(float(expected.squared[0])) < 2e-2
        assert not bool(expected.resolved[0])
        np.testing.assert_allclose(expected.value, expected.upper)


def test_expected_residual_off_the_spectrum(rotation):
    """Away from the spectrum the difference stands above the noise and gives |lambda - z|."""
    u = jnp.asarray(rotation.mean.R11)[:, 3:4]  # e^{ix}
    exact = np.exp(1j - 1 / 8)
    z = jnp.array([exact + 0.4])
    expected = rotation.expected_residual(z, u)
    assert bool(expected.resolved[0])
    np.testing.assert_allclose(expected.value, 0.4, atol=2e-2)
    assert float(expected.upper[0]) > float(expected.value[0])
    variance = rotation.variance_residual(z, u)[0]
    np.testing.assert_allclose(variance, np.sqrt(0.16 + 1 - np.exp(-1 / 4)), atol=2e-2)


def test_matrices_are_those_of_the_definition():
    """L and H are the averages of the products of two successors, and the parts are their factors."""
    dictionary = Fourier([0, 1, 3])
    snapshots, again = noisy_rotation(200, 0.7, seed=3)
    weights = np.linspace(0.5, 1.5, 200) / 200
    stochastic = stochastic_factor(dictionary, Snapshots(snapshots.x, snapshots.y, weights, "iid"), again)
    x, y, z = (np.asarray(jax.vmap(dictionary)(s)) for s in (snapshots.x, snapshots.y, jnp.asarray(again)))
    w = weights[:, None]
    star = lambda a, b: a.conj().T @ (w * b)
    basis = np.asarray(stochastic.mean.basis)
    inside = lambda m: basis.conj().T @ m @ basis
    square = lambda m: np.asarray(m).conj().T @ np.asarray(m)
    a, b = stochastic.mean.A, stochastic.mean.B
    noise = square(stochastic.noise)
    np.testing.assert_allclose(inside(star(x, x)), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.asarray(a), inside(star(x, y + z) / 2), atol=1e-12)
    np.testing.assert_allclose(square(a) + square(b) + noise, inside(star(y, y) + star(z, z)) / 2, atol=1e-12)
    np.testing.assert_allclose(square(a) + square(b) - noise, inside(star(y, z) + star(z, y)) / 2, atol=1e-12)
    np.testing.assert_allclose(
        square(stochastic.variance.A) + square(stochastic.variance.B), square(a) + square(b) + noise, atol=1e-12
    )


def test_ornstein_uhlenbeck():
    """For dx = -x dt + sqrt(2) dW the eigenvalues are e^{-n tau}, with Hermite polynomials as eigenfunctions."""
    tau = 0.5
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    # Gauss's rule in the state, and a rule in the noise: repeated states with the noise's two copies as a product rule.
    noise, noise_weights = np.polynomial.hermite_e.hermegauss(12)
    x, e, f = (m.ravel() for m in np.meshgrid(nodes, noise, noise, indexing="ij"))
    w = np.einsum("i,j,k->ijk", weights, noise_weights, noise_weights).ravel() / (2 * np.pi) ** 1.5
    decay, spread = np.exp(-tau), np.sqrt(1 - np.exp(-2 * tau))
    powers = lambda s: jnp.stack([s[0] ** k for k in range(5)])
    keep = w > 1e-300
    snapshots = Snapshots(x[keep], decay * x[keep] + spread * e[keep], w[keep], "quadrature")
    stochastic = stochastic_factor(powers, snapshots, (decay * x + spread * f)[keep])
    pairs = edmd(stochastic.variance)
    order = jnp.argsort(-pairs.eigenvalues.real)
    np.testing.assert_allclose(pairs.eigenvalues[order], np.exp(-tau * np.arange(5)), atol=1e-10)
    # Var = |g|^2 - |Kg|^2 for an eigenfunction and the invariant measure.
    np.testing.assert_allclose(pairs.residuals[order], np.sqrt(1 - np.exp(-2 * tau * np.arange(5))), atol=1e-6)
    expected = stochastic.expected_residual(pairs.eigenvalues, pairs.coordinates)
    np.testing.assert_allclose(expected.squared, 0, atol=1e-10)


def test_truncation_single_precision_and_vmap():
    """A rank tolerance is passed on; float32 stays; a batch of points is a loop."""
    snapshots, again = noisy_rotation(500, 0.4, dtype=np.float32)
    doubled = lambda x: jnp.concatenate([Fourier([0, 1])(x), Fourier([1])(x)])
    stochastic = stochastic_factor(doubled, snapshots, again, rank_tol=1e-4)
    assert stochastic.mean.rank == stochastic.variance.rank == 2
    assert stochastic.noise.shape[1] == 2
    assert stochastic.noise.dtype == jnp.complex64
    u = jnp.eye(2, dtype=jnp.complex64)
    z = jnp.array([0.5 + 0.1j, 0.2j], jnp.complex64)
    each = [stochastic.expected_residual(z[i : i + 1], u[:, i : i + 1]).squared[0] for i in range(2)]
    together = eqx.filter_jit(stochastic.expected_residual)(z, u)
    np.testing.assert_allclose(together.squared, each, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="`dictionary`"):
        stochastic_factor(doubled, snapshots, again)


def test_bad_input():
    """Identical or misshapen second successors, and too few states, are refused by name."""
    snapshots, again = noisy_rotation(50, 0.4)
    with pytest.raises(ValueError, match="`second`"):
        stochastic_factor(Fourier([1]), snapshots, snapshots.y)
    with pytest.raises(ValueError, match="shape"):
        stochastic_factor(Fourier([1]), snapshots, again[1:])
    with pytest.raises(ValueError, match="finite"):
        stochastic_factor(Fourier([1]), snapshots, again * np.nan)
    with pytest.raises(ValueError, match="M <= N"):
        stochastic_factor(Fourier(range(60)), snapshots, again)
