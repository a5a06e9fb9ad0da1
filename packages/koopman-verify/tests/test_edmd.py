import equinox as eqx
import hypothesis as hp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from koopman_verify import Fourier, Hats, Monomials, Snapshots, edmd, factor


class Waves(eqx.Module):
    # A module and no closure, so that all examples share one compilation.
    waves: jax.Array
    phases: jax.Array
    is_complex: bool = eqx.field(static=True)

    def __call__(self, state):
        angle = self.waves @ state + self.phases
        return jax.lax.complex(jnp.cos(angle), jnp.sin(angle)) if self.is_complex else jnp.sin(angle)


def random_system(seed, size, num, dtype, is_complex):
    """Give a dictionary of random waves, snapshots of a random smooth map with weights, and its matrices."""
    rng = np.random.default_rng(seed)
    waves, phases = rng.normal(size=(size, 2)), rng.uniform(0, 6, size)
    waves, phases = waves.astype(dtype), phases.astype(dtype)
    x = rng.uniform(-1, 1, (num, 2)).astype(dtype)
    y = np.tanh(x @ rng.normal(size=(2, 2)).astype(dtype)).astype(dtype)
    weights = rng.uniform(0.5, 2, num).astype(dtype)

    def matrix(states):
        angle = states.astype(np.longdouble) @ waves.T + phases
        return np.exp(1j * angle) if is_complex else np.sin(angle)

    dictionary = Waves(jnp.asarray(waves, dtype), jnp.asarray(phases, dtype), is_complex)
    return dictionary, Snapshots(x, y, weights), (matrix(x), matrix(y), weights.astype(np.longdouble))


def residuals_by_definition(matrices, eigenvalues, v):
    psi_x, psi_y, w = matrices
    v = v.astype(np.clongdouble)
    defect = psi_y @ v - (psi_x @ v) * eigenvalues
    return np.sqrt((w @ np.abs(defect) ** 2) / (w @ np.abs(psi_x @ v) ** 2)).astype(float)


@hp.settings(max_examples=12, deadline=None)
@hp.given(st.integers(0, 10**6), st.booleans(), st.sampled_from([np.float64, np.float32]))
def test_residuals_are_those_of_the_definition(seed, is_complex, dtype):
    dictionary, snapshots, matrices = random_system(seed, 6, 40, dtype, is_complex)
    f = factor(dictionary, snapshots)
    pairs = edmd(f)
    assert len(pairs) == 6
    assert pairs.residuals.dtype == dtype
    expected = residuals_by_definition(matrices, np.asarray(pairs.eigenvalues), np.asarray(pairs.coefficients))
    eps = np.finfo(dtype).eps
    # The allowance is for the factorisation; the eigenfunctions' coefficients add their own length.
    lengths = np.linalg.norm(np.asarray(pairs.coefficients), axis=0)
    assert np.all(np.abs(np.asarray(pairs.residuals) - expected) <= np.asarray(pairs.rounding) + 30 * eps * lengths)
    # Functions have norm one.
    g = matrices[0] @ np.asarray(pairs.coefficients)
    norm = np.sqrt(matrices[2] @ np.abs(g) ** 2)
    assert np.allclose(norm.astype(float), 1, atol=1e4 * eps)


@hp.settings(max_examples=6, deadline=None)
@hp.given(st.integers(0, 10**6))
def test_eigenvalues_solve_the_least_squares_problem(seed):
    dictionary, snapshots, (psi_x, psi_y, w) = random_system(seed, 5, 60, np.float64, True)
    pairs = edmd(factor(dictionary, snapshots))
    root = np.sqrt(w.astype(float))[:, None]
    matrix = np.linalg.lstsq(root * psi_x.astype(complex), root * psi_y.astype(complex), rcond=None)[0]
    expected = np.linalg.eigvals(matrix)
    gap = np.abs(np.asarray(pairs.eigenvalues)[:, None] - expected[None])
    assert np.max(gap.min(axis=0)) < 1e-7
    assert np.max(gap.min(axis=1)) < 1e-7


def test_isometry_has_residual_by_its_eigenvalue():
    rng = np.random.default_rng(0)
    num = 3 * 500
    x = 2 * np.pi * np.arange(num) / num
    f = factor(Hats(rng.uniform(0, 2 * np.pi, 30)), Snapshots(x, (x + 2 * np.pi / 3) % (2 * np.pi), kind="quadrature"))
    pairs = edmd(f)
    modulus = jnp.minimum(jnp.abs(pairs.eigenvalues), 1)
    assert f.isometry_defect < 1e-10
    assert jnp.allclose(pairs.residuals**2, 1 - modulus**2, atol=1e-10)


def test_polynomials_of_a_linear_map():
    # Products of the eigenvalues, all with residual zero.
    rng = np.random.default_rng(1)
    values, basis = np.array([0.9, -0.4]), np.array([[1.0, 0.3], [0.2, 1.0]])
    matrix = basis @ np.diag(values) @ np.linalg.inv(basis)
    x = rng.uniform(-1, 1, (300, 2))
    pairs = edmd(factor(Monomials(2, 3), Snapshots(x, x @ matrix.T)))
    products = np.array([values[0] ** i * values[1] ** j for i in range(4) for j in range(4 - i)])
    assert len(pairs) == len(products) == 10
    gap = np.abs(np.asarray(pairs.eigenvalues)[:, None] - products[None])
    assert np.max(gap.min(axis=0)) < 1e-10
    assert jnp.max(pairs.residuals) < 1e-10


def test_complex_dictionaries_are_conjugated():
    # e^{ikx} and e^{-ikx} are orthogonal with a conjugate, and not without: then this would be singular or wrong.
    x = 2 * np.pi * np.arange(32) / 32
    f = factor(Fourier([-2, 1, 3]), Snapshots(x, x + 0.5, kind="quadrature"))
    pairs = edmd(f)
    expected = np.exp(0.5j * np.array([-2, 1, 3]))
    gap = np.abs(np.asarray(pairs.eigenvalues)[:, None] - expected[None])
    assert np.max(gap.min(axis=0)) < 1e-14
    assert jnp.max(pairs.residuals) < 1e-14
    assert f.cond == pytest.approx(1, abs=1e-13)


def test_an_eigenfunction_by_name():
    x = 2 * np.pi * np.arange(32) / 32
    pairs = edmd(factor(Fourier([1, 2]), Snapshots(x, x + 0.5, kind="quadrature")))
    first = int(jnp.argmin(jnp.abs(pairs.eigenvalues - np.exp(0.5j))))
    g = lambda t: pairs[first].functions(jnp.array([t]))
    assert jnp.allclose(g(1.7) / g(0.0), np.exp(1.7j), atol=1e-13)


def test_indexing_sorting_and_printing():
    x = 2 * np.pi * np.arange(90) / 90
    pairs = edmd(factor(Hats(np.array([0.0, 0.7, 1.9, 3.0, 4.4])), Snapshots(x, (x + 1) % (2 * np.pi))))
    ordered = pairs.sorted()
    assert jnp.all(jnp.diff(ordered.residuals) >= 0)
    good = pairs[pairs.residuals < 0.5]
    assert len(good) == int(jnp.sum(pairs.residuals < 0.5))
    assert good.coefficients.shape == (5, len(good))
    assert pairs[0].eigenvalues.shape == ()
    assert pairs.size == 5
    assert str(ordered).count("\n") == 5
