import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, PRNGKeyArray

from ._certificate import Certificate
from ._custom_types import RealScalar, Vector
from ._misc import real_dtype, same_structure, tree_axpy, tree_norm
from ._operator import matmul, ravel, unravel


def residual(
    operator: lx.AbstractLinearOperator, x: Vector, b: Vector, *, lower_bound: RealScalar | None = None
) -> Certificate:
    r"""Certify a solution of a linear system from any solver: one product with the operator.

    **Arguments:**

    - `operator`, `x`, `b`: the system and its claimed solution.
    - `lower_bound`: a positive number that is known to be at most the smallest singular value of the operator. With it the
        certificate holds a bound on the error, $\lVert x - x_*\rVert_2 \le \lVert b - A x\rVert_2 / \text{lower\_bound}$.

    **Raises:**

    `ValueError` if `x` or `b` does not have the operator's structure.

    !!! Example

        ```python
        residual(operator, x, b, lower_bound=ridge).error_upper
        ```
    """
    for name, vector, structure in (("x", x, operator.in_structure()), ("b", b, operator.out_structure())):
        if not same_structure(jax.eval_shape(lambda v=vector: v), structure):
            raise ValueError(f"`{name}` must have the operator's structure {structure}; got {vector}")
    r = tree_axpy(-jnp.ones((), real_dtype(b)), operator.mv(x), b)
    rnorm, bnorm = tree_norm(r), tree_norm(b)
    relres = rnorm / jnp.where(bnorm > 0, bnorm, 1)
    known = () if lower_bound is None else ("`lower_bound` is at most the smallest singular value",)
    return Certificate(
        quantity="relative residual |b - A x| / |b|",
        value=relres,
        kind="proved",
        assumptions=("up to the rounding of one product with the operator", *known),
        true_relres=relres,
        error_upper=None if lower_bound is None else rnorm / jnp.asarray(lower_bound, rnorm.dtype),
        error_norm=None if lower_bound is None else "2-norm",
    )


def condition(operator: lx.AbstractLinearOperator, *, key: PRNGKeyArray, num_steps: int = 50) -> Certificate:
    r"""Estimate the condition number of any operator from below, by products with it and its transpose.

    Golub-Kahan bidiagonalisation from a random vector, with full orthogonalisation: the extreme singular values of
    the bidiagonal matrix lie inside those of the operator, and on them when `num_steps` reaches the size. The largest is
    found in a few steps; the smallest of an ill-conditioned operator may take as many as there are unknowns.

    **Arguments:**

    - `operator`: any operator, square or not.
    - `key`: for the random vector.
    - `num_steps`: at most this many products with each; memory for twice as many vectors.

    **Returns:**

    A certificate with `value` and `cond_estimate` the estimate, of kind `"estimated"`; infinite for a singular operator.

    !!! Example

        ```python
        condition(operator, key=jax.random.key(0)).value
        ```

    ??? cite "Reference"

        Golub and Kahan, SIAM J. Numer. Anal. B 2 (1965).
    """
    sizes = [sum(leaf.size for leaf in jtu.tree_leaves(s)) for s in (operator.in_structure(), operator.out_structure())]
    # B is square, so it must start in the smaller space: else a null space would go unseen.
    forward = lx.linearise(operator if sizes[0] <= sizes[1] else operator.T)
    steps = min(num_steps, *sizes)
    adjoint = lx.conj(forward.T)
    structures = forward.in_structure(), forward.out_structure()
    v = ravel(jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), structures[0]))
    V = jnp.zeros((steps + 1, v.size), v.dtype).at[0].set(_unit(jr.normal(key, v.shape, v.dtype))[0])
    U = jnp.zeros((steps + 1, max(sizes)), v.dtype)
    apply = lambda op, vector, structure: ravel(op.mv(unravel(vector, structure)))

    def step(k, carry):
        U, V, B = carry
        u, alpha = _unit(_reject(U, apply(forward, V[k], structures[0])))
        U = U.at[k].set(u)
        v, beta = _unit(_reject(V, apply(adjoint, u, structures[1])))
        # Where the space is invariant, go on from a new vector: the rest of the spectrum is outside of it.
        fresh, _ = _unit(_reject(V, jr.normal(jr.fold_in(key, k), v.shape, v.dtype)))
        v = jnp.where(beta > 0, v, fresh)
        B = B.at[k, k].set(alpha).at[k, k + 1].set(beta, mode="drop")
        return U, V.at[k + 1].set(v), B

    _, _, B = jax.lax.fori_loop(0, steps, step, (U, V, jnp.zeros((steps, steps), real_dtype(v))))
    values = jnp.linalg.svd(B, compute_uv=False)
    eps = float(jnp.finfo(values.dtype).eps)
    estimate = jnp.where(values[-1] > eps * values[0], values[0] / values[-1], jnp.inf)
    return Certificate(
        quantity="condition number, from below",
        value=estimate,
        kind="estimated",
        assumptions=(f"seen by {steps} steps of bidiagonalisation from a random vector",),
        cond_estimate=estimate,
    )


def _unit(x: Array) -> tuple[Array, Array]:
    norm = jnp.linalg.norm(x)
    return x / jnp.where(norm > 0, norm, 1).astype(x.dtype), norm


def _reject(rows: Array, x: Array) -> Array:
    size = jnp.linalg.norm(x)
    for _ in range(2):
        x = x - matmul(matmul(rows.conj(), x), rows)
    # Nothing but rounding is left where the space is invariant.
    return jnp.where(jnp.linalg.norm(x) > 10 * float(jnp.finfo(size.dtype).eps) * size, x, 0)
