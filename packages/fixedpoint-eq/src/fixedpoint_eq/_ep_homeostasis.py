from typing import Any, Literal

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from implicit_core.krylov import tree_dot
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._ep_field import AbstractVectorField
from ._misc import tree_sub


def homeostatic_loss(
    field: AbstractVectorField,
    params: Any,
    r0: PyTree[Array],
    *,
    key: PRNGKeyArray,
    draws: int = 5,
    form: Literal["jvp-jvp", "antisymmetric"] = "jvp-jvp",
    x: Any = None,
) -> Float[Array, ""]:
    r"""Estimate $2\lVert A\rVert_F^2/n$, the asymmetry of the Jacobian of the drive: the loss of Jacobian homeostasis.

    Added to the gradient of the task it pulls the Jacobian towards symmetry, where plain equilibrium propagation is
    exact. Symmetric parts do not contribute. The free state is a constant to it.

    **Arguments:**

    - `field`, `params`: the dynamics. The loss is differentiable in `params`.
    - `r0`: activities at the free equilibria, with a leading batch axis.
    - `key`: a random key.
    - `draws`: how many random vectors to average over, for each sample.
    - `form`: `"jvp-jvp"` is $(|J\epsilon|^2 - \epsilon^\top J J \epsilon)/n$ with Gaussian $\epsilon$, which needs
        forward products alone; `"antisymmetric"` is $|(J - J^\top)\epsilon|^2/(2n)$ with signs $\epsilon$, a JVP and a
        VJP, which is never negative, zero at symmetry, and of a lower variance.
    - `x`: the inputs, where the Jacobian depends on them beyond the state. Those of
        [`fixedpoint_eq.ep.Network`][] do not.

    **Returns:**

    The mean over batch and draws.

    **Raises:**

    `ValueError` for an unknown form, or no draws.

    !!! Example

        ```python
        r0 = jax.vmap(field.activation)(info.state)
        jax.grad(lambda params: ep.homeostatic_loss(field, params, r0, key=key))(params)
        ```

    ??? cite "Reference"

        Laborieux and Zenke, "Improving equilibrium propagation without weight symmetry through Jacobian homeostasis",
        arXiv:2309.02214, (12). The division by $n$ is that of their code; the second form is ours.
    """
    if form not in ("jvp-jvp", "antisymmetric"):
        raise ValueError(f'`form` must be "jvp-jvp" or "antisymmetric"; got {form!r}')
    if draws < 1:
        raise ValueError(f"`draws` must be at least one; got {draws}")
    r0 = jax.lax.stop_gradient(r0)

    def one(r, x, key):
        n = sum(leaf.size for leaf in jtu.tree_leaves(r))
        # The leak, -r, adds to both forms what cancels in them.
        _, push = jax.linearize(lambda r: field.drive(params, r, x), r)

        def draw(key):
            leaves, treedef = jtu.tree_flatten(r)
            sampler = jr.normal if form == "jvp-jvp" else jr.rademacher
            keys = jr.split(key, len(leaves))
            noise = [sampler(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
            eps = jtu.tree_unflatten(treedef, noise)
            image = push(eps)
            if form == "jvp-jvp":
                return (tree_dot(image, image) - tree_dot(eps, push(image))) / n
            skew = tree_sub(image, jax.linear_transpose(push, r)(eps)[0])
            return tree_dot(skew, skew) / (2 * n)

        return jnp.mean(jax.vmap(draw)(jr.split(key, draws)))

    size = jtu.tree_leaves(r0)[0].shape[0]
    return jnp.mean(jax.vmap(one, in_axes=(0, None if x is None else 0, 0))(r0, x, jr.split(key, size)))
