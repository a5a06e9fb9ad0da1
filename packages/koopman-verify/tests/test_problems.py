import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import koopman_verify as kv
import numpy as np
import pytest
import scipy.integrate as si
import scipy.special as sp
from koopman_verify import problems


@eqx.filter_jit
def stacked(factor, z):
    """The pseudospectral function, straight from its definition."""
    a, b = factor.A.astype(jnp.complex128), factor.B.astype(jnp.complex128)
    eye = jnp.eye(len(a), dtype=a.dtype)
    smallest = lambda w: jnp.linalg.svd(jnp.concatenate([a - w * eye, b]), compute_uv=False)[-1]
    return jax.lax.map(smallest, z)


Z = jnp.array([0.3 + 0.2j, -0.9 + 0.1j, 1.4 - 0.3j, 1j, 0.0j])


def matched(found, expected):
    """Largest distance after pairing each expected value with its nearest found one."""
    found, expected = np.asarray(found), np.asarray(expected)
    return np.max(np.min(np.abs(found[None] - expected[:, None]), axis=1))


@pytest.mark.parametrize("name", ["doubling", "tent", "logistic", "cat"])
def test_mixing_orbits_are_nilpotent(name):
    """A is a shift, so that h_m is the closed form, and EDMD's residual is 1."""
    system = getattr(problems, name)(5)
    factor = kv.factor(system.dictionary, system.snapshots)
    a = np.asarray(factor.A)
    assert np.linalg.norm(np.linalg.matrix_power(a, 5)) < 1e-12
    np.testing.assert_allclose(np.linalg.svd(a, compute_uv=False), [1, 1, 1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(stacked(factor, Z), system.h_fn(Z), atol=1e-13)
    np.testing.assert_allclose(factor.isometry_defect, 0, atol=1e-12)
    kernel = np.linalg.svd(a)[2][-1].conj()  # the only eigenvector
    np.testing.assert_allclose(factor.residual(jnp.zeros(1), jnp.asarray(kernel)[:, None]), 1, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_rotation(dtype):
    system = problems.rotation(1.0, 6)
    x = [jnp.asarray(np.asarray(v, dtype)) for v in (system.snapshots.x, system.snapshots.y)]
    factor = kv.factor(system.dictionary, kv.Snapshots(*x, kind="quadrature"))
    pairs = kv.edmd(factor)
    tol = 50 * float(jnp.finfo(dtype).eps)
    assert matched(pairs.eigenvalues, system.eigenvalues) < tol
    assert float(jnp.max(pairs.residuals)) < tol
    if dtype == jnp.float64:
        np.testing.assert_allclose(stacked(factor, Z), system.h_fn(Z), atol=1e-13)
    golden = problems.golden_rotation(6)
    # At zero both are one, and a point of the circle has that modulus up to rounding only.
    eps = np.finfo(float).eps
    assert np.all(np.asarray(golden.distance_fn(Z)) <= np.asarray(golden.h_fn(Z)) + 2 * eps)


def test_rational_rotation_pollutes_edmd():
    """EDMD with random hats has false eigenvalues 0.9 and more from the three roots of one, with large residuals."""
    worst = []
    roots = np.asarray(problems.rational_rotation(1, 3, 20, key=jr.key(0)).eigenvalues)
    for seed in range(4):
        system = problems.rational_rotation(1, 3, 20, key=jr.key(seed))
        pairs = kv.edmd(kv.factor(system.dictionary, system.snapshots))
        far = system.distance_fn(pairs.eigenvalues)
        worst.append(np.asarray(far).max())
        # The operator is unitary, so that a residual bounds the distance (hats leave an error of the quadrature).
        assert np.max(np.asarray(far) - np.asarray(pairs.residuals)) < 0.02
    assert max(worst) > 0.9
    np.testing.assert_allclose(roots**3, 1, atol=1e-14)


def test_blaschke():
    """The same eigenvalues in both spaces; residuals are those of an isometry in one and vanish in the other."""
    system = problems.blaschke(8)
    pairs = kv.edmd(kv.factor(system.dictionary, system.snapshots))
    values, residuals = np.asarray(pairs.eigenvalues), np.asarray(pairs.residuals)
    order = np.argsort(-np.abs(values))
    np.testing.assert_allclose(values[order], system.eigenvalues, atol=1e-12)
    np.testing.assert_allclose(residuals[order], system.residuals, atol=1e-7)
    first = []
    for num in (8, 16):
        small = problems.blaschke(num, radius=0.6)
        pairs = kv.edmd(kv.factor(small.dictionary, small.snapshots))
        values = np.asarray(pairs.eigenvalues)
        index = np.argmin(np.abs(values + 0.5))
        np.testing.assert_allclose(values[index], -0.5, atol=1e-11)
        first.append(np.asarray(pairs.residuals)[index])
    np.testing.assert_allclose(first, [7.1e-2, 1.6e-3], rtol=0.02)


def test_linear_map():
    system = problems.linear([[0.9, 0.4], [-0.3, 0.6]], 3)
    pairs = kv.edmd(kv.factor(system.dictionary, system.snapshots))
    assert matched(pairs.eigenvalues, system.eigenvalues) < 1e-12
    assert float(jnp.max(pairs.residuals)) < 1e-12


def test_gauss_map():
    """The fixed point, its multiplier, and the analytic eigenvalue from its eigenfunction."""
    system = problems.gauss_map(num_eigenvalues=4)
    fixed = jnp.array([-1.0])
    np.testing.assert_allclose(system(fixed), fixed, atol=1e-15)
    multiplier = jax.jacobian(system.map_fn)(fixed)[0, 0]
    np.testing.assert_allclose(multiplier, system.eigenvalues[1].real, rtol=1e-14)
    np.testing.assert_allclose(float(multiplier), 0.54134, atol=1e-5)
    assert bool(jnp.all((system.snapshots.y <= 0) & (system.snapshots.y >= -1)))
    # The Koenigs function, lim (F^n(x) + 1) / mu^n, is an eigenfunction, and so are its powers.
    mu = float(multiplier)
    x = jnp.linspace(-1.0, -0.6, 9)[:, None]
    iterates = [x[:, 0]]
    for _ in range(31):
        iterates.append(system(iterates[-1]))
    koenigs = [(iterates[n] + 1) / mu**30 for n in (30, 31)]
    np.testing.assert_allclose(koenigs[1], mu * koenigs[0], atol=1e-6)
    assert float(koenigs[0][-1]) > 0.4
    pairs = kv.edmd(kv.factor(system.dictionary, system.snapshots)).sorted()
    np.testing.assert_allclose(pairs.eigenvalues[0], 1, atol=1e-12)
    assert float(pairs.residuals[0]) < 1e-12


def test_flow_is_accurate_to_rounding():
    """Against SciPy's order-8 method, and the exact solution of the harmonic oscillator."""
    duffing = problems.duffing(0.3)
    for system, x0 in (
        (duffing, [1.7, -1.9]),
        (problems.van_der_pol(0.2), [2.0, 2.0]),
        (problems.lorenz(0.05), [5.0, 6.0, 20.0]),
        (problems.rossler(0.05), [9.0, 1.0, 30.0]),
    ):
        flow = system.map_fn
        field = jax.jit(flow.field)
        right = lambda _, y, f=field: np.asarray(f(jnp.asarray(y)))
        reference = si.solve_ivp(right, (0, flow.dt), x0, method="DOP853", rtol=3e-14, atol=1e-14)
        np.testing.assert_allclose(flow(jnp.array(x0)), reference.y[:, -1], atol=1e-12, rtol=1e-13, err_msg=system.name)
    turn = problems.Flow(lambda x: jnp.stack([x[1], -x[0]]), 1.0, num_steps=4)
    np.testing.assert_allclose(turn(jnp.array([1.0, 0.0])), [math.cos(1), -math.sin(1)], atol=1e-15)
    narrow = duffing(jnp.array([1.7, -1.9], jnp.float32))
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, duffing(jnp.array([1.7, -1.9])), atol=2e-6)


def test_duffing_lattice_and_area(uniform):
    """The listed eigenvalues belong to the linear map at a well; without damping area is preserved."""
    system = problems.duffing(0.5)
    at_well = np.linalg.eigvals(np.asarray(jax.jit(jax.jacfwd(system.map_fn))(jnp.array([1.0, 0.0]))))
    assert matched(system.eigenvalues, at_well) < 1e-12
    assert matched(system.eigenvalues, [np.prod(at_well), at_well[0] ** 3, 1]) < 1e-12
    np.testing.assert_allclose(np.log(at_well[at_well.imag > 0][0]) / 0.3, -0.25 + 1.39194j, atol=1e-5)
    jacobians = jax.jit(jax.vmap(jax.jacfwd(problems.duffing(0.0).map_fn)))(uniform((3, 2), -2.0, 2.0))
    np.testing.assert_allclose(np.linalg.det(jacobians), 1, atol=1e-12)
    assert problems.duffing(0.0).eigenvalues is None


def test_duffing_snapshots(getkey):
    data = problems.duffing_snapshots(40, 5, key=getkey(), delta=0.3)
    assert data.num_snapshots == 200
    assert data.kind == "trajectory"
    np.testing.assert_array_equal(data.y[0], data.x[1])
    x, y = np.asarray(data.x), np.asarray(data.y)
    assert np.any(y[4] != x[5])
    assert np.all(np.abs(x[::5]) <= 2)
    np.testing.assert_allclose(problems.duffing(0.3)(jnp.asarray(x[7])), y[7], atol=1e-14)
    assert problems.duffing_snapshots(3, 1, key=getkey()).kind == "iid"


def test_pendulum_frequency():
    """Against SciPy's elliptic integral, and one period of the flow itself, swinging and turning."""
    for state, turn in (([2.0, 0.3], 0.0), ([0.5, 2.5], 2 * math.pi)):
        x = jnp.array(state)
        omega = float(problems.pendulum_frequency(x))
        m = (1 + state[1] ** 2 / 2 - math.cos(state[0])) / 2
        expected = math.pi / (2 * sp.ellipk(m)) if m < 1 else math.pi * math.sqrt(m) / sp.ellipk(1 / m)
        np.testing.assert_allclose(omega, expected, rtol=1e-14)
        field = lambda y: jnp.stack([y[1], -jnp.sin(y[0])])
        after = problems.Flow(field, 2 * math.pi / omega, num_steps=60)(x)
        np.testing.assert_allclose(after, x + jnp.array([turn, 0.0]), atol=1e-11)
    assert float(problems.pendulum_frequency(jnp.array([0.0, 2.0]))) == 0
    assert problems.pendulum_frequency(jnp.array([0.1, 0.0], jnp.float32)).dtype == jnp.float32


def test_pendulum_matrices():
    """The published hyperbolic cross keeps its norm: the trapezoidal rule is right, and so is the flow."""
    system = problems.pendulum(0.5, 7, num_nodes=(40, 60))
    factor = kv.factor(system.dictionary, system.snapshots)
    values = np.asarray(jax.jit(jax.vmap(system.dictionary))(system.snapshots.x))
    gram = values.conj().T @ (values * np.asarray(system.snapshots.weights)[:, None]) * 18  # Lebesgue: length 18
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-10)
    assert float(factor.isometry_defect) < 0.05
    assert np.all(np.asarray(stacked(factor, Z)) >= np.asarray(system.distance_fn(Z)) - 0.03)


def test_van_der_pol_multipliers():
    """The Floquet multiplier and the period of the limit cycle, found by iteration, agree to the next order of mu."""
    mu = 0.1
    flow = problems.van_der_pol(mu).map_fn
    period = 2 * math.pi / (1 - mu**2 / 16)
    cycle = problems.Flow(flow.field, period, num_steps=80)
    turn = jax.jit(lambda y: (cycle(y), jax.jacfwd(cycle)(y)))
    on = jnp.array([2.0, 0.0])
    for _ in range(40):
        on, _ = turn(on)
    again, jacobian = turn(on)
    np.testing.assert_allclose(np.sort(np.linalg.eigvals(jacobian)), [math.exp(-mu * period), 1], rtol=0.01)
    np.testing.assert_allclose(again, on, atol=1e-3)
    listed = np.asarray(problems.van_der_pol(mu, 0.3).eigenvalues)
    assert (
        matched(listed, np.exp(0.3 * np.array([-mu, 1j * (1 - mu**2 / 16), -2 * mu - 1j * (1 - mu**2 / 16)]))) < 1e-14
    )


def test_ornstein_uhlenbeck(getkey):
    """Gauss-Hermite quadrature of the transition law: the matrix on monomials has the eigenvalues, to rounding."""
    system = problems.ornstein_uhlenbeck(0.7, 0.4, 1.3, degree=4)
    decay, deviation = math.exp(-0.28), 1.3 / math.sqrt(1.4)
    t, w = np.polynomial.hermite_e.hermegauss(12)
    x = np.linspace(-2, 2, 9)
    y = decay * x[:, None] + deviation * math.sqrt(1 - decay**2) * t
    psi = lambda s: np.asarray(jax.vmap(system.dictionary)(jnp.asarray(s.reshape(-1, 1)))).reshape(*s.shape, -1)
    expected = np.einsum("mqn,q->mn", psi(y), w / w.sum())
    matrix = np.linalg.lstsq(psi(x), expected, rcond=None)[0]
    assert matched(np.linalg.eigvals(matrix), system.eigenvalues) < 1e-11
    # The sampler has the law's mean and variance.
    draws = np.asarray(system.successors(jnp.array([[1.0]]), 20_000, key=getkey()))
    assert draws.shape == (20_000, 1, 1)
    spread = deviation * math.sqrt(1 - decay**2)
    assert abs(draws.mean() - decay) < 5 * spread / math.sqrt(20_000)
    assert abs(draws.std() / spread - 1) < 5 / math.sqrt(40_000)


def test_noisy_logistic(getkey):
    """The eigenvalues against a plain discretisation of the transition density, and the sampler against its moments."""
    order = 4
    system = problems.noisy_logistic(order)
    num = 200
    x = (np.arange(num) + 0.5) / num
    density = np.cos(np.pi * (x[None] - (4 * x * (1 - x))[:, None])) ** (2 * order)
    found = np.linalg.eigvals(density / density.sum(axis=1, keepdims=True))
    found = found[np.argsort(-np.abs(found))]
    assert matched(found, system.eigenvalues[:4]) < 1e-3
    np.testing.assert_allclose(system.eigenvalues[0], 1, atol=1e-12)
    draws = np.asarray(system.successors(jnp.array([[0.3]]), 20_000, key=getkey()))[:, 0, 0]
    for k in (1, 2):
        mean = np.mean(np.exp(2j * np.pi * k * (draws - 0.84)))
        assert abs(mean - math.comb(8, 4 + k) / math.comb(8, 4)) < 5 / math.sqrt(20_000)


@pytest.mark.parametrize("make", [problems.lazy_random_walk, problems.rogers_szego, problems.cat_density])
def test_spectral_measures(make):
    """Moments three ways: powers of the operator, the closed form, the integral of the density."""
    problem = make()
    orders = np.arange(5)
    matrix, g = np.asarray(problem.operator), np.asarray(problem.vector)
    powers = [g @ np.linalg.matrix_power(matrix, n) @ g for n in orders]
    closed = np.asarray(problem.moment_fn(jnp.asarray(orders)))
    np.testing.assert_allclose(powers, closed, atol=1e-13)
    if make is problems.lazy_random_walk:
        theta = (np.arange(2000) + 0.5) * np.pi / 2000
        x = 1 / 3 + 2 / 3 * np.cos(theta)
        weights = 2 / 3 * np.sin(theta) * np.pi / 2000
        integrals = [np.sum(weights * x**n * np.asarray(problem.density_fn(jnp.asarray(x)))) for n in orders]
    else:
        theta = 2 * np.pi * np.arange(400) / 400 - np.pi
        rho = np.asarray(problem.density_fn(jnp.asarray(theta)))
        assert rho.min() > -1e-14
        integrals = [np.sum(rho * np.cos(n * theta)) * 2 * np.pi / 400 for n in orders]
    np.testing.assert_allclose(integrals, closed, atol=1e-6 if make is problems.lazy_random_walk else 1e-13)


def test_rogers_szego_is_unitary():
    matrix = np.asarray(problems.rogers_szego(0.9, 41).operator)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(41), atol=1e-14)
    i, j = np.nonzero(np.abs(matrix) > 1e-15)
    assert np.max(np.abs(i - j)) <= 2


def test_rules_of_quadrature(getkey):
    x, w = problems.equispaced(9, 2)
    np.testing.assert_allclose(np.sum(np.asarray(w)), 1, rtol=1e-14)
    np.testing.assert_allclose(np.sum(np.exp(1j * np.asarray(x) @ [8, -3]) * np.asarray(w)), 0, atol=1e-14)
    x, w = problems.gauss_legendre(4, [-1.0, 0.0], [1.0, 3.0])
    x, w = np.asarray(x), np.asarray(w)
    integral = np.sum(w * x[:, 0] ** 6 * x[:, 1] ** 7)
    np.testing.assert_allclose(integral, 1 / 7 * 3**7 / 8, rtol=1e-13)
    x, w = problems.trapezoid(33, -8.0, 8.0)
    x, w = np.asarray(x), np.asarray(w)
    np.testing.assert_allclose(np.sum(w * np.exp(-(x[:, 0] ** 2))) * 16, math.sqrt(math.pi), rtol=1e-13)
    x, w = problems.monte_carlo(2000, [-2.0, 1.0], [2.0, 3.0], key=getkey())
    assert w is None
    x = np.asarray(x)
    assert np.all((x >= np.array([-2.0, 1.0])) & (x <= np.array([2.0, 3.0])))
    np.testing.assert_allclose(np.mean(x, axis=0), [0, 2], atol=0.15)


def test_trajectories():
    for system, bound in ((problems.lorenz(0.05), 50.0), (problems.rossler(0.05), 60.0)):
        states = problems.trajectory(system.map_fn, jnp.array([5.0, 1.0, 1.0]), 1000, discard=100)
        assert states.shape == (1000, 3)
        states = np.asarray(states)
        assert np.all(np.abs(states) < bound)
        assert np.std(states[:, 0]) > 3
        np.testing.assert_allclose(system(jnp.asarray(states[5])), states[6], rtol=1e-12)
    kept = problems.trajectory(problems.rotation(1.0).map_fn, jnp.zeros(1), 3)
    np.testing.assert_allclose(kept[:, 0], [0, 1, 2], atol=1e-15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: problems.rational_rotation(2, 4, 10, key=jr.key(0)), "common factor"),
        (lambda: problems.duffing(-0.1), "delta"),
        (lambda: problems.linear([[1.0, 2.0]]), "matrix"),
        (lambda: problems.lazy_random_walk(10), "num"),
        (lambda: problems.rogers_szego(1.0), "q"),
        (lambda: problems.Flow(lambda x: x, 0.1, num_steps=0), "num_steps"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
