"""Pictures of collapse, on Matplotlib's axes. Needs the extra `plot`: `pip install "neuralcollapse[plot]"`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ._gof import GOFReport
from ._layerwise import Profile
from ._monitor import Monitor


if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    Axes: TypeAlias = Any  # Matplotlib is optional, and annotations are looked up at run time in tests


__all__ = ["depth_profile", "gof_bars", "phases"]


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
    axes.set_xticks(
        at, [f"{label}\n collapsed" if gone else label for label, gone in zip(labels, collapsed, strict=True)]
    )
    axes.set_xlabel("class" if counts is None else "class (samples)")
    axes.set_ylabel("own logit of the class mean")
    axes.set_ylim(0, 1.25 * max(measured.max(), predicted.max()))
    axes.legend(fontsize="small", loc="upper right", ncols=2)
    return axes


def _axes(ax: Axes | None) -> Axes:
    import matplotlib.pyplot as plt

    return plt.gca() if ax is None else ax
