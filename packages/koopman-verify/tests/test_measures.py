"""Measure-preserving compressions and spectral measures against systems whose measure is known in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from koopman_verify import (
    Fourier,
    Snapshots,
    factor,
    mpedmd,
    resolution,
    spectral_measure,
    wave_packet,
)
from koopman_verify._measures.rational import circle_kernel, line_kernel, poles_and_residues
from koopman_verify.measures import circle_density, line_measure


CAT = np.array([[2, 1], [1, 1]])
GOLDEN = (np.sqrt(5) - 1) / 2


def orbit(size: int, modulus: int) -> np.ndarray:
    """Frequencies k, A'k, A'A'k, ... of one orbit of the cat map, modulo the nodes of the grid."""
    k = [np.array([1, 0])]
    for _ in range(size - 1):
        k.append(CAT.T @ k[-1] % modulus)
    return np.array(k)


class Krylov(eqx.Module):
    """g, Kg, K^2 g, ... for g = e_0 + e_1 / 2 on an orbit of Fourier functions, on which the cat map is a shift."""

    fourier: Fourier

    def __call__(self, x):
        e = self.fourier(x)
        return e[:-1] + e[1:] / 2


def cat_snapshots(modulus: int) -> Snapshots:
    nodes = np.stack(np.meshgrid(*[np.arange(modulus)] * 2, indexing="ij"), -1).reshape(-1, 2)
    turn = 2 * np.pi / modulus
    return Snapshots(turn * nodes, turn * (nodes @ CAT.T % modulus), kind="quadrature")


@pytest.fixture(scope="module")
def cat():
    """The Krylov dictionary of 36 functions on the cat map, all integrals exact."""
    modulus = 43
    frequencies = orbit(37, modulus)
    assert len(np.unique(frequencies, axis=0)) == 37
    return mpedmd(factor(Krylov(Fourier(frequencies)), cat_snapshots(modulus)))


@pytest.fixture(scope="module")
def golden():
    x = 2 * np.pi * np.arange(64)[:, None] / 64
    return factor(Fourier(range(-8, 9)), Snapshots(x, x + 2 * np.pi * GOLDEN, kind="quadrature"))


def first(size: int) -> jnp.ndarray:
    return jnp.asarray(np.eye(size)[0])


def test_unitary_to_rounding(cat):
    """The coordinates are unitary, the eigenvalues are on the circle and both diagonalise the polar factor."""
    z, mu = np.asarray(cat.coordinates), np.asarray(cat.eigenvalues)
    assert np.linalg.norm(z.conj().T @ z - np.eye(36), 2) < 1e-13
    assert np.abs(np.abs(mu) - 1).max() < 1e-14
    # A = WH with H Hermitian and not negative makes W a polar factor. A is a shift that is cut off, singular up to 1e-11,
    # so the one that another library returns may differ in the direction that A forgets.
    h = (z * mu.conj()[None]) @ z.conj().T @ np.asarray(cat.factor.A)
    assert np.linalg.norm(h - h.conj().T, 2) < 1e-13
    assert np.linalg.eigvalsh((h + h.conj().T) / 2)[0] > -1e-13
    np.testing.assert_allclose(cat.pairs.residuals, cat.residuals)
    np.testing.assert_allclose(cat.pairs.eigenvalues, mu)


def test_krylov_moments_are_exact(cat):
    """For a Krylov dictionary <K^n g, g> is reproduced for n < N: 1.25, 1/2, 0, 0, ... and wrong from n = N on."""
    angles, weights = map(np.asarray, cat.atoms(first(36)))
    moments = np.array([np.sum(weights * np.exp(1j * n * angles)) for n in range(40)])
    exact = np.zeros(40)
    exact[:2] = 1.25, 0.5
    np.testing.assert_allclose(moments[:36], exact[:36], atol=1e-13)
    assert np.abs(moments[36:]).max() > 1e-3


def test_density_of_the_cat_orbit(cat):
    """The density of g = e_0 + e_1 / 2 is (1.25 + cos) / 2 pi, smoothed by the kernel's own Fourier coefficient."""
    theta = np.linspace(-np.pi, np.pi, 41)
    assert np.max(np.asarray(resolution(cat, theta))) < 0.25
    density = spectral_measure(cat, first(36), theta, 0.5, 4)
    poles, residues = poles_and_residues(4)
    damping = np.sum(residues * np.exp(0.5j * poles)).real
    np.testing.assert_allclose(density, (1.25 + damping * np.cos(theta)) / (2 * np.pi), atol=2e-5)
    np.testing.assert_allclose(density, (1.25 + np.cos(theta)) / (2 * np.pi), atol=3e-3)


@pytest.mark.parametrize("order", range(1, 7))
def test_residues_solve_the_moment_conditions(order):
    """The residues solve the Vandermonde system, and equal the published fractions."""
    poles, residues = poles_and_residues(order)
    powers = poles[None] ** np.arange(order)[:, None]
    np.testing.assert_allclose(residues, np.linalg.solve(powers, np.eye(order)[0].astype(complex)), rtol=1e-11)
    published = {
        1: [1],
        2: [(1 + 3j) / 2, (1 - 3j) / 2],
        3: [-2 + 1j, 5, -2 - 1j],
        4: [(-39 - 65j) / 24, (17 + 85j) / 8, (17 - 85j) / 8, (-39 + 65j) / 24],
        6: [(725 + 1015j) / 192, (-2775 - 6475j) / 192, (1073 + 7511j) / 96],
    }
    if order in published:
        np.testing.assert_allclose(residues[: len(published[order])], published[order], rtol=1e-13)


@pytest.mark.parametrize("order", range(1, 7))
def test_rate_of_convergence(order):
    """Order m: on rho = (1 + 0.8 cos) / 2 pi with the exact resolvent the error falls like epsilon^m."""
    nodes = np.linspace(0, 2 * np.pi, 2048, endpoint=False)  # the trapezoid rule resolves epsilon = 0.05 to rounding
    weights = (1 + 0.8 * np.cos(nodes)) / 2048
    theta = np.array([0.3, 1.0, 2.5])
    truth = (1 + 0.8 * np.cos(theta)) / (2 * np.pi)
    kernel = lambda e: np.asarray(circle_kernel(jnp.asarray(nodes), jnp.asarray(theta), jnp.array(e), order))
    widths = (0.4, 0.2) if order > 4 else (0.1, 0.05)
    errors = [np.abs(kernel(e) @ weights - truth).max() for e in widths]
    rate = np.log2(errors[0] / errors[1])
    # Even-order kernels of odd m have the next order by symmetry only in the limit; the rates read m - 0.05 and more.
    assert order - 0.25 < rate < order + 0.4


def test_kernels_have_mass_one_and_no_aliasing():
    """Each kernel integrates to one, is that of the definition, and at order one it is positive."""
    nodes = np.linspace(0, 2 * np.pi, 2048, endpoint=False)
    at = jnp.asarray(np.array([1.0, 1.0, 1.0]))  # as many as above: the programs are there
    kernel_of = lambda order: np.asarray(circle_kernel(jnp.asarray(nodes), at, jnp.array(0.05), order))[0]
    for order in range(1, 7):
        kernel = kernel_of(order)
        np.testing.assert_allclose(kernel.sum() * 2 * np.pi / 2048, 1, rtol=1e-12)
        poles, residues = poles_and_residues(order)
        z = np.exp(1j * 1.0 - 0.05j * poles)[:, None]
        mu = np.exp(1j * np.asarray(nodes))[None]
        literal = -np.sum(residues[:, None] * (mu + z) / (mu - z), axis=0).real / (2 * np.pi)
        np.testing.assert_allclose(kernel, literal, rtol=1e-10, atol=1e-12)
    assert kernel_of(1).min() > 0
    assert line_kernel(jnp.linspace(-3, 3, 9), jnp.zeros(1), jnp.array(0.1), 1).min() > 0


def test_density_of_a_known_measure(golden):
    """Smoothing the atoms by hand is what the spectral measure does; lists and whole numbers are numbers."""
    mp, theta = mpedmd(golden), [0.5, 2.0]
    angles, weights = mp.atoms(jnp.ones(17))
    expected = spectral_measure(mp, jnp.ones(17), theta, 0.2, 3)
    np.testing.assert_allclose(circle_density(angles, weights, theta, 0.2, 3), expected, rtol=1e-10)
    np.testing.assert_allclose(
        circle_density([0, 1], [1, 2], [3], 1, 1), circle_density([0.0, 1.0], [1.0, 2.0], [3.0], 1.0, 1)
    )
    with pytest.raises(ValueError, match="`phases`"):
        circle_density([0.0], [1.0, 2.0], theta, 0.2)


def test_lazy_walk():
    """The lazy walk on the integers, g antisymmetric: density (3 / 4 pi) sqrt(3 + 6x - 9x^2) on [-1/3, 1]."""
    n = 201
    walk = jnp.asarray((np.eye(n) + np.eye(n, k=1) + np.eye(n, k=-1)) / 3)
    g = np.zeros(n)
    g[n // 2 + 1], g[n // 2 - 1] = 0.5, -0.5
    x = np.array([-0.1, 0.2, 1 / 3, 0.6, 0.8])
    truth = 3 / (4 * np.pi) * np.sqrt(3 + 6 * x - 9 * x**2)
    np.testing.assert_allclose(line_measure(walk, g, x, 0.1, 6), truth, atol=2e-4)
    coarse = np.abs(np.asarray(line_measure(walk, g, x, 0.1, 1)) - truth).max()
    assert 1e-2 < coarse < 1e-1
    np.testing.assert_allclose(line_measure(walk, g, [-1.5, 2.0, 3.0, 4.0, 5.0], 0.1, 6), 0, atol=1e-5)
    with pytest.raises(ValueError, match="Hermitian"):
        line_measure(walk.at[0, 1].set(5.0), g, x, 0.05)
    with pytest.raises(ValueError, match="`vector`"):
        line_measure(walk, g[1:], x, 0.05)


def test_atoms_of_a_rotation(golden):
    """A rotation has pure point spectrum: the atoms are the squared Fourier coefficients at the right angles."""
    mp = mpedmd(golden)
    assert bool(mp.unique)
    assert mp.residuals.max() < 1e-13
    v = np.zeros(17)
    v[8], v[9], v[6] = 1.0, 0.5, 0.25
    angles, weights = map(np.asarray, mp.atoms(v))
    expected = {0: 1.0, 1: 0.25, -2: 0.0625}
    assert abs(weights.sum() - sum(expected.values())) < 1e-13
    for k, weight in expected.items():
        at = np.argmin(np.abs(np.exp(1j * angles) - np.exp(2j * np.pi * k * GOLDEN)))
        assert abs(weights[at] - weight) < 1e-13


def test_wave_packet_is_the_filtered_observable(cat):
    """<g, g_theta> is the density, the literal resolvent formula gives the same function, and residuals are honest."""
    theta, epsilon = np.array([0.4, 2.0]), 0.5
    packets = wave_packet(cat, first(36), theta, epsilon, 3)
    u = packets.coordinates
    assert u is not None
    g = np.asarray(cat.factor.R11[:, 0])
    np.testing.assert_allclose(g.conj() @ u, spectral_measure(cat, first(36), theta, epsilon, 3), atol=1e-12)
    np.testing.assert_allclose(packets.eigenvalues, np.exp(1j * np.asarray(theta)), rtol=1e-14)
    np.testing.assert_allclose(packets.residuals, cat.factor.residual(packets.eigenvalues, u), rtol=1e-12)
    unitary = np.asarray((cat.coordinates * cat.eigenvalues[None]) @ cat.coordinates.conj().T)
    literal = np.zeros(36, complex)
    for a, alpha in zip(*poles_and_residues(3), strict=True):
        z, mirrored = np.exp(0.4j - 1j * epsilon * a), np.exp(0.4j - 1j * epsilon * a.conj())
        transform = lambda z: (unitary + z * np.eye(36)) @ np.linalg.solve(unitary - z * np.eye(36), np.asarray(g))
        literal += -(alpha * transform(z) - np.conj(alpha) * transform(mirrored)) / (4 * np.pi)
    np.testing.assert_allclose(u[:, 0], literal, atol=1e-12)
    # A narrower packet is nearer to an eigenfunction.
    narrow = wave_packet(cat, first(36), theta, 0.25, 3)
    assert bool(jnp.all(narrow.residuals < packets.residuals))
    assert packets.functions(jnp.array([0.1, 0.2])).shape == (2,)


def test_resolution(golden):
    """The gap at an angle is the largest of the three next to it."""
    mp = mpedmd(golden)
    phases = np.sort(np.mod(2 * np.pi * GOLDEN * np.arange(-8, 9), 2 * np.pi))
    gaps = np.diff(phases, append=phases[0] + 2 * np.pi)
    theta = phases + gaps / 2
    expected = np.max([np.roll(gaps, s) for s in (-1, 0, 1)], axis=0)
    np.testing.assert_allclose(resolution(mp, theta), expected, rtol=1e-12)
    np.testing.assert_allclose(resolution(mp, theta - 4 * np.pi), expected, rtol=1e-12)


def test_single_precision(golden):
    """All of it stays in float32 where the data is, with errors of that size."""
    x = np.asarray(2 * np.pi * np.arange(64)[:, None] / 64, np.float32)
    y = np.asarray(np.mod(x.astype(float) + 2 * np.pi * GOLDEN, 2 * np.pi), np.float32)
    mp = mpedmd(factor(Fourier(range(-8, 9)), Snapshots(x, y, kind="quadrature")))
    assert mp.eigenvalues.dtype == jnp.complex64
    assert mp.residuals.max() < 2e-5
    theta = jnp.linspace(-3, 3, 7, dtype=jnp.float32)
    v = jnp.ones(17, jnp.float32)
    density = spectral_measure(mp, v, theta, 0.5, 6)
    assert density.dtype == jnp.float32
    np.testing.assert_allclose(density, spectral_measure(mpedmd(golden), jnp.ones(17), theta, 0.5, 6), rtol=2e-4)
    assert wave_packet(mp, v, theta, 0.5, 2).residuals.dtype == jnp.float32


def test_transforms(golden):
    """Compiled, batched over observables and smoothing, and differentiable in the coefficients."""
    mp, theta = mpedmd(golden), jnp.linspace(0, 6, 5)
    v = np.stack([np.ones(17), np.linspace(0, 1, 17)])
    each = [np.asarray(spectral_measure(mp, c, theta, 0.3, 2)) for c in v]
    batched = jax.jit(jax.vmap(lambda c, e: spectral_measure(mp, c, theta, e, 2)))(v, jnp.full(2, 0.3))
    np.testing.assert_allclose(batched, each, rtol=1e-12)
    np.testing.assert_allclose(spectral_measure(mp, v.T, theta, 0.3, 2), np.stack(each, -1), rtol=1e-12)
    loss = jax.jit(jax.value_and_grad(lambda c: jnp.sum(spectral_measure(mp, c, theta, 0.3, 2) ** 2)))
    step = 1e-5 * np.sin(np.arange(17.0))
    slope = (loss(v[1] + step)[0] - loss(v[1] - step)[0]) / 2
    np.testing.assert_allclose(np.asarray(loss(v[1])[1]) @ step, slope, rtol=1e-7)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), eqx.filter(golden, eqx.is_array))
    both = eqx.filter_vmap(mpedmd)(eqx.combine(stacked, golden))
    np.testing.assert_allclose(both.eigenvalues[1], mp.eigenvalues, rtol=1e-12)


def test_dependent_dictionary(golden):
    """A function that occurs twice, its copy left out by the rank tolerance, changes no measure."""
    x = 2 * np.pi * np.arange(64)[:, None] / 64
    doubled = lambda x: jnp.concatenate([golden.dictionary(x), golden.dictionary(x)[:1]])
    twice = mpedmd(factor(doubled, Snapshots(x, x + 2 * np.pi * GOLDEN, kind="quadrature"), rank_tol=1e-8))
    assert twice.factor.rank == 17
    theta, v = np.linspace(-3, 3, 7), np.arange(1.0, 18.0)
    expected = spectral_measure(mpedmd(golden), v, theta, 0.4, 4)
    np.testing.assert_allclose(spectral_measure(twice, np.append(v, 0.0), theta, 0.4, 4), expected, rtol=1e-9)
    np.testing.assert_allclose(
        spectral_measure(twice, np.append(v, 2.0) - 2 * np.eye(18)[0], theta, 0.4, 4), expected, rtol=1e-9
    )


def test_singular_compression_is_flagged():
    """On {e_0} u {e_2} of the doubling map the compression is zero, and any unitary matrix is a polar factor of it."""
    x = 2 * np.pi * np.arange(64)[:, None] / 64
    mp = mpedmd(factor(Fourier([1, 3]), Snapshots(x, 2 * x, kind="quadrature")))
    assert float(mp.smallest_singular_value) < 1e-14
    assert not bool(mp.unique)
    np.testing.assert_allclose(mp.residuals, np.sqrt(2), rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(order=0), "order"),
        (dict(order=7), "order"),
        (dict(order=True), "order"),
        (dict(epsilon=0.0), "epsilon"),
        (dict(epsilon=-1.0), "epsilon"),
        (dict(epsilon=np.nan), "epsilon"),
        (dict(epsilon=[0.1, 0.2]), "epsilon"),
        (dict(theta=[0.0, np.inf]), "theta"),
        (dict(theta=0.0), "theta"),
        (dict(coefficients=np.ones(16)), "coefficients"),
        (dict(coefficients=np.full(17, np.nan)), "coefficients"),
        (dict(coefficients=np.ones((17, 1, 1))), "coefficients"),
    ],
)
def test_bad_input(golden, change, named):
    """Wrong arguments raise at once, by name."""
    arguments = dict(coefficients=np.ones(17), theta=[0.0, 1.0], epsilon=0.1, order=4) | change
    for function in (spectral_measure, wave_packet):
        with pytest.raises(ValueError, match=f"`{named}`"):
            function(mpedmd(golden), **arguments)


def test_bad_values_under_jit(golden):
    """What cannot be looked at while tracing is an error at run time."""
    mp = mpedmd(golden)
    density = eqx.filter_jit(lambda e: spectral_measure(mp, jnp.ones(17), jnp.zeros(1), e))
    with pytest.raises(RuntimeError, match="epsilon"):
        density(jnp.array(-1.0))
    with pytest.raises(ValueError, match="one observable"):
        wave_packet(mp, jnp.ones((17, 2)), [0.0], 0.1)
