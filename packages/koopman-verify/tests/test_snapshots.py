import jax
import jax.numpy as jnp
import numpy as np
import pytest
from koopman_verify import Snapshots


def test_states_of_dimension_one_become_columns(getkey):
    x = jax.random.normal(getkey(), (20,))
    s = Snapshots(x, 2 * x)
    assert s.x.shape == s.y.shape == (20, 1)
    assert s.num_snapshots == 20
    assert s.kind == "iid"


def test_integers_become_floats():
    s = Snapshots(np.arange(5), np.arange(5) + 1)
    assert s.x.dtype == jnp.float64


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (np.zeros((4, 2)), np.zeros((4, 3)), {}, r"one shape \[M, d\].*\[4, 2\] and float64\[4, 3\]"),
        (np.zeros((4, 2)), np.zeros((4, 2), np.float32), {}, "one dtype.*float64.*float32"),
        (np.zeros((4, 2), complex), np.zeros((4, 2), complex), {}, "`x` must be real; got complex128"),
        (np.zeros((0, 2)), np.zeros((0, 2)), {}, r"`x` must have shape \[M, d\]"),
        (
            np.zeros((4, 2)),
            np.array([[0.0, 0], [0, np.nan], [0, 0], [0, 0]]),
            {},
            "`y` must be finite; snapshot 1 of 4",
        ),
        (np.array([[0.0], [np.inf]]), np.zeros((2, 1)), {}, "`x` must be finite; snapshot 1 of 2"),
        (
            np.zeros((3, 1)),
            np.zeros((3, 1)),
            {"weights": [1.0, 0.0, 1.0]},
            r"positive and finite; got weights\[1\] = 0",
        ),
        (np.zeros((3, 1)), np.zeros((3, 1)), {"weights": [1.0, 1.0, -2.0]}, r"got weights\[2\] = -2"),
        (np.zeros((3, 1)), np.zeros((3, 1)), {"weights": [1.0, np.nan, 1.0]}, r"got weights\[1\] = nan"),
        (
            np.zeros((3, 1)),
            np.zeros((3, 1)),
            {"weights": [1.0, 1.0]},
            r"`weights` must have shape \[M\] = \[3\]; got \[2\]",
        ),
        (np.zeros((3, 1)), np.zeros((3, 1)), {"kind": "orbit"}, "`kind` must be one of.*got 'orbit'"),
    ],
)
def test_what_cannot_be_snapshots_is_named(x, y, options, message):
    with pytest.raises(ValueError, match=message):
        Snapshots(x, y, **options)


def test_a_trajectory_becomes_pairs_of_delay_vectors():
    z = np.arange(10.0)
    s = Snapshots.from_trajectory(z, delays=3, stride=2)
    assert s.kind == "trajectory"
    assert np.array_equal(s.x, [[k, k + 2, k + 4] for k in range(5)])
    assert np.array_equal(s.y, np.asarray(s.x) + 1)


def test_pairs_do_not_cross_from_one_trajectory_to_another():
    z = np.stack([np.arange(6.0), 100 + np.arange(6.0)])[:, :, None]
    s = Snapshots.from_trajectory(z, delays=2)
    assert s.x.shape == (2 * 4, 2)
    assert np.array_equal(s.y - s.x, np.ones((8, 2)))
    assert np.all((np.asarray(s.x) < 50).all(axis=1) | (np.asarray(s.x) > 50).all(axis=1))


def test_a_trajectory_of_vectors_keeps_their_coordinates_together():
    z = np.stack([np.arange(4.0), -np.arange(4.0)], axis=1)
    s = Snapshots.from_trajectory(z, delays=2)
    assert np.array_equal(s.x[0], [0, 0, 1, -1])


@pytest.mark.parametrize("options", [{"delays": 6}, {"delays": 0}, {"stride": 0}, {"delays": 3, "stride": 3}])
def test_a_trajectory_that_is_too_short_is_refused(options):
    with pytest.raises(ValueError, match="`trajectory` must be"):
        Snapshots.from_trajectory(np.arange(6.0), **options)


def test_snapshots_pass_through_jit():
    x = jnp.linspace(0, 1, 8)
    s = jax.jit(lambda a: Snapshots(a, 2 * a, jnp.ones(8), kind="quadrature"))(x)
    assert isinstance(s, Snapshots)
    assert np.array_equal(s.y, 2 * s.x)
