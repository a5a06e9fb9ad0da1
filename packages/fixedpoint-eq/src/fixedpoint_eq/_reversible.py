from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx
from implicit_core.krylov import stop_gradient, tree_norm
from jaxtyping import Array, Float, Int, PyTree

from ._batch import samples_tag
from ._custom_types import RealScalar
from ._iterate import run
from ._misc import tree_sub, tree_where
from ._solver import AbstractSolver, Evaluation


class _Pair(eqx.Module):
    other: Any  # y of (y, z); z is the state of the solve
    count: Int[Array, ""]  # updates


class Reversible(AbstractSolver):
    r"""Iterate a pair that can be run backwards: $y \leftarrow (1-\beta) y + \beta f(z)$, $z \leftarrow (1-\beta) z + \beta f(y)$.

    Every step can be undone in closed form, so that [`fixedpoint_eq.ReversibleAdjoint`][] has the exact gradient of the
    iterations that were made, with the memory of one. Two evaluations of the map a step. Rounding grows by
    $1/(1-\beta)$ with each step that is undone.

    **Arguments:**

    - `beta`: $\beta$, in $(0, 1)$.
    - `rtol`, `atol`, `norm`: as for [`fixedpoint_eq.Picard`][].

    **Raises:**

    `ValueError` for a negative tolerance or a `beta` outside $(0, 1)$.

    !!! Example

        ```python
        fpe.solve(fn, z0, args, fpe.Reversible(0.8), fpe.ReversibleAdjoint(), max_steps=12, throw=False)
        ```

    ??? cite "Reference"

        McCallum et al., "Reversible deep equilibrium models", arXiv:2509.12917.
    """

    beta: RealScalar = 0.8
    rtol: float = eqx.field(default=1e-6, kw_only=True)
    atol: float = eqx.field(default=1e-8, kw_only=True)
    norm: Callable[[PyTree], Float[Array, ""]] = eqx.field(default=tree_norm, static=True, kw_only=True)

    def __check_init__(self):
        if isinstance(self.beta, int | float) and not 0 < self.beta < 1:
            raise ValueError(f"`beta` must be in (0, 1); got {self.beta}")

    def _remember(self, y: Any) -> _Pair:
        return _Pair(y, jnp.zeros((), jnp.int32))

    def _next(self, fn: Callable[[Any, Any], Any], at: Evaluation, args: Any, memory: _Pair) -> tuple[Any, _Pair]:
        other = _blend(self.beta, memory.other, at.f)
        new = _blend(self.beta, at.y, fn(other, args)[0])
        return new, tree_where(at.done, memory, _Pair(other, memory.count + 1))


def _blend(beta: Any, old: Any, new: Any) -> Any:
    def leaf(a, b):
        weight = jnp.asarray(beta).astype(a.dtype)
        return (1 - weight) * a + weight * b

    return jtu.tree_map(leaf, old, new)


def _unblend(beta: Any, blended: Any, new: Any) -> Any:
    def leaf(a, b):
        weight = jnp.asarray(beta).astype(a.dtype)
        return (a - weight * b) / (1 - weight)

    return jtu.tree_map(leaf, blended, new)


class ReversibleAdjoint(optx.AbstractAdjoint):
    """Differentiate the iterations of [`fixedpoint_eq.Reversible`][] exactly, by undoing them. Reverse mode only.

    The value of the solution is then the last iterate, whose derivative this is, rather than the best one. The first
    guess has a derivative too.

    !!! Example

        ```python
        fpe.solve(fn, z0, args, fpe.Reversible(), fpe.ReversibleAdjoint(), max_steps=12, throw=False)
        ```
    """

    def apply(self, primal_fn: Any, rewrite_fn: Any, inputs: Any, tags: frozenset[object]) -> tuple[Any, Any]:
        """See `optimistix.AbstractAdjoint.apply`."""
        del rewrite_fn
        if primal_fn is not run or not isinstance(inputs[3], Reversible):
            got = "another driver" if primal_fn is not run else f"the solver `{type(inputs[3]).__name__}`"
            raise ValueError(f"`ReversibleAdjoint` needs `fixedpoint_eq.solve` with the solver `Reversible`; got {got}")
        fn, args, y0, solver, *rest = inputs
        lax_loop = lambda cond, body, init, max_steps: eqxi.while_loop(
            cond, body, init, max_steps=max_steps, kind="lax"
        )
        frozen = stop_gradient((fn, args, y0, solver))
        _, (result, progress) = primal_fn((*frozen, *rest, lax_loop))
        pair = progress.state.memory
        final = stop_gradient((pair.other, progress.y, pair.count))
        value = _undone((fn, args, y0), final, stop_gradient(solver.beta))
        # Of the last iterate, which is not the best one unless it met the tolerance.
        norm = jax.vmap(solver.norm) if samples_tag in tags else solver.norm
        residual = norm(tree_sub(frozen[0](final[1], frozen[1])[0], final[1]))
        progress = eqx.tree_at(lambda p: (p.best, p.residual), progress, (final[1], residual))
        return value, stop_gradient((result, progress))


@eqx.filter_custom_vjp
def _undone(differentiable, final, beta):
    del differentiable, beta
    return final[1]


@_undone.def_fwd
def _undone_fwd(perturbed, differentiable, final, beta):
    del perturbed, differentiable, beta
    return final[1], None


@_undone.def_bwd
def _undone_bwd(residuals, cotangent, perturbed, differentiable, final, beta):
    del residuals, perturbed
    fn, args, _y0 = differentiable
    dynamic, static = eqx.partition((fn, args), eqx.is_inexact_array)

    def call(dynamic, z):
        fn, args = eqx.combine(dynamic, static)
        return fn(z, args)[0]

    def body(carry):
        y, z, count, ct_y, ct_z, ct_theta = carry
        active = count > 0
        # z1 = (1 - beta) z0 + beta f(y1): the last half step is undone first.
        f, pull = jax.vjp(call, dynamic, y)
        old_z = _unblend(beta, z, f)
        more, through = pull(_masked(active, beta, ct_z))
        ct_theta, ct_y = _add(ct_theta, more), _add(ct_y, through)
        new_ct_z = _shrunk(active, beta, ct_z)
        # y1 = (1 - beta) y0 + beta f(z0).
        f, pull = jax.vjp(call, dynamic, old_z)
        old_y = _unblend(beta, y, f)
        more, through = pull(_masked(active, beta, ct_y))
        ct_theta, new_ct_z = _add(ct_theta, more), _add(new_ct_z, through)
        new_ct_y = _shrunk(active, beta, ct_y)
        y, z = tree_where(active, (old_y, old_z), (y, z))
        return y, z, count - active.astype(jnp.int32), new_ct_y, new_ct_z, ct_theta

    y, z, count = final
    zeros = lambda tree: jtu.tree_map(jnp.zeros_like, tree)
    ct_z = jtu.tree_map(lambda leaf, ct: jnp.zeros_like(leaf) if ct is None else ct, z, cotangent)
    start = (y, z, count, zeros(y), ct_z, zeros(dynamic))
    *_, ct_y, ct_z, ct_theta = jax.lax.while_loop(lambda carry: jnp.any(carry[2] > 0), body, start)
    ct_fn, ct_args = ct_theta
    return ct_fn, ct_args, _add(ct_y, ct_z)


def _add(x: Any, y: Any) -> Any:
    return jtu.tree_map(jnp.add, x, y)


def _masked(active: Array, beta: Any, ct: Any) -> Any:
    """Return `beta ct` for the samples that go on, zero for the others."""
    scaled = jtu.tree_map(lambda leaf: jnp.asarray(beta).astype(leaf.dtype) * leaf, ct)
    return tree_where(active, scaled, jtu.tree_map(jnp.zeros_like, ct))


def _shrunk(active: Array, beta: Any, ct: Any) -> Any:
    scaled = jtu.tree_map(lambda leaf: (1 - jnp.asarray(beta).astype(leaf.dtype)) * leaf, ct)
    return tree_where(active, scaled, ct)
