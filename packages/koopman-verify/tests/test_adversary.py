import math
from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from koopman_verify import Snapshots, adversary


_phi = lambda r: 1.7 * r**2


def _points(seed, num, radius=0.97, dtype=None):
    rng = np.random.default_rng(seed)
    z = radius * np.sqrt(rng.random(num)) * np.exp(2j * np.pi * rng.random(num))
    return jnp.asarray(np.stack([z.real, z.imag], axis=1), dtype)


@eqx.filter_jit
def _images(f, x):
    return jax.vmap(f)(x)


def _map(f, x):
    """The images of at most 512 points, always by one program for a kind of map."""
    x = np.asarray(x)
    padded = np.zeros((512, 2), x.dtype)
    padded[: len(x)] = x
    return np.asarray(_images(f, jnp.asarray(padded)))[: len(x)]


_derivatives = eqx.filter_jit(lambda f, x: jax.vmap(jax.jacfwd(f))(x))


@pytest.fixture(scope="module")
def fitted():
    x = _points(0, 12)
    y = jnp.asarray(_map(adversary.Twist(_phi), x))
    return x, y, adversary.involution_through(x, y, jr.key(0))


def test_involution_fits_the_snapshots(fitted):
    x, y, f = fitted
    off = np.linalg.norm(_map(f, x) - y, axis=1).max()
    assert off <= 1e-14
    assert f.mismatch <= 1e-14
    assert 12 <= f.num_twists <= 400
    # The derivative that fits such data is large: what a modulus excludes.
    assert f.lipschitz_estimate > 100


def test_involution_is_one_and_preserves_area(fitted):
    *_, f = fitted
    p = _points(1, 300, 0.999)
    q = _map(f, p)
    assert np.linalg.norm(_map(f.inverse, q) - p, axis=1).max() <= 1e-10
    h = f.conjugacy
    assert np.abs(_map(h.inverse, _map(h, p)) - p).max() <= 1e-10
    derivative = np.asarray(_derivatives(f, p))
    defect = np.abs(np.linalg.det(derivative) - 1)
    # Rounding of a determinant grows with the square of the norm.
    assert np.median(defect) <= 1e-10
    assert np.all(defect <= 1e-13 * f.num_twists * (1 + np.linalg.norm(derivative, axis=(1, 2)) ** 2))


def test_disc_and_boundary_are_kept(fitted):
    *_, f = fitted
    q = _map(f, _points(2, 300, 0.999))
    assert np.all(np.linalg.norm(q, axis=1) < 1)
    t = 2 * np.pi * np.arange(32.0) / 32
    edge = np.stack([np.cos(t), np.sin(t)], axis=1)
    assert np.abs(_map(f, edge) + edge).max() <= 1e-15


def test_spectra_are_stated(fitted):
    *_, f = fitted
    z = jnp.asarray([1.0, -1.0, 1j, 0.5])
    assert np.allclose(f.distance_to_spectrum(z), jnp.asarray([0.0, 0.0, math.sqrt(2), 0.5]))
    assert np.allclose(adversary.Twist(_phi).distance_to_spectrum(z), jnp.asarray([0.0, 0.0, 0.0, 0.5]))
    assert "{1, -1}" in f.spectrum
    assert "circle" in adversary.Twist(_phi).spectrum
    # K^2 = I on any function, so even and odd parts are eigenfunctions.
    p = _points(3, 50)
    g = lambda v: np.sin(3 * v[:, 0]) + v[:, 1]
    fp = _map(f, p)
    ffp = _map(f, fp)
    assert np.abs((g(fp) + g(ffp)) - (g(np.asarray(p)) + g(fp))).max() <= 1e-8
    assert np.abs((g(fp) - g(ffp)) + (g(np.asarray(p)) - g(fp))).max() <= 1e-8


def test_construction_is_deterministic(fitted):
    x, y, f = fitted
    again = adversary.involution_through(x, y, jr.key(0))
    assert eqx.tree_equal(f, again)
    other = adversary.involution_through(x, y, jr.key(1))
    assert not np.array_equal(other.conjugacy.centres, f.conjugacy.centres)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31))
def test_any_pairs_of_points_fit(seed):
    x, y = _points(seed, 4), _points(seed + 1, 4)
    f = adversary.involution_through(x, y, jr.key(seed), num_tries=1, num_samples=2)
    assert f.mismatch <= 1e-14
    assert np.linalg.norm(_map(f, y) - x, axis=1).max() <= 1e-14


def test_opposite_points_and_the_centre_fit():
    # H cannot fix x here: -H(x) is where another marked point, or x itself, is.
    x = jnp.asarray([[0.5, 0.0], [-0.5, 0.0], [0.0, 0.0]])
    y = jnp.asarray([[0.0, 0.5], [0.0, -0.5], [0.2, 0.2]])
    f = adversary.involution_through(x, y, jr.key(0))
    assert f.mismatch <= 1e-14


def test_orbit_needs_slack():
    twist = adversary.Twist(_phi)
    orbit = [np.array([0.6, 0.1])]
    for _ in range(4):
        orbit.append(_map(twist, orbit[-1][None])[0])
    x, y = np.stack(orbit[:-1]), np.stack(orbit[1:])
    with pytest.raises(ValueError, match="occurs twice: an involution"):
        adversary.involution_through(x, y, jr.key(0))
    f = adversary.involution_through(x, y, jr.key(0), slack=1e-9, num_tries=1)
    assert 0 < f.mismatch <= 1e-9
    with pytest.raises(ValueError, match="`slack` must be zero or at least 64 eps"):
        adversary.involution_through(x, y, jr.key(0), slack=1e-17)


def test_bad_snapshots_raise():
    x, key = _points(0, 3), jr.key(0)
    with pytest.raises(ValueError, match=r"`x` must be points of the plane, \[m, 2\]; got \[3\]"):
        adversary.involution_through(x[:, 0], x, key)
    with pytest.raises(ValueError, match="`y` must lie in the open unit disc; row 1 does not"):
        adversary.involution_through(x, x.at[1].set(jnp.asarray([1.0, 0.0])), key)
    with pytest.raises(ValueError, match="`y` must lie in the open unit disc; row 2 does not"):
        adversary.involution_through(x, x.at[2, 0].set(jnp.nan), key)
    with pytest.raises(ValueError, match="`x` and `y` must have one shape"):
        adversary.involution_through(x, x[:2], key)
    with pytest.raises(ValueError, match="holds one state twice with different successors"):
        adversary.involution_through(x[jnp.asarray([0, 0])], x[1:], key)
    with pytest.raises(ValueError, match="more than `max_twists` = 2"):
        adversary.involution_through(_points(0, 12), _points(1, 12), key, max_twists=2)


def test_float32(fitted):
    x, y, _ = fitted
    f = adversary.involution_through(x.astype(jnp.float32), y.astype(jnp.float32), jr.key(0))
    assert f(x[0].astype(jnp.float32)).dtype == jnp.float32
    assert f.mismatch <= 1e-5
    answer = adversary.determined(Snapshots(x.astype(jnp.float32), y.astype(jnp.float32)))
    assert answer.status == "undetermined without a modulus"
    assert answer.mismatch <= 1e-4


def test_twist_multiplies_angular_modes():
    twist, r = adversary.Twist(_phi), 0.7
    t = 2 * np.pi * np.arange(16.0) / 16
    image = _map(twist, r * np.stack([np.cos(t), np.sin(t)], axis=1))
    angle = np.arctan2(image[:, 1], image[:, 0])
    for k in (1, 2, 5):
        factor = np.exp(1j * k * (np.asarray(angle) - np.asarray(t)))
        assert np.abs(factor - np.exp(1j * k * (np.pi + _phi(r)))).max() <= 1e-14
    p = _points(5, 20)
    assert np.abs(_map(twist.inverse, _map(twist, p)) - p).max() <= 1e-15
    # So the values on the modes |k| <= n over all radii leave no gap of the circle.
    values = np.exp(1j * np.outer(np.arange(-9, 10), np.pi + _phi(np.linspace(0, 1, 500))))
    assert adversary.hausdorff_to_circle(values) < 0.02


def test_twist_agrees_with_the_rotation_on_samples():
    x = _points(6, 40)
    twist, rotation = adversary.twist_vs_rotation(x, height=0.5)
    assert np.array_equal(_map(twist, x), _map(rotation, x))
    assert rotation.num_twists == 0
    p = _points(7, 400)
    far = np.linalg.norm(_map(twist, p) - _map(rotation, p), axis=1)
    assert np.mean(far > 0.01) > 0.5
    derivative = np.asarray(_derivatives(twist, p))
    norms = np.linalg.norm(derivative, ord=2, axis=(1, 2))
    assert 1 <= np.max(norms) <= twist.lipschitz_bound()
    assert np.abs(np.linalg.det(derivative) - 1).max() <= 1e-9
    with pytest.raises(ValueError, match="`height` must lie in"):
        adversary.twist_vs_rotation(x, height=0.0)
    with pytest.raises(ValueError, match="`inner` and `outer`"):
        adversary.twist_vs_rotation(x, inner=0.5, outer=0.4)


def test_snapshots_do_not_determine_the_spectrum(fitted):
    x, y, _ = fitted
    answer = adversary.determined(Snapshots(x, y))
    assert answer.status == "undetermined without a modulus"
    assert answer.verdict.startswith("undetermined without a modulus")
    assert answer.mismatch <= 1e-14
    for f in (answer.involution, answer.twist):
        assert np.linalg.norm(_map(f, x) - y, axis=1).max() <= 1e-14
    # The second map is no involution: its spectrum is the circle.
    p = _points(8, 100)
    assert np.linalg.norm(_map(answer.twist, _map(answer.twist, p)) - p, axis=1).max() > 0.1
    q = _map(answer.twist.inverse, _map(answer.twist, x))
    assert np.abs(q - x).max() <= 1e-13


def test_modulus_is_compared_honestly(fitted):
    x, y, _ = fitted
    required = max(
        float(np.linalg.norm(y[i] - y[j]) / np.linalg.norm(x[i] - x[j])) for i in range(12) for j in range(i)
    )
    contradicted = adversary.determined(Snapshots(x, y), 0.9 * required)
    assert contradicted.status == "contradicted"
    assert contradicted.required == pytest.approx(required, rel=1e-12)
    answer = adversary.determined(Snapshots(x, y), 1.1 * required)
    assert answer.status == "not decided"
    assert "excludes this counterexample" in answer.verdict
    assert answer.lower > 1.1 * required
    assert answer.lower <= answer.upper
    # Rotation data: the twist may be as gentle as the modulus asks, so that a modulus alone settles nothing.
    for modulus in (1.01, 3.0):
        rotation = adversary.determined(Snapshots(x, -x), modulus)
        assert rotation.status == "undetermined"
        assert rotation.upper <= modulus
        assert rotation.mismatch == 0
    with pytest.raises(ValueError, match="`modulus` must be positive"):
        adversary.determined(Snapshots(x, y), 0.0)


def _edmd_box(seed=0, bins=6, modes=7, cut=0.35):
    """Make a black box: least squares on angular modes in rings, keeping what has a small residual."""

    def algorithm(query, budget):
        rng = np.random.default_rng(seed + budget)
        z = 0.999 * np.sqrt(rng.random(budget)) * np.exp(2j * np.pi * rng.random(budget))
        y = query(np.stack([z.real, z.imag], axis=1))
        w = y[:, 0] + 1j * y[:, 1]
        ring_z, ring_w = (np.minimum((np.abs(v) ** 2 * bins).astype(int), bins - 1) for v in (z, w))
        values = [1.0 + 0j]
        for b in range(bins):
            for k in range(-modes, modes + 1):
                before = np.where(ring_z == b, (z / np.abs(z)) ** k, 0)
                after = np.where(ring_w == b, (w / np.abs(w)) ** k, 0)
                (value,), *_ = np.linalg.lstsq(before[:, None], after, rcond=None)
                if np.linalg.norm(after - value * before) <= cut * np.linalg.norm(before):
                    values.append(value)
        return np.asarray(values)

    return algorithm


def test_play_makes_edmd_oscillate():
    game = adversary.play(_edmd_box(), max_oscillations=2, budget=80, growth=1.3)
    assert game.num_oscillations == 2
    assert "undetermined without a modulus" in game.verdict
    assert game.oscillations()[-1] == 2
    assert np.all(np.diff(game.budgets) > 0)
    assert np.all(game.num_queries <= game.budgets)
    assert list(dict.fromkeys(game.targets)) == ["circle", "{1, -1}"]
    # Every answer that was ever given is true of the last map.
    assert len(game.queries) == game.num_queries.sum()
    assert game.mismatch <= 1e-9
    x, y = jnp.asarray(game.queries[:256]), game.answers[:256]
    first = np.linalg.norm(np.asarray(_map(game.map, x)) - y, axis=1)[: game.num_queries[0]]
    assert first.max() <= 1e-12


def test_play_keeps_answers_along_orbits():
    def follower(query, budget):
        x = np.asarray([0.9, 0.1])
        for _ in range(budget):
            x = query(x)
        return np.exp(2j * np.pi * np.arange(32) / 32)

    game = adversary.play(follower, budget=6, max_budget=12)
    assert game.num_oscillations == 0
    assert "did not converge" in game.verdict
    assert game.targets[0] == "circle"
    assert game.targets[-1] == "{1, -1}"
    assert 0 < game.mismatch <= 2.0**-30


def test_play_stops_what_does_not_converge():
    game = adversary.play(lambda *_: np.asarray([0.0]), budget=4, growth=2, max_budget=20)
    assert game.num_oscillations == 0
    assert "did not come within 0.5 of the spectrum, circle, by a budget of 20" in game.verdict
    assert list(game.budgets) == [4, 8, 16]

    def greedy(query, n):
        while True:
            query(np.zeros(2))

    stopped = adversary.play(greedy, budget=4, growth=2, max_budget=8)
    assert "it was stopped: the budget is 8 queries" in stopped.verdict
    assert np.all(np.isinf(stopped.to_circle))
    nothing = adversary.play(lambda *_: np.asarray([np.nan]), budget=4, max_budget=4)
    assert nothing.num_oscillations == 0
    with pytest.raises(ValueError, match="`tolerance` in"):
        adversary.play(greedy, tolerance=0.8)
    with pytest.raises(ValueError, match="`max_budget` >= `budget`"):
        adversary.play(greedy, budget=10, max_budget=5)
    with pytest.raises(ValueError, match="`slack` must be"):
        adversary.play(greedy, slack=0.0)


def test_random_black_box_is_right_with_probability_one_half_at_most():
    box = _edmd_box()

    def randomised(query, budget, key):
        return _edmd_box(seed=int(jr.randint(key, (), 0, 10**6)))(query, budget)

    def guess(query, budget, key):
        query(np.asarray([[0.1, 0.2]]))
        return [1, -1] if jr.bernoulli(key) else np.exp(2j * np.pi * np.arange(32) / 32)

    for algorithm in (randomised, guess):
        result = adversary.coin(algorithm, jr.key(3), 24, budget=60)
        assert result.num_identical == result.num_games
        assert result.rate <= 0.5 + 3.5 * result.standard_error
        assert "both maps agreed on every query" in result.verdict
    # The answers are those of the rotation, so this one says {1, -1}, and is right when the coin says so.
    assert 0 < adversary.coin(lambda f, n, _: box(f, n), jr.key(3), 24, budget=60).num_right < 24


def test_hausdorff_distances():
    assert adversary.hausdorff_to_circle([1, -1]) == pytest.approx(math.sqrt(2), abs=1e-3)
    assert adversary.hausdorff_to_two_points(np.exp(2j * np.pi * np.arange(8) / 8)) == pytest.approx(math.sqrt(2))
    assert adversary.hausdorff_to_two_points([1, -1]) == 0
    assert adversary.hausdorff_to_circle([]) == math.inf
    assert adversary.hausdorff_to_two_points([1, np.nan]) == math.inf


def test_torus_gains_and_loses_eigenfunctions():
    torus = adversary.LiouvilleTorus(4)
    norms, tails = torus.transfer_norms(), torus.tail_bounds()
    assert np.allclose(norms, np.sqrt(np.arange(1, 5) / 2), rtol=1e-12)
    assert np.all(tails[1:] < 2e-3 * tails[:-1])
    assert tails[-1] < 1e-90
    assert torus.frequencies[3] * torus.rotation % 1 == Fraction(1, 10**96)
    for terms in (1, 2, 3, 4):
        part = adversary.LiouvilleTorus(terms)
        for k, l in ((1, 1), (-2, 3)):
            assert part.eigen_defect(k, l, num_points=32) <= 1e-13
            assert abs(abs(part.eigenvalue(k)) - 1) <= 1e-15
    # The transfer function at work, and a mean square that is its norm.
    x = [Fraction(int(i), 2**20) for i in np.random.default_rng(0).integers(2**20, size=400)]
    two = adversary.LiouvilleTorus(2)
    ahead = two.transfer([v + two.rotation for v in x])
    assert np.abs(ahead - two.transfer(x) - two.phi(x)).max() <= 1e-13
    grid = [Fraction(i, 1009) for i in range(1009)]
    assert np.sqrt(np.mean(two.transfer(grid) ** 2)) == pytest.approx(1.0, abs=1e-12)
    # Without its transfer function, e^{2 pi i l y} is no eigenfunction of even the first partial sum.
    one = adversary.LiouvilleTorus(1)
    assert np.std(one.phi(grid)) > 0.4
    with pytest.raises(ValueError, match="`num_terms` must be an integer from 1 to 4"):
        adversary.LiouvilleTorus(5)


def test_spectrum_of_circle_rotations_jumps():
    still = adversary.CircleRotation(0)
    tiny = adversary.CircleRotation(1e-3 * math.sqrt(2), irrational=True)
    assert np.array_equal(still.points(9), [1.0])
    assert still.error(9) == 0
    assert tiny.distance_to_spectrum(-1.0) == 0
    assert still.distance_to_spectrum(-1.0) == 2
    # One limit with an error that is known: coverage of the circle.
    errors = [tiny.error(n) for n in (100, 400, 2000)]
    assert errors[0] > 1 > errors[1] > errors[2]
    assert adversary.hausdorff_to_circle(tiny.points(2000)) == pytest.approx(errors[2], abs=2e-3)
    third = adversary.CircleRotation(Fraction(1, 3))
    assert third.error(1) <= 1e-15
    assert third.error(0) == pytest.approx(math.sqrt(3))
    assert third.distance_to_spectrum(third.points(4)).max() <= 1e-15
    assert "3 roots" in third.spectrum
    with pytest.raises(TypeError, match="irrational=True"):
        adversary.CircleRotation(0.25)
