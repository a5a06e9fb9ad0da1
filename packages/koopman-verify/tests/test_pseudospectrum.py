import itertools

import equinox as eqx
import hypothesis as hp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.random as jr
import koopman_verify
import numpy as np
import pytest
from koopman_verify import Factor, Fourier, Snapshots, factor, polar_grid, pseudoeigenfunction, pseudospectrum


METHODS = ("svd", "iterative")


def circle(num, dtype=jnp.float64):
    return jnp.asarray(2 * np.pi * np.arange(num) / num, dtype)[:, None]


def unit(angles):
    return jnp.asarray(np.exp(1j * angles))


def normal(key, num):
    return jr.normal(key, (num,), jnp.complex128)


def rotation(n=8, angle=1.0, num=64, dtype=jnp.float64):
    x = circle(num, dtype)
    return factor(Fourier(range(-n, n + 1)), Snapshots(x, x + jnp.asarray(angle, dtype), kind="quadrature"))


def doubling(m, num=2048):
    # m consecutive iterates of one character: a shift that is cut off.
    x = circle(num)
    return factor(Fourier([2**j for j in range(m)]), Snapshots(x, 2 * x, kind="quadrature"))


def random_factor(key, rank, dtype):
    a, b = (jr.normal(k, (rank, rank), dtype) / rank**0.5 for k in jr.split(key))
    real = jnp.finfo(dtype).dtype
    eye = jnp.eye(rank, dtype=dtype)
    return Factor(
        dictionary=lambda x: x, A=a, B=b, basis=eye, R11=eye, cond=jnp.ones((), real), num_snapshots=1000, kind="iid"
    )


def by_numpy(f, z):
    a, b = np.asarray(f.A, complex), np.asarray(f.B, complex)
    stacked = [np.concatenate([a - w * np.eye(len(a)), b]) for w in np.atleast_1d(z)]
    return np.array([np.linalg.svd(s, compute_uv=False)[-1] for s in stacked])


@pytest.mark.parametrize("method", METHODS)
def test_rotation_is_the_distance_from_the_eigenvalues(method):
    f = rotation()
    exact = unit(np.arange(-8, 9))
    z = jnp.concatenate([polar_grid(31, [0.5, 1.0, 1.4]), exact])
    truth = jnp.min(jnp.abs(z[:, None] - exact[None]), axis=1)
    assert jnp.max(jnp.abs(pseudospectrum(f, z, method=method) - truth)) < 1e-14


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
    h = pseudospectrum(f, exact, method=method)
    assert h.dtype == dtype
    assert jnp.max(h) <= floor
    # What the squared form of the public codes gives there.
    a, b = np.asarray(f.A), np.asarray(f.B)
    gram = a.conj().T @ a + b.conj().T @ b
    squared = [
        gram - z * a.conj().T - np.conj(z) * a + abs(z) ** 2 * np.eye(17, dtype=a.dtype) for z in np.asarray(exact)
    ]
    least = np.max([np.sqrt(np.max(np.abs(np.linalg.eigvalsh(s)[0]))) for s in squared])
    assert least > 100 * floor


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("m", [1, 2, 5, 8])
def test_doubling_map_is_a_shift(method, m):
    z = jnp.concatenate([polar_grid(7, [0.2, 0.9, 1.0, 1.3]), jnp.zeros(1, complex)])
    r = jnp.abs(z)
    formula = jnp.sqrt(1 + r**2 - 2 * r * jnp.cos(jnp.pi / (m + 1)))
    # At m = 1 the two values of the formula's cosine agree: h = sqrt(1 + |z|^2).
    assert jnp.max(jnp.abs(pseudospectrum(doubling(m), z, method=method) - formula)) < 1e-13


def test_falls_as_the_dictionary_grows_and_is_lipschitz(getkey):
    z = normal(getkey(), 40)
    values = [pseudospectrum(doubling(m), z) for m in (2, 4, 6, 8)]
    for larger, smaller in itertools.pairwise(values):
        assert jnp.all(smaller <= larger + 1e-13)
        assert jnp.all(smaller >= jnp.abs(1 - jnp.abs(z)) - 1e-13)  # an isometry
    gaps = jnp.abs(values[-1][:, None] - values[-1][None])
    assert jnp.all(gaps <= jnp.abs(z[:, None] - z[None]) + 1e-13)


@hp.settings(max_examples=15, deadline=None)
@hp.given(st.integers(0, 10**6), st.sampled_from([jnp.float64, jnp.float32, jnp.complex128, jnp.complex64]))
def test_random_systems(seed, dtype):
    f = random_factor(jr.key(seed), 12, dtype)
    z = normal(jr.key(seed + 1), 8).astype(np.result_type(dtype, np.complex64))
    truth = by_numpy(f, z)
    eps = float(jnp.finfo(dtype).eps)
    assert np.max(np.abs(np.asarray(pseudospectrum(f, z, method="svd")) - truth)) < 100 * eps
    iterative = np.asarray(pseudospectrum(f, z, method="iterative"))
    assert np.all(iterative >= truth - 100 * eps)  # an upper bound, converged or not
    assert np.all(iterative <= truth * (1 + 10 * eps**0.5))


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.complex128])
def test_large_rank_by_iteration(getkey, dtype):
    f = random_factor(getkey(), 90, dtype)
    z = jnp.linspace(0.3 + 0.2j, 0.6 + 0.5j, 6)
    assert jnp.max(jnp.abs(pseudospectrum(f, z) - by_numpy(f, z))) < 1e-7


@pytest.mark.parametrize("method", METHODS)
def test_functions_have_the_residual_that_is_reported(method):
    f, z = rotation(), jnp.array([0.9 + 0.1j, 1.0, -0.3j])
    pairs = pseudoeigenfunction(f, z, method=method)
    assert jnp.allclose(pairs.residuals, pseudospectrum(f, z), atol=1e-14)
    assert jnp.array_equal(pairs.eigenvalues, z)
    # By quadrature, from the functions' own values.
    x = circle(200)
    g, image = jax.vmap(pairs.functions)(x), jax.vmap(pairs.functions)(x + 1.0)
    residual = jnp.sqrt(jnp.mean(jnp.abs(image - g * z[None]) ** 2, 0) / jnp.mean(jnp.abs(g) ** 2, 0))
    assert jnp.allclose(residual, pairs.residuals, atol=1e-13)


def test_any_shape_and_chunks_and_symmetry():
    f = random_factor(jr.key(0), 5, jnp.float64)
    z = jnp.array([[0.3 + 0.2j, 0.3 - 0.2j, 1.0], [0.1j, -0.1j, 0.3 + 0.2j]])
    h = pseudospectrum(f, z)
    assert h.shape == (2, 3)
    assert jnp.allclose(jnp.ravel(h), by_numpy(f, jnp.ravel(z)), atol=1e-14)
    assert h[0, 0] == h[0, 1] == h[1, 2]
    assert h[1, 0] == h[1, 1]
    assert pseudospectrum(f, 0.3 + 0.2j).shape == ()
    assert jnp.allclose(pseudospectrum(f, jnp.ravel(z), chunk=2), jnp.ravel(h), atol=1e-15)
    assert jnp.allclose(eqx.filter_jit(pseudospectrum)(f, z), h, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_vmap_and_derivative(getkey, method):
    f = random_factor(getkey(), 6, jnp.float64)
    angles = jnp.linspace(0.1, 3, 4)
    run = lambda z: pseudospectrum(f, z, method=method)
    z = 0.7 * jnp.exp(jax.lax.complex(jnp.zeros(4), angles))
    assert jnp.allclose(jax.vmap(run)(z[:, None])[:, 0], run(z), atol=1e-7)

    def along(t):
        return jnp.sum(run(0.7 * jnp.exp(jax.lax.complex(jnp.zeros(4), angles + t))))

    slope = jax.grad(along)(0.0)
    assert jnp.allclose(slope, (along(1e-5) - along(-1e-5)) / 2e-5, atol=1e-5)


def test_region_finds_what_the_grid_finds_with_fewer_evaluations():
    f = rotation(n=2)
    exact = unit(np.arange(-2, 3))
    region = koopman_verify.pseudospectrum_region(f, -1.6 - 1.6j, 1.6 + 1.6j, epsilon=0.2, spacing=0.05)
    assert region.num_grid == 64**2
    assert region.num_evaluations < region.num_grid / 2
    assert jnp.allclose(region.values, pseudospectrum(f, region.points), atol=1e-14)
    centres = -1.6 + 0.025 + 0.05 * np.arange(64)
    full = centres[:, None] + 1j * centres[None]
    inside = np.min(np.abs(full[..., None] - np.asarray(exact)), axis=-1) <= 0.2
    assert int(jnp.sum(region.inside)) == inside.sum()
    isometry = koopman_verify.pseudospectrum_region(
        f, -1.6 - 1.6j, 1.6 + 1.6j, epsilon=0.2, spacing=0.05, measure_preserving=True
    )
    assert isometry.num_evaluations <= region.num_evaluations
    assert jnp.all(jnp.abs(1 - jnp.abs(isometry.points[isometry.inside])) <= 0.2)


def test_region_of_real_data_computes_half():
    f = random_factor(jr.key(3), 5, jnp.float64)
    region = koopman_verify.pseudospectrum_region(f, -2 - 2j, 2 + 2j, epsilon=0.5, spacing=0.25)
    assert region.num_evaluations <= region.num_grid
    mirrored = set(np.round(np.asarray(region.points[region.inside].conj()), 9).tolist())
    assert mirrored == set(np.round(np.asarray(region.points[region.inside]), 9).tolist())
    assert jnp.allclose(region.values, by_numpy(f, region.points), atol=1e-14)


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
