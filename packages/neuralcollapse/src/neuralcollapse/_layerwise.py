from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ._check import require
from ._class_stats import ClassStats
from ._convention import Convention, ConventionName, centred_means
from ._custom_types import FloatScalar
from ._product import product
from ._report import Report, report


class Spectrum(eqx.Module):
    r"""Hold the singular values of a matrix, and how many of them count.

    **Attributes:**

    - `values`: the singular values, largest first.
    - `stable_rank`: $\|A\|_F^2/\|A\|_2^2$.
    - `effective_rank`: $\exp$ of the entropy of $\sigma/\sum\sigma$.
    """

    values: Float[Array, " r"]
    stable_rank: FloatScalar
    effective_rank: FloatScalar


def spectrum(matrix: Float[ArrayLike, "m n"]) -> Spectrum:
    """Return the singular values of a weight or of class means, with two smooth measures of rank.

    **Arguments:**

    - `matrix`: a matrix, not zero.

    **Raises:**

    `ValueError` (under `jit`: Equinox's run-time error) if it is zero or not finite.
    """
    a = jnp.asarray(matrix)
    if a.ndim != 2:
        raise ValueError(f"`matrix` must be a matrix, got shape {a.shape}.")
    good = jnp.all(jnp.isfinite(a)) & jnp.any(a != 0)
    values = jnp.linalg.svd(require(a, good, "`matrix` must be finite and not zero."), compute_uv=False)
    shares = values / jnp.sum(values)
    entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1)), 0))
    return Spectrum(values, jnp.sum((values / values[0]) ** 2), jnp.exp(entropy))


def principal_angles(
    stats: ClassStats, weight: Float[ArrayLike, "out d"], rank: int | None = None
) -> Float[Array, " r"]:
    r"""Return the angles between the top row space of a weight and the span of the centred class means, in radians.

    **Arguments:**

    - `stats`: statistics of any kind of the features that enter the weight.
    - `weight`: the weight, of shape `(out, d)`.
    - `rank`: dimension of both spaces; by default $K - 1$, or less where the shapes allow less.

    **Returns:**

    The angles, smallest first: all zero where the layer sees the class means and nothing else.
    """
    stats = stats.validated()
    w = jnp.asarray(weight).astype(stats.anchor.dtype)
    if w.ndim != 2 or w.shape[1] != stats.dim:
        raise ValueError(f"`weight` must have shape (out, {stats.dim}), got {w.shape}.")
    most = min(stats.num_classes - 1, stats.dim, w.shape[0])
    r = most if rank is None else rank
    if not 1 <= r <= most:
        raise ValueError(f"`rank` must be between 1 and {most}, got {r}.")
    rows = jnp.linalg.svd(w, full_matrices=False)[2][:r]
    span = jnp.linalg.svd(centred_means(stats, Convention()), full_matrices=False)[2][:r]
    inside = product(rows, span.T)
    # Sines for small angles, cosines for large ones: either loses half the digits at the other end.
    cosine, sine = (jnp.linalg.svd(x, compute_uv=False) for x in (inside, span - product(inside.T, rows)))
    return jnp.arctan2(jnp.clip(sine[::-1], 0, 1), jnp.clip(cosine, 0, 1))


class Profile(eqx.Module):
    """Hold the reports of several layers, in their order.

    **Attributes:**

    - `reports`: one [`neuralcollapse.metrics.Report`][] a layer, by name.
    - `spectra`: singular values of the centred class means of each layer.
    """

    reports: dict[str, Report]
    spectra: dict[str, Spectrum]

    def curve(self, name: str) -> Float[np.ndarray, " layers"]:
        """Return one metric over the layers; NaN where a layer does not have it."""
        values = [getattr(r, name) for r in self.reports.values()]
        return np.array([np.nan if v is None else float(v) for v in values])

    def slope(self, name: str = "nc1_quotient") -> float:
        """Return the slope of the logarithm of a metric against depth, by least squares: negative where layers collapse."""
        values = self.curve(name)
        if len(values) < 2 or not np.all(values > 0):
            raise ValueError(
                f"`{name}` needs at least two layers and positive values for a slope; got {values.tolist()}."
            )
        depth = np.arange(len(values)) - (len(values) - 1) / 2
        return float(depth @ np.log(values) / (depth @ depth))


def layerwise(
    stats: Mapping[str, ClassStats],
    *,
    weights: Mapping[str, Any] | None = None,
    biases: Mapping[str, Any] | None = None,
    convention: ConventionName | Convention = "papyan",
) -> Profile:
    r"""Measure the collapse of several layers.

    **Arguments:**

    - `stats`: the statistics of each layer, by name, first layer first.
    - `weights`: for some or all layers the linear classifier from there to the logits: the last layer's weight, or the product
        $W_M \cdots W_l$ of a linear head, for the features that enter $W_l$.
    - `biases`: their biases, where they have any.
    - `convention`: see [`neuralcollapse.Convention`][].

    **Returns:**

    A [`neuralcollapse.metrics.Profile`][].
    """
    weights, biases = dict(weights or {}), dict(biases or {})
    for name, given in (("weights", weights), ("biases", biases)):
        if unknown := set(given) - set(stats):
            raise ValueError(f"`{name}` names layers without statistics: {sorted(unknown)}; there are {list(stats)}.")
    if not stats:
        raise ValueError("`stats` must have at least one layer.")
    reports = {n: report(s, weights.get(n), biases.get(n), convention=convention) for n, s in stats.items()}
    return Profile(reports, {n: spectrum(centred_means(s, Convention.of(convention))) for n, s in stats.items()})
