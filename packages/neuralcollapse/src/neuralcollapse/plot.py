"""Pictures of collapse, on Matplotlib's axes. Needs the extra `plot`: `pip install "neuralcollapse[plot]"`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ._gof import GOFReport
from ._layerwise import Profile
from ._monitor import Monitor
from ._optimality import Optimality
from ._ufm_mse import solve_mse
from ._ufm_scalar import spinodal, threshold


if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    Axes: TypeAlias = Any  # Matplotlib is optional, and annotations are looked up at run time in tests


__all__ = ["depth_profile", "gof_bars", "optimality_bars", "phase_diagram", "phases"]


LABELS = {
    "nc1_pinv": r"NC1  $\frac{1}{K}\,\mathrm{tr}\,S_W S_B^+$",
    "nc1_quotient": r"NC1  $\mathrm{tr}\,S_W / \mathrm{tr}\,S_B$",
    "cdnv": "NC1  CDNV",
    "equinorm": "NC2  lengths of means",
    "equiangular": "NC2  angles of means",
    "etf_distance": "NC2  distance from a simplex frame",
    "of_distance": "NC2  distance from an orthogonal frame",
    "self_duality": "NC3  classifier against means",
    "ncc_mismatch": "NC4  classifier against nearest mean",
}
_PHASES = ("nc1_pinv", "etf_distance", "self_duality", "ncc_mismatch")


def phases(
    monitor: Monitor, metrics: Sequence[str] = _PHASES, *, layer: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw metrics over the steps of a training run, on a logarithmic scale.

    **Arguments:**

    - `monitor`: the monitor, after at least one measurement.
    - `metrics`: attributes of [`neuralcollapse.metrics.Report`][]. Values of zero and below are not drawn.
    - `layer`: which layer; by default the last one.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.
    """
    axes = _axes(ax)
    for name in metrics:
        steps, values = monitor.curve(name, layer)
        axes.plot(steps, np.where(values > 0, values, np.nan), marker=".", label=LABELS.get(name, name))
    axes.set_yscale("log")
    axes.set_xlabel("training step")
    axes.set_ylabel("distance from collapse")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return axes


def depth_profile(
    profile: Profile, metrics: Sequence[str] = ("nc1_quotient", "etf_distance"), *, ax: Axes | None = None
) -> Axes:
    """Draw metrics over the layers of a network, on a logarithmic scale.

    **Arguments:**

    - `profile`: what [`neuralcollapse.metrics.layerwise`][] returned.
    - `metrics`: attributes of [`neuralcollapse.metrics.Report`][].
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.
    """
    axes = _axes(ax)
    names = list(profile.reports)
    for name in metrics:
        values = profile.curve(name)
        axes.plot(range(len(names)), np.where(values > 0, values, np.nan), marker="o", label=LABELS.get(name, name))
    axes.set_yscale("log")
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.set_ylabel("distance from collapse")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return axes


def gof_bars(report: GOFReport, counts: Any = None, *, ax: Axes | None = None) -> Axes:
    """Draw each class's own logit, as measured and as predicted.

    **Arguments:**

    - `report`: what [`neuralcollapse.metrics.gof_report`][] returned.
    - `counts`: samples per class, to label the classes with.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes. Classes that are predicted to collapse are marked.
    """
    axes = _axes(ax)
    measured, predicted = np.asarray(report.logits), np.asarray(report.predicted_logits)
    at = np.arange(len(measured))
    axes.bar(at - 0.2, measured, 0.4, label="measured")
    axes.bar(at + 0.2, predicted, 0.4, label="predicted", alpha=0.6)
    labels = [str(k) if counts is None else f"{k}\n({int(counts[k])})" for k in at]
    collapsed = np.asarray(report.collapsed)
    axes.set_xticks(at, labels)
    for k in np.flatnonzero(collapsed):
        axes.text(float(k), 0.02, "collapsed", rotation=90, ha="center", va="bottom", fontsize="small")
    axes.set_xlabel("class" if counts is None else "class (samples)")
    axes.set_ylabel("own logit of the class mean")
    axes.set_ylim(0, 1.25 * max(measured.max(), predicted.max()))
    axes.legend(fontsize="small", loc="upper right", ncols=2)
    return axes


def optimality_bars(report: Optimality, *, ax: Axes | None = None) -> Axes:
    """Draw what the loss of a network is made of, beside the same at the theoretical optimum.

    **Arguments:**

    - `report`: what [`neuralcollapse.ufm.optimality`][] returned.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes. In per cent of the optimum.
    """
    axes = _axes(ax)
    names, best = list(report.parts), float(report.optimum)
    at = np.arange(len(names))
    measured, optimal = (
        np.array([100 * float(parts[name]) / best for name in names]) for parts in (report.parts, report.optimal_parts)
    )
    axes.barh(at - 0.2, measured, 0.4, label="measured")
    axes.barh(at + 0.2, optimal, 0.4, label="at the optimum", alpha=0.6)
    for y, (m, o) in enumerate(zip(measured, optimal, strict=True)):
        axes.annotate(f" {m - o:+.2g}", (max(m, o), y), va="center", fontsize="small")
    axes.set_yticks(at, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(measured.max(), optimal.max()))
    axes.set_xlabel("% of the least loss")
    # Above the axes: which bars are long depends on the network.
    axes.legend(fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return axes


def phase_diagram(
    depth: int,
    num_classes: int = 10,
    majority: int = 100,
    *,
    lam: tuple[float, float] = (1e-4, 1e-1),
    mark: tuple[float, float | int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw where the theoretical optimum gives up a minority class: its own logit, over its size and the regularisation.

    All classes but one have `majority` samples. White is a class that is given up (minority collapse); between the
    two lines, which a depth above one has, a fitted class is a local minimum still, so training may not find the global one.

    **Arguments:**

    - `depth`: the number of weight matrices of the head.
    - `num_classes`, `majority`: the number of classes, and the size of all but one.
    - `lam`: from which to which strength, $\lambda_W = \lambda_H$, in the normalisation of
        [`neuralcollapse.ufm.solve_mse`][].
    - `mark`: a strength and a class size to mark.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.

    ??? cite "Reference"

        Dang et al., "Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data", arXiv:2301.00437.
    """
    axes = _axes(ax)
    dtype = jnp.result_type(float)
    strengths = np.geomspace(*lam, 120)
    sizes = np.geomspace(1, majority, 120)

    def minority(strength, size):
        counts = jnp.concatenate([jnp.full(num_classes - 1, majority, dtype), size[None]])
        found = solve_mse(counts, depth, strength, strength)
        return found.sigma[-1] / found.tau[-1], found.ratio[-1]

    over_sizes = jax.vmap(minority, in_axes=(None, 0))
    logit, ratio = jax.jit(jax.vmap(over_sizes, in_axes=(0, None)))(
        jnp.asarray(strengths, dtype), jnp.asarray(sizes, dtype)
    )
    logit, ratio = np.asarray(logit).T, np.asarray(ratio).T
    image = axes.pcolormesh(strengths, sizes, np.where(logit > 0, logit, np.nan), vmin=0, vmax=1, shading="nearest")
    axes.figure.colorbar(image, ax=axes, label="own logit of the minority class")
    axes.contour(strengths, sizes, ratio, [1.0], colors="black")
    if depth > 1:
        axes.contour(strengths, sizes, ratio, [spinodal(depth) / threshold(depth)], colors="black", linestyles="--")
    if mark is not None:
        axes.plot(*mark, "*", color="#c2410c", markersize=14, markeredgecolor="white")
    axes.set(xscale="log", yscale="log", xlabel=r"regularisation $\lambda$", ylabel="samples of the minority class")
    axes.set_title(f"minority collapse, depth {depth}: white is given up")
    return axes


def _axes(ax: Axes | None) -> Axes:
    import matplotlib.pyplot as plt

    return plt.gca() if ax is None else ax
