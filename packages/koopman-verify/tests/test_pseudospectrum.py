import itertools

import equinox as eqx
import hypothesis as hp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import koopman_verify
import numpy as np
import pytest
from koopman_verify import Factor, Fourier, Snapshots, factor, polar_grid, pseudoeigenfunction, pseudospectrum


METHODS = ("svd", "iterative")


def circle(num, dtype=jnp.float64):
    return jnp.asarray(2 * np.pi * np.arange(num)[:, None] / num, dtype)


def pointwise(f, z, method="auto"):
    return np.asarray(pseudospectrum(f, jnp.asarray(z), method=method))


def rotation(n=8, angle=1.0, num=64, dtype=jnp.float64):
    x = circle(num, dtype)
    return factor(Fourier(range(-n, n + 1)), Snapshots(x, x + jnp.asarray(angle, dtype), kind="quadrature"))


def doubling(m, num=2048):
    # m consecutive iterates of one character: a shift that is cut off.
    x = circle(num)
    return factor(Fourier([2**j for j in range(m)]), Snapshots(x, 2 * x, kind="quadrature"))


def random_factor(seed, rank, dtype):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, rank, rank)) / rank**0.5
    if np.issubdtype(dtype, np.complexfloating):
        a, b = (a + 1j * b) / 2**0.5, (b + 1j * rng.normal(size=(rank, rank)) / rank**0.5) / 2**0.5
    a, b, eye, one = (
        jnp.asarray(v, d) for v, d in ((a, dtype), (b, dtype), (np.eye(rank), dtype), (1.0, jnp.finfo(dtype).dtype))
    )
    return Factor(dictionary=jnp.sin, A=a, B=b, basis=eye, R11=eye, cond=one, num_snapshots=1000, kind="iid")


def by_numpy(f, z):
    a, b = np.asarray(f.A, complex), np.asarray(f.B, complex)
    stacked = [np.concatenate([a - w * np.eye(len(a)), b]) for w in np.atleast_1d(z)]
    return np.array([np.linalg.svd(s, compute_uv=False)[-1] for s in stacked])


@pytest.mark.parametrize("method", METHODS)
def test_rotation_is_the_distance_from_the_eigenvalues(method):
    f = rotation()
    exact = np.exp(1j * np.arange(-8, 9))
    z = np.concatenate([polar_grid(31, [0.5, 1.0, 1.4]), exact])
    truth = np.min(np.abs(z[:, None] - exact[None]), axis=1)
    assert np.max(np.abs(pointwise(f, z, method) - truth)) < 1e-14


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "floor"), [(jnp.float64, 1e-14), (jnp.float32, 1e-6)])
def test_floor_at_an_exact_eigenvalue(method, dtype, floor):
    # By a quarter turn, so that every value of the dictionary is as exact as the dtype allows.
    # Of mixed modes: in the modes themselves the squares would be diagonal, and lose nothing.
    rng = np.random.default_rng(0)
    mixing, _ = np.linalg.qr(rng.normal(size=(17, 17)) + 1j * rng.normal(size=(17, 17)))
    mixing = jnp.asarray(mixing, np.result_type(dtype, np.complex64))
    modes, x = Fourier(range(-8, 9)), circle(64, dtype)
    f = factor(lambda x: modes(x) @ mixing, Snapshots(x, x + jnp.asarray(np.pi / 2, dtype), kind="quadrature"))
    exact = jnp.asarray([1, 1j, -1, -1j], np.result_type(dtype, np.complex64))
    h = pointwise(f, exact, method)
    assert h.dtype == dtype
    assert h.max() <= floor
    # What the squared form of the public codes gives there.
    a, b = np.asarray(f.A), np.asarray(f.B)
    gram = a.conj().T @ a + b.conj().T @ b
    squared = [
        gram - z * a.conj().T - np.conj(z) * a + abs(z) ** 2 * np.eye(17, dtype=a.dtype) for z in np.asarray(exact)
    ]
    least = np.max([np.sqrt(np.max(np.abs(np.linalg.eigvalsh(s)[0]))) for s in squared])
    assert least > 100 * floor


# One dimension, fewer than a block of the iteration has, and more.
@pytest.mark.parametrize(("m", "method"), [(1, "svd"), (2, "svd"), (8, "svd"), (1, "iterative"), (5, "iterative")])
def test_doubling_map_is_a_shift(method, m):
    z = np.concatenate([polar_grid(7, [0.2, 0.9, 1.0, 1.3]), np.zeros(1, complex)])
    r = np.abs(z)
    formula = np.sqrt(1 + r**2 - 2 * r * np.cos(np.pi / (m + 1)))
    # At m = 1 the two values of the formula's cosine agree: h = sqrt(1 + |z|^2).
    assert np.max(np.abs(pointwise(doubling(m), z, method) - formula)) < 1e-13


def test_falls_as_the_dictionary_grows_and_is_lipschitz(rng):
    num = len(polar_grid(7, [0.2, 0.9, 1.0, 1.3])) + 1  # as many as above: no new program
    z = (rng.normal(size=num) + 1j * rng.normal(size=num)) / 2**0.5
    values = [pointwise(doubling(m), z, "svd") for m in (1, 2, 8)]
    for larger, smaller in itertools.pairwise(values):
        assert np.all(smaller <= larger + 1e-13)
        assert np.all(smaller >= np.abs(1 - np.abs(z)) - 1e-13)  # an isometry
    gaps = np.abs(values[-1][:, None] - values[-1])
    assert np.all(gaps <= np.abs(z[:, None] - z) + 1e-13)


@hp.settings(max_examples=15, deadline=None)
@hp.given(st.integers(0, 10**6), st.sampled_from([jnp.float64, jnp.float32, jnp.complex128]))
def test_random_systems(seed, dtype):
    f = random_factor(seed, 12, dtype)
    rng = np.random.default_rng(seed + 1)
    z = (rng.normal(size=8) + 1j * rng.normal(size=8)).astype(np.result_type(dtype, np.complex64))
    truth = by_numpy(f, z)
    eps = float(jnp.finfo(dtype).eps)
    assert np.max(np.abs(pointwise(f, z, "svd") - truth)) < 100 * eps
    iterative = pointwise(f, z, "iterative")
    assert np.all(iterative >= truth - 100 * eps)  # an upper bound, converged or not
    assert np.all(iterative <= truth * (1 + 10 * eps**0.5))


def test_large_rank_by_iteration():
    f = random_factor(0, 90, jnp.float64)
    z = np.linspace(0.3 + 0.2j, 0.6 + 0.5j, 6)
    assert np.max(np.abs(pointwise(f, z) - by_numpy(f, z))) < 1e-7


@pytest.mark.parametrize("method", METHODS)
def test_functions_have_the_residual_that_is_reported(method):
    f, z = rotation(), np.array([0.9 + 0.1j, 1.0, -0.3j])
    pairs = pseudoeigenfunction(f, z, method=method)
    np.testing.assert_allclose(pairs.residuals, by_numpy(f, z), atol=1e-14)
    assert np.array_equal(pairs.eigenvalues, z)
    # By quadrature, from the functions' own values.
    x = np.asarray(circle(200))
    values = eqx.filter_jit(lambda at: jax.vmap(pairs.functions)(at))
    g, image = (np.asarray(values(jnp.asarray(at))) for at in (x, x + 1.0))
    residual = np.sqrt(np.mean(np.abs(image - g * z) ** 2, 0) / np.mean(np.abs(g) ** 2, 0))
    np.testing.assert_allclose(residual, pairs.residuals, atol=1e-13)


def test_any_shape_and_chunks_and_symmetry():
    f = random_factor(0, 5, jnp.float64)
    z = np.array([[0.3 + 0.2j, 0.3 - 0.2j, 1.0], [0.1j, -0.1j, 0.3 + 0.2j]])
    h = pointwise(f, z)
    assert h.shape == (2, 3)
    np.testing.assert_allclose(h.ravel(), by_numpy(f, z.ravel()), atol=1e-14)
    assert h[0, 0] == h[0, 1] == h[1, 2]
    assert h[1, 0] == h[1, 1]
    assert pseudospectrum(f, 0.3 + 0.2j).shape == ()
    np.testing.assert_allclose(pseudospectrum(f, jnp.asarray(z.ravel()), chunk=2), h.ravel(), atol=1e-15)
    np.testing.assert_allclose(eqx.filter_jit(pseudospectrum)(f, jnp.asarray(z)), h, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_vmap_and_derivative(method):
    f = random_factor(1, 6, jnp.float64)
    angles = np.linspace(0.1, 3, 4)
    run = lambda z: pseudospectrum(f, z, method=method)
    z = 0.7 * np.exp(1j * angles)
    np.testing.assert_allclose(jax.vmap(run)(jnp.asarray(z[:, None]))[:, 0], pointwise(f, z, method), atol=1e-7)
    along = lambda t: jnp.sum(run(0.7 * jnp.exp(jax.lax.complex(jnp.zeros(4), angles + t))))
    both = jax.jit(jax.value_and_grad(along))
    np.testing.assert_allclose(both(0.0)[1], (both(1e-5)[0] - both(-1e-5)[0]) / 2e-5, atol=1e-5)


def test_region_finds_what_the_grid_finds_with_fewer_evaluations():
    f = rotation(n=2)
    exact = np.exp(1j * np.arange(-2, 3))
    region = koopman_verify.pseudospectrum_region(f, -1.6 - 1.6j, 1.6 + 1.6j, epsilon=0.2, spacing=0.05)
    assert region.num_grid == 64**2
    assert region.num_evaluations < region.num_grid / 2
    np.testing.assert_allclose(region.values, by_numpy(f, region.points), atol=1e-14)
    centres = -1.6 + 0.025 + 0.05 * np.arange(64)
    full = centres[:, None] + 1j * centres[None]
    inside = np.min(np.abs(full[..., None] - np.asarray(exact)), axis=-1) <= 0.2
    assert np.asarray(region.inside).sum() == inside.sum()
    isometry = koopman_verify.pseudospectrum_region(
        f, -1.6 - 1.6j, 1.6 + 1.6j, epsilon=0.2, spacing=0.05, measure_preserving=True
    )
    assert isometry.num_evaluations <= region.num_evaluations
    kept = np.asarray(isometry.points)[np.asarray(isometry.inside)]
    assert np.all(np.abs(1 - np.abs(kept)) <= 0.2)


def test_region_of_real_data_computes_half():
    f = random_factor(3, 5, jnp.float64)
    region = koopman_verify.pseudospectrum_region(f, -2 - 2j, 2 + 2j, epsilon=0.5, spacing=0.25)
    assert region.num_evaluations <= region.num_grid
    kept = np.round(np.asarray(region.points)[np.asarray(region.inside)], 9)
    assert set(kept.conj().tolist()) == set(kept.tolist())
    np.testing.assert_allclose(region.values, by_numpy(f, region.points), atol=1e-14)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda f: pseudospectrum(f, jnp.array([jnp.nan + 0j])), "`z` must be finite"),
        (lambda f: pseudospectrum(f, jnp.ones(2, bool)), "`z` must hold numbers"),
        (lambda f: pseudospectrum(f, jnp.ones(2, complex), method="qr"), "`method` must be"),
        (lambda f: koopman_verify.pseudospectrum_region(f, 0, 1j, epsilon=0.1), "`upper` must be above"),
        (lambda f: koopman_verify.pseudospectrum_region(f, 0, 1 + 1j, epsilon=0.0), "`epsilon` and `spacing`"),
    ],
)
def test_bad_input(run, message):
    with pytest.raises(ValueError, match=message):
        run(rotation(n=1, num=16))


def test_a_traced_point_that_is_not_finite_raises():
    f = rotation(n=1, num=16)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`z` must be finite"):
        jax.block_until_ready(eqx.filter_jit(pseudospectrum)(f, jnp.array([jnp.inf + 0j])))
