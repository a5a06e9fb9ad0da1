import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import jax.random as jr
import koopman_verify as kv
import numpy as np
import pytest
import scipy.special as sp
from jaxtyping import TypeCheckError
from koopman_verify import kernels, problems


KERNELS = {
    "gaussian": kernels.Gaussian(0.7),
    "laplacian": kernels.Laplacian(0.7),
    "lorentzian": kernels.Lorentzian(0.7),
    "matern12": kernels.Matern(0.7, 0.5),
    "matern32": kernels.Matern(0.7),
    "matern52": kernels.Matern(0.7, 2.5),
    "matern2": kernels.Matern(0.7, 2.0),
    "polynomial": kernels.Polynomial(3, 2.0),
    "sobolev": kernels.Sobolev(-1.0, 1.0),
    "sum": kernels.Gaussian(0.5) + kernels.Laplacian(1.0),
    "product": kernels.Gaussian(0.5) * kernels.Laplacian(1.0),
}


def circle(angles):
    angles = jnp.asarray(angles)
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)


def turned(num, shift):
    """Equispaced points of the unit circle, and the same rotated: a radial kernel is invariant under the map."""
    angles = 2 * np.pi * np.arange(num) / num
    return kv.Snapshots(circle(angles), circle(angles + shift), kind="quadrature")


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_positive_and_keep_types(name, getkey):
    kernel = KERNELS[name]
    x = jr.uniform(getkey(), (17, 2), minval=-1.0, maxval=1.0)
    matrix = np.asarray(kernels.gram(kernel, x))
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-15)
    assert np.linalg.eigvalsh(matrix)[0] > -1e-13
    np.testing.assert_allclose(kernels.gram(kernel, x, x[:5], block=4), matrix[:, :5], rtol=1e-14)
    narrow = kernels.gram(kernel, x.astype(jnp.float32))
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, matrix, rtol=3e-5)
    assert bool(jnp.all(jnp.isfinite(jax.grad(lambda z: jnp.sum(kernels.gram(kernel, z)))(x))))
    sections = kv.KernelSections(kernel, x[:3])
    if kernel.supremum() is not None:
        assert np.max(np.diag(matrix)) <= float(cast(Any, kernel.supremum())) * (1 + 1e-12)
        assert bool(jnp.all(jnp.abs(sections(x[5])) <= cast(Any, sections.supremum())))
    if kernel.lipschitz() is not None:
        distance = np.linalg.norm(np.asarray(x)[:, None] - np.asarray(x)[None], axis=2) + np.eye(17)
        slopes = np.abs(matrix[:, None, :] - matrix[None, :, :]) / distance[..., None]
        bound = float(cast(Any, kernel.lipschitz()))
        assert 0.1 * bound < np.max(slopes) <= bound * (1 + 1e-12)
        assert cast(Any, sections.lipschitz()).shape == (3,)


def test_matern_against_bessel_functions():
    x = np.linspace(0.0, 6.0, 40)
    for nu in (0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 4.3):
        r = np.sqrt(2 * nu) * x[1:] / 1.3
        expected = 2 ** (1 - nu) / sp.gamma(nu) * r**nu * sp.kv(nu, r)
        found = kernels.gram(kernels.Matern(1.3, nu), jnp.zeros((1, 1)), jnp.asarray(x)[:, None])[0]
        np.testing.assert_allclose(found[1:], expected, atol=1e-14)
        np.testing.assert_allclose(found[0], 1, atol=1e-14)
    r = 6 * 0.3
    twice = 2 * kernels.Matern(1 / 3, nu=2.0)(jnp.zeros(1), jnp.array([0.3]))
    np.testing.assert_allclose(twice, r**2 * sp.kv(2, r), rtol=1e-13)


def test_sobolev_reproduces():
    """The inner product of H^1(-1, 0) with k(., y) is the value at y."""
    kernel, y = kernels.Sobolev(-1.0, 0.0), 0.3 - 1
    f, df = (lambda t: np.sin(3 * t) + t**2), (lambda t: 3 * np.cos(3 * t) + 2 * t)
    total = 0.0
    for a, b in ((-1.0, y), (y, 0.0)):  # the kernel has a kink at y
        t, w = np.polynomial.legendre.leggauss(20)
        t, w = (a + b) / 2 + (b - a) / 2 * t, w * (b - a) / 2
        k = jax.vmap(jax.value_and_grad(lambda s: kernel(s[None], jnp.array([y]))))(jnp.asarray(t))
        total += np.sum(w * (f(t) * np.asarray(k[0]) + df(t) * np.asarray(k[1])))
    np.testing.assert_allclose(total, f(y), rtol=1e-13)


def test_rotation_in_its_invariant_space():
    """A rotation is unitary in the space of an invariant kernel, with eigenfunctions e^{ikx} of eigenvalues e^{-ika}.

    Turned by whole steps the span is invariant; turned by any angle it is, up to aliasing, for the low frequencies.
    """
    kernel = kernels.Gaussian(1.0)
    whole = kv.kernel_factor(kernel, turned(9, 2 * np.pi * 2 / 9))
    pairs = kv.edmd(whole)
    assert (whole.space, whole.operator, whole.rank) == ("rkhs", "perron-frobenius", 9)
    np.testing.assert_allclose(jnp.abs(pairs.eigenvalues), 1, atol=1e-11)
    np.testing.assert_allclose(pairs.eigenvalues**9, 1, atol=1e-10)
    assert bool(jnp.all(pairs.residuals <= pairs.rounding))
    assert float(jnp.max(pairs.rounding)) < 1e-4

    factor = kv.kernel_factor(kernels.Gaussian(2.0), turned(20, 1.0))
    pairs = kv.edmd(factor)
    assert factor.rank < 20
    for k in range(-2, 3):
        j = int(jnp.argmin(jnp.abs(pairs.eigenvalues - np.exp(-1j * k))))
        assert abs(complex(pairs.eigenvalues[j]) - np.exp(-1j * k)) < 1e-12
        allowed = kernels.rounding(factor, pairs.eigenvalues[j : j + 1], cast(Any, pairs.coordinates)[:, j : j + 1])[0]
        assert float(pairs.residuals[j]) <= float(allowed) < 1e-6
        # The pairs carry the value of their functions, not the worst of the space.
        np.testing.assert_allclose(pairs.rounding[j], allowed, rtol=1e-6)
        assert float(factor.rounding(pairs.eigenvalues[j])) > 100 * float(allowed)
        # The eigenfunction is the character: of constant modulus, and turned by the eigenvalue.
        at = circle(np.array([0.1, 0.9, 2.2]))
        g = jax.vmap(pairs[j].functions)(at)
        np.testing.assert_allclose(g / g[0], np.exp(1j * k * np.array([0, 0.8, 2.1])), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_linear_map_and_polynomial_kernel(dtype, getkey):
    """The space is that of all polynomials, which a linear map leaves invariant: every product of eigenvalues."""
    t = np.array([[0.9, 0.3], [-0.2, 0.6]])
    x = jr.uniform(getkey(), (30, 2), dtype, -1.0, 1.0)
    factor = kv.kernel_factor(
        kernels.Polynomial(2),
        kv.Snapshots(x, x @ jnp.asarray(t.T, dtype)),
        rank_tol=1e-4 if dtype == jnp.float64 else 5e-3,
    )
    pairs = kv.edmd(factor)
    a, b = np.linalg.eigvals(t)
    expected = np.array([1, a, b, a * a, a * b, b * b])
    assert factor.rank == 6
    assert pairs.residuals.dtype == dtype
    distance = np.min(np.abs(np.asarray(pairs.eigenvalues)[None] - expected[:, None]), axis=1)
    assert np.max(distance) < (1e-11 if dtype == jnp.float64 else 1e-2)
    assert bool(jnp.all(pairs.residuals <= pairs.rounding))
    assert float(jnp.max(pairs.rounding)) < (1e-4 if dtype == jnp.float64 else 1.0)


def test_against_explicit_features(getkey):
    """With (1 + x.y)^3 the space has explicit coordinates, and residuals a truth without any kernel matrix."""
    x = jr.uniform(getkey(), (7, 2), minval=-1.0, maxval=1.0)  # 7 points in a space of 10 dimensions
    y = jnp.stack([1.2 * x[:, 1], 0.4 - x[:, 0] ** 2], axis=1)
    factor = kv.kernel_factor(kernels.Polynomial(3), kv.Snapshots(x, y))
    pairs = kv.edmd(factor)
    power = np.array([[i, j, 3 - i - j] for i in range(4) for j in range(4 - i)])
    weight = np.sqrt([math.factorial(3) / math.prod(map(math.factorial, p)) for p in power])
    features = lambda s: (weight * np.prod(np.column_stack([s, np.ones(len(s))])[:, None] ** power, axis=2)).T
    px, py = features(np.asarray(x)), features(np.asarray(y))
    v, lam = np.asarray(pairs.coefficients), np.asarray(pairs.eigenvalues)
    truth = np.linalg.norm(py @ v - px @ v * lam, axis=0) / np.linalg.norm(px @ v, axis=0)
    assert factor.rank == 7
    assert np.max(truth) > 0.1
    np.testing.assert_allclose(pairs.residuals, truth, atol=1e-7)
    assert np.all(np.abs(np.asarray(pairs.residuals) - truth) <= np.asarray(pairs.rounding))
    np.testing.assert_allclose(
        np.sort_complex(lam), np.sort_complex(np.linalg.eigvals(np.linalg.pinv(px) @ py)), atol=1e-8
    )
    np.testing.assert_allclose(
        np.linalg.norm(np.asarray(factor.R11) @ v, axis=0), np.linalg.norm(px @ v, axis=0), rtol=1e-8
    )
    image = py @ np.linalg.inv(np.linalg.qr(px, mode="r"))  # of an orthonormal basis
    np.testing.assert_allclose(factor.isometry_defect, np.linalg.norm(image.T @ image - np.eye(7), 2), rtol=1e-6)


def test_against_the_squared_formula(getkey):
    """The published form, from matrices, agrees to the root of the rounding errors; ours resolves what it cannot."""
    x = jr.uniform(getkey(), (25, 2), minval=-2.0, maxval=2.0)
    snapshots = problems.snapshots(problems.duffing(0.0).map_fn, x, kind="iid")
    kernel = kernels.Lorentzian(kernels.bandwidth(x))
    factor = kv.kernel_factor(kernel, snapshots, rank_tol=1e-3)
    g, a, r = (np.asarray(kernels.gram(kernel, *p)) for p in ((x, x), (x, snapshots.y), (snapshots.y, snapshots.y)))
    s, u = np.linalg.eigh(g)
    basis = u[:, s > 1e-6 * s[-1]] / np.sqrt(s[s > 1e-6 * s[-1]])
    a2, r2 = basis.T @ a @ basis, basis.T @ r @ basis
    lam, w = np.linalg.eig(a2)
    square = [np.real(v.conj() @ (r2 - z * a2.T - np.conj(z) * a2 + abs(z) ** 2 * np.eye(len(a2))) @ v)
              for z, v in zip(lam, w.T, strict=True)]  # fmt: skip
    pairs = kv.edmd(factor)
    assert factor.rank == len(lam)
    for z, q in zip(lam, square, strict=True):
        j = int(jnp.argmin(jnp.abs(pairs.eigenvalues - z)))
        np.testing.assert_allclose(float(pairs.residuals[j]) ** 2, q, atol=1e-8)


def test_the_naive_residual_is_zero_whatever_the_map(getkey):
    """N kernel functions on their own N points: the L2 residual vanishes, and says nothing. That of the space does not."""
    x = jr.uniform(getkey(), (20, 2), minval=-2.0, maxval=2.0)
    snapshots = problems.snapshots(problems.duffing(0.0).map_fn, x, kind="iid")
    kernel = kernels.Laplacian(kernels.bandwidth(x))
    psi_x, psi_y = np.asarray(kernels.gram(kernel, x)), np.asarray(kernels.gram(kernel, snapshots.y, x))
    lam, v = np.linalg.eig(np.linalg.solve(psi_x, psi_y))
    naive = np.linalg.norm(psi_y @ v - psi_x @ v * lam, axis=0) / np.linalg.norm(psi_x @ v, axis=0)
    assert np.max(naive) < 1e-11
    pairs = kv.edmd(kv.kernel_factor(kernel, snapshots))
    assert float(jnp.min(pairs.residuals)) > 0.1
    with pytest.raises(ValueError, match="more pairs"):
        kv.factor(kv.KernelSections(kernel, x), snapshots)


def test_complex_kernel(getkey):
    """A Hermitian kernel, (1 - z conj(w))^{-1} of the Hardy space, under z -> z/2: eigenvalues 2^{-k}, self-adjoint."""
    z = lambda x: jax.lax.complex(x[0], x[1])
    szego = lambda x, y: 1 / (1 - z(x) * jnp.conj(z(y)))
    angles = 2 * np.pi * np.arange(8) / 8
    x = 0.8 * circle(angles + 0.3)
    factor = kv.kernel_factor(szego, kv.Snapshots(x, x / 2))
    pairs = kv.edmd(factor)
    # K* is K here, and e_0, ..., e_7 plus aliases 0.8^16 of the next ones span the space.
    found = np.sort(np.abs(np.asarray(pairs.eigenvalues)))[::-1]
    np.testing.assert_allclose(found[:3], [1, 0.5, 0.25], atol=0.05)
    assert jnp.iscomplexobj(factor.A)
    gx, gy = np.asarray(kernels.gram(szego, x)), np.asarray(kernels.gram(szego, x, x / 2))
    v = np.asarray(pairs.coefficients)
    r = np.asarray(kernels.gram(szego, x / 2))
    lam = np.asarray(pairs.eigenvalues)
    form = lambda m: r - m * gy.conj().T - np.conj(m) * gy + abs(m) ** 2 * gx
    square = [np.real(c.conj() @ form(m) @ c) for m, c in zip(lam, v.T, strict=True)]
    np.testing.assert_allclose(np.asarray(pairs.residuals) ** 2, square, atol=1e-10)


def test_pointwise_bound(getkey):
    """|f(x)| <= ||f|| sqrt(k(x, x)) for functions of the space, attained by k(., x)."""
    kernel = kernels.Polynomial(2, 0.8)
    points, v = jr.normal(getkey(), (6, 2)), jr.normal(getkey(), (6, 4))
    norms = jnp.sqrt(jnp.einsum("ik,ij,jk->k", v, kernels.gram(kernel, points), v))
    for x in jr.normal(getkey(), (10, 2)):
        values = kv.KernelSections(kernel, points)(x) @ v
        assert bool(jnp.all(jnp.abs(values) <= kernels.pointwise_bound(kernel, norms, x) * (1 + 1e-12)))
    x = points[0]
    own = jnp.sqrt(kernel(x, x))
    np.testing.assert_allclose(kernels.pointwise_bound(kernel, own, x), kernel(x, x), rtol=1e-14)


def test_bandwidth(getkey):
    x = jr.normal(getkey(), (50, 2)) + 3
    points = np.asarray(x)
    distances = np.linalg.norm(points - points.mean(axis=0), axis=1)
    np.testing.assert_allclose(kernels.bandwidth(x, factor=0.9), 0.9 * distances.mean(), rtol=1e-12)
    np.testing.assert_allclose(kernels.bandwidth(x, "norm"), np.linalg.norm(points, axis=1).mean(), rtol=1e-12)
    i, j = np.triu_indices(50, 1)
    np.testing.assert_allclose(kernels.bandwidth(x, "median"), np.median(np.linalg.norm(points[i] - points[j], axis=1)))
    assert float(kernels.bandwidth(jnp.ones((3000, 1)), "median")) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kernels.Gaussian(0.0), "scale"),
        (lambda: kernels.Laplacian(jnp.ones(2)), "scale"),
        (lambda: kernels.Matern(1.0, 0.2), "nu"),
        (lambda: kernels.Polynomial(0), "degree"),
        (lambda: kernels.Sobolev(0.0, -1.0), "lower"),
        (lambda: kernels.bandwidth(jnp.ones((3, 1)), cast(Any, "big")), "rule"),
        (lambda: kernels.gram(kernels.Gaussian(1.0), jnp.ones((3, 1)), block=0), "block"),
        (lambda: kv.kernel_factor(lambda x, y: -jnp.abs(x - y)[0], turned(5, 1.0)), "positive semidefinite"),
        (lambda: kv.kernel_factor(lambda x, y: 1 + x[0] - y[0], turned(5, 1.0)), "Hermitian"),
        (lambda: kv.kernel_factor(lambda x, y: jnp.log(x[0] * y[0]), turned(5, 1.0)), "not finite"),
        (lambda: kv.kernel_factor(kernels.Gaussian(1.0), turned(5, 1.0), rank_tol=2.0), "rank_tol"),
    ],
)
def test_bad_input(make, message):
    # An unknown word is already refused by the run-time type check of the tests, which users do not have.
    with pytest.raises((ValueError, TypeCheckError), match=message):
        make()


def test_not_under_jit():
    with pytest.raises(TypeError, match="jit"):
        jax.jit(lambda x: kv.kernel_factor(kernels.Gaussian(1.0), kv.Snapshots(x, x)).A)(jnp.ones((3, 1)))
    factor = kv.factor(kv.Fourier([0, 1]), problems.rotation(1.0).snapshots)
    with pytest.raises(ValueError, match="kernel_factor"):
        kernels.rounding(factor, jnp.ones(1), jnp.ones((2, 1)))
