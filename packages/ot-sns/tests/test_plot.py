from typing import Any

import jax.numpy as jnp
import jax.random as jr
import matplotlib
import numpy as np
import ot_sns
import pytest
from ot_sns import plot


matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def solution(getkey):
    x, y = jr.normal(getkey(), (8, 2)), jr.normal(getkey(), (11, 2))
    return ot_sns.solve(ot_sns.EntropicOT(ot_sns.PointCloud(x, y), epsilon=0.2))


@pytest.mark.parametrize("sort", [False, True])
def test_plan(solution, sort):
    figure, axis = plt.subplots()
    assert plot.plan(solution, sort=sort, ax=axis) is axis
    assert np.asarray(axis.get_images()[0].get_array()).shape == (8, 11)
    figure.canvas.draw()


def test_plan_sorted_puts_a_permutation_on_the_diagonal(getkey):
    permutation = jr.permutation(getkey(), 6)
    cost = 1 - jnp.eye(6)[permutation]
    solution = ot_sns.solve(ot_sns.EntropicOT(ot_sns.DenseCost(cost), epsilon=0.05))
    image = np.asarray(plot.plan(solution, sort=True).get_images()[0].get_array())
    assert list(image.argmax(axis=1)) == list(range(6))


def test_convergence():
    axis = plot.convergence({"a": ([1, 2], [0.1, 1e-9]), "b": (range(1, 4), [1.0, 0.5, 0.2])}, tol=1e-9)
    assert [line.get_label() for line in axis.get_lines()[:2]] == ["a", "b"]
    axis.figure.canvas.draw()
    with pytest.raises(ValueError, match="`histories`"):
        plot.convergence({})
    with pytest.raises(ValueError, match="2 steps but 1"):
        plot.convergence({"a": ([1, 2], [0.1])})


def test_transport_2d(solution):
    axis = plot.transport_2d(solution)
    lines: Any = axis.collections[0]
    assert 8 <= len(lines.get_segments()) <= 88
    axis.figure.canvas.draw()


def test_transport_2d_of_a_matrix_needs_the_points(solution):
    geometry = solution.problem.geometry
    dense = ot_sns.solve(ot_sns.EntropicOT(ot_sns.DenseCost(geometry.cost_matrix()), epsilon=0.2))
    with pytest.raises(ValueError, match="must be given"):
        plot.transport_2d(dense)
    with pytest.raises(ValueError, match=r"\(8, 2\)"):
        plot.transport_2d(dense, geometry.y, geometry.x)
    assert plot.transport_2d(dense, geometry.x, geometry.y).collections
