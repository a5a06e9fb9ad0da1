from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Float


def perp_grad(*, rescale: bool = True) -> optax.GradientTransformation:
    r"""Remove from every gradient its component along the parameters (perpGrad), as an Optax transformation.

    For each tensor $g_\perp = g - \frac{\langle w, g\rangle}{\langle w, w\rangle} w$, then scaled to the norm of $g$.
    Once the training data are fitted, the gradient of cross-entropy mostly scales the logits up along $w$; this leaves
    that out. Chain it in front of any optimiser; its update needs `params`.

    **Arguments:**

    - `rescale`: give the projection the norm of the gradient, as its authors do. A gradient that is along the
        parameters up to rounding becomes zero.

    **Returns:**

    An `optax.GradientTransformation`.

    **Raises:**

    `ValueError` in the update if `params` is not given.

    !!! Example

        ```python
        optimiser = optax.chain(neuralcollapse.numerics.perp_grad(), optax.adam(1e-3))
        ```

    ??? cite "Reference"

        Prieto et al., "Grokking at the Edge of Numerical Stability", arXiv:2501.04697; its code calls it OrthoGrad.
    """

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("`perp_grad` projects against the parameters: call `update(grads, state, params)`.")

        def leaf(g, w):
            return None if g is None else _perpendicular(g, w, rescale)

        return jtu.tree_map(leaf, updates, params, is_leaf=lambda x: x is None), state

    return optax.GradientTransformation(init, update)


class Alignment(eqx.Module):
    """How far an update is naive loss minimisation: scaling the parameters up.

    **Attributes:**

    - `cosine`: the cosine of minus the gradient with the parameters, for each tensor, structured like them. One: the
        step only scales the tensor up.
    - `explained`: its square: the fraction of the squared step that is along the tensor.
    - `total_cosine`, `total_explained`: the same for all parameters as one vector.
    """

    cosine: Any
    explained: Any
    total_cosine: Float[Array, ""]
    total_explained: Float[Array, ""]


def nlm_alignment(grads: Any, params: Any) -> Alignment:
    """Measure the alignment of minus the gradient with the parameters (naive loss minimisation), for each tensor.

    **Arguments:**

    - `grads`: gradients, or minus an optimiser's updates.
    - `params`: parameters, of the same structure; `None` leaves are left out.

    **Returns:**

    A [`neuralcollapse.numerics.Alignment`][]; where either vector is zero the cosine is zero.

    !!! Example

        ```python
        neuralcollapse.numerics.nlm_alignment(jax.grad(loss)(params), params).total_cosine
        ```
    """
    if jtu.tree_structure(grads) != jtu.tree_structure(params):
        raise ValueError("`grads` must have the structure of `params`.")
    products = jtu.tree_map(_products, grads, params)
    cosine = jtu.tree_map(_cosine, products, is_leaf=lambda x: isinstance(x, _Products))
    leaves = jtu.tree_leaves(products, is_leaf=lambda x: isinstance(x, _Products))
    if not leaves:
        raise ValueError("`params` has no arrays.")
    total = _cosine(jtu.tree_map(lambda *parts: sum(parts[1:], parts[0]), *leaves))
    return Alignment(cosine, jtu.tree_map(jnp.square, cosine), total, total**2)


class _Products(eqx.Module):
    cross: Array
    grad: Array
    param: Array


def _products(g, w) -> _Products:
    g, w = _single(g), _single(w)
    return _Products(-jnp.sum(g * w), jnp.sum(g * g), jnp.sum(w * w))


def _cosine(p: _Products) -> Array:
    scale = jnp.sqrt(p.grad) * jnp.sqrt(p.param)
    return jnp.where(scale > 0, p.cross / jnp.where(scale > 0, scale, 1), 0)


def _perpendicular(g: Array, w: Array, rescale: bool) -> Array:
    dtype = g.dtype
    # Half precision would under- and overflow in the squares.
    g, w = _single(g), _single(w)
    size = jnp.max(jnp.abs(w), initial=0)
    unit = w / jnp.where(size > 0, size, 1)
    square = jnp.sum(unit * unit)
    rest = g - jnp.sum(unit * g) / jnp.where(square > 0, square, 1) * unit
    if rescale:
        before, after = jnp.linalg.norm(g), jnp.linalg.norm(rest)
        # What is left of a gradient along w is rounding, and must not be blown up to a step.
        real = after > 8 * jnp.finfo(g.dtype).eps * before
        rest = jnp.where(real, rest * (before / jnp.where(real, after, 1)), 0)
    return jax.lax.convert_element_type(rest, dtype)


def _single(x: Array) -> Array:
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
