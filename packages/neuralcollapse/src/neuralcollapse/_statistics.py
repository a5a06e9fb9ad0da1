from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._arguments import class_counts, finite


Weights: TypeAlias = Literal["counts", "balanced"]


@runtime_checkable
class Statistics(Protocol):
    """What the reduced problems need: class sizes, class means `[K, d]`, pooled covariance within classes `[d, d]`.

    [`neuralcollapse.ClassStats`][] is one; so is anything else with these three.
    """

    counts: Any

    def means(self) -> Array:
        """Return the class means, `[K, d]`."""
        ...

    def within_cov(self) -> Array:
        """Return the covariance within classes, pooled over all samples, `[d, d]`."""
        ...


def moments(stats: Statistics) -> tuple[Float[Array, " K"], Float[Array, "K d"], Float[Array, "d d"]]:
    """Return class sizes, means and the covariance within classes, checked, in the dtype of the means."""
    means = finite(stats.means(), "stats.means()", 2)
    counts = class_counts(stats.counts).astype(means.dtype)
    within = finite(stats.within_cov(), "stats.within_cov()", 2).astype(means.dtype)
    size, dim = means.shape
    if counts.shape != (size,) or within.shape != (dim, dim):
        raise ValueError(
            f"`stats` must have {size} counts and a full covariance ({dim}, {dim}) to go with its means {means.shape}; "
            f"got {counts.shape} and {within.shape}."
        )
    return counts, means, within


def sample_moments(
    features: Float[Array, "N d"], labels: Array, num_classes: int
) -> tuple[Float[Array, " K"], Float[Array, "K d"], Float[Array, "d d"]]:
    """Return class sizes, means and the covariance within classes of samples that are all at hand."""
    ones = jnp.ones(labels.shape, features.dtype)
    counts = jnp.zeros((num_classes,), features.dtype).at[labels].add(ones)
    sums = jnp.zeros((num_classes, features.shape[1]), features.dtype).at[labels].add(features)
    means = sums / counts[:, None]
    residual = features - means[labels]
    return counts, means, residual.T @ residual / features.shape[0]


def class_weights(counts: Float[Array, " K"], weights: Weights) -> Float[Array, " K"]:
    """Return the share of every class in the loss."""
    if weights == "balanced":
        return jnp.full_like(counts, 1 / counts.shape[0])
    if weights == "counts":
        return counts / jnp.sum(counts)
    raise ValueError(f'`weights` must be "counts" or "balanced"; got {weights!r}.')


def ridge_classifier(means, within, p, lam_W) -> Float[Array, "K d"]:
    r"""Return the best classifier $W = P \bar H^\top(\bar H P \bar H^\top + S_W + \lambda_W/K)^{-1}$ for these features."""
    weighted = means * p[:, None]
    dim = means.shape[1]
    gram = means.T @ weighted + within + lam_W / means.shape[0] * jnp.eye(dim, dtype=means.dtype)
    return jnp.linalg.solve(gram, weighted.T).T


def nc1_quotient(means, within, p) -> Array:
    """Return the traces `tr(S_W)`, `tr(S_B)`, and their quotient."""
    centred = means - (p @ means)[None]
    between = jnp.sum(p[:, None] * centred**2)
    trace = jnp.trace(within)
    return jnp.stack([trace, between, trace / jnp.where(between > 0, between, 1)])
