import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from .dictionary import AbstractDictionary


class Hats(AbstractDictionary):
    r"""Hat functions on a circle: piecewise linear, 1 at one node and 0 at the others.

    Their sum is 1. They are far from any eigenfunction of a rotation, so that EDMD with random nodes has many false
    eigenvalues: a test for everything that claims to remove them.

    **Arguments:**

    - `nodes`: $N \ge 3$ distinct nodes, at any place modulo the period.
    - `period`: the circumference.

    **Raises:** `ValueError` for fewer than 3 nodes, or two that coincide.

    !!! Example

        ```python
        Hats.random(80, key=jr.key(0))
        ```
    """

    nodes: Float[Array, " N"]
    period: float = eqx.field(static=True)

    def __init__(self, nodes: Any, period: float = 2 * math.pi):
        if not 0 < period < math.inf:
            raise ValueError(f"`period` must be positive; got {period}")
        array = jnp.asarray(nodes, jnp.result_type(float))
        if array.ndim != 1 or array.size < 3:
            raise ValueError(f"`nodes` must hold at least 3 points of the circle; got shape {list(array.shape)}")
        self.nodes = jnp.sort(jnp.mod(array, period))
        self.period = float(period)
        if not isinstance(array, Tracer):
            gaps = np.diff(np.asarray(self.nodes), append=float(self.nodes[0]) + period)
            if gaps.min() <= 0:
                raise ValueError(f"`nodes` must be distinct; two of them are at {self.nodes[int(gaps.argmin())]}")

    @classmethod
    def random(cls, num: int, *, key: PRNGKeyArray, period: float = 2 * math.pi) -> "Hats":
        """Draw `num` nodes independently and uniformly on the circle."""
        return cls(jr.uniform(key, (num,), jnp.result_type(float), 0, period), period)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " N"]:
        """Return the functions at one state, of which the first coordinate is the angle."""
        nodes = self.nodes.astype(x.dtype)
        ahead = jnp.mod(x[0] - nodes, self.period)
        rise, fall = _gaps(nodes, self.period)
        # `ahead` in [0, fall): on the falling side; within `rise` of the period: on the rising side.
        return jnp.maximum(jnp.maximum(1 - ahead / fall, 1 - (self.period - ahead) / rise), 0)

    def supremum(self) -> Float[Array, " N"]:
        """Return ones."""
        return jnp.ones_like(self.nodes)

    def lipschitz(self) -> Float[Array, " N"]:
        """Return the reciprocal of the distance of a node from the nearest other."""
        rise, fall = _gaps(self.nodes, self.period)
        return 1 / jnp.minimum(rise, fall)


def _gaps(nodes: Array, period: float) -> tuple[Array, Array]:
    """Return the distance of each node from the one before and the one after."""
    fall = jnp.diff(nodes, append=nodes[:1] + period)
    return jnp.roll(fall, 1), fall
