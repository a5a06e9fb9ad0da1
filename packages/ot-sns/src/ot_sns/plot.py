"""Pictures of plans and of convergence, on Matplotlib's axes. Needs the extra `plot`: `pip install "ot-sns[plot]"`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._geometry import PointCloud
from ._solution import Solution


if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    Axes: TypeAlias = Any  # Matplotlib is optional, and annotations are looked up at run time in tests


__all__ = ["convergence", "plan", "transport_2d"]


Points: TypeAlias = Float[Array, "_ 2"] | Float[np.ndarray, "_ 2"]
History: TypeAlias = tuple[Sequence[int], Sequence[float]]


def plan(solution: Solution, *, sort: bool = False, decades: float = 6.0, ax: Axes | None = None) -> Axes:
    r"""Draw the plan $P$ as an image, dark where it is large, on a logarithmic scale.

    **Arguments:**

    - `solution`: what [`ot_sns.solve`][] returned.
    - `sort`: order the rows by the column that they send most to, so that a plan between unordered atoms is near the
        diagonal.
    - `decades`: how many powers of ten below the largest entry are told apart.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.

    ```python
    import jax.numpy as jnp
    import ot_sns
    from ot_sns import plot

    cost = (jnp.arange(20.0)[:, None] - jnp.arange(20.0)) ** 2
    solution = ot_sns.solve(ot_sns.EntropicOT(ot_sns.DenseCost(cost), epsilon=4.0))
    plot.plan(solution)
    ```
    """
    axes = _axes(ax)
    matrix = np.asarray(solution.matrix())
    if sort:
        matrix = matrix[np.argsort(matrix.argmax(axis=1), kind="stable")]
    largest = matrix.max()
    logs = np.log10(np.maximum(matrix / largest, 10.0**-decades))
    image = axes.imshow(logs, cmap="magma_r", vmin=-decades, vmax=0, aspect="auto", interpolation="nearest")
    bar = axes.figure.colorbar(image, ax=axes)
    bar.set_label(r"$\log_{10}\,(P_{ij}\, /\, \max P)$")
    axes.set_xlabel("target atom $j$")
    axes.set_ylabel("source atom $i$" + (", sorted" if sort else ""))
    return axes


def convergence(histories: Mapping[str, History], *, tol: float | None = None, ax: Axes | None = None) -> Axes:
    """Draw the error of one or more solves against the step, both on logarithmic scales.

    **Arguments:**

    - `histories`: for each label the steps, from one up, and the error after each of them.
    - `tol`: where to draw the line that is to be reached, if anywhere.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.

    ```python
    from ot_sns import plot

    plot.convergence({"Newton": ([1, 2, 3], [1e-1, 1e-3, 1e-9]), "Sinkhorn": ([1, 10], [1e-1, 1e-2])}, tol=1e-9)
    ```
    """
    if not histories:
        raise ValueError("`histories` must hold at least one history.")
    axes = _axes(ax)
    colors = ("#c2410c", "#1d4ed8", "#047857", "#7c3aed")
    for number, (label, (steps, errors)) in enumerate(histories.items()):
        if len(steps) != len(errors):
            raise ValueError(f"`histories[{label!r}]` has {len(steps)} steps but {len(errors)} errors.")
        color = colors[number % len(colors)]
        marker = "o" if len(steps) <= 60 else ""
        axes.loglog(steps, errors, marker=marker, markersize=3.5, linewidth=1.8, color=color, label=label)
    if tol is not None:
        axes.axhline(tol, color="0.45", linewidth=0.9, linestyle=(0, (4, 3)))
        axes.text(0.01, tol * 1.3, f"tol = {tol:g}", color="0.35", transform=axes.get_yaxis_transform())
    axes.set_xlabel("step")
    axes.set_ylabel(r"$\|P1-a\|_1 + \|P^\top 1-b\|_1$")
    axes.grid(visible=True, which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    # Above the axes: curves that fall from corner to corner leave no room inside.
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    return axes


def transport_2d(
    solution: Solution,
    x: Points | None = None,
    y: Points | None = None,
    *,
    threshold: float = 0.02,
    ax: Axes | None = None,
) -> Axes:
    """Draw a plan between points of the plane: both clouds, and a line wherever mass goes, darker for more of it.

    **Arguments:**

    - `solution`: what [`ot_sns.solve`][] returned.
    - `x`: the source points; `None` takes them from the problem's [`ot_sns.PointCloud`][].
    - `y`: the target points, likewise.
    - `threshold`: leave out lines that carry less than this fraction of their source's mass.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.

    ```python
    import jax
    import ot_sns
    from ot_sns import plot

    x, y = jax.random.normal(jax.random.key(0), (2, 30, 2))
    solution = ot_sns.solve(ot_sns.EntropicOT(ot_sns.PointCloud(x, y), epsilon=0.05))
    plot.transport_2d(solution)
    ```
    """
    from matplotlib.collections import LineCollection

    geometry = solution.problem.geometry
    if isinstance(geometry, PointCloud):
        x, y = (geometry.x if x is None else x), (geometry.y if y is None else y)
    if x is None or y is None:
        raise ValueError("`x` and `y` must be given where the problem's geometry is not an `ot_sns.PointCloud`.")
    sources, targets = np.asarray(x), np.asarray(y)
    shapes = [(size, 2) for size in solution.problem.shape]
    if [sources.shape, targets.shape] != shapes:
        raise ValueError(
            f"`x` and `y` must have shapes {shapes[0]} and {shapes[1]}; got {sources.shape}, {targets.shape}."
        )
    axes = _axes(ax)
    share = np.asarray(solution.matrix()) / np.maximum(np.asarray(solution.problem.a), 1e-300)[:, None]
    i, j = np.nonzero(share > threshold)
    colors = np.zeros((len(i), 4))
    colors[:, :3] = 0.35
    colors[:, 3] = np.clip(share[i, j], 0, 1) * 0.8
    lines = np.stack([sources[i], targets[j]], axis=1)
    axes.add_collection(LineCollection(list(lines), colors=colors, linewidths=0.8, zorder=1))
    for points, weights, color, label in (
        (sources, solution.problem.a, "#1d4ed8", "source"),
        (targets, solution.problem.b, "#c2410c", "target"),
    ):
        sizes = 28 * np.asarray(weights) / float(jnp.max(weights))
        axes.scatter(points[:, 0], points[:, 1], s=sizes, color=color, linewidths=0, label=label, zorder=2)
    axes.set_aspect("equal")
    axes.legend(frameon=False)
    return axes


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('`ot_sns.plot` needs the extra `plot`: pip install "ot-sns[plot]".') from error
    return plt.gca()
