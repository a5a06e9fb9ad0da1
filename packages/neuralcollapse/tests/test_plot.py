from typing import Any

import jax.numpy as jnp
import jax.random as jr
import matplotlib
import numpy as np
import pytest
from neuralcollapse import ClassStats, Monitor, metrics, plot, ufm


matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_phases_draw_the_curves(samples):
    x, y = (jnp.asarray(a) for a in samples())
    monitor = Monitor(lambda scale, x: x.at[:, 0].multiply(scale), 4, ncc=False)
    for step in range(3):
        monitor.measure(step, jnp.array(1.0 + step), [(x, y)])
    figure, axis = plt.subplots()
    assert plot.phases(monitor, ("nc1_pinv", "equinorm", "self_duality"), ax=axis) is axis
    assert axis.get_yscale() == "log"
    np.testing.assert_allclose(np.asarray(axis.get_lines()[1].get_ydata(), float), monitor.curve("equinorm")[1])
    assert np.isnan(np.asarray(axis.get_lines()[2].get_ydata(), float)).all()
    figure.canvas.draw()


def test_depth_profile_names_the_layers(samples, collect):
    x, y = samples()
    profile = metrics.layerwise({"z": collect(x, y, 4), "a": collect(2 * x, y, 4)})
    axis = plot.depth_profile(profile)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["z", "a"]
    np.testing.assert_allclose(np.asarray(axis.get_lines()[0].get_ydata(), float), profile.curve("nc1_quotient"))
    axis.figure.canvas.draw()


def test_bars_mark_the_collapsed(samples, collect):
    x, y = samples()
    predicted = np.array([0.9, 0.5, 0.2, 0])
    report = metrics.gof_report(collect(x, y, 4), [np.ones((4, 6))], predicted, lam_H=1e-3)
    axis = plot.gof_bars(report, [9, 6, 3, 2])
    heights = [bar.get_height() for bar in axis.patches]  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose(heights[:4], report.logits)
    np.testing.assert_allclose(heights[4:], predicted)
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels[0] == "0\n(9)"
    assert labels[3] == "3\n(2)"
    assert [(t.get_text(), t.get_position()[0]) for t in axis.texts] == [("collapsed", 3)]
    axis.figure.canvas.draw()


def test_optimality_bars(getkey):
    labels = jnp.asarray(np.repeat(np.arange(3), 4))
    stats = ClassStats.init(3, 5).update(jr.normal(getkey(), (12, 5)), labels)
    report = ufm.optimality(stats, [jr.normal(getkey(), (3, 5))], 1e-2, 1e-2)
    axis = plot.optimality_bars(report)
    bars: Any = axis.patches
    widths = [bar.get_width() for bar in bars]
    assert sum(widths[:5]) == pytest.approx(100 * float(report.loss / report.optimum), rel=1e-6)
    assert sum(widths[5:]) == pytest.approx(100, rel=1e-6)


@pytest.mark.parametrize("depth", [1, 2])
def test_phase_diagram(depth):
    figure, axis = plt.subplots()
    assert plot.phase_diagram(depth, 4, 50, mark=(1e-3, 5), ax=axis) is axis
    values: Any = axis.collections[0].get_array()
    image = np.ma.filled(values, np.nan)
    logits = image.reshape(120, 120)
    # A large class under weak regularisation is fitted, a single sample under a strong one is given up.
    assert logits[-1, 0] > 0.9
    assert np.isnan(logits[0, -1])
    figure.canvas.draw()
