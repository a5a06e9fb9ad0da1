import functools as ft
import math
from typing import Any, Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .dictionary import AbstractDictionary, one_state


Profile: TypeAlias = Literal["gaussian", "exponential", "laplacian", "lorentzian", "matern32", "matern52"]

# Largest slopes of the profiles below. Matern 5/2: (5/3) t (1 + sqrt5 t) exp(-sqrt5 t) is largest where sqrt5 t = (1 + sqrt5)/2.
_GOLDEN = (1 + math.sqrt(5)) / 2
SLOPES: dict[str, float] = {
    "gaussian": math.sqrt(2 / math.e),
    "exponential": 2.0,
    "laplacian": 1.0,
    "lorentzian": 9 / (8 * math.sqrt(3)),
    "matern32": math.sqrt(3) / math.e,
    "matern52": math.sqrt(5) / 3 * _GOLDEN**3 * math.exp(-_GOLDEN),
}


class RBF(AbstractDictionary):
    r"""Radial functions, $\psi_j(x) = \phi(|x - c_j| / d)$.

    **Arguments:**

    - `centres`: the points $c_j$, `[N, d]`.
    - `profile`: $\phi(t)$, one of `"gaussian"`, $e^{-t^2}$; `"exponential"`, $e^{-2t}$, that of the Duffing experiment of
        arXiv:2407.06312; `"laplacian"`, $e^{-t}$; `"lorentzian"`, $1/(1+t^2)$; `"matern32"`, $(1+\sqrt3t)e^{-\sqrt3t}$;
        `"matern52"`, $(1+\sqrt5t+\tfrac53t^2)e^{-\sqrt5t}$.
    - `scale`: the length $d > 0$; by default the mean distance of the centres from their mean.

    **Raises:** `ValueError` for centres that are not `[N, d]`, an unknown profile, or a scale that is not positive.

    !!! Example

        ```python
        RBF.from_kmeans(snapshots.x, 100, key=jr.key(0))
        ```
    """

    centres: Float[Array, "N d"]
    scale: Float[Array, ""]
    profile: Profile = eqx.field(static=True)

    def __init__(self, centres: Any, profile: Profile = "exponential", scale: Any = None):
        c = jnp.asarray(centres, jnp.result_type(float) if not eqx.is_inexact_array(centres) else None)
        if c.ndim != 2 or 0 in c.shape:
            raise ValueError(f"`centres` must have shape [N, d]; got {list(jnp.shape(centres))}")
        if profile not in get_args(Profile):
            raise ValueError(f"`profile` must be one of {get_args(Profile)}; got {profile!r}")
        self.centres = c
        self.scale = mean_distance(c) if scale is None else jnp.asarray(scale, c.dtype)
        self.profile = profile
        if self.scale.shape != () or (not isinstance(self.scale, Tracer) and not 0 < float(self.scale) < math.inf):
            raise ValueError(f"`scale` must be one positive number; got {self.scale}. Are all centres one point?")

    @classmethod
    def from_kmeans(
        cls,
        x: Float[Array, "M d"],
        num: int,
        *,
        key: PRNGKeyArray,
        profile: Profile = "exponential",
        scale: Any = None,
        max_steps: int = 20,
    ) -> "RBF":
        r"""Centre the functions on the means of $k$-means clusters of states.

        Use states that are *not* among the snapshots (an independent run), so that snapshots stay independent of the
        dictionary.

        **Arguments:**

        - `x`: states `[M, d]`.
        - `num`: the number of functions, at most `M`.
        - `key`: draws the starting centres, by $k$-means++.
        - `profile`: as for `RBF`.
        - `scale`: as for `RBF`; by default the mean distance of `x` from its mean, as in arXiv:2407.06312.
        - `max_steps`: the largest number of Lloyd's steps; fewer if no state changes its cluster.

        **Returns:** the dictionary.

        **Raises:** `ValueError` if `num` is not in `1 .. M`.
        """
        centres = kmeans(x, num, key=key, max_steps=max_steps)
        return cls(centres, profile, mean_distance(x) if scale is None else scale)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " N"]:
        """Return the functions at one state."""
        x = one_state(x, self.centres.shape[1])
        square = jnp.sum((x[None] - self.centres.astype(x.dtype)) ** 2, axis=1) / self.scale.astype(x.dtype) ** 2
        return radial(self.profile, square)

    def supremum(self) -> Float[Array, " N"]:
        r"""Return ones, $\phi(0) = 1$."""
        return jnp.ones(len(self.centres), self.centres.dtype)

    def lipschitz(self) -> Float[Array, " N"]:
        r"""Return $\max|\phi'|/d$."""
        return jnp.full(len(self.centres), SLOPES[self.profile] / self.scale)


def radial(profile: Profile, square: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the profile at a squared distance, with the derivative 0 at 0 (where some profiles have a kink)."""
    if profile == "gaussian":
        return jnp.exp(-square)
    if profile == "lorentzian":
        return 1 / (1 + square)
    positive = square > 0
    t = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
    if profile == "matern32":
        return (1 + math.sqrt(3) * t) * jnp.exp(-math.sqrt(3) * t)
    if profile == "matern52":
        return (1 + math.sqrt(5) * t + 5 / 3 * square) * jnp.exp(-math.sqrt(5) * t)
    return jnp.exp(-2 * t if profile == "exponential" else -t)


def mean_distance(x: Float[Array, "M d"]) -> Float[Array, ""]:
    """Return the mean distance of points from their mean."""
    return jnp.mean(jnp.linalg.norm(x - jnp.mean(x, axis=0, keepdims=True), axis=1))


def kmeans(
    x: Float[Array, "M d"], num: int, *, key: PRNGKeyArray, max_steps: int = 20, block: int = 2048
) -> Float[Array, "N d"]:
    r"""Return the means of $k$-means clusters, by Lloyd's steps from a $k$-means++ start.

    **Arguments:**

    - `x`: points `[M, d]`.
    - `num`: the number of clusters, at most `M`.
    - `key`: draws the start.
    - `max_steps`: the largest number of steps; fewer if no point changes its cluster.
    - `block`: the number of points whose distances to all means are held at a time.

    **Returns:** the means `[num, d]`. A cluster that loses all its points keeps its mean.

    **Raises:** `ValueError` if `num` is not in `1 .. M`.

    !!! Example

        ```python
        kmeans(x, 100, key=jr.key(0))
        ```
    """
    if x.ndim != 2 or not 1 <= num <= len(x):
        raise ValueError(f"`num` must be in 1 .. M for `x` of shape [M, d]; got {num} and {list(x.shape)}")
    # Distances are computed by products, so the origin is moved to where the points are.
    origin = jnp.mean(x, axis=0, keepdims=True)
    return _lloyd(x - origin, num, key, max_steps, min(block, len(x))) + origin


@ft.partial(jax.jit, static_argnums=(1, 3, 4))
def _lloyd(x: Array, num: int, key: PRNGKeyArray, max_steps: int, block: int) -> Array:
    pad = -len(x) % block
    blocks = jnp.pad(x, ((0, pad), (0, 0))).reshape(-1, block, x.shape[1])

    def assign(centres: Array) -> Int[Array, " M"]:
        norms = jnp.sum(centres**2, axis=1) / 2
        return jax.lax.map(lambda b: jnp.argmin(norms[None] - b @ centres.T, axis=1), blocks).reshape(-1)[: len(x)]

    def step(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        centres, labels, count, _ = state
        sums = jax.ops.segment_sum(x, labels, num)
        sizes = jax.ops.segment_sum(jnp.ones_like(x[:, 0]), labels, num)[:, None]
        centres = jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1), centres)
        new = assign(centres)
        return centres, new, count + 1, jnp.any(new != labels)

    start = _plus_plus(x, num, key)
    state = (start, assign(start), jnp.asarray(0), jnp.asarray(True))
    return jax.lax.while_loop(lambda s: (s[2] < max_steps) & s[3], step, state)[0]


def _plus_plus(x: Array, num: int, key: PRNGKeyArray) -> Array:
    """Draw each centre with probability proportional to the squared distance from those before."""
    first, key = jr.split(key)
    centre = x[jr.randint(first, (), 0, len(x))]
    square = jnp.sum((x - centre[None]) ** 2, axis=1)

    def body(j: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        centres, square = state
        # Where fewer than `num` points are distinct all weights vanish, and the draw is uniform.
        total = jnp.cumsum(jnp.where(jnp.any(square > 0), square, jnp.ones_like(square)))
        u = jr.uniform(jr.fold_in(key, j), dtype=x.dtype) * total[-1]
        centre = x[jnp.minimum(jnp.searchsorted(total, u, side="right"), len(x) - 1)]
        return centres.at[j].set(centre), jnp.minimum(square, jnp.sum((x - centre[None]) ** 2, axis=1))

    centres = jnp.zeros((num, x.shape[1]), x.dtype).at[0].set(centre)
    return jax.lax.fori_loop(1, num, body, (centres, square))[0]
