"""Pictures of spectra, on Matplotlib's axes. Needs the extra `plot`: `pip install "koopman-verify[plot]"`."""

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np


if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    Axes: TypeAlias = Any  # Matplotlib is optional, and annotations are looked up at run time in tests


def _axes(ax: Axes | None) -> Axes:
    import matplotlib.pyplot as plt

    return plt.gca() if ax is None else ax


def _plane(axes: Axes, *, circle: bool) -> Axes:
    if circle:
        turn = np.exp(2j * np.pi * np.linspace(0, 1, 400))
        axes.plot(turn.real, turn.imag, color="0.6", lw=0.8, zorder=0)
    axes.set_aspect("equal")
    axes.set_xlabel(r"$\mathrm{Re}\,\lambda$")
    axes.set_ylabel(r"$\mathrm{Im}\,\lambda$")
    return axes
