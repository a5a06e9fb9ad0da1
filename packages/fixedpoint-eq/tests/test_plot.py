"""Every picture draws what it is given, and refuses what it cannot draw."""

from typing import Any

import fixedpoint_eq as fpe
import jax.numpy as jnp
import jax.random as jr
import matplotlib
import numpy as np
import pytest
from fixedpoint_eq import diagnostics, ep, plot, problems


matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def problem():
    return problems.tanh_deq(jr.key(0), 6, 3)


def test_convergence(problem):
    figure, axis = plt.subplots()
    solution = fpe.solve(problem.fn, problem.z0, problem.args, batch_axis=0, keep_trace=True)
    assert plot.convergence({"Anderson": solution}, tol=1e-6, ax=axis) is axis
    bold = axis.get_lines()[3]
    shown = np.asarray(bold.get_ydata())
    assert np.sum(np.isfinite(shown)) == int(jnp.max(solution.stats["num_steps"]))
    figure.canvas.draw()
    alone = fpe.solve(lambda z, _: jnp.cos(z), jnp.array(1.0), keep_trace=True)
    assert len(plot.convergence({"alone": alone}, ax=plt.subplots()[1]).get_lines()) == 1
    with pytest.raises(ValueError, match="`solutions` must hold"):
        plot.convergence({})
    with pytest.raises(ValueError, match=r"'x'.*keep_trace=True"):
        plot.convergence({"x": fpe.solve(lambda z, _: jnp.cos(z), jnp.array(1.0))})


def test_curves():
    axis = plot.curves({"a": [1.0, 2.0], "b": [3.0, 1.0, 2.0]})
    assert [len(np.asarray(line.get_xdata())) for line in axis.get_lines()] == [2, 3]
    with pytest.raises(ValueError, match="`series` must hold"):
        plot.curves({})


def test_spectrum(getkey):
    matrix = 0.3 * jr.normal(getkey(), (6, 6))
    estimate = diagnostics.spectral_radius(lambda z, W: W @ z, jnp.zeros(6), matrix)
    axis = plot.spectrum(estimate)
    values = axis.get_lines()[1]
    found = np.sort_complex(np.asarray(values.get_xdata()) + 1j * np.asarray(values.get_ydata()))
    assert np.allclose(found, np.sort_complex(np.linalg.eigvals(matrix)), atol=1e-10)


def test_alignment_and_scatter(getkey):
    field = ep.mlp((4, 5, 3))
    params, x, y = field.init(key=getkey()), jr.normal(getkey(), (2, 4)), jnp.array([0, 2])
    grads, info = ep.gradient(field, params, x, y, ep.Symmetric(0.1), alignment=True)
    _, plain = ep.gradient(field, params, x, y, ep.Symmetric(0.1))
    axis = plot.alignment({"EP": info})
    bars: Any = axis.patches
    heights = [bar.get_height() for bar in bars]
    assert info.alignment is not None
    assert heights[-1] == pytest.approx(float(jnp.mean(info.alignment[1])))
    assert len(heights) == 3
    with pytest.raises(ValueError, match="alignment=True"):
        plot.alignment({"EP": plain})
    with pytest.raises(ValueError, match="`infos` must hold"):
        plot.alignment({})
    axis = plot.gradient_scatter({"EP": grads}, grads, max_points=10, ax=plt.subplots()[1])
    assert len(np.asarray(axis.get_lines()[0].get_xdata())) == 10
    assert "0.0e+00" in str(axis.get_lines()[0].get_label())
    with pytest.raises(ValueError, match=r"'EP'.* entries"):
        plot.gradient_scatter({"EP": grads}, [jnp.zeros(3)])
    with pytest.raises(ValueError, match="`gradients` must hold"):
        plot.gradient_scatter({}, grads)
