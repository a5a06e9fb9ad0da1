"""Stand-ins in the shape of the real libraries' objects; `benchmarks/peers.py` runs the libraries themselves."""

import types

import jax
import jax.numpy as jnp
import jax.random as jr
import koopman_verify as kv
import numpy as np
import pytest


def waves(x):
    return jnp.concatenate([jnp.ones(1), jnp.cos(x), jnp.sin(x), jnp.cos(2 * x), jnp.sin(2 * x)])


def sample(key, num=200):
    x = jr.uniform(key, (num, 1), maxval=2 * np.pi)
    return kv.Snapshots(x, x + 1)


@pytest.fixture(scope="module")
def data():
    return sample(jr.key(0))


@pytest.fixture(scope="module")
def matrix(data):
    """The matrix with psi(y) = psi(x) K: not normal in these coordinates, so that left is not right."""
    lift = jax.vmap(waves)
    mix = np.triu(np.ones((5, 5)))
    matrix = np.linalg.lstsq(np.asarray(lift(data.x)) @ mix, np.asarray(lift(data.y)) @ mix)[0]
    return matrix, (lambda x: waves(x) @ mix)


def pydmd(matrix):
    values, modes = np.linalg.eig(matrix.T)
    return types.SimpleNamespace(eigs=values, modes=modes * np.array([1, 1e-3, 1e3, 1, 1]))


def deeptime(matrix):
    values, vectors = np.linalg.eig(matrix)
    model = types.SimpleNamespace(operator=matrix, eigenvalues=values, modes=vectors.T)
    return types.SimpleNamespace(fetch_model=lambda: model)


def kooplearn(matrix):
    values, right = np.linalg.eig(matrix)
    return types.SimpleNamespace(n_features_in_=5, eig=lambda eval_right_on: (values, eval_right_on @ right))


@pytest.mark.parametrize(
    ("make", "adapt"),
    [
        (pydmd, kv.interop.from_pydmd),
        (deeptime, kv.interop.from_deeptime),
        (lambda m: types.SimpleNamespace(operator=m), kv.interop.from_deeptime),
        (kooplearn, kv.interop.from_kooplearn),
    ],
    ids=["pydmd", "deeptime", "deeptime-operator", "kooplearn"],
)
def test_conventions_on_a_rotation(make, adapt, matrix, data):
    pairs = adapt(make(matrix[0]), matrix[1], snapshots=data)
    assert pairs.coordinates is None
    assert pairs.num_snapshots == 200
    assert pairs.residuals.max() < 1e-12
    np.testing.assert_allclose(np.abs(pairs.eigenvalues), 1, rtol=1e-12)
    certificate = kv.certify(pairs, sample(jr.key(1)))
    assert np.all(certificate.status == "certified")
    assert certificate.upper.max() < 1e-12
    with pytest.raises(ValueError, match="that the fit has used"):
        kv.certify(pairs, data)


def test_exact_modes_near_the_eigenvalue_zero_are_refused():
    # Values A x with A of rank two in four dimensions, up to rounding: exact modes Y V / lambda of the other two are noise.
    rng = np.random.default_rng(0)
    frame = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    matrix = frame @ np.diag([1.0, 0.5, 1e-14, 1e-15]) @ np.linalg.inv(frame)
    values, projected = np.linalg.eig(matrix)
    exact = matrix @ projected / values
    noisy = types.SimpleNamespace(eigs=values, modes=exact[:, [0, 1, 0, 1]] + 1e-12 * exact, _exact=True)
    with pytest.raises(ValueError, match="fit with exact=False"):
        kv.interop.from_pydmd(noisy, lambda x: x)
    assert len(kv.interop.from_pydmd(types.SimpleNamespace(eigs=values, modes=projected), lambda x: x)) == 4


def test_a_wrong_side_is_seen(matrix):
    values, left = np.linalg.eig(matrix[0].T)
    certificate = kv.certify(kv.interop.from_eigenvectors(values, left, matrix[1]), sample(jr.key(1)), tol=0.1)
    assert (certificate.status == "refuted").sum() >= 4


def test_callable_eigenfunctions():
    pairs = kv.interop.from_eigenvectors([np.exp(1j), 0.9], lambda x: jax.lax.complex(jnp.cos(x), jnp.sin(x)).repeat(2))
    certificate = kv.certify(pairs, sample(jr.key(1)), tol=0.1)
    assert certificate.status.tolist() == ["certified", "refuted"]
    np.testing.assert_allclose(certificate.estimate[1], abs(np.exp(1j) - 0.9), rtol=1e-10)
    assert "not used in the fit" in " ".join(certificate.assumptions)


def test_without_data_the_residual_is_unknown():
    pairs = kv.interop.from_eigenvectors(np.array([1.0], np.float32), np.ones((1, 1)), lambda x: x)
    assert np.isnan(pairs.residuals).all()
    assert pairs.eigenvalues.dtype == jnp.complex64
    assert kv.certify(pairs).status[0] == "uncertifiable"


def test_bad_input():
    with pytest.raises(ValueError, match="`dictionary` is needed"):
        kv.interop.from_eigenvectors([1.0], np.ones((1, 1)))
    with pytest.raises(ValueError, match="which needs none"):
        kv.interop.from_eigenvectors([1.0], waves, waves)
    with pytest.raises(ValueError, match="`eigenfunctions` must be finite coefficients"):
        kv.interop.from_eigenvectors([1.0, 2.0], np.ones((3, 1)), waves)
    with pytest.raises(ValueError, match="`eigenvalues` must be finite"):
        kv.interop.from_eigenvectors([np.nan], np.ones((1, 1)), waves)
    with pytest.raises(TypeError, match="`dmd` must be a fitted model with `modes`"):
        kv.interop.from_pydmd(types.SimpleNamespace(eigs=[1.0]), waves)
    with pytest.raises(ValueError, match="a mode that is zero"):
        kv.interop.from_pydmd(types.SimpleNamespace(eigs=[1.0, 1.0], modes=np.diag([1.0, 0.0])), waves)
