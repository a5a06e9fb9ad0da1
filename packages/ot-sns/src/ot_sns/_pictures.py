"""The pictures of the console script."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import plot
from ._flagship import TOL, Case, say
from ._solution import Solution
from .problems import NamedProblem


_FRAMES = 6
_FINE = 2  # cells of an interpolation's frame for each pixel of the images


def draw(cases: list[Case], path: str) -> None:
    """Draw every case below the other, and save the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    say("Drawing ...")
    heights = [_height(case.named) for case in cases]
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subfigures(len(cases), 1, height_ratios=heights, hspace=0.03))
    for panel, case in zip(panels, cases, strict=True):
        if case.named.x is not None:
            _draw_colors(panel, case)
        elif case.named.images is not None:
            _draw_images(panel, case)
        else:
            _draw_plan(panel, case)
    figure.savefig(path, dpi=110)


def _height(named: NamedProblem) -> float:
    return 7.6 if named.x is not None else 6.6 if named.images is not None else 4.8


def recolor(solution: Solution, photograph: np.ndarray, block: int = 4096) -> np.ndarray:
    r"""Move every pixel of a photograph, also those that are not atoms of the plan.

    The target potential extends the plan to any colour $x$: it goes to the mean of the target colours $y_j$ weighted by
    $\exp((g_j - |x - y_j|^2) / \varepsilon)$, which at an atom is the plan's own row.
    """
    problem: Any = solution.problem
    # A picture needs no more than single precision: the exponents are exact to about 1e-4.
    y, g, epsilon = (jnp.asarray(v, jnp.float32) for v in (problem.geometry.y, solution.g, problem.epsilon))
    pixels = photograph.reshape(-1, 3)
    distinct, inverse = np.unique(pixels, axis=0, return_inverse=True)
    moved = [_move(distinct[k : k + block], y, g, epsilon, block) for k in range(0, len(distinct), block)]
    return np.concatenate(moved)[inverse.reshape(-1)].reshape(photograph.shape)


def _move(colors: np.ndarray, y: Array, g: Array, epsilon: Array, block: int) -> np.ndarray:
    padded = np.zeros((block, 3), np.float32)
    padded[: len(colors)] = colors / 255
    return np.asarray(_barycentres(jnp.asarray(padded), y, g, epsilon))[: len(colors)]


@jax.jit
def _barycentres(
    x: Float[Array, "n 3"], y: Float[Array, "m 3"], g: Float[Array, " m"], epsilon: Float[Array, ""]
) -> Float[Array, "n 3"]:
    # |x|^2 is the same for all targets, so the softmax does not see it.
    scores = (g[None, :] + 2 * x @ y.T - jnp.sum(y**2, axis=1)[None, :]) / epsilon
    return jax.nn.softmax(scores, axis=1) @ y


def _draw_colors(panel: Any, case: Case) -> None:
    assert case.named.images is not None
    china, flower = case.named.images
    newton, sinkhorn = case.newton, case.sinkhorn
    n, m = case.named.shape
    panel.suptitle(
        f"Colour transfer: {n} x {m} sampled pixels, squared distance, eta = {_eta(case)}", fontweight="bold"
    )
    axes = panel.subplots(2, 4, height_ratios=[1, 1.15], width_ratios=[1, 1, 1, 1])
    pictures = (
        (china, "the photograph"),
        (flower, "the palette"),
        (
            recolor(newton.solution, china),
            f"{newton.method}, {newton.num_steps} steps, {newton.seconds:.1f} s\nmarginal error {newton.error:.0e}",
        ),
        (
            recolor(sinkhorn.solution, china),
            f"{sinkhorn.method}, {sinkhorn.num_steps} steps, {sinkhorn.seconds:.1f} s\n"
            f"marginal error {sinkhorn.error:.0e}",
        ),
    )
    for axis, (picture, title) in zip(axes[0], pictures, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
    assert case.named.x is not None
    assert case.named.y is not None
    clouds = (
        (case.named.x, "its colours"),
        (case.named.y, "their colours"),
        (_atoms_moved(newton.solution), "where they go"),
        (_atoms_moved(sinkhorn.solution), "where they go"),
    )
    for axis, (cloud, title) in zip(axes[1], clouds, strict=True):
        _draw_cloud(axis, np.asarray(cloud), title)


def _atoms_moved(solution: Solution) -> np.ndarray:
    plan = np.asarray(solution.matrix())
    y = np.asarray(solution.problem.geometry.y)  # pyright: ignore[reportAttributeAccessIssue]
    return (plan @ y) / plan.sum(axis=1, keepdims=True)


def _draw_cloud(axis: Any, cloud: np.ndarray, title: str) -> None:
    red, green, blue = cloud.T
    lightness = cloud @ np.array([0.299, 0.587, 0.114])
    order = np.argsort(lightness)
    axis.scatter((red - blue)[order], lightness[order], c=np.clip(cloud[order], 0, 1), s=7, linewidths=0)
    del green
    axis.set(xlim=(-1, 1), ylim=(0, 1), xlabel="red - blue", title=title)
    axis.set_facecolor("0.93")
    axis.set_ylabel("lightness")


def _draw_images(panel: Any, case: Case) -> None:
    assert case.named.images is not None
    source, target = case.named.images
    n, m = case.named.shape
    panel.suptitle(f"{case.named.name}: {n} x {m} pixels, eta = {_eta(case)}", fontweight="bold")
    top, bottom = panel.subfigures(2, 1, height_ratios=[1, 1.5])
    plan = np.asarray(case.newton.solution.matrix())
    for axis, t in zip(top.subplots(1, _FRAMES), np.linspace(0, 1, _FRAMES), strict=True):
        axis.imshow(interpolate(plan, source.shape, t), cmap="magma", interpolation="bilinear")
        axis.set_title({0.0: "source", 1.0: "target"}.get(t, f"t = {t:.1f}"), fontsize=11)
        axis.set_axis_off()
    del target
    left, middle, right = bottom.subplots(1, 3, width_ratios=[1, 1.05, 1.7])
    _draw_displacement(left, plan, source)
    if case.check is not None:
        _draw_gradient(middle, case, source.shape)
    _draw_convergence(right, case)


def interpolate(plan: np.ndarray, shape: tuple[int, ...], t: float) -> np.ndarray:
    """Stop a plan between the pixels of two images of equal shape at time `t` of the way."""
    rows, columns = shape
    i, j = np.nonzero(plan > 1e-9 * plan.max())
    at = [(1 - t) * p[i] + t * p[j] for p in np.divmod(np.arange(rows * columns), columns)]
    edges = [np.linspace(-0.5, size - 0.5, _FINE * size + 1) for size in (rows, columns)]
    frame = np.zeros((_FINE * rows, _FINE * columns))
    # Each atom is a tent as wide as a pixel, laid out on the finer grid.
    for dr in (-0.25, 0.25):
        for dc in (-0.25, 0.25):
            frame += np.histogram2d(at[0] + dr, at[1] + dc, bins=edges, weights=plan[i, j] / 4)[0]
    smooth = np.pad(frame, 1, mode="edge")
    for axis in (0, 1):
        smooth = np.apply_along_axis(np.convolve, axis, smooth, [0.25, 0.5, 0.25], mode="same")
    return smooth[1:-1, 1:-1]


def _draw_displacement(axis: Any, plan: np.ndarray, source: np.ndarray) -> None:
    rows, columns = np.divmod(np.arange(source.size), source.shape[1])
    mass = plan.sum(axis=1)
    shown = (mass > 0.15 * mass.max()) & (rows % 2 == 0) & (columns % 2 == 0)
    to_rows, to_columns = plan @ rows / mass, plan @ columns / mass
    axis.imshow(source, cmap="Greys", alpha=0.45)
    axis.quiver(
        columns[shown],
        rows[shown],
        (to_columns - columns)[shown],
        (to_rows - rows)[shown],
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.006,
        color="#c2410c",
    )
    axis.set_title("where the mass goes, on average", fontsize=11)
    axis.set_axis_off()


def _draw_gradient(axis: Any, case: Case, shape: tuple[int, ...]) -> None:
    assert case.check is not None
    gradient = case.check.gradient - np.median(case.check.gradient)
    largest = np.abs(gradient).max()
    image = axis.imshow(gradient.reshape(shape), cmap="RdBu_r", vmin=-largest, vmax=largest)
    axis.figure.colorbar(image, ax=axis, shrink=0.85)
    axis.set_title(
        f"implicit gradient of the transport cost\nin the source's weights (checked: {case.check.disagreement:.0e})",
        fontsize=11,
    )
    axis.set_axis_off()


def _draw_convergence(axis: Any, case: Case) -> None:
    histories = {
        f"{run.method}: {run.num_steps} steps, {run.seconds:.2f} s": run.history
        for run in (case.newton, case.sinkhorn)
        if run.history is not None
    }
    plot.convergence(histories, tol=TOL, ax=axis)
    axis.set_title("error on both marginals", fontsize=11)


def _draw_plan(panel: Any, case: Case) -> None:
    n, m = case.named.shape
    panel.suptitle(f"{case.named.name}: {n} x {m}, eta = {_eta(case)}", fontweight="bold")
    left, right = panel.subplots(1, 2)
    plot.plan(case.newton.solution, sort=not case.named.name.startswith("DENS1D"), ax=left)
    left.set_title("the plan", fontsize=11)
    _draw_convergence(right, case)


def _eta(case: Case) -> str:
    problem = case.newton.solution.problem
    return f"{float(jnp.max(problem.geometry.cost_matrix()) / problem.epsilon):.0f}"
