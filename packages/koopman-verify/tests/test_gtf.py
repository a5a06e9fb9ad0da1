import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import scipy.ndimage
from implicit_core import RESULTS
from koopman_verify import gtf
from stationary_testkit import finite_difference_jvp, no_retrace, tree_allclose


DTYPES = [jnp.float32, jnp.float64]


def replace(model, **fields):
    return eqx.tree_at(lambda m: [getattr(m, name) for name in fields], model, list(fields.values()))


def plrnn(
    seed: int = 0, latent: int = 3, hidden: int = 7, *, clipped: bool = True, dtype=jnp.float64
) -> gtf.ShallowPLRNN:
    """A model with weights of the sizes that training begins with, and a bias, from NumPy: nothing is compiled."""
    make = lambda: gtf.ShallowPLRNN(latent, hidden, key=jr.key(0), clipped=clipped, dtype=dtype)
    rng = np.random.default_rng(seed)
    inner, outer = latent**-0.5, hidden**-0.5
    weights = dict(
        A=rng.uniform(0.2, 0.9, latent),
        W1=rng.uniform(-outer, outer, (latent, hidden)),
        W2=rng.uniform(-inner, inner, (hidden, latent)),
        h1=0.3 * rng.normal(size=latent),
        h2=rng.uniform(-inner, inner, hidden),
    )
    return replace(eqx.filter_eval_shape(make), **{k: jnp.asarray(v, dtype) for k, v in weights.items()})


def linear(diagonal) -> gtf.ShallowPLRNN:
    """The map z -> diag(diagonal) z."""
    diagonal = jnp.asarray(diagonal)
    model = plrnn(0, len(diagonal), 2, dtype=diagonal.dtype)
    nothing = np.zeros((len(diagonal), 2), diagonal.dtype)
    return replace(model, A=diagonal, W1=jnp.asarray(nothing), h1=jnp.asarray(nothing[:, 0]))


each = eqx.filter_jit(lambda model, x: jax.vmap(jax.vmap(model))(x))


def logistic(x):
    return 4 * x * (1 - x)


def henon(x):
    return jnp.stack([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])


orbits_of = eqx.filter_jit(lambda model, z: jax.vmap(lambda z: model.orbit(z, 2000))(z))


# The model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clipped", [True, False])
def test_the_model_is_its_formula(clipped, dtype, normal):
    model = plrnn(clipped=clipped, dtype=dtype)
    z = normal((3,), dtype)
    a, w1, w2, h1, h2, x = (np.asarray(v) for v in (model.A, model.W1, model.W2, model.h1, model.h2, z))
    hidden = np.maximum(w2 @ x + h2, 0) - (np.maximum(w2 @ x, 0) if clipped else 0)
    new = model(z)
    assert new.dtype == dtype
    np.testing.assert_allclose(new, np.diag(a) @ x + w1 @ hidden + h1, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clipped", [True, False])
def test_the_jacobian_is_that_of_automatic_differentiation(clipped, dtype, normal):
    model = plrnn(clipped=clipped, dtype=dtype)
    states = 2 * normal((50, 3), dtype)
    both = jax.jit(lambda z: (jax.vmap(model.jacobian)(z), jax.vmap(jax.jacfwd(model))(z)))
    closed, automatic = both(states)
    assert tree_allclose(closed, automatic, rtol=1e-5, atol=1e-6)
    assert np.any(np.asarray(closed[:1]) != np.asarray(closed))  # the states lie in more than one linear region


def test_the_first_weights_are_in_their_ranges(getkey):
    model = gtf.ShallowPLRNN(3, 30, key=getkey(), dtype=jnp.float32)  # as in the training below: one program
    assert 0.8 < np.abs(model.W1).max() * 30**0.5 <= 1
    assert 0.8 < np.abs(model.W2).max() * 3**0.5 <= 1
    assert np.all((np.asarray(model.A) > 0) & (np.asarray(model.A) <= 1))


def every_jacobian(model: gtf.ShallowPLRNN) -> float:
    """The largest norm over every pattern of slopes that the hidden units could have, whether a state has it or not."""
    sign = np.sign(np.asarray(model.h2)) if model.clipped else np.ones(len(model.h2))
    patterns = np.array(np.meshgrid(*[[0, 1]] * len(model.h2))).reshape(len(model.h2), -1).T * sign
    w1, w2 = np.asarray(model.W1), np.asarray(model.W2)
    return max(float(np.linalg.norm(np.diag(model.A) + (w1 * d) @ w2, 2)) for d in patterns)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_lipschitz_bound_lies_between_all_jacobians_and_the_bound_of_the_paper(seed, clipped, dtype, normal):
    model = plrnn(seed, clipped=clipped, dtype=dtype)
    bound = float(model.lipschitz())
    w1, w2 = np.asarray(model.W1), np.asarray(model.W2)
    paper = float(np.abs(model.A).max() + np.linalg.norm(w1, 2) * np.linalg.norm(w2, 2))
    assert every_jacobian(model) <= bound <= paper * (1 + 1e-5)
    x = (3 * np.random.default_rng(seed).normal(size=(2, 2000, 3))).astype(dtype)
    x[1, 1000:] = x[0, 1000:] + 1e-2 * x[1, 1000:]  # far and near pairs
    images = np.asarray(each(model, x))
    ratio = np.linalg.norm(images[0] - images[1], axis=1) / np.linalg.norm(x[0] - x[1], axis=1)
    assert ratio.max() <= bound


def test_slopes_of_clipped_units_are_zero_or_the_sign_of_the_threshold(normal):
    model = plrnn(3)
    s = 3 * np.asarray(normal((500, 3))) @ np.asarray(model.W2).T
    slope = (s + np.asarray(model.h2) > 0).astype(float) - (s > 0)
    assert np.all((slope == 0) | (slope == np.sign(model.h2)))
    assert set(np.unique(slope)) == {-1.0, 0.0, 1.0}


def test_bounds_of_linear_maps_are_exact():
    model = linear(jnp.array([0.5, -0.9, 0.1]))
    np.testing.assert_allclose(model.lipschitz(), 0.9, rtol=1e-13)
    assert float(model.lipschitz()) >= 0.9
    shifted = replace(linear(jnp.array([0.9])), h1=jnp.array([1.0]))
    np.testing.assert_allclose(shifted.invariant_radius(), 10.0, rtol=1e-12)  # the fixed point is 10
    assert linear(jnp.array([1.0, 0.2])).invariant_radius() == jnp.inf


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_orbits_stay_in_the_invariant_ball_and_come_near_it_from_afar(seed, normal):
    model = plrnn(seed)
    model = replace(model, W1=8 * model.W1, W2=3 * model.W2)
    assert float(model.lipschitz()) > 1.5
    radius = float(model.invariant_radius())
    z = np.asarray(normal((64, 3)))
    z = (1 - 1e-14) * radius * z / np.linalg.norm(z, axis=1, keepdims=True)
    z[-1] *= 100
    orbits = np.linalg.norm(orbits_of(model, z), axis=2)
    assert orbits[:-1].max() <= radius
    assert orbits[-1, -1] <= radius


def test_an_unclipped_expanding_model_has_no_radius():
    model = plrnn(clipped=False)
    assert replace(model, W1=8 * model.W1).invariant_radius() == jnp.inf
    contracting = replace(model, W1=0.05 * model.W1, A=0.5 * model.A)
    radius = contracting.invariant_radius()
    assert bool(jnp.isfinite(radius))
    assert float(jnp.linalg.norm(contracting.orbit(jnp.zeros(3), 500)[-1])) <= float(radius)


def test_an_orbit_begins_with_its_first_state(normal):
    model, z = plrnn(), normal((3,))
    orbit = model.orbit(z, 3)
    assert tree_allclose(orbit, jnp.stack([z, model(z), model(model(z)), model(model(model(z)))]))
    assert tree_allclose(gtf.orbit(model, z, 0), z[None])


# Forcing


def test_forcing_of_zero_is_the_free_orbit_and_of_one_the_next_state(normal):
    model, data = plrnn(), normal((10, 3))
    assert tree_allclose(gtf.forced_orbit(model, data, 0.0), model.orbit(data[0], 9)[1:])
    assert tree_allclose(gtf.forced_orbit(model, data, 1.0), jax.vmap(model)(data[:-1]))


def test_a_forced_linear_map_is_exact():
    a, alpha = 0.8, 0.25
    data = jnp.array([[1.0], [-2.0], [0.5], [3.0]])
    z, expected = 1.0, []
    for target in (1.0, -2.0, 0.5):
        z = a * ((1 - alpha) * z + alpha * target)
        expected.append(z)
    predicted = gtf.forced_orbit(linear(jnp.array([a])), data, alpha)
    np.testing.assert_allclose(predicted[:, 0], expected, rtol=1e-14)
    error = gtf.loss(linear(jnp.array([a])), data, alpha)
    np.testing.assert_allclose(error, np.mean((np.array(expected) - [-2.0, 0.5, 3.0]) ** 2), rtol=1e-14)


def test_an_exact_model_has_no_loss_whatever_the_forcing(normal):
    model = plrnn()
    data = model.orbit(normal((3,)), 30)
    for alpha in (0.0, 0.3, 1.0):
        assert float(gtf.loss(model, data, alpha)) < 1e-28


def test_the_loss_of_a_batch_is_the_mean_of_its_sequences(normal):
    model, data = plrnn(), normal((4, 6, 3))
    single = [float(gtf.loss(model, jnp.asarray(sequence), 0.3)) for sequence in np.asarray(data)]
    np.testing.assert_allclose(gtf.loss(model, data, 0.3), np.mean(single), rtol=1e-13)


def test_the_gradient_of_the_loss_is_that_of_finite_differences(normal):
    model, data = plrnn(), normal((6, 3))
    tangent = jax.tree.map(lambda x: normal(x.shape), model)
    _, exact = jax.jvp(lambda m: gtf.loss(m, data, 0.3), (model,), (tangent,))
    approximate = finite_difference_jvp(lambda m: gtf.loss(m, data, 0.3), (model,), (tangent,))
    np.testing.assert_allclose(exact, approximate, rtol=1e-6)


@pytest.mark.parametrize("estimator", ["product", "parameters", "max", "arithmetic"])
def test_the_forcing_of_a_linear_map_is_known(estimator, normal):
    states = normal((2, 5, 2))
    np.testing.assert_allclose(
        gtf.alpha_star(linear(jnp.array([1.6, 0.2])), states, estimator), 1 - 1 / 1.6, rtol=1e-12
    )
    assert gtf.alpha_star(linear(jnp.array([0.6, 0.2])), states, estimator) == 0


class Doubling(gtf.AbstractSimulator):
    """Doubles negative states and multiplies positive ones by eight, backwards."""

    def __call__(self, z):
        return jnp.where(z > 0, -8 * z, 2 * z)

    def jacobian(self, z):
        return jnp.where(z > 0, -8.0, 2.0)[None]

    def lipschitz(self):
        return jnp.array(8.0)

    def invariant_radius(self):
        return jnp.array(jnp.inf)


@pytest.mark.parametrize(
    ("estimator", "growth"),
    # First sequence: Jacobians -8 and 2; second: 2 and 2. The principal logarithm of -8 has imaginary part pi, which
    # does not matter for a matrix of one entry.
    [("product", 4.0), ("parameters", 8.0), ("max", 8.0), ("geometric", 4.0), ("arithmetic", 3.0)],
)
def test_estimators_where_the_jacobian_varies(estimator, growth):
    states = jnp.array([[[1.0], [-1.0]], [[-1.0], [-1.0]]])
    np.testing.assert_allclose(gtf.jacobian_growth(Doubling(), states, estimator), growth, rtol=1e-14)
    np.testing.assert_allclose(gtf.jacobian_growth(Doubling(), states[0], estimator), growth, rtol=1e-14)
    np.testing.assert_allclose(gtf.alpha_star(Doubling(), states, estimator), 1 - 1 / growth, rtol=1e-14)


def test_the_geometric_mean_of_equal_jacobians_is_that_jacobian(normal):
    model = plrnn()
    states = jnp.asarray(np.tile(normal((3,)), (7, 1)))
    jacobian = np.asarray(eqx.filter_jit(model.jacobian)(states[0]))
    norm = np.linalg.norm(jacobian, 2)
    # Negative entries come back too: their principal logarithms have one imaginary part.
    assert np.any(jacobian < 0)
    np.testing.assert_allclose(gtf.jacobian_growth(model, states, "geometric"), norm, rtol=1e-12)
    np.testing.assert_allclose(gtf.jacobian_growth(model, states, "arithmetic"), norm, rtol=1e-12)
    # log(0) of a vanishing entry is -inf, whose exponential is the entry again.
    diagonal = linear(jnp.array([1.5, 0.5]))
    np.testing.assert_allclose(gtf.jacobian_growth(diagonal, jnp.ones((7, 2)), "geometric"), 1.5, rtol=1e-12)


def test_gradients_are_bounded_at_alpha_star_and_explode_without_forcing(normal):
    """The model expands in all directions: (1 - alpha*) J never does."""
    model = plrnn(hidden=20)
    model = replace(model, A=jnp.array([1.1, 1.15, 1.2]), W1=0.3 * model.W1)
    data = normal((400, 3))

    @no_retrace
    def sensitivity(alpha):
        frame = jax.jacfwd(lambda z0: gtf.forced_orbit(model, data, alpha, z0=z0))(data[0])
        return jnp.linalg.norm(frame, 2, axis=(1, 2))

    @no_retrace
    def gradients(alpha):
        def prefix(length):
            def mean_error(z0):
                error = jnp.sum((gtf.forced_orbit(model, data, alpha, z0=z0) - data[1:]) ** 2, axis=1)
                return jnp.sum(jnp.where(jnp.arange(399.0) < length, error, 0.0)) / length

            return jnp.linalg.norm(jax.grad(mean_error)(data[0]))

        return jax.vmap(prefix)(jnp.array([25.0, 100.0, 399.0]))

    by_parameters = gtf.alpha_star(model, data, "parameters")

    @jax.jit
    def by_visits(alpha):
        alpha = gtf.alpha_star(model, gtf.forced_orbit(model, data, alpha), "max")
        visited = (1 - alpha) * gtf.forced_orbit(model, data, alpha) + alpha * data[1:]
        return jnp.maximum(alpha, gtf.alpha_star(model, jnp.concatenate([data[:1], visited]), "max"))

    free = np.asarray(gradients(jnp.zeros(())))
    assert free[1] > 1e4 * free[0] > 0
    assert free[2] > 1e20 * free[0]
    for alpha in (by_parameters, by_visits(by_parameters)):
        assert np.max(sensitivity(alpha)) <= 1 + 1e-12
        bounded = np.asarray(gradients(alpha))
        assert bounded[2] <= bounded[1] <= bounded[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_annealing_rises_at_once_and_falls_slowly(dtype):
    states = jnp.zeros((1, 4, 2), dtype)
    strong, weak = linear(np.array([4.0, 1.0], dtype)), linear(np.array([1.25, 1.0], dtype))
    forcing = gtf.AnnealedForcing("max", every=2, gamma=0.9, alpha=0.5, dtype=dtype)
    alphas = []
    for model in (weak, strong, strong, weak, weak, weak):
        forcing = forcing.update(model, states)
        assert forcing.alpha.dtype == dtype
        alphas.append(float(forcing.alpha))
    first = 0.9 * 0.5 + 0.1 * 0.2
    np.testing.assert_allclose(alphas, [first, first, 0.75, 0.75, 0.695, 0.695], rtol=1e-6)
    assert gtf.ConstantForcing(0.3).update(strong, states).alpha == 0.3


def test_a_linear_observation_is_inverted_by_least_squares(getkey, normal):
    observation = gtf.LinearObservation(2, 5, key=getkey())
    x = normal((4, 6, 5))
    encode = eqx.filter_jit(lambda observation, x: observation.encode(x))
    z = encode(observation, x)
    np.testing.assert_allclose(z, np.asarray(x) @ np.linalg.pinv(np.asarray(observation.B)).T, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(encode(observation, observation.decode(z)), z, rtol=1e-10, atol=1e-12)
    wide = eqx.tree_at(lambda o: o.B, observation, normal((2, 5)))
    narrow = jnp.asarray(np.asarray(x)[..., :2])
    np.testing.assert_allclose(wide.decode(encode(wide, narrow)), narrow, rtol=1e-10, atol=1e-12)


# Metrics


@pytest.mark.parametrize(("dim", "dtype"), [(3, jnp.float64), (6, jnp.float32)])
def test_equal_orbits_have_no_divergence(dim, dtype, getkey, normal):
    x = normal((200, dim), dtype)
    value = gtf.state_space_divergence(x, x, key=getkey(), num_samples=50)
    assert value == 0
    assert value.dtype == dtype


def test_the_divergence_of_histograms_is_that_of_numpy(normal):
    x, y = normal((500, 2)), jnp.asarray(1.3 * np.asarray(normal((250, 2))))
    low, high = np.min(x, 0) - 0.1 * np.std(x, 0), np.max(x, 0) + 0.1 * np.std(x, 0)
    edges = [np.linspace(a, b, 9) for a, b in zip(low, high, strict=True)]
    p, q = (np.histogramdd(np.asarray(v), bins=edges)[0] for v in (x, y))
    assert q.sum() < 250  # some points lie outside, and are counted in the length only
    p, q = (p + 0.01) / (500 + 0.01 * 64), (q + 0.01) / (250 + 0.01 * 64)
    expected = np.sum(p * np.log(p / q))
    np.testing.assert_allclose(gtf.state_space_divergence(x, y, bins=8, smoothing=0.01), expected, rtol=1e-12)


def test_the_divergence_counts_what_is_far_away_or_not_finite_as_missing(normal):
    x = np.array(normal((500, 2)))
    divergence = lambda x, y: float(gtf.state_space_divergence(jnp.asarray(x), jnp.asarray(y), bins=8, smoothing=0.01))
    close, far = divergence(x, x[:250]), divergence(x, x[:250] + 1e6)
    assert far == divergence(x, np.full((250, 2), np.nan))
    assert far > 3 * close > 0
    x[3, 1] = np.nan
    with pytest.raises(Exception, match="`data` must be finite"):
        divergence(x, x[:250])


def test_constant_coordinates_have_one_bin():
    x = jnp.stack([jnp.linspace(0.0, 1.0, 50), jnp.full(50, 3.0)], axis=1)
    assert gtf.state_space_divergence(x, x) == 0
    assert float(gtf.state_space_divergence(x, x + jnp.array([[0.0, 1.0]]))) > 5


def test_the_divergence_of_two_gaussians_is_known():
    """KL(N(0, v I), N(a, v I)) = |a|^2 / 2v, estimated within three standard errors, |a| / sqrt(v n)."""
    x, y = jnp.zeros((1, 7)), jnp.full((1, 7), 0.5)
    value = gtf.state_space_divergence(x, y, variance=2.0, num_samples=2000, key=jr.key(1))
    size = math.sqrt(7 * 0.25)
    assert abs(float(value) - size**2 / 4) < 3 * size / math.sqrt(2 * 2000)
    with pytest.raises(ValueError, match="`key` is needed"):
        gtf.state_space_divergence(x, y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_distance_of_spectra_is_that_of_scipy(dtype, normal):
    t = np.arange(400)[:, None]
    x = np.concatenate([np.sin(0.3 * t), np.cos(0.05 * t)], 1) + 0.3 * np.asarray(normal((400, 2)))
    y = np.concatenate([np.sin(0.4 * t), np.cos(0.05 * t)], 1) + 0.6 * np.asarray(normal((400, 2)))
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)

    def spectrum(v):
        v = np.asarray(v, np.float64)
        power = np.abs(np.fft.rfft((v - v.mean(0)) / v.std(0), axis=0)) ** 2
        power = scipy.ndimage.gaussian_filter1d(power, 5.0, axis=0)  # reflects and cuts at four by default
        return power / power.sum(0)

    expected = np.mean(np.linalg.norm(np.sqrt(spectrum(x)) - np.sqrt(spectrum(y)), axis=0) / np.sqrt(2))
    value = gtf.hellinger_spectrum(x, y, sigma=5.0)
    assert value.dtype == dtype
    np.testing.assert_allclose(value, expected, rtol=1e-3 if dtype == jnp.float32 else 1e-10)
    assert gtf.hellinger_spectrum(x, x, sigma=5.0) == 0


def test_the_distance_of_spectra_is_in_the_unit_interval(normal):
    t = np.arange(256.0)[:, None]
    x, y = jnp.asarray(np.sin(2 * np.pi * 8 * t / 256)), jnp.asarray(np.sin(2 * np.pi * 32 * t / 256))
    np.testing.assert_allclose(gtf.hellinger_spectrum(x, y, sigma=0.0), 1.0, rtol=1e-6)  # no frequency in common
    assert 0 < float(gtf.hellinger_spectrum(x, normal(x.shape))) < 1
    flat = jnp.asarray(np.full((256, 1), 0.1))
    assert gtf.hellinger_spectrum(x, flat) == 1
    assert gtf.hellinger_spectrum(flat, flat) == 0


def test_the_prediction_error_of_linear_maps_is_known():
    data = gtf.orbit(lambda x: 0.5 * x, jnp.ones(1), 4)
    assert gtf.prediction_error(lambda x: 0.5 * x, data, 3) == 0
    expected = np.mean((np.array([1.0, 0.5]) * (1 - 0.125)) ** 2)
    np.testing.assert_allclose(gtf.prediction_error(lambda x: x, data, 3), expected, rtol=1e-14)
    assert gtf.prediction_error(lambda x: 1e200 * x, data, 3) == jnp.inf


# Lyapunov exponents


@pytest.mark.parametrize("dtype", DTYPES)
def test_exponents_of_linear_maps_are_exact(dtype):
    rates = jnp.array([0.7, -1.05, 0.3], dtype)  # the fastest direction is not the first axis
    exponents = gtf.lyapunov_exponents(linear(rates), jnp.ones(3, dtype), 200, burn_in=200, dt=0.5)
    assert exponents.dtype == dtype
    expected = np.log([1.05, 0.7, 0.3]) / 0.5
    np.testing.assert_allclose(exponents, expected, rtol=1e-5 if dtype == jnp.float32 else 1e-12)
    # A rotation and shear has no diagonal to read the exponents from; its determinant is the sum.
    matrix = jnp.array([[0.8, 0.7], [-0.1, 0.6]], dtype)
    spectrum = np.sort(np.log(np.abs(np.linalg.eigvals(np.asarray(matrix, np.float64)))))[::-1]
    exponents = gtf.lyapunov_exponents(lambda x: matrix @ x, jnp.ones(2, dtype), 4000, burn_in=400)
    np.testing.assert_allclose(exponents, spectrum, atol=2e-3)
    np.testing.assert_allclose(
        np.sum(np.asarray(exponents)), np.log(0.55), rtol=1e-6 if dtype == jnp.float32 else 1e-12
    )


def test_the_exponent_of_the_logistic_map_is_log_two():
    # The sum telescopes to a boundary term: over 20,000 steps it is within 1e-3.
    np.testing.assert_allclose(gtf.lyapunov_exponent(logistic, jnp.array([0.3]), 20_000), np.log(2), atol=1e-3)


def test_the_exponents_of_the_henon_map():
    exponents = gtf.lyapunov_exponents(henon, jnp.array([0.1, 0.1]), 40_000, burn_in=1000)
    np.testing.assert_allclose(exponents[0], 0.419, atol=5e-3)
    np.testing.assert_allclose(np.sum(np.asarray(exponents)), np.log(0.3), rtol=1e-12)


def test_the_exponents_of_the_lorenz_system():
    """The sum is the divergence of the field, -41/3. The largest one fluctuates by about 0.01 over 400 time units."""
    flow = gtf.FlowMap(gtf.lorenz63_field, 0.01)
    exponents = gtf.lyapunov_exponents(flow, jnp.array([1.0, 1.0, 25.0]), 40_000, burn_in=2000, dt=0.01)
    np.testing.assert_allclose(exponents[0], 0.906, atol=0.02)
    np.testing.assert_allclose(exponents[1], 0.0, atol=0.02)
    np.testing.assert_allclose(np.sum(np.asarray(exponents)), -41 / 3, atol=2e-3)


def test_exponents_of_a_forgetting_map_and_of_a_diverging_one():
    assert gtf.lyapunov_exponent(lambda x: 0 * x, jnp.ones(2), 5) == -jnp.inf
    with pytest.raises(Exception, match="diverges"):
        gtf.lyapunov_exponent(lambda x: x**2, jnp.full(1, 3.0), 50)


def test_exponents_are_below_the_logarithm_of_the_lipschitz_bound(normal):
    model = plrnn(1, hidden=10)
    largest = gtf.lyapunov_exponent(model, normal((3,)), 500)
    assert float(largest) <= math.log(float(model.lipschitz()))


# Recordings


@pytest.mark.parametrize("dtype", DTYPES)
def test_recordings_of_the_lorenz_systems(dtype):
    recording = gtf.lorenz63(jr.key(0), 500, dtype=dtype)
    assert recording.values.shape == (500, 3)
    assert recording.values.dtype == dtype
    assert recording.dt == 0.01
    flow = gtf.FlowMap(gtf.lorenz63_field, 0.01)
    values = np.asarray(recording.values)
    np.testing.assert_allclose(
        eqx.filter_jit(lambda x: jax.vmap(flow)(x))(jnp.asarray(values[:-1])), values[1:], rtol=1e-4, atol=1e-3
    )
    noisy = np.asarray(gtf.lorenz63(jr.key(0), 500, 0.05, dtype=dtype).values)
    np.testing.assert_allclose(np.std(noisy - values, axis=0) / np.std(values, axis=0), 0.05, rtol=0.1)


def test_recordings_of_the_system_of_lorenz_96():
    assert gtf.lorenz96(jr.key(0), 50, dim=6, dt=0.03, dtype=jnp.float32).values.shape == (50, 6)
    assert gtf.lorenz96(jr.key(0), 50, dim=6, dt=0.03, dtype=jnp.float32).values.dtype == jnp.float32


def test_the_field_of_lorenz_96_is_its_formula(normal):
    x = np.asarray(normal((6,)))
    expected = [(x[(i + 1) % 6] - x[i - 2]) * x[i - 1] - x[i] + 8 for i in range(6)]
    np.testing.assert_allclose(gtf.lorenz96_field(jnp.asarray(x)), expected, rtol=1e-13)


def test_runge_kutta_is_of_order_four():
    decay = lambda x: -x
    errors = [
        abs(float(gtf.orbit(gtf.FlowMap(decay, 1 / n), jnp.ones(1), n)[-1, 0]) - math.exp(-1)) for n in (4, 8, 16)
    ]
    assert errors[0] / errors[1] > 14
    assert errors[1] / errors[2] > 14
    split = gtf.FlowMap(decay, 1.0, 16)(jnp.ones(1))
    np.testing.assert_allclose(split, gtf.orbit(gtf.FlowMap(decay, 1 / 16), jnp.ones(1), 16)[-1], rtol=1e-14)


def test_standardised_recordings_can_be_restored():
    recording = gtf.lorenz63(jr.key(0), 500)
    standard = recording.standardised().standardised()
    np.testing.assert_allclose(np.mean(np.asarray(standard.values), 0), 0, atol=1e-12)
    np.testing.assert_allclose(np.std(np.asarray(standard.values), 0), 1, rtol=1e-12)
    # Shifting by the mean leaves errors relative to the spread (about 8), however small a single value is.
    np.testing.assert_allclose(standard.restore(standard.values), recording.values, rtol=0, atol=1e-13)


def test_recordings_are_read_from_files(tmp_path, normal):
    table = np.random.default_rng(0).normal(size=(40, 5))
    np.save(tmp_path / "ecg.npy", table)
    np.savetxt(tmp_path / "ecg.csv", table, delimiter=",", header="I,II,III,V1,V2", comments="", fmt="%.18e")
    np.savetxt(tmp_path / "bare.csv", table, delimiter=";", fmt="%.18e")
    np.save(tmp_path / "one.npy", table[:, 0])
    for recording in (
        gtf.load(tmp_path / "ecg.npy", 0.002),
        gtf.load(str(tmp_path / "ecg.csv"), 0.002),
        gtf.load(tmp_path / "bare.csv", 0.002, delimiter=";"),
    ):
        np.testing.assert_array_equal(recording.values, table)
        assert recording.dt == 0.002
    assert gtf.load(tmp_path / "one.npy", 1.0, dtype=jnp.float32).values.dtype == jnp.float32


def test_files_that_are_no_recording_are_refused(tmp_path):
    table = np.ones((6, 2))
    np.save(tmp_path / "wide.npy", table.T)
    table[4, 1] = np.nan
    np.save(tmp_path / "hole.npy", table)
    (tmp_path / "text.csv").write_text("a,b\n1,2\n3,x\n")
    np.save(tmp_path / "complex.npy", np.ones((6, 2), complex))
    (tmp_path / "ecg.mat").write_text("")
    for name, message in (
        ("wide.npy", "a row for each"),
        ("hole.npy", "row 4, column 1"),
        ("text.csv", "not a table of numbers"),
        ("complex.npy", "real"),
        ("ecg.mat", ".npy or .csv"),
    ):
        with pytest.raises(ValueError, match=message):
            gtf.load(tmp_path / name, 1.0)
    with pytest.raises(FileNotFoundError):
        gtf.load(tmp_path / "none.npy", 1.0)


# Training


def test_training_on_the_lorenz_system_learns_its_attractor(capsys):
    recording = gtf.lorenz63(jr.key(0), 4000, dtype=jnp.float32).standardised()
    model = gtf.ShallowPLRNN(3, 30, key=jr.key(1), dtype=jnp.float32)
    training = gtf.train(
        model,
        recording.values,
        key=jr.key(2),
        num_steps=1150,
        length=50,
        optim=gtf.exponential_radam(1150, 1e-2, 5e-4),
        forcing=gtf.AnnealedForcing(gamma=0.9, dtype=jnp.float32),
        chunk=250,
        progress=True,
    )
    assert training.result == RESULTS.successful
    assert training.stats["num_steps"] == 1150
    assert training.loss.shape == training.alpha.shape == (1150,)
    assert "step   1150" in capsys.readouterr().err
    losses = np.asarray(training.loss)
    assert losses[-50:].mean() < 0.05 * losses[:5].mean()
    assert np.asarray(training.alpha)[-1] < 0.5

    start = np.asarray(recording.values)[0]

    def divergence(model):
        return float(gtf.state_space_divergence(recording.values, model.orbit(jnp.asarray(start), 3999)))

    assert divergence(training.value) < 0.5 * divergence(model)


def small_training(data, **kwargs):
    forcing = kwargs.pop("forcing", None)
    return gtf.train(plrnn(), data, key=jr.key(3), batch_size=2, length=4, chunk=3, forcing=forcing, **kwargs)


def test_chunks_do_not_change_the_course_of_training_steps(normal):
    """Five steps in chunks of three: the surplus step changes nothing."""
    data = normal((2, 20, 3))
    optim = optax.adam(1e-2)
    five, six = small_training(data, num_steps=5, optim=optim), small_training(data, num_steps=6, optim=optim)
    assert five.loss.shape == (5,)
    assert tree_allclose(five.loss, six.loss[:5], rtol=1e-12)
    assert not tree_allclose(five.value, six.value, rtol=1e-12)


def test_a_training_step_is_a_step_of_the_optimiser(normal):
    model, batch = plrnn(), normal((2, 5, 3))
    optim = optax.sgd(0.1)
    state = gtf.TrainState.create(model, optim, forcing=gtf.ConstantForcing(0.4))
    new, error = no_retrace(gtf.train_step)(state, batch, optim, 0.01)

    def objective(m):
        return gtf.loss(m, batch, 0.4) + 0.01 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(m))

    gradient = jax.jit(jax.grad(objective))(model)
    for found, before, slope in zip(*map(jax.tree.leaves, (new.model, model, gradient)), strict=True):
        np.testing.assert_allclose(found, np.asarray(before) - 0.1 * np.asarray(slope), rtol=1e-12)
    np.testing.assert_allclose(error, gtf.loss(model, batch, 0.4), rtol=1e-13)


def test_training_learns_an_observation_with_the_model(getkey, normal):
    observation = gtf.LinearObservation(3, 8, key=getkey())
    data = normal((40, 8))
    training = small_training(data, num_steps=3, observation=observation, optim=optax.sgd(0.1))
    assert not tree_allclose(training.observation, observation)
    assert bool(jnp.all(jnp.isfinite(training.loss)))


def test_training_that_overflows_says_so_and_keeps_the_last_finite_model(normal):
    data = normal((20, 3))
    optim, forcing = optax.sgd(1e200), gtf.ConstantForcing(0.0)
    with pytest.raises(RuntimeError, match="not finite"):
        small_training(data, num_steps=9, optim=optim, forcing=forcing)
    training = small_training(data, num_steps=9, optim=optim, forcing=forcing, throw=False)
    assert training.result == RESULTS.nonfinite
    assert training.stats["num_steps"] == len(training.loss) - 1 < 9
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(training.value))


# Wrong input


def test_wrong_input_is_named(getkey, normal):
    model, data = plrnn(), normal((20, 3))
    for message, call in {
        "`latent` must be at least 1": lambda: gtf.ShallowPLRNN(0, 5, key=getkey()),
        "`num_steps` must not be negative": lambda: model.orbit(data[0], -1),
        "`states` must hold at least two": lambda: gtf.forced_orbit(model, data[:1], 0.0),
        "`estimator` must be one of": lambda: gtf.AnnealedForcing("mean"),  # pyright: ignore[reportArgumentType]
        "`alpha` must be in": lambda: gtf.ConstantForcing(1.5),
        "`every` must be at least 1": lambda: gtf.AnnealedForcing(every=0),
        "`length` must be in": lambda: gtf.train(model, data, key=getkey(), length=21),
        "`data` must be finite": lambda: small_training(jnp.full((20, 3), jnp.inf)),
        "`chunk` must be at least 1": lambda: gtf.train(model, data, key=getkey(), length=5, chunk=0),
        "`model` does not take the states": lambda: small_training(data[:, :2]),
        "one dimension and dtype": lambda: gtf.state_space_divergence(data, data[:, :2]),
        "one length": lambda: gtf.hellinger_spectrum(data, data[:10]),
        "`bins` must be": lambda: gtf.state_space_divergence(data, data, bins=2000),
        "`num_exponents` must be in": lambda: gtf.lyapunov_exponents(model, data[0], 5, num_exponents=4),
        "`num_steps` must be in": lambda: gtf.prediction_error(model, data, 20),
        "`noise` must not be negative": lambda: gtf.lorenz63(getkey(), 5, -0.1),
        "`dim` must be at least 4": lambda: gtf.lorenz96(getkey(), 5, dim=3),
        "`dt` and `num_substeps`": lambda: gtf.FlowMap(gtf.lorenz63_field, 0.0),
    }.items():
        # What the annotations already tell is refused by the checker of the tests.
        with pytest.raises(Exception, match=f"{message}|Type-check error"):
            call()


def test_everything_works_under_jit_and_vmap(normal):
    data = normal((3, 40, 3))

    def scores(model, data):
        return jnp.stack(
            [
                gtf.loss(model, data, 0.3),
                gtf.state_space_divergence(data, model.orbit(data[0], 30)),
                gtf.hellinger_spectrum(data, model.orbit(data[0], 39), sigma=2.0),
                gtf.lyapunov_exponent(model, data[0], 20),
            ]
        )

    single = no_retrace(scores)
    together = np.asarray(eqx.filter_jit(jax.vmap(scores, in_axes=(None, 0)))(plrnn(), data))
    for row, sequence in zip(together, np.asarray(data), strict=True):
        np.testing.assert_allclose(row, single(plrnn(), jnp.asarray(sequence)), rtol=1e-9)
