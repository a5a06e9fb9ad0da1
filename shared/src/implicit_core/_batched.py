import functools as ft
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu


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
        leaves = [x if flag else jnp.broadcast_to(x, (axis_size, *x.shape)) for x, flag in zip(leaves, batched)]

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
    for stage, size in enumerate(sizes):
        if stage > 0:
            # Those that still go come first; the sort is stable, so their order does not depend on the stage.
            chosen = jnp.argsort(~active, stable=True)[:size]
            index, active = index[chosen], active[chosen]
            leaves = [leaf[chosen] for leaf in leaves]
            fns = jtu.tree_map(lambda leaf, axis: leaf if axis is None else leaf[chosen], fns, axes)
        enough = sizes[stage + 1] if stage + 1 < len(sizes) else 0

        def go_on(carry, enough=enough):
            return jnp.sum(carry[0]) > enough

        def step(carry, fns=fns):
            active, leaves = carry
            new = body_of(fns, leaves)
            keep = lambda u, v: jnp.where(jnp.reshape(active, (-1,) + (1,) * (u.ndim - 1)), u, v)
            leaves = [keep(u, v) for u, v in zip(new, leaves)]
            return active & cond_of(fns, leaves), leaves

        active, leaves = jax.lax.while_loop(go_on, step, (active, leaves))
        out = [o.at[index].set(leaf, unique_indices=True) for o, leaf in zip(out, leaves)]
    return out
