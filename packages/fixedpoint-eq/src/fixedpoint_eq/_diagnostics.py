from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import lineax as lx
from implicit_core.krylov import stop_gradient, tree_dot, tree_norm
from jaxtyping import Array, Bool, Complex, Float, PRNGKeyArray

from ._batch import SampleFn, dense, lanes
from ._jacobian import jacobian, real_jacobian
from ._linear import is_complex_linear


_EXACT = 512  # unknowns up to which a Jacobian is formed


class SpectralRadius(eqx.Module):
    r"""What [`fixedpoint_eq.diagnostics.spectral_radius`][] found.

    **Attributes:**

    - `radius`: the largest $|\theta|$ over the Ritz values.
    - `error`: $\lVert J u - \theta u\rVert$ of that Ritz pair, with $\lVert u\rVert = 1$: $\theta$ is an eigenvalue of a matrix
        that far from $J$, and for a normal $J$ there is an eigenvalue of its own that near. Another that is larger may have
        been missed.
    - `eigenvalue`: $\theta$; of a conjugate pair either.
    - `ritz_values`: all of them.
    """

    radius: Float[Array, "..."]
    error: Float[Array, "..."]
    eigenvalue: Complex[Array, "..."]
    ritz_values: Complex[Array, "... m"]


def spectral_radius(
    fn: Callable[[Any, Any], Any],
    z: Any,
    args: Any = None,
    *,
    num_steps: int = 20,
    batch_axis: int | None = None,
    key: PRNGKeyArray | None = None,
) -> SpectralRadius:
    r"""Estimate the spectral radius of the Jacobian of a map, by Arnoldi's method on Jacobian-vector products.

    It is the rate of Picard's iteration at a fixed point. Unlike the power method it copes with complex pairs, as
    Jacobians that are not symmetric have. Complex states count as pairs of reals. Has no derivative.

    **Arguments:**

    - `fn`, `args`: the map, `(z, args) -> z`.
    - `z`: the state.
    - `num_steps`: the number of products. With as many as unknowns the result is exact up to rounding.
    - `batch_axis`: as for [`fixedpoint_eq.solve`][]: `fn` is of the whole batch, and there is one radius a sample. Only 0.
    - `key`: of the first vector.

    **Returns:**

    A [`fixedpoint_eq.diagnostics.SpectralRadius`][].

    !!! Example

        ```python
        estimate = spectral_radius(lambda z, W: jnp.tanh(W @ z), jnp.zeros(8), W, num_steps=8)
        estimate.radius, estimate.error
        ```

    ??? cite "Reference"

        Saad, "Numerical methods for large eigenvalue problems", section 6.2. The eigenvalues of the small matrix are
        those of `jax.numpy.linalg.eig`, which on accelerators needs a recent JAX.
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1; got {num_steps}")
    if batch_axis not in (None, 0):
        raise ValueError(f"`batch_axis` must be 0 or `None`; got {batch_axis!r}")
    fn, z, args = stop_gradient((fn, z, args))
    key = jr.key(0) if key is None else key
    if batch_axis is None:
        return _arnoldi(real_jacobian(lambda z: fn(z, args), z), num_steps, key)
    sample = SampleFn(lambda z, args: (fn(z, args), None))
    return lanes(lambda z: _arnoldi(real_jacobian(lambda z: sample(z, args)[0], z), num_steps, key))(z)


def _arnoldi(operator: lx.AbstractLinearOperator, num_steps: int, key: PRNGKeyArray) -> SpectralRadius:
    zero = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), operator.in_structure())
    flat, unravel = jfu.ravel_pytree(zero)
    m = min(num_steps, flat.size)
    eps = float(jnp.finfo(flat.dtype).eps)
    dot = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    start = jr.normal(key, flat.shape, flat.dtype)
    basis = jnp.zeros((m + 1, flat.size), flat.dtype).at[0].set(start / jnp.linalg.norm(start))

    def step(basis, j):
        w = jfu.ravel_pytree(operator.mv(unravel(basis[j])))[0]
        length = jnp.linalg.norm(w)
        column = jnp.zeros(m + 1, flat.dtype)
        for _ in range(2):  # once loses orthogonality
            h = dot(basis, w)
            w, column = w - dot(h, basis), column + h
        rest = jnp.linalg.norm(w)
        # What is left by cancellation is rounding: the space is invariant, and what follows zero.
        rest = jnp.where(rest > 10 * eps * length, rest, 0)
        unit = jnp.where(rest > 0, w / jnp.where(rest > 0, rest, 1), 0)
        return basis.at[j + 1].set(unit), column.at[j + 1].set(rest)

    _, columns = jax.lax.scan(step, basis, jnp.arange(m))
    hessenberg = columns.T
    values, vectors = jnp.linalg.eig(hessenberg[:m])
    first = jnp.argmax(jnp.abs(values))
    error = jnp.abs(hessenberg[m, m - 1]) * jnp.abs(vectors[m - 1, first]) / jnp.linalg.norm(vectors[:, first])
    return SpectralRadius(jnp.abs(values[first]), error, values[first], values)


def _dtypes(z: Any) -> str:
    return ", ".join(str(jnp.result_type(leaf)) for leaf in jtu.tree_leaves(z))


class Asymmetry(eqx.Module):
    r"""The size of the antisymmetric and symmetric parts of a Jacobian, $A = (J - J^\top)/2$ and $S = (J + J^\top)/2$.

    **Attributes:**

    - `antisymmetric`, `symmetric`: $\lVert A\rVert_F$ and $\lVert S\rVert_F$.
    - `antisymmetric_error`, `symmetric_error`: their standard errors; zero if they were computed exactly.
    """

    antisymmetric: Float[Array, ""]
    symmetric: Float[Array, ""]
    antisymmetric_error: Float[Array, ""]
    symmetric_error: Float[Array, ""]


def asymmetry(
    fn: Callable[[Any, Any], Any], z: Any, args: Any = None, *, num_draws: int = 64, key: PRNGKeyArray | None = None
) -> Asymmetry:
    r"""Measure how far the Jacobian of a field is from symmetric.

    By this much equilibrium propagation is biased: its response is $q = \delta - 2 J^{-1} A\,\delta$. Up to 512 unknowns the
    Jacobian is formed; beyond, $\mathbb{E}\lVert A\varepsilon\rVert^2 = \lVert A\rVert_F^2$ over random signs, at one
    Jacobian-vector and one vector-Jacobian product a draw.

    **Arguments:**

    - `fn`, `args`: the field, `(z, args) -> z`. Of a map `f` and the field `f - z` the antisymmetric part is the same.
    - `z`: the state, real, without a batch axis.
    - `num_draws`, `key`: of random signs.

    **Returns:**

    An [`fixedpoint_eq.diagnostics.Asymmetry`][].

    !!! Example

        ```python
        asymmetry(lambda z, W: W @ z, jnp.zeros(8), W).antisymmetric
        ```
    """
    if any(map(jnp.iscomplexobj, jtu.tree_leaves(z))):
        raise TypeError(f"`z` must be real; got leaves of {_dtypes(z)}")
    fn, z, args = stop_gradient((fn, z, args))
    operator = jacobian(lambda z: fn(z, args), z)
    flat, unravel = jfu.ravel_pytree(z)
    if flat.size <= _EXACT:
        matrix = dense(operator)
        zero = jnp.zeros((), flat.dtype)
        return Asymmetry(jnp.linalg.norm(matrix - matrix.T) / 2, jnp.linalg.norm(matrix + matrix.T) / 2, zero, zero)
    transpose = operator.transpose()

    def draw(key):
        signs = jr.rademacher(key, flat.shape, flat.dtype)
        forward, reverse = (jfu.ravel_pytree(op.mv(unravel(signs)))[0] for op in (operator, transpose))
        return jnp.stack([jnp.sum((forward - reverse) ** 2), jnp.sum((forward + reverse) ** 2)]) / 4

    squares = jax.lax.map(draw, jr.split(jr.key(0) if key is None else key, num_draws))
    norms = jnp.sqrt(jnp.mean(squares, axis=0))
    # Of the square root, to first order.
    spread = jnp.std(squares, axis=0, ddof=1) / jnp.sqrt(jnp.asarray(num_draws, flat.dtype))
    errors = spread / (2 * jnp.where(norms > 0, norms, 1))
    return Asymmetry(norms[0], norms[1], errors[0], errors[1])


def alignment(x: Any, y: Any) -> Any:
    r"""Return the cosine of the angle between two vectors, leaf by leaf.

    Of gradients, or of an adjoint and what stands in for it: one is parallel, and below zero a step along one goes up
    the other. Zero where a leaf is zero.

    **Arguments:**

    - `x`, `y`: pytrees of one structure.

    **Returns:**

    A pytree of scalars.

    !!! Example

        ```python
        alignment({"W": jnp.ones(2)}, {"W": jnp.array([1.0, 0.0])})  # {"W": 0.7071}
        ```
    """
    return jtu.tree_map(cosine, x, y)


def cosine(x: Any, y: Any) -> Float[Array, ""]:
    """Return the cosine of the angle between two vectors, all leaves together; zero where one is zero."""
    size = tree_norm(x) * tree_norm(y)
    return tree_dot(x, y) / jnp.where(size > 0, size, 1)


def is_holomorphic(fn: Callable[[Any, Any], Any], z: Any, args: Any = None) -> Bool[Array, ""]:
    r"""Say whether the derivative of a map at a complex state is linear over the complex numbers.

    The Cauchy-Riemann equations on one random direction: `jvp(i v) = i jvp(v)`, up to rounding.

    **Arguments:**

    - `fn`, `args`: the map, `(z, args) -> z`.
    - `z`: the state, all of whose leaves are complex.

    **Returns:**

    A boolean scalar.

    !!! Example

        ```python
        is_holomorphic(lambda z, args: jnp.conj(z), jnp.ones(2, complex))  # False
        ```
    """
    if not all(map(jnp.iscomplexobj, jtu.tree_leaves(z))):
        raise TypeError(f"`z` must be complex in every leaf; got leaves of {_dtypes(z)}")
    fn, z, args = stop_gradient((fn, z, args))
    return is_complex_linear(jacobian(lambda z: fn(z, args), z), z)
