import jax.numpy as jnp
import jax.random as jr
import koopman_verify as kv
import matplotlib as mpl
import numpy as np
import pytest
from koopman_verify import adversary


mpl.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.fixture(scope="module")
def factor():
    x = 2 * jnp.pi * jnp.arange(32.0)[:, None] / 32
    return kv.factor(kv.Fourier(range(-3, 4)), kv.Snapshots(x, x + 1.0, kind="quadrature"))


def test_eigenvalues_show_what_is_not_certified(factor, axes):
    pairs = kv.edmd(factor)
    kv.plot.eigenvalues(pairs, ax=axes)
    assert len(axes.collections) == 1
    assert len(axes.collections[0].get_offsets()) == 7
    kv.plot.eigenvalues(pairs, kv.certify(pairs), ax=axes)  # of kind "training": nothing is certified
    assert [len(c.get_offsets()) for c in axes.collections[1:]] == [0, 7]


def test_pseudospectrum_takes_grids_and_lists(factor, axes):
    x, y = np.meshgrid(np.linspace(-1.2, 1.2, 5), np.linspace(-1.2, 1.2, 5))
    z = x + 1j * y
    values = kv.pseudospectrum(factor, z)
    kv.plot.pseudospectrum(z, values, ax=axes)
    kv.plot.pseudospectrum(z.ravel(), values.ravel(), ax=axes)
    assert len(axes.collections) == 2


def test_spectrum_has_a_disc_for_each_point(factor, axes):
    found = kv.verified_spectrum(factor, kv.polar_grid(16, half=False))
    kv.plot.spectrum(found, ax=axes)
    assert len(axes.collections[0].get_offsets()) == len(found.points) > 0
    assert f"{len(found.points)} points" in axes.get_title()


def test_residuals_are_ordered(factor, axes):
    pairs = kv.edmd(factor)
    kv.plot.residuals(pairs, kv.certify(pairs, kv.ExactIntegrals("equispaced nodes")), ax=axes)
    drawn = axes.lines[0].get_ydata()
    assert np.all(np.diff(drawn) >= 0)
    assert len(axes.collections) == 1


def test_measure_and_its_truth(axes):
    theta = np.linspace(-np.pi, np.pi, 11)
    kv.plot.measure(theta, 1 + np.cos(theta), exact=1 + np.cos(theta), label="computed", ax=axes)
    assert [line.get_label() for line in axes.lines] == ["computed", "exact"]


def test_forecast_says_whether_it_is_a_bound(factor, axes):
    g = jnp.zeros(7).at[0].set(1.0)
    kv.plot.forecast(kv.forecast(factor, g, 5, norm_bound=1.0), ax=axes)
    kv.plot.forecast(kv.forecast(factor, g, 5), ax=axes)
    assert [line.get_label() for line in axes.lines] == ["bound", "estimate"]
    assert len(axes.lines[0].get_ydata()) == 6


def test_disc_maps_and_games(axes):
    kv.plot.disc_map(lambda p: -p, jnp.zeros((3, 2)), num_arcs=2, ax=axes)
    assert np.allclose(axes.lines[0].get_xydata()[0], [-0.1, 0.0])
    play = adversary.play(lambda *_: np.asarray([0.0]), budget=4, growth=2, max_budget=8, key=jr.key(0))
    kv.plot.game(play, ax=axes)
    assert axes.get_title() == "0 oscillations"
    assert list(axes.lines[-3].get_ydata()) == list(play.to_circle)


def test_current_axes_are_the_default():
    assert kv.plot.measure([0.0, 1.0], [1.0, 1.0]) is plt.gca()
    plt.close("all")
