from typing import Any, Literal, TypeAlias, cast, get_args

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int


Kind: TypeAlias = Literal["iid", "quadrature", "trajectory"]


class Snapshots(eqx.Module):
    r"""Pairs of states, $y_m = F(x_m)$, with the weights of a quadrature rule for the measure $\omega$.

    **Arguments:**

    - `x`, `y`: states and their successors, `[M, d]` (or `[M]` for `d = 1`), real and of one dtype.
    - `weights`: positive quadrature weights `[M]`; `None` is $1/M$ each.
    - `kind`: where the states come from, which decides what may be claimed:
        `"iid"`, drawn independently from $\omega$ (with weights: importance weights);
        `"quadrature"`, the nodes of a rule;
        `"trajectory"`, consecutive states, so dependent.

    **Raises:** `ValueError` for shapes that do not fit, values that are not finite, weights that are not positive, or an
    unknown `kind`. Under `jit` the values are not looked at: [`koopman_verify.factor`][] does.

    !!! Example

        ```python
        x = 2 * jnp.pi * jnp.arange(64)[:, None] / 64
        Snapshots(x, x + 1.0, kind="quadrature")
        ```
    """

    x: Float[Array, "M d"]
    y: Float[Array, "M d"]
    weights: Float[Array, " M"] | None
    kind: Kind = eqx.field(static=True)

    def __init__(self, x: Any, y: Any, weights: Any = None, kind: str = "iid"):
        if kind not in get_args(Kind):
            raise ValueError(f"`kind` must be one of {get_args(Kind)}; got {kind!r}")
        self.x, self.y = _states("x", x), _states("y", y)
        self.weights = None if weights is None else _real("weights", weights).astype(self.x.dtype)
        self.kind = cast(Kind, kind)

    def __check_init__(self):
        if self.x.shape != self.y.shape or self.x.dtype != self.y.dtype:
            raise ValueError(
                "`x` and `y` must have one shape [M, d] and one dtype; got "
                f"{self.x.dtype}{list(self.x.shape)} and {self.y.dtype}{list(self.y.shape)}"
            )
        if self.weights is not None and self.weights.shape != self.x.shape[:1]:
            raise ValueError(f"`weights` must have shape [M] = [{len(self.x)}]; got {list(self.weights.shape)}")
        for name in ("x", "y"):
            _check_finite(name, getattr(self, name))
        if self.weights is not None and not isinstance(self.weights, Tracer):
            w = np.asarray(self.weights)
            if not (np.all(np.isfinite(w)) and np.all(w > 0)):
                m = int(np.argmin(np.where(np.isfinite(w), w, -np.inf)))
                raise ValueError(f"`weights` must be positive and finite; got weights[{m}] = {w[m]}")

    @property
    def num_snapshots(self) -> int:
        """The number of pairs $M$."""
        return len(self.x)

    @classmethod
    def from_trajectory(cls, trajectory: Any, *, delays: int = 1, stride: int = 1) -> "Snapshots":
        r"""Pair each state of a trajectory with the next one, after embedding by delays.

        **Arguments:**

        - `trajectory`: states `[T, d]` (or `[T]`), or several trajectories of one length, `[R, T, d]`.
        - `delays`: the number of states, `stride` apart, that one embedded state holds, oldest first.
        - `stride`: the distance of two states in an embedded state.

        **Returns:** snapshots of states `[M, delays * d]`, of kind `"trajectory"`. Pairs never cross from one
        trajectory to another.

        **Raises:** `ValueError` if a trajectory is too short.
        """
        z = _real("trajectory", trajectory)
        if any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) for n in (delays, stride)):
            raise ValueError(f"`delays` and `stride` must be whole numbers; got {delays!r} and {stride!r}")
        shape = list(z.shape)
        z = z[:, None] if z.ndim == 1 else z
        z = z[None] if z.ndim == 2 else z
        num = z.shape[1] - (delays - 1) * stride - 1 if z.ndim == 3 else 0
        if z.ndim != 3 or delays < 1 or stride < 1 or num < 1:
            raise ValueError(
                f"`trajectory` must be [T, d] or [R, T, d] with T > (delays - 1) * stride + 1 = "
                f"{(delays - 1) * stride + 1}; got shape {shape}"
            )
        rows = jnp.arange(num)[:, None] + stride * jnp.arange(delays)[None]
        embed = lambda shift: z[:, rows + shift].reshape(z.shape[0] * num, delays * z.shape[2])
        return cls(embed(0), embed(1), kind="trajectory")


@eqx.filter_jit
def num_distinct(snapshots: Snapshots, size: int) -> Int[Array, ""]:
    """Return how many of the pairs differ: a pair that occurs twice says nothing twice.

    Of very many, some are looked at, evenly spread. If these all differ, all are taken to differ; if not, what they hold
    is returned, which is never more than all hold, and tells whether there are $10N$ of them for `size` $N$.
    """
    total = snapshots.num_snapshots
    stride = max(1, total // max(2**14, 16 * size))
    both = jax.lax.stop_gradient(jnp.concatenate([snapshots.x[::stride], snapshots.y[::stride]], axis=1))
    # Equal rows have equal sums, so that sorting by a random sum puts them next to each other.
    order = jnp.argsort(both @ jr.uniform(jr.key(0), both.shape[1:], both.dtype))
    count = 1 + jnp.sum(jnp.any(both[order[1:]] != both[order[:-1]], axis=1))
    return jnp.where(count == len(both), total, count)


def _states(name: str, value: Any) -> Array:
    array = _real(name, value)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"`{name}` must have shape [M, d] (or [M] for d = 1); got {list(array.shape)}")
    return array


def _real(name: str, value: Any) -> Array:
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be an array of real numbers; got {type(value).__name__} ({error})") from error
    # Whole numbers are states too; complex states have a real and an imaginary coordinate, which is the user's choice.
    if jnp.issubdtype(array.dtype, jnp.integer):
        return array.astype(jnp.result_type(float))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"`{name}` must be real; got {array.dtype}")
    if jnp.finfo(array.dtype).bits < 32:
        raise ValueError(f"`{name}` must be float32 or float64, as no matrix is factorised in less; got {array.dtype}")
    return array


def _check_finite(name: str, value: Array) -> None:
    if isinstance(value, Tracer):
        return
    finite = np.isfinite(np.asarray(value))
    if not finite.all():
        bad = np.asarray(~finite.all(axis=1))
        raise ValueError(f"`{name}` must be finite; snapshot {int(np.argmax(bad))} of {len(bad)} is not")
