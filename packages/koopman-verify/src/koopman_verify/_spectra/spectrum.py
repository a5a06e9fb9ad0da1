import dataclasses
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Complex, Float

from .._factor.factor import Factor, Operator, Space
from .._factor.snapshots import Kind
from .._results import RESULTS, choose
from .edmd import edmd
from .pseudospectrum import Method, checked_points, pseudospectrum


_AT_ONCE = 2**22  # pairs of grid points that are compared at once


class Spectrum(eqx.Module):
    r"""Points of a grid, each with a bound on its distance from the approximate point spectrum.

    **Attributes:**

    - `points`, `bounds`: the selected points and their bounds $d(z)$, rounding included. Shapes that depend on values:
        not under `jit`, where `selected` is the mask to use.
    - `error`: $E$, the largest of the bounds; infinite if nothing was found.
    - `grid`, `distances`, `selected`: all points, their bounds, and which were selected.
    - `rounding`: what is included in each of `distances` for rounding errors.
    - `isometry_defect`: [`koopman_verify.Factor`][]'s, the distance of the data from a measure-preserving map.
    - `violation`: how far the data contradict an isometry, $\max_z |1-|z||-h(z)-\tau(z)$ over the grid and the
        eigenvalues of the compression; zero where nothing was declared.
    - `result`: a member of [`koopman_verify.RESULTS`][].
    - `kind`: what the bounds rest on: `"exact"` integrals, the `"quadrature"` of the snapshots, or the `"training"` data.
    - `kappa`, `measure_preserving`: as asked for.

    !!! Example

        ```python
        spectrum = koopman_verify.verified_spectrum(factor, koopman_verify.polar_grid(241))
        print(spectrum.points, spectrum.error)
        ```
    """

    grid: Complex[Array, " k"]
    distances: Float[Array, " k"]
    selected: Bool[Array, " k"]
    rounding: Float[Array, " k"]
    error: Float[Array, ""]
    isometry_defect: Float[Array, ""]
    violation: Float[Array, ""]
    result: RESULTS
    kappa: float = eqx.field(static=True)
    measure_preserving: bool = eqx.field(static=True)
    num_snapshots: int = eqx.field(static=True)
    snapshots_kind: Kind = eqx.field(static=True)
    space: Space = eqx.field(static=True, default="L2")
    operator: Operator = eqx.field(static=True, default="koopman")

    @property
    def points(self) -> Complex[Array, " p"]:
        """The selected points of the grid."""
        mask = self._mask()
        return jnp.asarray(np.asarray(self.grid)[mask])

    @property
    def bounds(self) -> Float[Array, " p"]:
        """The bound at each of `points`."""
        mask = self._mask()
        return jnp.asarray(np.asarray(self.distances)[mask])

    @property
    def kind(self) -> Literal["exact", "quadrature", "training"]:
        """What the bounds rest on."""
        if self.space == "rkhs":
            return "exact"
        return "quadrature" if self.snapshots_kind == "quadrature" else "training"

    def with_kappa(self, kappa: float | int) -> "Spectrum":
        """Return the selection for another `kappa`, from the same distances: next to no work."""
        result = choose(self.result == RESULTS.nothing_found, RESULTS.successful, self.result)
        reach = jnp.asarray(_positive(kappa), self.distances.dtype)
        selected, error, result = _selection(self.grid, self.distances, reach, result)
        where = lambda s: (s.selected, s.error, s.result)
        return dataclasses.replace(eqx.tree_at(where, self, (selected, error, result)), kappa=float(kappa))

    def _mask(self) -> np.ndarray:
        if isinstance(self.selected, Tracer):
            raise TypeError("`points` and `bounds` have shapes that depend on values: under `jit` use `selected`")
        return np.asarray(self.selected)

    def __str__(self) -> str:
        points, bounds = np.asarray(self.points), np.asarray(self.bounds)
        head = f"{len(points)} points of the approximate point spectrum, each within its bound; E = {self.error:.3g}"
        rows = [f"{z.real:>+12.6f}{z.imag:>+11.6f}i  {d:.2e}" for z, d in zip(points, bounds, strict=True)]
        return "\n".join([f"{head} ({self.kind})", *rows])


def verified_spectrum(
    factor: Factor,
    grid: Any,
    kappa: float | int = 1.0,
    measure_preserving: bool = False,
    *,
    method: Method = "auto",
    throw: bool = True,
) -> Spectrum:
    r"""Return a set of points in the approximate point spectrum of $K$, and how far off they may be.

    With $d$ the upper bound on $\sigma_{\inf}(K-z)$, each grid point $z$ of $d(z)<1$ looks at the grid points $w$ with
    $|w-z|\le\kappa d(z)$ and selects those of least $d$. Where $\sigma_{\inf}(K-z)$ is the distance from the
    approximate point spectrum (isometries, normal operators), every selected point is within its bound, so within
    $E=\max d$ over the selected ones, of it. And a point of the spectrum at a distance $\eta$ from a grid point $z$
    with $d(z)<1$ is within $\eta+\kappa\,d(z)$ of a selected point: as grid and dictionary grow, the set converges
    ($\kappa=1$) and $E\to0$. $E$ alone does not bound what is missed, as $d(z)$ may be larger. For other operators every
    selected point is in the approximate point $E$-pseudospectrum, which says nothing about distances.

    **Arguments:**

    - `factor`: from [`koopman_verify.factor`][].
    - `grid`: complex numbers `[k]`, for instance from [`koopman_verify.polar_grid`][] or
        [`koopman_verify.rectangle_grid`][].
    - `kappa`: larger values make $E$ smaller, and drop true spectrum.
    - `measure_preserving`: declare that $K$ is an isometry: $d = \max(h_N, |1-|z||)$. The declaration is audited: an
        isometry has $|1-|z||\le\lVert(K-z)g\rVert/\lVert g\rVert$ for every $g$, which may fail by sampling errors of
        at most $\sqrt{N/M}$ here.
    - `method`: see [`koopman_verify.pseudospectrum`][].
    - `throw`: raise if the answer is not a success; otherwise `result` says so.

    **Returns:** a [`koopman_verify.Spectrum`][]. Its bounds hold for the data's inner products: see its `kind`.

    **Raises:** `ValueError` for a wrong `grid` or `kappa`; with `throw`, a run-time error with the text of
    [`koopman_verify.RESULTS`][]: `uncertifiable` if there are fewer than $10N$ different snapshots that are not the nodes of a
    quadrature rule, `nothing_found`, `not_measure_preserving`.

    ??? cite "Reference"

        Colbrook, Mezić and Stepanenko, arXiv:2407.06312 (the algorithm; their scripts take $\kappa=5$ or 2).

    !!! Example

        ```python
        spectrum = koopman_verify.verified_spectrum(factor, koopman_verify.polar_grid(241))
        print(spectrum)
        ```
    """
    grid = checked_points("grid", grid, factor)
    if grid.ndim != 1 or grid.size == 0:
        raise ValueError(f"`grid` must hold complex numbers, [k] with k >= 1; got shape {list(grid.shape)}")
    kappa = _positive(kappa)
    distances = pseudospectrum(factor, grid, method=method)
    # An array, so that another `kappa` is not another program.
    reach = jnp.asarray(kappa, distances.dtype)
    spectrum = _select(factor, grid, distances, reach, bool(measure_preserving))
    spectrum = dataclasses.replace(spectrum, kappa=kappa)
    if throw:
        failed = spectrum.result != RESULTS.successful
        spectrum = spectrum.result.error_if(spectrum, failed)
    return spectrum


@eqx.filter_jit
def _select(factor: Factor, grid: Array, h: Array, kappa: Array, measure_preserving: bool) -> Spectrum:
    rounding = factor.rounding(grid)
    distances, violation = h + rounding, jnp.zeros((), h.dtype)
    if measure_preserving:
        off = jnp.abs(1 - jnp.abs(grid))
        pairs = edmd(factor)
        allowed = pairs.residuals + pairs.rounding
        excess = jnp.concatenate([off - distances, jnp.abs(1 - jnp.abs(pairs.eigenvalues)) - allowed])
        violation = jnp.maximum(jnp.max(excess), 0)
        distances = jnp.maximum(distances, off)
    sampled = factor.kind != "quadrature" and factor.space == "L2"
    # A pair that occurs twice says nothing twice.
    num = factor.num_snapshots if factor.num_distinct is None else factor.num_distinct
    few = sampled & jnp.asarray(num < 10 * factor.size)
    contradicted = violation > (factor.size / max(factor.num_snapshots, 1)) ** 0.5
    result = choose(contradicted, RESULTS.not_measure_preserving, RESULTS.successful)
    result = choose(few, RESULTS.uncertifiable, result)
    result = choose(jnp.all(jnp.isfinite(distances)), result, RESULTS.nonfinite)
    selected, error, result = _selection(grid, distances, kappa, result)
    return Spectrum(
        grid=grid,
        distances=distances,
        selected=selected,
        rounding=rounding,
        error=error,
        isometry_defect=factor.isometry_defect,
        violation=violation,
        result=result,
        kappa=0.0,
        measure_preserving=measure_preserving,
        num_snapshots=factor.num_snapshots,
        snapshots_kind=factor.kind,
        space=factor.space,
        operator=factor.operator,
    )


@eqx.filter_jit
def _selection(grid: Array, distances: Array, kappa: Array, result: RESULTS) -> tuple[Array, Array, RESULTS]:
    selected = _local_minimisers(grid, distances, kappa)
    found = jnp.any(selected)
    error = jnp.where(found, jnp.max(jnp.where(selected, distances, -jnp.inf)), jnp.inf)
    empty = ~found & (result == RESULTS.successful)
    return selected, error, choose(empty, RESULTS.nothing_found, result)


def _positive(kappa: Any) -> float:
    if not isinstance(kappa, (int, float, np.number)) or not 0 < kappa < float("inf"):
        raise ValueError(f"`kappa` must be a positive number; got {kappa}")
    return float(kappa)


def _local_minimisers(grid: Array, d: Array, kappa: Array) -> Array:
    """Say which points have the least value within reach of some point, comparing a block of points at a time."""
    num = len(grid)
    block = max(1, min(num, _AT_ONCE // num))
    pad = -num % block
    # Points that are added have an infinite value, so they look at nothing.
    padded = (jnp.pad(grid, (0, pad)), jnp.pad(d, (0, pad), constant_values=jnp.inf))
    rows: Any = tuple(a.reshape(-1, block) for a in padded)

    def look(selected: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        z, radius = row
        reach = (radius < 1)[:, None] & (jnp.abs(z[:, None] - grid[None]) <= kappa * radius[:, None])
        values = jnp.where(reach, d[None], jnp.inf)
        least = jnp.min(values, axis=1, keepdims=True)
        return selected | jnp.any(reach & (values == least), axis=0), None

    return jax.lax.scan(look, jnp.zeros(num, bool), rows)[0]


def polar_grid(num_angles: int, radii: Any = 1.0, *, half: bool = True) -> Complex[Array, " k"]:
    r"""Return points $re^{i\theta}$ with equispaced angles.

    **Arguments:**

    - `num_angles`: the number of angles: over $[0, \pi]$ with both ends, or over $[0, 2\pi)$.
    - `radii`: one radius or several.
    - `half`: take the upper half only, which is enough for a real dictionary.

    **Returns:** complex numbers `[num_angles * len(radii)]`, ring after ring.

    **Raises:** `ValueError` if there are fewer than two angles, or a radius is negative.

    !!! Example

        ```python
        koopman_verify.polar_grid(241, [0.9, 1.0])
        ```
    """
    r = np.atleast_1d(np.asarray(radii, float))
    if num_angles < 2 or r.ndim != 1 or not np.all(r >= 0):
        raise ValueError(f"`num_angles` must be at least 2 and `radii` not negative; got {num_angles} and {radii}")
    theta = np.linspace(0, np.pi, num_angles) if half else 2 * np.pi * np.arange(num_angles) / num_angles
    points = r[:, None] * np.exp(1j * theta)
    if half:
        points[:, -1] = -r  # so that it equals its conjugate
    return jnp.asarray(points.ravel(), jnp.result_type(complex))


def rectangle_grid(
    lower: complex | float | int, upper: complex | float | int, spacing: float | int
) -> Complex[Array, " k"]:
    r"""Return the points of a square lattice in a rectangle, in rows that run to and fro.

    **Arguments:**

    - `lower`, `upper`: the corners at the lower left and the upper right; both are points.
    - `spacing`: the distance of neighbours, made a little smaller where it does not divide a side.

    **Returns:** complex numbers `[k]`.

    **Raises:** `ValueError` if `upper` is not above and to the right of `lower`, or `spacing` is not positive.

    !!! Example

        ```python
        koopman_verify.rectangle_grid(-0.5 + 0j, 1 + 1j, 0.02)
        ```
    """
    lower, upper = complex(lower), complex(upper)
    extent = upper - lower
    if not (extent.real >= 0 and extent.imag >= 0 and spacing > 0):
        raise ValueError(
            f"`upper` must be above and to the right of `lower`, and `spacing` positive; got {lower}, {upper}, {spacing}"
        )
    count = lambda side: int(np.ceil(side / spacing - 1e-9)) + 1
    x = np.linspace(lower.real, upper.real, count(extent.real))
    y = np.linspace(lower.imag, upper.imag, count(extent.imag))
    rows = [(x if k % 2 == 0 else x[::-1]) + 1j * level for k, level in enumerate(y)]
    return jnp.asarray(np.concatenate(rows), jnp.result_type(complex))
