from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Bool, Float, Int

from ._batched import loop
from ._custom_types import RealScalar
from ._krylov import AbstractKrylov, Mode, Run
from ._misc import stop_gradient, tree_axpy, tree_dot, tree_scale


class ConjugateDirections(AbstractKrylov):
    r"""Solve a positive definite system along directions from any function, made conjugate to the last few.

    The function is given the residual, normalised, and proposes a direction: a trained network, a multigrid cycle, a
    nonlinear or varying preconditioner. Each step makes it `A`-orthogonal to the last `memory` directions and searches
    exactly along it, so the energy norm of the error falls whatever the function does. A proposal of no use (no positive
    curvature, or orthogonal to the residual) is replaced by the residual. With the identity and `memory=1` this is conjugate
    gradients. Stopping, outcomes and `stats` are those of [`implicit_core.krylov.PCG`][].

    **Arguments:**

    - `direction`: a function of one vector, or a module that is one; it has no derivative here.
    - `rtol`, `atol`, `max_steps`, `mode`, `stagnation`, `dot`: as for [`implicit_core.krylov.PCG`][].
    - `memory`: the number of past directions to be conjugate to. Two is enough for a nonlinear `direction` as a rule;
        a linear, symmetric one needs no more than one.

    **Raises:**

    `ValueError` as [`implicit_core.krylov.PCG`][]; negative definite operators are not accepted.

    !!! Example

        ```python
        lx.linear_solve(operator, b, ConjugateDirections(lambda r: r / diagonal, rtol=1e-6))
        ```

    ??? cite "Reference"

        Kaneda et al., "A Deep Conjugate Direction Method for Iteratively Solving Linear Systems", arXiv:2205.10763,
        Algorithm 1.
    """

    direction: Callable[[Any], Any] = eqx.field(converter=stop_gradient)
    rtol: RealScalar | None = eqx.field(default=None, converter=stop_gradient)
    atol: RealScalar = eqx.field(default=0.0, converter=stop_gradient)
    max_steps: int | None = eqx.field(default=None, static=True)
    mode: Mode = eqx.field(default="strict", static=True)
    memory: int = eqx.field(default=2, static=True)
    stagnation: int = eqx.field(default=50, static=True)
    dot: Callable[[Any, Any], Array] = eqx.field(default=tree_dot, static=True)
    compact: bool = eqx.field(default=False, static=True, kw_only=True)

    _minimises_residual: ClassVar[bool] = False
    _max_rounds: ClassVar[int] = 3
    _progress: ClassVar[float] = 0.5

    def __check_init__(self):
        if self.memory < 0:
            raise ValueError(f"`memory` must be non-negative; got {self.memory}")

    def _prepare(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> tuple[Any, int]:
        del options
        if not lx.is_positive_semidefinite(operator):
            raise ValueError(
                "`ConjugateDirections` needs an operator that is tagged positive semidefinite; if it is, say so with "
                "`lineax.TaggedLinearOperator(operator, lineax.positive_semidefinite_tag)`."
            )
        return None, 1

    def _run(self, mv: Callable[[Any], Any], aux: Any, r: Any, rnorm: Array, tol: Array, max_steps: Array) -> Run:
        del aux

        def active(c: _Carry) -> Array:
            return (c.rnorm > tol) & (c.k < max_steps) & (c.idle < self.stagnation) & ~(c.indefinite | c.nonfinite)

        zero = 0 * rnorm
        none = jtu.tree_map(lambda leaf: jnp.zeros((self.memory, *leaf.shape), leaf.dtype), r)
        count = jnp.zeros((), jnp.int32)
        start = _Carry(
            k=count,
            x=tree_scale(zero, r),
            r=r,
            rnorm=rnorm,
            P=none,
            Q=none,
            curvatures=jnp.zeros(self.memory, rnorm.dtype),
            mark=rnorm,
            energy=zero,
            norm=zero,
            idle=count,
            indefinite=rnorm < 0,
            nonfinite=~jnp.isfinite(rnorm),
            fallbacks=count,
        )
        c = loop(active, lambda c: self._step(c, mv), start, compact=self.compact)
        return Run(c.x, c.rnorm, c.k, c.num_matvecs(), c.norm, jnp.nan * zero, c.indefinite, c.nonfinite)

    def _step(self, c: "_Carry", mv: Callable[[Any], Any]) -> "_Carry":
        r = tree_scale(1 / jnp.where(c.rnorm > 0, c.rnorm, 1), c.r)

        def conjugated(d):
            size = self.dot(d, d)
            d = tree_scale(jax.lax.rsqrt(jnp.where((size > 0) & jnp.isfinite(size), size, 1)), d)
            for i in range(self.memory):
                p, q = (jtu.tree_map(lambda leaf, i=i: leaf[i], tree) for tree in (c.P, c.Q))
                ratio = self.dot(q, d) / jnp.where(c.curvatures[i] > 0, c.curvatures[i], 1)
                d = tree_axpy(-jnp.where(c.curvatures[i] > 0, ratio, 0), p, d)
            return d

        def measure(d):
            q = mv(d)
            return q, self.dot(d, q), self.dot(d, r), self.dot(d, d)

        eps = float(jnp.finfo(c.rnorm.dtype).eps)
        d = conjugated(self.direction(r))
        q, curvature, slope, dd = measure(d)
        useful = (curvature > 0) & (jnp.abs(slope) > eps * jnp.sqrt(dd)) & jnp.isfinite(dd + curvature)
        fallback = conjugated(r)
        d, q, curvature, slope, dd = jax.lax.cond(
            useful, lambda: (d, q, curvature, slope, dd), lambda: (fallback, *measure(fallback))
        )
        finite = jnp.isfinite(curvature) & jnp.isfinite(slope)
        sound = finite & (curvature > 0)
        alpha = jnp.where(sound, c.rnorm * slope / jnp.where(sound, curvature, 1), 0)
        new = tree_axpy(-alpha, q, c.r)
        rnorm = jnp.sqrt(self.dot(new, new))
        gained = c.energy + alpha * c.rnorm * slope
        better = (rnorm < 0.9 * c.mark) | (gained > c.energy * (1 + 16 * eps))

        def put(stack, leaf):
            return stack.at[c.k % self.memory].set(jnp.where(sound, leaf, 0)) if self.memory > 0 else stack

        norm = jnp.where(dd > 0, curvature / jnp.where(dd > 0, dd, 1), 0)
        return _Carry(
            k=c.k + 1,
            x=tree_axpy(alpha, d, c.x),
            r=new,
            rnorm=jnp.where(sound & jnp.isfinite(rnorm), rnorm, c.rnorm),
            P=jtu.tree_map(put, c.P, d),
            Q=jtu.tree_map(put, c.Q, q),
            curvatures=put(c.curvatures, curvature),
            mark=jnp.where(rnorm < 0.9 * c.mark, rnorm, c.mark),
            energy=gained,
            norm=jnp.maximum(c.norm, jnp.where(sound, norm, 0)),
            idle=jnp.where(better, 0, c.idle + 1),
            indefinite=c.indefinite | (finite & ~sound),
            nonfinite=c.nonfinite | ~finite | ~jnp.isfinite(rnorm),
            fallbacks=c.fallbacks + (~useful).astype(jnp.int32),
        )


class _Carry(eqx.Module):
    k: Int[Array, ""]
    x: Any
    r: Any
    rnorm: Float[Array, ""]
    P: Any  # the last directions, stacked
    Q: Any  # A times them
    curvatures: Float[Array, " memory"]  # <p, A p>
    mark: Float[Array, ""]
    energy: Float[Array, ""]
    norm: Float[Array, ""]
    idle: Int[Array, ""]
    indefinite: Bool[Array, ""]
    nonfinite: Bool[Array, ""]
    fallbacks: Int[Array, ""]

    def num_matvecs(self) -> Array:
        return self.k + self.fallbacks
