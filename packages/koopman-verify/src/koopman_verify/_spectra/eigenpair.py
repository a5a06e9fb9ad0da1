from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Complex, Float, Inexact

from .._factor.factor import Factor


_COINCIDE = (
    "The derivative of an eigenpair was asked for where its eigenvalue cannot be told from another one at this precision "
    "(a multiple or defective eigenvalue): it does not exist there. `koopman_verify.loss.invariance_defect` is smooth "
    "everywhere; `koopman_verify.eigenpair` differentiates one pair and does not mind the others."
)


class Sensitivity(eqx.Module):
    r"""How strongly eigenpairs answer a change of the compression $A$.

    **Attributes:**

    - `eigenvalues`: $\lVert w\rVert\lVert u\rVert/|w^*u|$ with the left vector $w$, `[k]`: to first order, an error of
        $A$ moves the eigenvalue by at most this much times its norm. One for a normal $A$, infinite at a defective
        eigenvalue.
    - `systems`: the condition number of the bordered system that gives the derivative of a pair, `[k]`: what is lost in
        solving it. It is infinite at every multiple eigenvalue.

    !!! Example

        ```python
        koopman_verify.sensitivity(factor).eigenvalues.max()
        ```
    """

    eigenvalues: Float[Array, " k"]
    systems: Float[Array, " k"]


def sensitivity(factor: Factor) -> Sensitivity:
    r"""Return the sensitivities of all eigenpairs of a factor, in the order of [`koopman_verify.edmd`][].

    Takes $O(r^4)$ operations: `r` condition numbers of matrices of size `r + 1`.

    **Arguments:**

    - `factor`: from [`koopman_verify.factor`][] or [`koopman_verify.kernel_factor`][].

    **Returns:** a [`koopman_verify.Sensitivity`][].

    !!! Example

        ```python
        trusted = koopman_verify.edmd(factor)[koopman_verify.sensitivity(factor).eigenvalues < 1e3]
        ```
    """
    return _sensitivity(factor.A)


@eqx.filter_jit
def _sensitivity(a: Array) -> Sensitivity:
    values, u = eig(a)

    def one(value: Array, u: Array) -> tuple[Array, Array]:
        bordered = _bordered(a.astype(u.dtype), value, u)
        return _condition_of_eigenvalue(*_solver(bordered)), jnp.linalg.cond(bordered)

    pair, systems = jax.vmap(one, in_axes=(0, 1))(values, u)
    infinite = lambda c: jnp.where(jnp.isnan(c), jnp.inf, c)
    return Sensitivity(infinite(pair), infinite(systems))


@eqx.filter_jit
def eigenpair(
    matrix: Inexact[Array, "r s"], near: float | complex | Inexact[Array, ""]
) -> tuple[Complex[Array, ""], Complex[Array, " s"]]:
    r"""Return the eigenpair closest to a number, differentiable by the equation that it solves.

    The derivative of $(A-\lambda)u=0$, $\lVert u\rVert=1$, is one bordered linear system,

    $$\begin{bmatrix}A-\lambda & u\\ u^* & 0\end{bmatrix}\begin{bmatrix}du\\ -d\lambda\end{bmatrix}
    = \begin{bmatrix}-dA\,u\\ 0\end{bmatrix},$$

    regular exactly if the eigenvalue is simple. Unlike a formula with all eigenvectors, it asks nothing of the other
    pairs. The vector has norm one; its phase is LAPACK's (largest entry real), and its derivative has $u^*du=0$, which
    is right for every function of $u$ that does not see the phase. All orders of derivatives are defined, in forward and
    in reverse mode.

    **Arguments:**

    - `matrix`: $A$, real or complex; `factor.A` say.
    - `near`: the number that chooses the pair. It is not differentiated.

    **Returns:** $\lambda$ and $u$.

    **Raises:** `ValueError` if the matrix is not square; a run-time error where a derivative is asked for and the
    eigenvalue cannot be told from another one.

    !!! Example

        ```python
        speed = jax.grad(lambda p: jnp.abs(koopman_verify.eigenpair(family(p), 1.0)[0]))(0.3)
        ```
    """
    matrix = jnp.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"`matrix` must be square; got shape {list(matrix.shape)}")
    if not jnp.issubdtype(matrix.dtype, jnp.inexact):
        matrix = matrix.astype(jnp.result_type(float))
    values, _ = _eig(jax.lax.stop_gradient(matrix))
    distance = jnp.abs(values - jax.lax.stop_gradient(jnp.asarray(near)).astype(values.dtype))
    return _pair(matrix, jnp.argmin(distance))


@jax.custom_jvp
def _pair(a: Array, index: Array) -> tuple[Array, Array]:
    values, u = _eig(jax.lax.stop_gradient(a))
    return values[index], u[:, index]


@_pair.defjvp
def _pair_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    a, index = primals
    value, u = _pair(a, index)
    others = jax.lax.stop_gradient(_eig(jax.lax.stop_gradient(a))[0])
    return (value, u), _change(a, value, u, tangents[0], jnp.where(jnp.arange(len(others)) == index, jnp.inf, others))


@jax.custom_jvp
def eig(a: Inexact[Array, "r r"]) -> tuple[Complex[Array, " r"], Complex[Array, "r r"]]:
    """Return eigenvalues and right eigenvectors of norm one; the derivative is that of `eigenpair` for every pair."""
    return _eig(a)


@eig.defjvp
def _eig_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (a,), (change,) = primals, tangents
    values, u = eig(a)
    fixed = jax.lax.stop_gradient(values)
    others = jnp.where(jnp.eye(len(fixed), dtype=bool), jnp.inf, fixed[None])
    each = jax.vmap(_change, in_axes=(None, 0, 1, None, 0), out_axes=(0, 1))
    return (values, u), each(a, values, u, change, others)


def _eig(a: Array) -> tuple[Array, Array]:
    values, u = jax.lax.linalg.eig(a, compute_left_eigenvectors=False)
    return values, u / jnp.linalg.norm(u, axis=0, keepdims=True).astype(u.dtype)


def _change(a: Array, value: Array, u: Array, change: Array, others: Array) -> tuple[Array, Array]:
    """Return the derivatives of one pair; `others` holds the other eigenvalues, and an infinity in place of its own."""
    operator, solver, state = _solver(_bordered(a.astype(u.dtype), value, u))
    distinct = _distinct(a, value, others, (operator, solver, state))
    # Otherwise the solver would complain of a singular system first, and more vaguely, wherever that error is faster.
    state = _or_identity(state, distinct, solver, len(u) + 1, u.dtype)
    # On the vector and not on its product with the change: reverse mode would drop a check of what is linear.
    image = change.astype(u.dtype) @ eqx.error_if(u, ~distinct, _COINCIDE)
    right = jnp.concatenate([-image, jnp.zeros_like(image[:1])])
    solution = lx.linear_solve(operator, right, solver, state=state, throw=False).value
    return -solution[-1], solution[:-1]


def _bordered(a: Array, value: Array, u: Array) -> Array:
    shifted = a - value * jnp.eye(len(u), dtype=u.dtype)
    return jnp.block([[shifted, u[:, None]], [u.conj()[None], jnp.zeros_like(u[:1, None])]])


def _solver(matrix: Array) -> tuple:
    operator, solver = lx.MatrixLinearOperator(matrix), lx.LU()
    return operator, solver, solver.init(operator, options={})


def _or_identity(state: Any, keep: Array, solver: lx.LU, size: int, dtype: Any) -> Any:
    """Return a factorisation, or that of the identity where it is not to be kept."""
    identity = solver.init(lx.MatrixLinearOperator(jnp.eye(size, dtype=dtype)), options={})
    arrays, static = eqx.partition(state, eqx.is_array)
    chosen = jax.tree.map(lambda a, b: jnp.where(keep, a, b), arrays, eqx.filter(identity, eqx.is_array))
    return eqx.combine(chosen, static)


def _condition_of_eigenvalue(operator: lx.AbstractLinearOperator, solver: lx.LU, state: tuple) -> Array:
    # The last row of the inverse is (w*, 0) with w*u = 1, and u has norm one.
    last = jnp.zeros(operator.in_size(), operator.in_structure().dtype).at[-1].set(1)
    flipped, _ = solver.transpose(state, {})
    row = lx.linear_solve(operator.T, last, solver, state=flipped, throw=False).value[:-1]
    return jnp.linalg.norm(row)


def _distinct(a: Array, value: Array, others: Array, system: tuple) -> Array:
    """Say whether rounding errors of the matrix could not have moved this eigenvalue onto another one."""
    a, value, system = jax.lax.stop_gradient((a, value, system))
    gap = jnp.min(jnp.abs(others - value))
    eps = float(jnp.finfo(gap.dtype).eps)
    # Not a number, from a singular system, compares as false: refused.
    return gap > 8 * eps * jnp.linalg.norm(a) * _condition_of_eigenvalue(*system)
