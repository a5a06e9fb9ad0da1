import jax.numpy as jnp
import koopman_verify as kv
import numpy as np
import pytest
from koopman_verify import Snapshots


X = np.random.default_rng(0).uniform(0, 2 * np.pi, (100, 1))


def test_what_is_cut_off_a_kernel_is_in_its_rounding():
    # A kernel with eigenvalues of -1e-12, which pass as rounding: residuals can be off by their root.
    smooth = kv.kernels.Gaussian(0.5)
    off = lambda x, y: smooth(x, y) - jnp.where(jnp.all(x == y), 1e-12, 0.0)
    f = kv.kernel_factor(off, Snapshots(X[:40] / 6, X[:40] / 7))
    least = jnp.sqrt(1e-12) * 2 * jnp.linalg.norm(f.basis, 2)
    assert f.rounding(jnp.ones(())) > 0.9 * least
    assert kv.kernel_factor(smooth, Snapshots(X[:40] / 6, X[:40] / 7)).rounding(jnp.ones(())) < 0.5 * least


@pytest.mark.parametrize("method", ["svd", "iterative"])
def test_least_functions_of_a_complex_dictionary(method):
    # Not normal and not real: a vector that is conjugated, or is not, has another residual.
    rng = np.random.default_rng(3)
    a, b = (jnp.asarray(rng.normal(size=(6, 6)) + 1j * rng.normal(size=(6, 6))) for _ in range(2))
    eye = jnp.eye(6, dtype=a.dtype)
    f = kv.Factor(dictionary=jnp.exp, A=a, B=b, basis=eye, R11=eye, cond=jnp.ones(()), num_snapshots=99, kind="iid")
    z = jnp.asarray([0.3 + 0.4j, -1j])
    least = [np.linalg.svd(np.concatenate([a - w * np.eye(6), b]), compute_uv=False)[-1] for w in np.asarray(z)]
    assert np.allclose(kv.pseudoeigenfunction(f, z, method=method).residuals, least, rtol=1e-9)


def test_the_allowance_for_rounding_grows_with_the_point():
    f = kv.factor(kv.Fourier(range(-2, 3)), Snapshots(X, X + 1.0))
    near, far = f.rounding(jnp.array([1.0, 1e6]))
    assert 1e5 < far / near < 1e6


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_upper_bound_has_room_for_rounding(rng, dtype):
    # Exact eigenfunctions: what is left of the residual is rounding, and the interval around it is narrower than that.
    x = jnp.asarray(rng.uniform(0, 6, (600, 1)), dtype)
    quarter = jnp.asarray(np.pi / 2, dtype)
    pairs = kv.edmd(kv.factor(kv.Fourier([1, 2, 4]), Snapshots(x[:300], x[:300] + quarter)))
    certificate = kv.certify(pairs, Snapshots(x[300:], x[300:] + quarter))
    assert np.all(certificate.rounding > 0)
    assert np.all(certificate.upper >= certificate.estimate + certificate.rounding)
