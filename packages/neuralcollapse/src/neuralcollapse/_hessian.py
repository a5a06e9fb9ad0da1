from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float


# A scalar loss of the parameters, or a symmetric operator on a space of any structure.
Curvature: TypeAlias = Callable[[Any], Array] | lx.AbstractLinearOperator


def hessian(loss: Callable[[Any], Array], params: Any) -> lx.FunctionLinearOperator:
    """Return the Hessian of a loss as a matrix-free symmetric Lineax operator on pytrees like the parameters.

    **Arguments:**

    - `loss`: the loss of the parameters, a scalar.
    - `params`: where, a pytree of floating-point arrays.

    **Returns:**

    A `lineax.FunctionLinearOperator`. A product costs about two gradients; the gradient is linearised once.

    !!! Example

        ```python
        operator = neuralcollapse.sharpness.hessian(lambda w: jnp.sum(w**4), jnp.array([1.0, 2.0]))
        operator.mv(jnp.array([1.0, 0.0]))  # [12., 0.]
        ```
    """
    _, push = jax.linearize(jax.grad(loss), params)
    return lx.FunctionLinearOperator(push, jax.eval_shape(lambda: params), lx.symmetric_tag)


def gauss_newton(
    model: Callable[[Any], Array], loss: Callable[[Array], Array], params: Any
) -> lx.FunctionLinearOperator:
    r"""Return the generalised Gauss-Newton matrix $J^\top \nabla^2\ell\, J$ as a matrix-free Lineax operator.

    At an interpolating minimum it is the Hessian. It is positive semidefinite where `loss` is convex in the outputs.

    **Arguments:**

    - `model`: outputs as a function of the parameters, an array.
    - `loss`: the scalar loss as a function of the outputs, convex.
    - `params`: where.

    **Returns:**

    A `lineax.FunctionLinearOperator`, tagged positive semidefinite.

    !!! Example

        ```python
        operator = neuralcollapse.sharpness.gauss_newton(
            lambda w: x @ w, lambda z: jnp.mean((z - y) ** 2) / 2, w
        )
        ```
    """
    out, push = jax.linearize(model, params)
    pull = jax.linear_transpose(push, params)
    _, curve = jax.linearize(jax.grad(loss), out)
    structure = jax.eval_shape(lambda: params)
    return lx.FunctionLinearOperator(lambda v: pull(curve(push(v)))[0], structure, lx.positive_semidefinite_tag)


def flat_product(
    fn: Curvature, params: Any
) -> tuple[Callable[[Float[Array, " n"]], Float[Array, " n"]], int, Any, Callable[[Array], Any]]:
    """Return the product as a function of flat vectors, their size and dtype, and the way back to the structure."""
    if isinstance(fn, lx.AbstractLinearOperator):
        if params is not None:
            raise ValueError("`params` goes with a loss, not with an operator: leave it out.")
        operator = lx.linearise(fn)
    elif callable(fn):
        if params is None:
            raise ValueError("`params` is missing: where is the Hessian of the loss to be taken?")
        out = jax.eval_shape(fn, params)
        if getattr(out, "shape", None) != ():
            raise ValueError(f"the loss must return a scalar array; got {out}.")
        operator = hessian(fn, params)
    else:
        raise TypeError(f"expected a loss or a Lineax operator; got {type(fn).__name__}.")
    if not (lx.is_symmetric(operator) or lx.is_positive_semidefinite(operator)):
        raise ValueError(
            "the operator must be tagged symmetric: `lineax.TaggedLinearOperator(op, lineax.symmetric_tag)`."
        )
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), operator.in_structure())
    flat, unravel = jfu.ravel_pytree(zeros)
    if flat.size == 0:
        raise ValueError("`params` has no entries.")

    def product(v):
        return jfu.ravel_pytree(operator.mv(unravel(v)))[0]

    return product, flat.size, flat.dtype, unravel
