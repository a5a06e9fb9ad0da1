from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from implicit_core.krylov import stack_combine, stack_dot, tree_axpy, tree_norm
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._misc import stack_like, stack_put, tree_sub, tree_where
from ._solver import AbstractSolver, Evaluation


_DAMPED = 0.1  # of an update's effect on B along the step, at least
_GROWTH = 10  # by how much the residual may grow over the smallest one before the updates are forgotten


class _Updates(eqx.Module):
    u: Any
    v: Any
    count: Int[Array, ""]
    y: Any
    g: Any
    started: Bool[Array, ""]


class Broyden(AbstractSolver):
    r"""Broyden's method with limited memory, on $G(z) = f(z) - z$.

    The inverse of the Jacobian of $G$ is $B = -I + U V^*$, so the first step is that of Picard, and $z \leftarrow z - B G$.
    For a step $s$ that changed $G$ by $y$ the next $B$ is $B + (s - B y) w^* / (w^* y)$ with $w = B^* s$, the *good* update,
    damped as by Powell where it would make $B$ nearly singular.
    When `memory` updates are there, or the residual has grown tenfold over the smallest one, all are forgotten. One
    evaluation of the map a step.

    **Arguments:**

    - `rtol`, `atol`, `norm`: as for [`fixedpoint_eq.Picard`][].
    - `memory`: how many updates to keep. Memory is that of twice as many states.

    **Raises:**

    `ValueError` for a negative tolerance or a `memory` below one.

    !!! Example

        ```python
        fpe.solve(fn, z0, args, fpe.Broyden(rtol=1e-8))
        ```

    ??? cite "Reference"

        Bai, Kolter and Koltun, "Deep equilibrium models", arXiv:1909.01377, section 3.1.3.
    """

    rtol: float = 1e-6
    atol: float = 1e-8
    memory: int = eqx.field(default=20, static=True)
    norm: Callable[[PyTree], Float[Array, ""]] = eqx.field(default=tree_norm, static=True, kw_only=True)

    def __check_init__(self):
        if self.memory < 1:
            raise ValueError(f"`memory` must be at least 1; got {self.memory}")

    def _remember(self, y: Any) -> _Updates:
        zero = jtu.tree_map(jnp.zeros_like, y)
        stack = stack_like(y, self.memory)
        return _Updates(stack, stack, jnp.zeros((), jnp.int32), zero, zero, jnp.array(False))

    def _next(self, fn: Callable[[Any, Any], Any], at: Evaluation, args: Any, memory: _Updates) -> tuple[Any, _Updates]:
        del fn, args
        s, change = tree_sub(at.y, memory.y), tree_sub(at.g, memory.g)
        # B y = -y + U (V* y), and w = B* s = -s + V (U* s).
        image = tree_sub(stack_combine(stack_dot(memory.v, change), memory.u), change)
        w = tree_sub(stack_combine(stack_dot(memory.u, s), memory.v), s)
        scale = stack_dot(jtu.tree_map(lambda leaf: leaf[None], w), change)[0]
        length = jnp.square(tree_norm(s)).astype(scale.dtype)
        sound = memory.started & jnp.isfinite(scale) & (jnp.abs(length) > 0)
        # Powell's damping: an update after which B would be nearly singular, or huge, is taken in part only.
        gamma = scale / jnp.where(sound, length, 1)
        size = jnp.abs(gamma).astype(gamma.dtype)
        small = jnp.abs(gamma) < _DAMPED
        sign = jnp.where(gamma == 0, 1, gamma / jnp.where(gamma == 0, 1, size))
        theta = jnp.where(small, (1 - _DAMPED * sign) / jnp.where(small, 1 - gamma, 1), 1)
        denominator = length * (theta * gamma + 1 - theta)
        weight = theta / jnp.where(sound, denominator, 1)
        u = jtu.tree_map(lambda a, b: weight.astype(a.dtype) * (a - b), s, image)
        full = (memory.count >= self.memory) | (at.residual > _GROWTH * at.best)
        hit = (jnp.arange(self.memory, dtype=jnp.int32) == memory.count) & sound & ~full
        keep = jnp.where(full, 0, 1)
        stacks = jtu.tree_map(lambda leaf: keep.astype(leaf.dtype) * leaf, (memory.u, memory.v))
        stacks = (stack_put(stacks[0], u, hit), stack_put(stacks[1], w, hit))
        # -B G = G - U (V* G).
        step = tree_sub(at.g, stack_combine(stack_dot(stacks[1], at.g), stacks[0]))
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jtu.tree_leaves(step)]))
        new_y = tree_axpy(1, tree_where(finite, step, at.g), at.y)
        count = jnp.where(full, 0, memory.count + jnp.any(hit).astype(jnp.int32))
        return new_y, _Updates(*stacks, count.astype(jnp.int32), at.y, at.g, jnp.array(True))
