import dataclasses
import functools as ft
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx

from ._block import BatchedOperator


Carry = TypeVar("Carry")

# Compiling costs the loop's body once a stage, so there are few, and each is a quarter of the one before.
_STAGES = 4
_RATIO = 4


def loop(
    cond_fn: Callable[[Carry], Any], body_fn: Callable[[Carry], Carry], carry: Carry, *, compact: bool = False
) -> Carry:
    """Run a `jax.lax.while_loop`; with `compact`, one that `vmap` turns into a shrinking batch.

    Under `vmap` a `while_loop` works on the whole batch until the slowest example is done. With `compact` it goes on to a
    quarter of the batch as soon as no more than a quarter is still going, and so forth; the iterates are the same.
    """
    if not compact:
        return jax.lax.while_loop(cond_fn, body_fn, carry)
    # A rule for `vmap` sees only what is passed to it: captured arrays become arguments.
    cond_fn = eqx.filter_closure_convert(cond_fn, carry)
    body_fn = eqx.filter_closure_convert(body_fn, carry)
    dynamic, static = eqx.partition((cond_fn, body_fn), eqx.is_array)
    leaves, treedef = jtu.tree_flatten(carry)

    def run(fns, leaves):
        cond_fn, body_fn = eqx.combine(fns, static)
        wrapped = lambda leaves: jtu.tree_leaves(body_fn(jtu.tree_unflatten(treedef, leaves)))
        return jax.lax.while_loop(lambda leaves: cond_fn(jtu.tree_unflatten(treedef, leaves)), wrapped, leaves)

    solo = jax.custom_batching.custom_vmap(run)

    @solo.def_vmap
    def _(axis_size, in_batched, fns, leaves):
        axes, batched = jtu.tree_map(lambda flag: 0 if flag else None, in_batched[0]), in_batched[1]
        leaves = [
            x if flag else jnp.broadcast_to(x, (axis_size, *x.shape)) for x, flag in zip(leaves, batched, strict=True)
        ]

        def one(which, fns, leaves):
            return eqx.combine(fns, static)[which](jtu.tree_unflatten(treedef, leaves))

        cond_of = jax.vmap(ft.partial(one, 0), in_axes=(axes, 0))
        body_of = jax.vmap(lambda fns, leaves: jtu.tree_leaves(one(1, fns, leaves)), in_axes=(axes, 0))
        out = _compacted(cond_of, body_of, fns, axes, leaves, axis_size)
        return out, [True] * len(out)

    return jtu.tree_unflatten(treedef, solo(dynamic, leaves))


def _compacted(cond_of, body_of, fns, axes, leaves, size):
    """Run the loop of every example of a batch to its end."""
    sizes = [size]
    while len(sizes) < _STAGES and sizes[-1] > _RATIO:
        sizes.append(-(-sizes[-1] // _RATIO))
    out, index = leaves, jnp.arange(size)
    active = cond_of(fns, leaves)
    for stage, enough in enumerate([*sizes[1:], 0]):
        if stage > 0:
            # Those that still go come first; the sort is stable, so their order does not depend on the stage.
            chosen = jnp.argsort(~active, stable=True)[: sizes[stage]]
            take = lambda leaf, chosen=chosen: leaf[chosen]
            index, active, *leaves = map(take, (index, active, *leaves))
            fns = jtu.tree_map(lambda leaf, axis, take=take: leaf if axis is None else take(leaf), fns, axes)

        def step(carry, fns=fns):
            active, leaves = carry
            keep = lambda u, v: jnp.where(jnp.reshape(active, (-1,) + (1,) * (u.ndim - 1)), u, v)
            leaves = list(map(keep, body_of(fns, leaves), leaves))
            return active & cond_of(fns, leaves), leaves

        go_on = lambda carry, enough=enough: jnp.sum(carry[0]) > enough
        active, leaves = jax.lax.while_loop(go_on, step, (active, leaves))
        out = [o.at[index].set(leaf, unique_indices=True) for o, leaf in zip(out, leaves, strict=True)]
    return out


# On a CPU, the bytes of an example's operator from which one example after the other is faster: see the benchmark K3.
_MAP_BYTES = 49_152


def solve(
    solver: lx.AbstractLinearSolver | Callable[[lx.AbstractLinearOperator], lx.AbstractLinearSolver],
    operators: lx.AbstractLinearOperator,
    b: Any,
    strategy: Literal["auto", "vmap", "compact", "map"] = "auto",
    *,
    shared: bool = False,
    options: dict[str, Any] | None = None,
    throw: bool = True,
) -> lx.Solution:
    r"""Solve a batch of systems, each to its own end.

    Under `jax.vmap` an iterative solve goes on with the whole batch until the slowest example is done. This takes the
    same iterates, at a cost nearer to the sum of the steps. It is differentiable as `lineax.linear_solve` is, and
    works under `jit` and further `vmap`.

    **Arguments:**

    - `solver`: a Lineax solver; or a function that makes one of the operator of an example, for instance
        `lambda operator: PCG(precond=precond.jacobi(operator))`.
    - `operators`: an operator whose arrays have a leading batch axis, as `equinox.filter_vmap` makes it, or an
        [`implicit_core.operators.BatchedOperator`][]; or one operator for all, with `shared=True`.
    - `b`: the right-hand sides, a pytree of arrays with a leading batch axis.
    - `strategy`: `"vmap"`; `"compact"`, which drops to a quarter of the batch when no more than a quarter still goes on
        (up to three times; it compiles that much longer; solvers of `implicit_core.krylov` only); `"map"`, one
        example after the other; or `"auto"`: on CPU `"map"` if the operator of an example is larger than 48 KiB, else
        `"compact"`; solvers of Lineax `"vmap"`.
    - `shared`: whether all examples have the same operator.
    - `options`, `throw`: as for `lineax.linear_solve`; the same options for all examples.

    **Returns:**

    A `lineax.Solution`, each of whose arrays has a leading batch axis; `state` is `None`.

    **Raises:**

    `ValueError` for an unknown strategy, `"compact"` with a solver that is not ours, or arrays without a common batch axis.

    !!! Example

        ```python
        operators = eqx.filter_vmap(lambda a: lx.MatrixLinearOperator(a, lx.positive_semidefinite_tag))(matrices)
        solution = batched.solve(PCG(rtol=1e-6), operators, b)
        solution.stats["num_steps"]  # one number an example
        ```
    """
    if strategy not in ("auto", "vmap", "compact", "map"):
        raise ValueError(f'`strategy` must be "auto", "vmap", "compact" or "map"; got {strategy!r}')
    if isinstance(operators, BatchedOperator):
        operators = operators.operator
    dynamic, static = eqx.partition(operators, eqx.is_array)
    sizes = {leaf.shape[:1] for leaf in jtu.tree_leaves((b, () if shared else dynamic))}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(f"`operators` and `b` must have one leading batch axis; got leading sizes {sorted(sizes)}")
    make = solver if not isinstance(solver, lx.AbstractLinearSolver) else lambda _: solver

    def one(dynamic, b):
        operator = eqx.combine(dynamic, static)
        chosen = make(operator)
        if strategy == "compact" or (strategy == "auto" and _compactable(chosen)):
            chosen = _compact(chosen)
        solution = lx.linear_solve(operator, b, chosen, options=options, throw=throw)
        return solution.value, solution.result, solution.stats

    if strategy == "auto" and not shared and jax.default_backend() == "cpu":
        bytes_each = sum(leaf.nbytes for leaf in jtu.tree_leaves(dynamic)) // next(iter(sizes))[0]
        strategy = "map" if bytes_each > _MAP_BYTES else "auto"
    if strategy == "map":
        out = jax.lax.map(lambda xs: one(dynamic if shared else xs[0], xs[1]), ((), b) if shared else (dynamic, b))
    else:
        out = jax.vmap(one, in_axes=(None if shared else 0, 0))(dynamic, b)
    value, result, stats = out
    return lx.Solution(value=value, result=result, stats=stats, state=None)


def _compactable(solver: Any) -> bool:
    return hasattr(solver, "compact") or (hasattr(solver, "inner") and _compactable(solver.inner))


def _compact(solver: Any) -> Any:
    if hasattr(solver, "compact"):
        return dataclasses.replace(solver, compact=True)
    if _compactable(solver):
        return dataclasses.replace(solver, inner=_compact(solver.inner))
    raise ValueError(f'`strategy="compact"` needs a solver of `implicit_core.krylov`; got `{type(solver).__name__}`')
