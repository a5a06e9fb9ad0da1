"""Pictures of spectra, on Matplotlib's axes. Needs the extra `plot`: `pip install "koopman-verify[plot]"`."""

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ._forecast import Forecast
from ._spectra.edmd import Eigenpairs


if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    Axes: TypeAlias = Any  # Matplotlib is optional, and annotations are looked up at run time in tests


__all__ = ["disc_map", "eigenvalues", "forecast", "game", "measure", "pseudospectrum", "residuals", "spectrum"]

_LEVELS = (1e-3, 1e-2, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7)


def eigenvalues(pairs: Eigenpairs, certificate: Any = None, *, circle: bool = True, ax: Axes | None = None) -> Axes:
    """Draw eigenvalues in the complex plane, coloured by how wrong each can be.

    **Arguments:**

    - `pairs`: the candidates.
    - `certificate`: what [`koopman_verify.certify`][] said of them: the colour is then the upper bound, and a pair that
        is not certified is a cross. Without it the colour is the residual on the data of the fit.
    - `circle`: whether to draw the unit circle.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes, with a colour bar beside them.
    """
    import matplotlib.colors

    axes = _plane(_axes(ax), circle=circle)
    z = np.atleast_1d(np.asarray(pairs.eigenvalues, complex))
    bound = np.atleast_1d(np.asarray(pairs.residuals if certificate is None else certificate.upper))
    good = (
        np.ones(len(z), bool) if certificate is None else np.atleast_1d(np.asarray(certificate.status)) == "certified"
    )
    norm = matplotlib.colors.LogNorm(1e-2, 1.0, clip=True)
    shown = np.where(np.isfinite(bound), np.maximum(bound, 1e-2), 1.0)
    style: dict[str, Any] = dict(norm=norm, cmap="viridis_r")
    artist = axes.scatter(
        np.real(z)[good], np.imag(z)[good], c=shown[good], s=28, edgecolors="black", linewidths=0.4, **style
    )
    if not good.all():
        axes.scatter(np.real(z)[~good], np.imag(z)[~good], c=shown[~good], s=26, marker="x", linewidths=1.0, **style)
    what = "residual" if certificate is None else f"upper bound at level {float(certificate.level):g}"
    axes.figure.colorbar(artist, ax=axes, label=what, shrink=0.8)
    return axes


def pseudospectrum(z: Any, values: Any, *, levels: Any = _LEVELS, circle: bool = True, ax: Axes | None = None) -> Axes:
    r"""Draw level lines of $h_N(z)$: inside of the line `ε`, every point is an approximate eigenvalue up to `ε`.

    **Arguments:**

    - `z`: complex points, a grid `[n, m]` or any list `[k]` that is not on one line.
    - `values`: what [`koopman_verify.pseudospectrum`][] returned there.
    - `levels`: where to draw lines.
    - `circle`: whether to draw the unit circle.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.
    """
    axes = _plane(_axes(ax), circle=circle)
    z, values, levels = np.asarray(z, complex), np.asarray(values), np.asarray(levels, float)
    levels = np.sort(levels)
    colours: dict[str, Any] = dict(levels=np.log10(levels), cmap="magma", extend="both")
    height = np.log10(np.maximum(values, 1e-17))
    if z.ndim == 2:
        artist = axes.contourf(np.real(z), np.imag(z), height, **colours)
    else:
        artist = axes.tricontourf(np.real(z), np.imag(z), height, **colours)
    bar = axes.figure.colorbar(artist, ax=axes, ticks=np.log10(levels), label=r"$h_N(z)$", shrink=0.8)
    bar.ax.set_yticklabels([f"{level:g}" for level in levels])
    return axes


def spectrum(found: Any, *, circle: bool = True, discs: bool = True, ax: Axes | None = None) -> Axes:
    """Draw a verified spectrum: each point with the disc in which there is spectrum.

    **Arguments:**

    - `found`: what [`koopman_verify.verified_spectrum`][] returned.
    - `circle`: whether to draw the unit circle.
    - `discs`: whether to draw the discs of radius `found.bounds`.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.
    """
    from matplotlib.collections import EllipseCollection

    axes = _plane(_axes(ax), circle=circle)
    z, bounds = np.asarray(found.points, complex), np.asarray(found.bounds)
    if discs and len(z):
        wide = EllipseCollection(
            2 * bounds, 2 * bounds, np.zeros(len(z)), units="xy", offsets=np.column_stack([np.real(z), np.imag(z)]),
            transOffset=axes.transData, facecolors="C0", alpha=0.08,
        )  # fmt: skip
        axes.add_collection(wide)
    axes.plot(np.real(z), np.imag(z), "o", ms=3, color="C0")
    axes.set_title(f"{len(z)} points, each within E = {float(found.error):.3g}", fontsize="medium")
    axes.autoscale_view()
    return axes


def residuals(pairs: Eigenpairs, certificate: Any = None, *, ax: Axes | None = None) -> Axes:
    """Draw the residuals in ascending order, with the interval that held-out data support.

    **Arguments:**

    - `pairs`: the candidates.
    - `certificate`: what [`koopman_verify.certify`][] said of them, for the intervals.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.
    """
    axes = _axes(ax)
    training = np.atleast_1d(np.asarray(pairs.residuals))
    order = np.argsort(training)
    rank = np.arange(len(training))
    axes.semilogy(rank, training[order], ".", color="0.4", label="on the data of the fit")
    if certificate is not None:
        lower, upper = (np.atleast_1d(np.asarray(b))[order] for b in (certificate.lower, certificate.upper))
        label = f"{certificate.kind}, level {float(certificate.level):g}"
        axes.fill_between(rank, np.maximum(lower, 1e-16), upper, alpha=0.3, step="mid", label=label)
    axes.set_xlabel("eigenvalue, in the order of its residual")
    axes.set_ylabel("residual")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return axes


def measure(theta: Any, density: Any, exact: Any = None, *, label: str | None = None, ax: Axes | None = None) -> Axes:
    r"""Draw the density of a spectral measure over the angle.

    **Arguments:**

    - `theta`: angles in $[-\pi,\pi]$, `[T]`.
    - `density`: what [`koopman_verify.spectral_measure`][] returned there.
    - `exact`: the true density, if it is known.
    - `label`: of the line.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.
    """
    axes = _axes(ax)
    axes.plot(np.asarray(theta), np.asarray(density), label=label)
    if exact is not None:
        axes.plot(np.asarray(theta), np.asarray(exact), "k--", lw=1, label="exact")
    axes.set_xticks(np.pi * np.arange(-2, 3) / 2, ["-π", "-π/2", "0", "π/2", "π"])
    axes.set_xlabel("angle θ")
    axes.set_ylabel("spectral density")
    if label is not None or exact is not None:
        axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return axes


def forecast(prediction: Forecast, scale: float = 1.0, *, label: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw how wrong a forecast can be, over the steps ahead.

    **Arguments:**

    - `prediction`: what [`koopman_verify.forecast`][] returned, of one observable.
    - `scale`: what the error is divided by, the norm of the observable, say.
    - `label`: of the line; by default whether it is a bound or an estimate.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.
    """
    axes = _axes(ax)
    error = np.asarray(prediction.error) / scale
    is_bound = prediction.bound is not None
    axes.semilogy(np.arange(len(error)), np.maximum(error, 1e-16), label=label or ("bound" if is_bound else "estimate"))
    axes.set_xlabel("steps ahead")
    axes.set_ylabel("error in the mean square")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return axes


def disc_map(map_fn: Any, x: Any = None, *, num_arcs: int = 9, ax: Axes | None = None) -> Axes:
    """Draw a map of the disc by the images of quarter circles.

    **Arguments:**

    - `map_fn`: the map, `[2]` to `[2]`, in JAX: those of `koopman_verify.adversary`, for instance.
    - `x`: points `[m, 2]` to mark.
    - `num_arcs`: the number of quarter circles.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.
    """
    import jax
    import jax.numpy as jnp
    import matplotlib

    axes = _axes(ax)
    arc = np.linspace(0, 0.5 * np.pi, 2000)
    quarter = np.stack([np.cos(arc), np.sin(arc)], axis=1)
    radii = np.linspace(0.1, 0.95, num_arcs)
    images = np.asarray(jax.jit(jax.vmap(jax.vmap(map_fn)))(jnp.asarray(radii[:, None, None] * quarter)))
    for radius, image in zip(radii, images, strict=True):
        axes.plot(image[:, 0], image[:, 1], lw=0.5, color=matplotlib.colormaps["viridis"](float(radius)))
    turn = np.linspace(0, 2 * np.pi, 400)
    axes.plot(np.cos(turn), np.sin(turn), "k", lw=0.8)
    if x is not None:
        axes.plot(*np.asarray(x).T, "r.", ms=5)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    return axes


def game(play: Any, *, ax: Axes | None = None) -> Axes:
    """Draw how the answers of a black box follow the adversary.

    **Arguments:**

    - `play`: what [`koopman_verify.adversary.play`][] returned.
    - `ax`: the axes to draw on; `None` is the current ones.

    **Returns:**

    The axes.
    """
    axes = _axes(ax)
    runs = np.arange(len(play.targets))
    axes.plot(runs, play.to_circle, "o-", label="distance to the circle")
    axes.plot(runs, play.to_two_points, "s-", label="distance to {1, -1}")
    axes.axhline(play.tolerance, color="k", lw=0.8, ls=":")
    axes.set_xticks(
        runs, [f"{target}\n{budget} queries" for target, budget in zip(play.targets, play.budgets, strict=True)]
    )
    axes.set_xlabel("the true spectrum, in each run")
    axes.set_title(f"{play.num_oscillations} oscillations", fontsize="medium")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return axes


def _axes(ax: Axes | None) -> Axes:
    import matplotlib.pyplot as plt

    return plt.gca() if ax is None else ax


def _plane(axes: Axes, *, circle: bool) -> Axes:
    if circle:
        turn = np.exp(2j * np.pi * np.linspace(0, 1, 400))
        axes.plot(np.real(turn), np.imag(turn), color="0.6", lw=0.8, zorder=0.5)
    axes.set_aspect("equal")
    axes.set_xlabel(r"$\mathrm{Re}\,\lambda$")
    axes.set_ylabel(r"$\mathrm{Im}\,\lambda$")
    return axes
