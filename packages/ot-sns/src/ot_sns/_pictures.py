"""The pictures of the console script."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import plot
from ._flagship import TOL, Case, GradientCheck, say
from ._geometry import PointCloud
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
    panels: Any = figure.subfigures(len(cases), 1, squeeze=False, height_ratios=heights, hspace=0.03)
    for panel, case in zip(panels[:, 0], cases, strict=True):
        if case.named.x is not None:
            _draw_colors(panel, case)
        elif case.named.images is not None:
            _draw_images(panel, case)
        else:
            _draw_plan(panel, case)
    figure.savefig(path, dpi=110)


def _height(named: NamedProblem) -> float:
    return 9.8 if named.x is not None else 6.6 if named.images is not None else 4.8


def recolor(solution: Solution, photograph: np.ndarray, *, backwards: bool = False, block: int = 4096) -> np.ndarray:
    r"""Move every pixel of a photograph, also those that are not atoms of the plan.

    The target potential extends the plan to any colour $x$: it goes to the mean of the target colours $y_j$ weighted by
    $\exp((g_j - |x - y_j|^2) / \varepsilon)$, which at an atom is the plan's own row. Backwards likewise, with $f$.
    """
    geometry = solution.problem.geometry
    assert isinstance(geometry, PointCloud)
    towards = (geometry.x, solution.f) if backwards else (geometry.y, solution.g)
    # A picture needs no more than single precision: the exponents are exact to about 1e-4.
    y, g, epsilon = (jnp.asarray(v, jnp.float32) for v in (*towards, solution.problem.epsilon))
    # Nor than six bits a channel of what it starts from: the kernel is several times wider.
    coarse = photograph.reshape(-1, 3) // 4 * 4 + 2
    distinct, inverse = np.unique(coarse, axis=0, return_inverse=True)
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
    n, m = case.named.shape
    panel.suptitle(
        f"Colour transfer: {n} x {m} sampled pixels, squared distance, eta = {_eta(case)}", fontweight="bold"
    )
    top, bottom = panel.subfigures(2, 1, height_ratios=[1.75, 1])
    axes = top.subplots(2, 3)
    axes[0, 0].set_title("two photographs", fontsize=11)
    _show(axes[0, 0], china)
    _show(axes[1, 0], flower)
    for column, run in enumerate((case.newton, case.sinkhorn), start=1):
        _show(axes[0, column], recolor(run.solution, china))
        _show(axes[1, column], recolor(run.solution, flower, backwards=True))
        capped = "" if run.outcome == "converged" else ", stopped"
        title = f"{run.method}: {run.num_steps} steps{capped}, {run.seconds:.1f} s, marginal error {run.error:.1g}"
        axes[0, column].set_title(title, fontsize=10)
    assert case.named.x is not None
    assert case.named.y is not None
    clouds = {
        "colours of the first photograph": case.named.x,
        "colours of the second": case.named.y,
        f"the first transported ({case.newton.method})": _atoms_moved(case.newton.solution),
        f"the first transported ({case.sinkhorn.method})": _atoms_moved(case.sinkhorn.solution),
    }
    for axis, (title, cloud) in zip(bottom.subplots(1, 4, sharey=True), clouds.items(), strict=True):
        _draw_cloud(axis, cloud)
        axis.set_title(title, fontsize=10)
        axis.label_outer()


def _show(axis: Any, picture: np.ndarray) -> None:
    axis.imshow(picture)
    axis.set_axis_off()


def _atoms_moved(solution: Solution) -> np.ndarray:
    plan, geometry = np.asarray(solution.matrix()), solution.problem.geometry
    assert isinstance(geometry, PointCloud)
    return (plan @ np.asarray(geometry.y)) / plan.sum(axis=1, keepdims=True)


def _draw_cloud(axis: Any, cloud: np.ndarray) -> None:
    lightness = cloud @ np.array([0.299, 0.587, 0.114])
    order = np.argsort(lightness)
    warmth = cloud[:, 0] - cloud[:, 2]
    axis.scatter(warmth[order], lightness[order], c=np.clip(cloud[order], 0, 1), s=7, linewidths=0)
    axis.set(xlim=(-0.6, 1), ylim=(0, 1), xlabel="red - blue", ylabel="lightness", facecolor="0.93")


def _draw_images(panel: Any, case: Case) -> None:
    assert case.named.images is not None
    source, _ = case.named.images
    n, m = case.named.shape
    panel.suptitle(f"{case.named.name}: {n} x {m} pixels, eta = {_eta(case)}", fontweight="bold")
    top, bottom = panel.subfigures(2, 1, height_ratios=[1, 1.5])
    plan = np.asarray(case.newton.solution.matrix())
    for axis, t in zip(top.subplots(1, _FRAMES), np.linspace(0, 1, _FRAMES), strict=True):
        axis.imshow(interpolate(plan, source.shape, t), cmap="magma", interpolation="bilinear")
        axis.set_title({0.0: "source", 1.0: "target"}.get(t, f"t = {t:.1f}"), fontsize=11)
        axis.set_axis_off()
    left, middle, right = bottom.subplots(1, 3, width_ratios=[1, 1.05, 1.7])
    _draw_displacement(left, plan, source)
    if isinstance(case.check, GradientCheck):
        _draw_gradient(middle, case.check, source.shape)
    else:
        middle.set_axis_off()
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
    padded = np.pad(frame, 1, mode="edge")
    padded = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4


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
    axis.set_title("where the mass goes, on average", fontsize=10)
    axis.set_axis_off()


def _draw_gradient(axis: Any, check: GradientCheck, shape: tuple[int, ...]) -> None:
    gradient = check.gradient - np.median(check.gradient)
    largest = np.abs(gradient).max()
    image = axis.imshow(gradient.reshape(shape), cmap="RdBu_r", vmin=-largest, vmax=largest)
    axis.figure.colorbar(image, ax=axis, shrink=0.85)
    axis.set_title(
        "implicit gradient of the transport cost:\nmass makes it dearer where red, cheaper where blue",
        fontsize=10,
    )
    axis.set_axis_off()


def _draw_convergence(axis: Any, case: Case) -> None:
    histories = {
        f"{run.method}: {run.num_steps} steps, {run.seconds:.2f} s": run.history
        for run in (case.newton, case.sinkhorn)
        if run.history is not None
    }
    plot.convergence(histories, tol=TOL, ax=axis)


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
