from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import koopman_verify as package
import numpy as np
import pytest


kv: Any = package  # wrong arguments are the point here: no types
Fourier, Snapshots, adversary = kv.Fourier, kv.Snapshots, kv.adversary


X = np.random.default_rng(0).uniform(0, 2 * np.pi, (100, 1))
MODES = Fourier(range(-3, 4))
FACTOR = kv.factor(MODES, Snapshots(X, X + 1.0))


@pytest.mark.parametrize("bad", [None, [[1.0], [1.0, 2.0]], np.ones((5, 1)) * 1j, np.ones((5, 1), bool)])
def test_states_that_are_no_real_numbers_are_named(bad):
    with pytest.raises(ValueError, match="`x` must be"):
        Snapshots(bad, X)
    with pytest.raises(ValueError, match="`weights` must be"):
        Snapshots(X[:5], X[:5], bad if bad is not None else [[None]])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_refused_where_it_comes_in(dtype):
    with pytest.raises(ValueError, match="`x` must be float32 or float64"):
        Snapshots(jnp.asarray(X, dtype), jnp.asarray(X, dtype))
    # As weights it is a number like any other: but the message is the same, so that nothing is rounded unseen.
    with pytest.raises(ValueError, match="`weights` must be float32 or float64"):
        Snapshots(X, X, jnp.ones(100, dtype))


@pytest.mark.parametrize("kind", ["iid", "quadrature"])
def test_repeated_snapshots_do_not_count_as_many(kind):
    few = np.repeat(X[:7], 30, axis=0)  # as many different pairs as functions: every residual would be zero
    with pytest.raises(ValueError, match="7 different pairs for N = 7"):
        kv.factor(MODES, Snapshots(few, few + 1.0, kind=kind))
    with pytest.raises(ValueError, match="1 different pairs"):
        kv.factor(MODES, Snapshots(few[:30], few[:30] + 1.0, kind=kind))


def test_repeated_snapshots_are_not_seen_as_more_in_a_verified_spectrum():
    few = np.repeat(X[:12], 30, axis=0)
    f = kv.factor(MODES, Snapshots(few, few + 1.0))
    assert (f.num_snapshots, int(f.num_distinct)) == (360, 12)
    spectrum = kv.verified_spectrum(f, kv.polar_grid(9, half=False), throw=False)
    assert spectrum.result == kv.RESULTS.uncertifiable
    # The same states with other successors are new information (a stochastic system).
    again = kv.factor(MODES, Snapshots(few, few + np.linspace(1, 2, len(few))[:, None]))
    assert int(again.num_distinct) == 360


def test_repeated_snapshots_under_jit_and_in_a_stream():
    few = np.repeat(X[:7], 30, axis=0)
    with pytest.raises(Exception, match="pairs that differ"):
        eqx.filter_jit(lambda x: kv.factor(MODES, Snapshots(x, x + 1.0)).A)(few)
    blocks = [Snapshots(X[:50], X[:50] + 1.0), Snapshots(X[50:], X[50:] + 1.0)]
    assert int(kv.factor(MODES, blocks).num_distinct) == 100


@pytest.mark.parametrize(
    ("dictionary", "message"),
    [
        (3, "dictionary"),
        (lambda x: np.sin(x), "written in JAX"),
        (lambda x: jnp.full(2, float(x[0])), "written in JAX"),
        (lambda x: x[:0], "values of shape"),
        (lambda x: 0 * x, "all of its functions are zero"),
        (Fourier([(0, 1), (1, 0)]), "one state of shape"),
    ],
)
def test_dictionaries_that_are_none(dictionary, message):
    for data in (Snapshots(X, X + 1.0), [Snapshots(X, X + 1.0)]):
        with pytest.raises((TypeError, ValueError), match=message):
            kv.factor(dictionary, data)
    if message.startswith("all"):
        with pytest.raises(ValueError, match=message):
            kv.factor(dictionary, Snapshots(X, X + 1.0), rank_tol=1e-6)


def test_wrong_objects_are_named():
    pairs = kv.edmd(FACTOR)
    for call in (kv.edmd, kv.mpedmd, lambda f: kv.pseudospectrum(f, [1.0]), lambda f: kv.verified_spectrum(f, [1.0])):
        with pytest.raises(TypeError, match="factor"):
            call(pairs)
    with pytest.raises(TypeError, match="mp"):
        kv.spectral_measure(FACTOR, np.ones(7), [0.0], 0.1, 2)
    with pytest.raises(TypeError, match="snapshots"):
        kv.factor(MODES, 3)
    with pytest.raises(TypeError, match="algorithm"):
        adversary.play(3)
    with pytest.raises(TypeError, match="key"):
        adversary.involution_through([[0.2, 0.0]], [[0.1, 0.0]], 0)


@pytest.mark.parametrize("bad", [None, [], np.ones((2, 2)), [np.nan], 1.0])
def test_grids_that_are_none(bad):
    with pytest.raises(ValueError, match="`grid` must"):
        kv.verified_spectrum(FACTOR, bad)


def test_numbers_out_of_range_are_named():
    holdout = Snapshots(X + 0.01, X + 1.01)
    pairs = kv.edmd(FACTOR)
    for bad in (0, -1.0, np.nan, np.inf, "a", None, [1.0]):
        with pytest.raises((TypeError, ValueError), match="kappa"):
            kv.verified_spectrum(FACTOR, [1.0], kappa=bad)
    for bad in (0, 1, -0.5, np.nan, "a", None):
        with pytest.raises((TypeError, ValueError), match="level"):
            kv.certify(pairs, holdout, bad)
    for bad in (0, -1.0, np.nan, np.inf, "a"):
        with pytest.raises((TypeError, ValueError), match="tol"):
            kv.certify(pairs, holdout, tol=bad)
    for bad in (0.0, np.inf, [1.0, 2.0], "a"):
        with pytest.raises((TypeError, ValueError), match="period"):
            Fourier([1], bad)
    with pytest.raises(ValueError, match="chunk"):
        kv.pseudospectrum(FACTOR, [1.0], chunk=0)
    with pytest.raises(ValueError, match="theta"):
        kv.spectral_measure(kv.mpedmd(FACTOR), np.ones(7), [1j], 0.1, 2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_derivatives_at_a_residual_of_exactly_zero_are_numbers(dtype):
    def by(s):
        a = jnp.diag(jnp.stack([s, s / 3]))
        parts = dict(A=a, B=jnp.zeros((2, 2), dtype), basis=jnp.eye(2, dtype=dtype), R11=jnp.eye(2, dtype=dtype))
        return kv.Factor(dictionary=MODES, cond=jnp.ones((), dtype), num_snapshots=99, kind="iid", **parts)

    s = jnp.asarray(0.5, dtype)
    assert jnp.all(kv.edmd(by(s)).residuals == 0)
    for call in (
        lambda s: kv.edmd(by(s)).residuals.sum(),
        lambda s: kv.pseudospectrum(by(s), jnp.array([0.5], dtype), method="svd").sum(),
        lambda s: kv.pseudospectrum(by(s), jnp.array([0.5], dtype), method="iterative").sum(),
    ):
        assert jnp.isfinite(jax.grad(call)(s))


def test_the_training_data_are_not_a_holdout_set_under_jit_either():
    x = jr.uniform(jr.key(0), (100, 1))
    both = eqx.filter_jit(lambda x: kv.certify(kv.edmd(kv.factor(MODES, Snapshots(x, x**2))), Snapshots(x, x**2)).upper)
    with pytest.raises(Exception, match="states that the fit has used"):
        both(x)


def test_a_small_time_step_is_flagged():
    # K is close to the identity: every residual is small, whatever the functions.
    x = jr.uniform(jr.key(0), (400, 1), maxval=2 * jnp.pi)
    fresh = jr.uniform(jr.key(1), (400, 1), maxval=2 * jnp.pi)
    bumps = lambda x: jnp.exp(-((x[0] - jnp.arange(1.0, 6.0)) ** 2))
    pairs = kv.edmd(kv.factor(bumps, Snapshots(x, x + 1e-4)))
    certificate = kv.certify(pairs, Snapshots(fresh, fresh + 1e-4))
    assert jnp.max(certificate.upper) < 1e-3  # true, and no achievement
    assert jnp.any(certificate.near_identity)
    assert "is the time step small?" in certificate.assumptions[-1]
    assert "[near 1]" in str(certificate)
    far = kv.certify(kv.edmd(FACTOR), Snapshots(fresh, fresh + 1.0))
    assert int(jnp.sum(far.near_identity)) == 1  # the constant function, which has its own mark
    assert "near 1" not in str(far)


def test_states_of_another_dimension_than_the_dictionary_has():
    # Broadcasting would make a number of them, and a wrong one.
    plane = Snapshots(np.repeat(X, 2, axis=1), np.repeat(X, 2, axis=1))
    for d in (kv.Hermite(3), kv.Legendre(3), kv.Chebyshev(3), kv.Monomials(3, 2), kv.RBF(np.eye(3)), MODES):
        with pytest.raises((TypeError, ValueError), match="state of shape"):
            kv.factor(d, plane)
    with pytest.raises(ValueError, match="states of one dimension"):
        kv.factor(lambda x: jnp.stack([x[0], x[0] ** 2]), [plane, Snapshots(X, X)])


@pytest.mark.parametrize("bad", [None, 3.0, [1.0], np.ones((2, 2, 2, 2))])
def test_trajectories_that_are_none(bad):
    with pytest.raises(ValueError, match="`trajectory` must"):
        Snapshots.from_trajectory(bad)


def test_delays_and_strides_are_whole_numbers():
    with pytest.raises((TypeError, ValueError), match="delays"):
        Snapshots.from_trajectory(np.arange(9.0), delays=1.5)
