import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from koopman_verify import Factor, Fourier, Monomials, Snapshots, edmd, factor, pseudospectrum


GOLDEN = (5**0.5 - 1) / 2


class Mixed(eqx.Module):
    # Fourier modes under a change of basis, so that the answer is known at any condition number.
    matrix: jax.Array
    is_complex: bool = eqx.field(static=True, default=True)

    def __call__(self, x):
        n = len(self.matrix) // 2
        angle = jnp.arange(-n, n + 1).astype(x.dtype) * x[0]
        modes = jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
        return modes @ self.matrix


def change_of_basis(seed, n, cond, dtype):
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.normal(size=(n, n)) + 1j * rng.normal(size=(n, n)))
    v, _ = np.linalg.qr(rng.normal(size=(n, n)) + 1j * rng.normal(size=(n, n)))
    return jnp.asarray(u @ np.diag(np.geomspace(1, 1 / cond, n)) @ v, dtype)


def golden_rotation(cond, real, num=400):
    # Whole turns are left out of y in float32 too: the angle is added where it is exact.
    x = np.random.default_rng(0).uniform(0, 2 * np.pi, num).astype(real)
    step = np.asarray(2 * np.pi * GOLDEN, real)
    dictionary = Mixed(change_of_basis(1, 17, cond, np.result_type(real, np.complex64)))
    return factor(dictionary, Snapshots(x, x + step)), np.exp(1j * float(step) * np.arange(-8, 9))


@pytest.mark.parametrize(
    ("real", "cond", "eigenvalue_error", "residual"),
    [
        (np.float64, 1e0, 2e-14, 3e-14),
        (np.float64, 1e4, 1e-12, 5e-12),
        (np.float64, 1e8, 1e-8, 3e-8),
        (np.float32, 1e0, 1e-5, 1e-5),
        (np.float32, 1e4, 3e-3, 5e-3),
    ],
)
def test_accuracy_at_a_condition_number(real, cond, eigenvalue_error, residual):
    f, exact = golden_rotation(cond, real)
    pairs = edmd(f)
    gap = np.abs(np.asarray(pairs.eigenvalues)[:, None] - exact[None])
    assert np.max(gap.min(axis=0)) < eigenvalue_error
    # The true residual is zero: all that is reported is rounding, and the allowance covers it.
    assert jnp.max(pairs.residuals) < residual
    assert jnp.all(pairs.residuals <= 4 * pairs.rounding)
    assert jnp.all(pseudospectrum(f, pairs.eigenvalues) <= pairs.residuals * (1 + 1e-3) + pairs.rounding)


def test_squared_form_loses_what_the_factorisation_keeps():
    f, _ = golden_rotation(1e8, np.float64)
    x = np.random.default_rng(0).uniform(0, 2 * np.pi, 400)
    matrix = np.asarray(change_of_basis(1, 17, 1e8, complex))
    modes = lambda t: np.exp(1j * t[:, None] * np.arange(-8, 9)) @ matrix / 20
    psi_x, psi_y = modes(x), modes(x + 2 * np.pi * GOLDEN)
    values = np.linalg.eigvals(np.linalg.solve(psi_x.conj().T @ psi_x, psi_x.conj().T @ psi_y))
    exact = np.exp(2j * np.pi * GOLDEN * np.arange(-8, 9))
    by_gram = np.max(np.abs(values[:, None] - exact[None]).min(axis=0))
    ours = np.max(np.abs(np.asarray(edmd(f).eigenvalues)[:, None] - exact[None]).min(axis=0))
    assert by_gram > 1e4 * ours


def plane(num=400, dtype=np.float64, weights=True):
    rng = np.random.default_rng(3)
    x = rng.uniform(-1, 1, (num, 2)).astype(dtype)
    y = np.stack([0.8 * x[:, 0] + 0.1 * x[:, 1] ** 2, np.sin(x[:, 0] - x[:, 1])], 1).astype(dtype)
    return Snapshots(x, y, rng.uniform(0.5, 1.5, num).astype(dtype) / num if weights else None)


def same_operator(f, g, tol=1e-11):
    """Compare what does not depend on the signs of the rows of a triangle."""
    z = np.array([0.3 + 0.2j, 0.8, -0.1j], np.result_type(f.A.dtype, np.complex64))
    h, k = (pseudospectrum(e, z) for e in (f, g))
    parts = [(np.asarray(e.basis), np.asarray(e.A)) for e in (f, g)]
    coefficients = [basis @ a @ np.linalg.pinv(basis) for basis, a in parts]
    return np.allclose(h, k, atol=tol) and np.allclose(*coefficients, atol=100 * tol)


def test_defining_properties():
    s = plane()
    f = factor(Monomials(2, 2), s)
    root = np.sqrt(np.asarray(s.weights))[:, None]
    psi_x, psi_y = (root * np.asarray(jax.vmap(Monomials(2, 2))(states)) for states in (s.x, s.y))
    q, image = psi_x @ np.asarray(f.basis), psi_y @ np.asarray(f.basis)
    assert np.allclose(q.T @ q, np.eye(6), atol=1e-12)
    assert np.allclose(q.T @ image, f.A, atol=1e-12)
    outside = image - q @ np.asarray(f.A)
    assert np.allclose(outside.T @ outside, f.B.T @ f.B, atol=1e-12)
    assert np.allclose(np.linalg.norm(psi_x, 2), np.linalg.norm(f.R11, 2), atol=1e-12)
    lengths = np.linalg.norm(psi_x, axis=0)
    assert f.cond == pytest.approx(np.linalg.cond(psi_x / lengths), rel=1e-10)
    gram = image.T @ image
    assert f.isometry_defect == pytest.approx(np.linalg.norm(gram - np.eye(6), 2), rel=1e-10)
    assert (f.rank, f.size) == (6, 6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_blocks_and_streams_agree(dtype):
    s, dictionary = plane(dtype=dtype, weights=False), Monomials(2, 2)
    whole = factor(dictionary, s)
    tol = 1e-11 if dtype == np.float64 else 1e-4
    assert same_operator(whole, factor(dictionary, s, block=37), tol)
    x, y = np.asarray(s.x), np.asarray(s.y)
    pieces = (Snapshots(x[a:b], y[a:b]) for a, b in ((0, 100), (100, 350), (350, 400)))
    streamed = factor(dictionary, pieces)
    assert same_operator(whole, streamed, tol)
    assert streamed.num_snapshots == 400
    assert streamed.A.dtype == dtype


def test_weighted_streams_agree():
    s, dictionary = plane(), Monomials(2, 2)
    assert s.weights is not None
    x, y, w = (np.asarray(a) for a in (s.x, s.y, s.weights))
    pieces = [Snapshots(x[a : a + 200], y[a : a + 200], w[a : a + 200]) for a in (0, 200)]
    assert same_operator(factor(dictionary, s), factor(dictionary, pieces))


def test_weights_are_multiplicities():
    s = plane(60, weights=False)
    doubled = Snapshots(jnp.concatenate([s.x, s.x[:20]]), jnp.concatenate([s.y, s.y[:20]]))
    weights = jnp.where(jnp.arange(60) < 20, 2.0, 1.0)
    assert same_operator(factor(Monomials(2, 2), doubled), factor(Monomials(2, 2), Snapshots(s.x, s.y, weights)))


def test_jit_and_vmap():
    dictionary = Monomials(2, 1)
    systems = [plane(50), Snapshots(plane(50).x, -0.5 * plane(50).x, plane(50).weights)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *systems)
    batch = eqx.filter_vmap(lambda s: factor(dictionary, s))(stacked)
    for i, s in enumerate(systems):
        one = eqx.filter_jit(factor)(dictionary, s)
        plain = factor(dictionary, s)
        assert same_operator(plain, one)
        assert jnp.allclose(jnp.abs(batch.A[i]), jnp.abs(plain.A), atol=1e-12)
        assert isinstance(one, Factor)
    z = jnp.asarray([0.5 + 0.1j, -0.5])
    values = eqx.filter_vmap(lambda f: pseudospectrum(f, z))(batch)
    assert jnp.allclose(values, jnp.stack([pseudospectrum(factor(dictionary, s), z) for s in systems]), atol=1e-12)


def dependent(x):
    return jnp.concatenate([jnp.ones(1), x, jnp.sum(x, keepdims=True)])


def test_dependent_functions_are_an_error_unless_told():
    s = plane()
    with pytest.raises(ValueError, match="4 functions span only 3 dimensions"):
        factor(dependent, s)
    f = factor(dependent, s, rank_tol=1e-10)
    assert (f.rank, f.size) == (3, 4)
    assert f.A.shape == (3, 3)
    assert f.basis.shape == (4, 3)
    kept = factor(Monomials(2, 1), s)
    z = jnp.asarray([0.3 + 0.2j, 0.8, -0.1j])
    assert jnp.allclose(pseudospectrum(f, z), pseudospectrum(kept, z), atol=1e-12)
    with pytest.raises(eqx.EquinoxRuntimeError, match="depend linearly"):
        jax.block_until_ready(eqx.filter_jit(factor)(dependent, s).A)


def test_truncation_keeps_residuals_honest():
    # What leaves the smaller space counts as leaving: residuals by their definition.
    s = plane()
    f = factor(Monomials(2, 4), s, rank_tol=0.2)
    assert 1 < f.rank < f.size
    pairs = edmd(f)
    root = np.sqrt(np.asarray(s.weights))[:, None]
    g, image = (root * np.asarray(jax.vmap(pairs.functions)(states)) for states in (s.x, s.y))
    expected = np.linalg.norm(image - g * np.asarray(pairs.eigenvalues), axis=0) / np.linalg.norm(g, axis=0)
    assert np.allclose(pairs.residuals, expected, atol=1e-11)


def test_repeated_snapshots_and_few():
    x = np.repeat(np.random.default_rng(0).uniform(-1, 1, (3, 2)), 5, axis=0)
    with pytest.raises(ValueError, match="repeated snapshots"):
        factor(Monomials(2, 2), Snapshots(x, 0.5 * x))
    s = plane(6)
    with pytest.raises(ValueError, match="got M = 6 for N = 6"):
        factor(Monomials(2, 2), s)


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: Snapshots(np.array([[np.nan]]), np.zeros((1, 1))), ValueError, "`x` must be finite; snapshot 0"),
        (lambda: Snapshots(np.zeros((3, 1)), np.zeros((2, 1))), ValueError, "must have one shape"),
        (lambda: Snapshots(np.zeros(3), np.zeros(3), np.array([1.0, 0, 1])), ValueError, r"got weights\[1\] = 0"),
        (lambda: Snapshots(np.zeros(3), np.zeros(3), np.array([1.0, 1, -2])), ValueError, "`weights` must be positive"),
        (lambda: Snapshots(np.zeros(3) * 1j, np.zeros(3) * 1j), ValueError, "`x` must be real"),
        (lambda: factor(lambda x: jnp.log(x), plane()), ValueError, "not finite on `snapshots`"),
        (lambda: factor(lambda x: x[0], plane()), ValueError, "`dictionary` must map a state"),
        (lambda: factor(Monomials(2, 1), iter([])), ValueError, "without a single block"),
        (
            lambda: factor(Monomials(2, 1), [plane(), plane(weights=False)]),
            ValueError,
            "all blocks must be of one kind",
        ),
        (lambda: factor(Monomials(2, 1), plane(), rank_tol=2.0), ValueError, "`rank_tol` must be between 0 and 1"),
        (lambda: factor(Monomials(2, 1), plane(), block=0), ValueError, "`block` must be positive"),
    ],
)
def test_bad_input(run, error, message):
    with pytest.raises(error, match=message):
        run()


def test_a_state_that_is_not_finite_under_jit():
    run = eqx.filter_jit(lambda x: factor(Monomials(1, 1), Snapshots(x, x)).A)
    with pytest.raises(eqx.EquinoxRuntimeError, match="not finite"):
        jax.block_until_ready(run(jnp.array([[1.0], [2.0], [jnp.nan], [3.0]])))


def test_residual_of_any_function():
    f = factor(
        Fourier([-1, 0, 1]), Snapshots(np.arange(8) * np.pi / 4, np.arange(8) * np.pi / 4 + 1, kind="quadrature")
    )
    rng = np.random.default_rng(0)
    u = jnp.asarray(rng.normal(size=(3, 4)) + 1j * rng.normal(size=(3, 4)))
    z = jnp.asarray([0, 1, 1j, 0.5 + 0.5j])
    stacked = np.concatenate([np.asarray(f.A), np.asarray(f.B)])
    below = np.concatenate([np.eye(3), np.zeros((len(f.B), 3))])
    expected = [
        np.linalg.norm((stacked - w * below) @ v) / np.linalg.norm(v)
        for w, v in zip(np.asarray(z), np.asarray(u).T, strict=True)
    ]
    assert np.allclose(f.residual(z, u), expected, atol=1e-14)


def test_four_devices_agree():
    code = """
        import os
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
        os.environ["JAX_PLATFORMS"] = "cpu"
        import jax, jax.numpy as jnp, numpy as np
        jax.config.update("jax_enable_x64", True)
        from koopman_verify import Monomials, Snapshots, factor, pseudospectrum
        assert len(jax.devices()) == 4
        mesh = jax.make_mesh((4,), ("i",))
        x = np.random.default_rng(0).uniform(-1, 1, (203, 2))  # not divisible by four
        s = Snapshots(x, np.sin(x) + 0.1, np.linspace(1, 2, 203))
        one, many = (factor(Monomials(2, 2), s, mesh=m, block=16) for m in (None, mesh))
        z = jnp.asarray([0.3 + 0.2j, 0.8, -0.1j])
        assert jnp.allclose(pseudospectrum(one, z), pseudospectrum(many, z), atol=1e-12)
        assert many.num_snapshots == 203
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
