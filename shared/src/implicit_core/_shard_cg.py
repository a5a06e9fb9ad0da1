# Lineax and Optimistix raise inside `jax.shard_map` (lineax#185, diffrax#765): what is here is built on `jax.lax` alone.
import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.extend.core as jexc
import jax.numpy as jnp
import jax.tree_util as jtu

from ._certificate import Certificate
from ._custom_types import IntScalar, RealScalar, Vector
from ._misc import real_dtype, scale_of, tree_axpy, tree_dot, tree_scale
from ._pcg_kernel import pcg
from ._results import RESULTS


class Solution(eqx.Module):
    """What the solvers for `jax.shard_map` return. It may leave `jit`, `vmap` and `shard_map`.

    **Attributes:**

    - `value`: the solution. Only this has a derivative.
    - `result`: an [`implicit_core.RESULTS`][]. These solvers never raise at run time: look here.
    - `stats`: a dictionary of what the method counts and measures.
    """

    value: Any
    result: RESULTS
    stats: dict[str, Any]


def outcome(*cases: tuple[Any, Any]) -> Any:
    """Return the member of the first case whose flag is set, or else `successful`."""
    result: Any = RESULTS.successful
    for flag, member in reversed(cases):
        result = RESULTS.where(flag, member, result)
    return result


def cg(
    mv: Callable[[Vector], Vector],
    b: Vector,
    *,
    axis: str | tuple[str, ...],
    precond_mv: Callable[[Vector], Vector] | None = None,
    rtol: RealScalar | None = None,
    atol: RealScalar = 0.0,
    max_steps: IntScalar = 10_000,
    stagnation: int = 50,
) -> Solution:
    r"""Solve $A x = b$ by preconditioned conjugate gradients inside `jax.shard_map`, the vectors split over devices.

    The loop is [`implicit_core.krylov.pcg`][] with inner products summed over `axis`. This adds a derivative, forward and
    reverse to any order, in `b` and in the arrays that `mv` captures; derivatives solve with the same operator and
    tolerance. Works with either `check_vma`; if it is `True`, captured arrays that are not split cost one more sum over
    devices a solve.

    **Arguments:**

    - `mv`: the product $v \mapsto A v$ with a Hermitian positive definite `A`: from this device's part of `v` its part of
        the result, with whatever communication that needs.
    - `b`: this device's part of the right-hand side, a pytree of arrays that are all split over `axis`.
    - `axis`: the mesh axis, or axes, over which vectors are split.
    - `precond_mv`: the product $v \mapsto M v$, $M \approx A^{-1}$. It has no derivative.
    - `rtol`, `atol`, `max_steps`, `stagnation`: as in [`implicit_core.krylov.pcg`][], of the whole vectors. `rtol=None`
        means `eps ** 0.75` of the dtype.

    **Returns:**

    A [`implicit_core.dist.Solution`][], successful if the *true* residual is within ten times the tolerance. Its `stats`
    hold `num_steps`, `num_matvecs` and a `certificate` on the relative residual, the same on all devices.

    **Raises:**

    As [`implicit_core.krylov.pcg`][] does.

    !!! Example

        ```python
        solve = lambda d, b: dist.cg(lambda v: d * v, b, axis="i").value
        jax.shard_map(solve, mesh=dist.mesh("i"), in_specs=P("i"), out_specs=P("i"))(d, b)
        ```
    """
    for leaf in jtu.tree_leaves(b):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(f"`b` must be of floating point; got a leaf of dtype {leaf.dtype}")
    dtype = real_dtype(b)
    rtol = float(jnp.finfo(dtype).eps) ** 0.75 if rtol is None else rtol
    apply, captured = _explicit(mv, b)
    precondition, frozen = (None, ()) if precond_mv is None else _explicit(precond_mv, b)
    (b, given), restore = _vary((b, (captured, frozen, rtol, atol, max_steps)))

    def dot(u, v):
        return jax.lax.psum(tree_dot(u, v), axis)

    def solve(_, b):
        captured, frozen, rtol, atol, max_steps = restore(given)
        rtol, atol = jnp.asarray(rtol, dtype), jnp.asarray(atol, dtype)
        mv = ft.partial(apply, captured)
        precond_mv = None if precondition is None else ft.partial(precondition, frozen)
        limits: Any = dict(rtol=rtol, atol=atol, max_steps=max_steps, stagnation=stagnation)
        x, info = pcg(mv, b, precond_mv=precond_mv, dot=dot, **limits)
        scale = scale_of(b, dot)
        residual, scaled = tree_scale(1 / scale, (tree_axpy(-jnp.ones((), dtype), mv(x), b), b))
        bnorm = jnp.sqrt(dot(scaled, scaled))
        relative = 1 / jnp.where(bnorm > 0, bnorm, 1)
        relres = jnp.sqrt(dot(residual, residual)) * relative
        # All outputs of `custom_linear_solve` must vary over the same mesh axes.
        return x, vary_like((info, relres, jnp.maximum(rtol, atol / scale * relative)), b)

    x, aux = jax.lax.custom_linear_solve(lambda v: apply(restore(given)[0], v), b, solve, symmetric=True, has_aux=True)
    # The same on all devices already: this says so.
    info, relres, tol = jtu.tree_map(
        lambda leaf: jax.lax.pmax(leaf.astype(jnp.int32) if leaf.dtype == bool else leaf, axis).astype(leaf.dtype),
        jax.lax.stop_gradient(aux),
    )
    result = outcome(
        (info.nonfinite | ~jnp.isfinite(relres), RESULTS.nonfinite),
        (relres <= 10 * tol, RESULTS.successful),
        (info.indefinite, RESULTS.indefinite),
        (info.num_steps >= max_steps, RESULTS.max_steps_reached),
        (relres > 10 * tol, RESULTS.stagnation),
    )
    certificate = Certificate(
        quantity="relative residual |b - A x| / |b|",
        value=relres,
        kind="proved",
        assumptions=("up to the rounding of one product with the operator",),
        true_relres=relres,
        recurrence_relres=info.relres,
        cond_estimate=info.ritz_max / info.ritz_min,
    )
    stats = {"num_steps": info.num_steps, "num_matvecs": info.num_steps + 1, "certificate": certificate}
    return Solution(x, result, stats)


def _explicit(fn: Callable[[Vector], Vector], v: Vector) -> tuple[Callable[[Any, Vector], Vector], list[Any]]:
    """Return `fn` as a function of the arrays that it captures and of its argument, and those arrays."""
    leaves, treedef = jtu.tree_flatten(v)
    closed = jax.make_jaxpr(lambda *leaves: fn(treedef.unflatten(leaves)))(*leaves)

    def explicit(captured, v):
        call = jexc.jaxpr_as_fun(jexc.ClosedJaxpr(closed.jaxpr, captured))
        return treedef.unflatten(call(*jtu.tree_leaves(v)))

    return explicit, list(closed.consts)


def _axes(tree: Any) -> frozenset[str]:
    """Return the mesh axes over which any array of `tree` varies: none outside `shard_map` or with `check_vma=False`."""
    avals: list[Any] = [jax.typeof(leaf) for leaf in jtu.tree_leaves(tree) if eqx.is_array(leaf)]
    return frozenset().union(*(aval.mat.varying if hasattr(aval, "mat") else aval.vma for aval in avals))


def vary_like(tree: Any, reference: Any) -> Any:
    """Return `tree`, its arrays marked as varying over the mesh axes over which any array of `reference` varies.

    The carry of a loop in `jax.shard_map` must have that mark from the start, and a constant does not.
    """
    every = _axes(reference)
    lax: Any = jax.lax
    cast = ft.partial(lax.pcast, to="varying") if hasattr(lax, "pcast") else lax.pvary  # JAX 0.10 renamed it

    def mark(leaf):
        missing = tuple(sorted(every - _axes(leaf)))
        return cast(leaf, missing) if missing and eqx.is_array(leaf) else leaf

    return jtu.tree_map(mark, tree)


def _vary(tree: tuple[Any, Any]) -> tuple[Any, Callable[[Any], Any]]:
    """Mark all arrays as varying over the same mesh axes, and return what undoes that for the second entry of `tree`.

    `custom_linear_solve` casts its inputs to vary alike, but only after it has traced its functions for how they were. So
    it is given all alike, and its functions start with the way back: a sum over devices to which one contributes.
    """
    missing = jtu.tree_map(lambda leaf: sorted(_axes(tree) - _axes(leaf)), tree[1])

    def undo(leaf, axes):
        if not axes or not eqx.is_array(leaf):
            return leaf
        first = ft.reduce(jnp.logical_and, [jax.lax.axis_index(axis) == 0 for axis in axes])
        one = jnp.where(first, leaf, jnp.zeros_like(leaf))
        return jax.lax.psum(one.astype(jnp.int32) if leaf.dtype == bool else one, tuple(axes)).astype(leaf.dtype)

    return vary_like(tree, tree), lambda given: jtu.tree_map(undo, given, missing)
