"""Pictures of convergence, spectra and gradients, on Matplotlib's axes. Needs the extra `plot`: `pip install "fixedpoint-eq[plot]"`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax.tree_util as jtu
import numpy as np
from jaxtyping import Float

from ._diagnostics import SpectralRadius
from ._ep_gradient import EPInfo
from ._solution import Solution


if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    Axes: TypeAlias = Any  # Matplotlib is optional, and annotations are looked up at run time in tests


__all__ = ["alignment", "convergence", "curves", "gradient_scatter", "spectrum"]


_COLORS = ("#c2410c", "#1d4ed8", "#047857", "#7c3aed", "#be185d", "#57534e")


def convergence(solutions: Mapping[str, Solution], *, tol: float | None = None, ax: Axes | None = None) -> Axes:
    """Draw the residual of solves against the step: of each sample thinly, and of the slowest one boldly.

    **Arguments:**

    - `solutions`: for each label what [`fixedpoint_eq.solve`][] returned with `keep_trace=True`.
    - `tol`: where to draw the line that is to be reached, if anywhere.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.

    **Raises:**

    `ValueError` for no solution, or one without a trace.

    !!! Example

        ```python
        plot.convergence({"Anderson": fpe.solve(fn, z0, args, keep_trace=True)}, tol=1e-6)
        ```
    """
    if not solutions:
        raise ValueError("`solutions` must hold at least one solution")
    axes = _axes(ax)
    for (label, solution), color in zip(solutions.items(), _cycle(), strict=False):
        if "trace" not in solution.stats:
            raise ValueError(f"`solutions[{label!r}]` has no trace: solve with `keep_trace=True`")
        traces = np.atleast_2d(np.asarray(solution.stats["trace"]))
        steps = np.arange(1, traces.shape[1] + 1)
        slowest = int(np.argmax(np.atleast_1d(np.asarray(solution.stats["num_steps"]))))
        for trace in traces[:32] if len(traces) > 1 else ():
            axes.semilogy(steps, trace, color=color, linewidth=0.6, alpha=0.25)
        axes.semilogy(steps, traces[slowest], color=color, linewidth=2, label=label)
    if tol is not None:
        axes.axhline(tol, color="0.45", linewidth=0.9, linestyle=(0, (4, 3)))
        axes.text(0.01, tol * 1.2, f"{tol:g}", color="0.35", transform=axes.get_yaxis_transform())
    axes.set_xlabel("step")
    axes.set_ylabel(r"$\|f(z) - z\|$")
    return _finish(axes)


def curves(
    series: Mapping[str, Sequence[float] | Float[np.ndarray, " n"]],
    *,
    xlabel: str = "epoch",
    ylabel: str = "accuracy on the test, %",
    ax: Axes | None = None,
) -> Axes:
    """Draw curves of training, one point an epoch from one up.

    **Arguments:**

    - `series`: for each label the values.
    - `xlabel`, `ylabel`: of the axes.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.

    !!! Example

        ```python
        plot.curves({"AsymEP": [81.0, 92.5, 95.1], "EP": [40.0, 61.3, 70.2]})
        ```
    """
    if not series:
        raise ValueError("`series` must hold at least one curve")
    axes = _axes(ax)
    for (label, values), color in zip(series.items(), _cycle(), strict=False):
        marker = "o" if len(values) <= 30 else ""
        axes.plot(
            range(1, len(values) + 1), values, color=color, marker=marker, markersize=3.5, linewidth=1.8, label=label
        )
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return _finish(axes)


def spectrum(estimate: SpectralRadius, *, ax: Axes | None = None) -> Axes:
    """Draw the Ritz values of a Jacobian in the complex plane, with the unit circle that Picard's iteration must stay in.

    **Arguments:**

    - `estimate`: what [`fixedpoint_eq.diagnostics.spectral_radius`][] returned, of one state or a batch.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.

    !!! Example

        ```python
        plot.spectrum(diagnostics.spectral_radius(fn, z, args, num_steps=40))
        ```
    """
    axes = _axes(ax)
    angle = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(angle), np.sin(angle), color="0.6", linewidth=1)
    values: Any = np.asarray(estimate.ritz_values).ravel()
    axes.plot(values.real, values.imag, "o", markersize=4, color=_COLORS[1], alpha=0.6, label="Ritz values")
    largest: Any = np.asarray(estimate.eigenvalue).ravel()
    radius = float(np.max(np.asarray(estimate.radius)))
    axes.plot(largest.real, largest.imag, "o", markersize=6, color=_COLORS[0], label=f"largest: {radius:.3g}")
    # Room for the legend below the circle.
    edge = 1.1 * max(1.0, radius)
    axes.set_xlim(-edge, edge)
    axes.set_ylim(-1.5 * edge, edge)
    axes.set_aspect("equal")
    axes.set_xlabel("real part")
    axes.set_ylabel("imaginary part")
    return _finish(axes, legend="lower center")


def alignment(infos: Mapping[str, EPInfo], *, ax: Axes | None = None) -> Axes:
    """Draw the cosines between the error signals of equilibrium propagation and the true ones, layer by layer.

    **Arguments:**

    - `infos`: for each label the second result of [`fixedpoint_eq.ep.gradient`][] with `alignment=True`. Bars are means
        over the samples, whiskers go from the least to the largest.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.

    **Raises:**

    `ValueError` for none, or one without cosines.

    !!! Example

        ```python
        grads, info = ep.gradient(field, params, x, y, ep.Symmetric(0.1), alignment=True)
        plot.alignment({"EP": info})
        ```
    """
    if not infos:
        raise ValueError("`infos` must hold at least one")
    axes = _axes(ax)
    width, count, least = 0.8 / len(infos), 0, 0.0
    for k, ((label, info), color) in enumerate(zip(infos.items(), _cycle(), strict=False)):
        if info.alignment is None:
            raise ValueError(f"`infos[{label!r}]` has no cosines: pass `alignment=True` to `ep.gradient`")
        layers, whole = info.alignment
        cosines = np.stack([np.asarray(leaf).ravel() for leaf in (*jtu.tree_leaves(layers), whole)])
        mean, count, least = cosines.mean(1), len(cosines), min(least, float(cosines.min()))
        spread = np.abs(np.stack([cosines.min(1), cosines.max(1)]) - mean)
        at = np.arange(count) - 0.4 + (k + 0.5) * width
        axes.bar(at, mean, 0.92 * width, yerr=spread, capsize=2, color=color, ecolor="0.3", label=label)
    axes.set_xticks(range(count), [*(f"layer {i + 1}" for i in range(count - 1)), "all"])
    axes.set_ylabel("cosine with the true error")
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_ylim(least - 0.12 * (2 + len(infos)), 1.05)  # with room for the legend
    return _finish(axes, legend="lower right")


def gradient_scatter(
    gradients: Mapping[str, Any], truth: Any, *, max_points: int = 4000, ax: Axes | None = None
) -> Axes:
    """Draw entries of approximate gradients against those of the true one: on the diagonal they agree.

    **Arguments:**

    - `gradients`: for each label a pytree of arrays.
    - `truth`: the true gradient, of the same structure.
    - `max_points`: how many entries to draw, evenly spaced among all.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.

    **Raises:**

    `ValueError` for no gradient, or a number of entries that differs.

    !!! Example

        ```python
        plot.gradient_scatter({"EP": grads}, true_grads)
        ```
    """
    if not gradients:
        raise ValueError("`gradients` must hold at least one gradient")
    axes = _axes(ax)
    flat = lambda tree: np.concatenate([np.asarray(leaf).ravel() for leaf in jtu.tree_leaves(tree)])
    true = flat(truth)
    pick = np.unique(np.linspace(0, len(true) - 1, min(max_points, len(true))).astype(int))
    for (label, gradient), color in zip(gradients.items(), _cycle(), strict=False):
        entries = flat(gradient)
        if entries.shape != true.shape:
            raise ValueError(f"`gradients[{label!r}]` must have {true.size} entries, as `truth`; got {entries.size}")
        error = np.linalg.norm(entries - true) / np.linalg.norm(true)
        name = f"{label}: error {error:.1e}"
        axes.plot(true[pick], entries[pick], ".", markersize=3, color=color, alpha=0.5, label=name)
    axes.axline((0, 0), slope=1, color="0.3", linewidth=0.8)
    axes.set_xlabel("true gradient")
    axes.set_ylabel("from equilibria")
    return _finish(axes)


def _cycle() -> list[str]:
    return [*_COLORS] * 10


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.gca()


def _finish(axes: Axes, *, legend: Any = "best") -> Axes:
    axes.grid(visible=True, which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc=legend)
    return axes
