from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ._arguments import Scalar
from ._check import require
from ._hessian import Curvature, flat_product


class Eigenvalues(eqx.Module):
    r"""Extreme eigenvalues of a symmetric operator, each with a bound on its distance from a true one.

    **Attributes:**

    - `values`: Ritz values, from the largest down, `[k]`. The first never exceeds the largest eigenvalue (rounding aside).
    - `residuals`: $\lVert Av - \theta v\rVert$ for each, `[k]`: within that distance of each value there is an eigenvalue
        (proved, though not that it is the one in question). For an isolated eigenvalue the error is of its square.
    - `vectors`: the Ritz vectors, structured like the parameters, with a leading axis `k`.
    - `num_matvecs`: how many products were made.
    """

    values: Float[Array, " k"]
    residuals: Float[Array, " k"]
    vectors: Any
    num_matvecs: int = eqx.field(static=True)


class Eigenvalue(eqx.Module):
    """An extreme eigenvalue. See [`neuralcollapse.sharpness.Eigenvalues`][].

    **Attributes:**

    - `value`, `residual`, `vector`: as there, for one.
    - `num_matvecs`: how many products were made.
    """

    value: Float[Array, ""]
    residual: Float[Array, ""]
    vector: Any
    num_matvecs: int = eqx.field(static=True)


class Density(eqx.Module):
    """A spectral density by stochastic Lanczos quadrature: point masses, averaged over random starts.

    **Attributes:**

    - `nodes`: eigenvalue estimates, `[probes, steps]`.
    - `masses`: their masses; all together one, `[probes, steps]`.
    - `num_matvecs`: how many products were made.
    """

    nodes: Float[Array, "probes steps"]
    masses: Float[Array, "probes steps"]
    num_matvecs: int = eqx.field(static=True)

    def evaluate(self, grid: Float[Array, " points"], width: Scalar) -> Float[Array, " points"]:
        """Return the density on a grid, each point mass a Gaussian of this width."""
        width = jnp.asarray(width, self.nodes.dtype)
        shift = (grid[:, None] - self.nodes.reshape(1, -1)) / width
        bumps = jnp.exp(-(shift**2) / 2) / (width * jnp.sqrt(2 * jnp.pi))
        return bumps @ self.masses.reshape(-1)

    def moment(self, order: int) -> Float[Array, ""]:
        """Return the mean of this power of the eigenvalues. In expectation exact for orders below twice the steps."""
        return jnp.sum(self.masses * self.nodes**order)

    def below(self, value: Scalar) -> Float[Array, ""]:
        """Return the estimated fraction of eigenvalues below a value."""
        return jnp.sum(jnp.where(self.nodes < jnp.asarray(value, self.nodes.dtype), self.masses, 0))


def lambda_max(fn: Curvature, params: Any = None, *, key: PRNGKeyArray, num_steps: int = 64) -> Eigenvalue:
    """Return the largest eigenvalue of a Hessian or symmetric operator, with a bound, by Lanczos' method.

    **Arguments:**

    - `fn`: a loss of the parameters, whose Hessian is meant, or a symmetric Lineax operator.
    - `params`: where; leave out with an operator.
    - `key`: draws the starting vector.
    - `num_steps`: products with the operator; all Lanczos vectors are kept, and orthogonalised twice.

    **Returns:**

    A [`neuralcollapse.sharpness.Eigenvalue`][].

    **Raises:**

    `ValueError` for a loss that is not scalar, an operator not tagged symmetric, `num_steps` below one; a run-time
    error where the products are not finite.

    !!! Example

        ```python
        top = neuralcollapse.sharpness.lambda_max(loss, params, key=jax.random.key(0))
        top.value, top.residual
        ```
    """
    many = top_k(fn, params, k=1, key=key, num_steps=num_steps)
    vector = jax.tree.map(lambda leaf: leaf[0], many.vectors)
    return Eigenvalue(many.values[0], many.residuals[0], vector, many.num_matvecs)


def top_k(fn: Curvature, params: Any = None, *, k: int, key: PRNGKeyArray, num_steps: int = 64) -> Eigenvalues:
    """Return the `k` largest eigenvalues, with bounds. Those that coincide are found once, unless steps abound.

    **Arguments:**

    - `k`: how many.
    - `fn`, `params`, `key`, `num_steps`: as for [`neuralcollapse.sharpness.lambda_max`][].

    **Returns:**

    An [`neuralcollapse.sharpness.Eigenvalues`][].
    """
    product, size, dtype, unravel = flat_product(fn, params)
    steps = _steps(num_steps, size)
    if not isinstance(k, int) or not 1 <= k <= steps:
        raise ValueError(f"`k` must be at least one and at most the number of steps, {steps}; got {k!r}.")
    basis, alpha, beta = lanczos(product, size, dtype, steps, key)
    values, vectors = jnp.linalg.eigh(_tridiagonal(alpha, beta[:-1]))
    order = jnp.arange(steps - 1, steps - 1 - k, -1)
    residuals = jnp.abs(beta[-1] * vectors[-1, order])
    flat = vectors[:, order].T @ basis
    return Eigenvalues(values[order], residuals, jax.vmap(unravel)(flat), steps)


def density(
    fn: Curvature, params: Any = None, *, key: PRNGKeyArray, num_probes: int = 8, num_steps: int = 32
) -> Density:
    """Estimate the density of eigenvalues by stochastic Lanczos quadrature.

    **Arguments:**

    - `fn`, `params`: as for [`neuralcollapse.sharpness.lambda_max`][].
    - `key`: draws the probes.
    - `num_probes`: Gaussian starting vectors.
    - `num_steps`: products with the operator for each.

    **Returns:**

    A [`neuralcollapse.sharpness.Density`][].

    !!! Example

        ```python
        spectrum = neuralcollapse.sharpness.density(loss, params, key=jax.random.key(0))
        spectrum.evaluate(jnp.linspace(-1, 10, 200), 0.1)
        ```

    ??? cite "Reference"

        Ghorbani, Krishnan, Xiao, "An Investigation into Neural Net Optimization via Hessian Eigenvalue Density",
        arXiv:1901.10159.
    """
    product, size, dtype, _ = flat_product(fn, params)
    steps = _steps(num_steps, size)
    if not isinstance(num_probes, int) or num_probes < 1:
        raise ValueError(f"`num_probes` must be at least one; got {num_probes!r}.")

    def run(key):
        _, alpha, beta = lanczos(product, size, dtype, steps, key)
        values, vectors = jnp.linalg.eigh(_tridiagonal(alpha, beta[:-1]))
        return values, vectors[0] ** 2

    nodes, masses = jax.lax.map(run, jr.split(key, num_probes))
    return Density(nodes, masses / num_probes, num_probes * steps)


def lanczos(
    product: Callable[[Array], Array], size: int, dtype: Any, steps: int, key: PRNGKeyArray
) -> tuple[Float[Array, "steps n"], Float[Array, " steps"], Float[Array, " steps"]]:
    """Return an orthonormal basis, the diagonal, and the off-diagonal whose last entry belongs to the residual.

    Where the Krylov space is exhausted it goes on from a random vector: the tridiagonal matrix then falls into blocks.
    """
    start_key, fresh_key = jr.split(key)
    eps = float(jnp.finfo(dtype).eps)

    def orthogonal(v, basis):
        # Twice is enough (Kahan and Parlett): once leaves what cancellation hides.
        for _ in range(2):
            v = v - basis.T @ (basis @ v)
        return v

    def unit(v):
        norm = jnp.linalg.norm(v)
        return v / jnp.where(norm > 0, norm, 1), norm

    def body(j, carry):
        basis, alpha, beta, q, scale = carry
        basis = basis.at[j].set(q)
        w = product(q)
        a = q @ w
        rest, norm = unit(orthogonal(w, basis))
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(a), norm))
        exhausted = norm <= 10 * eps * scale
        fresh, _ = unit(orthogonal(jr.normal(jr.fold_in(fresh_key, j), (size,), dtype), basis))
        q = jnp.where(exhausted, fresh, rest)
        return basis, alpha.at[j].set(a), beta.at[j].set(jnp.where(exhausted, 0, norm)), q, scale

    q, _ = unit(jr.normal(start_key, (size,), dtype))
    zeros = jnp.zeros((steps,), dtype)
    start = (jnp.zeros((steps, size), dtype), zeros, zeros, q, jnp.zeros((), dtype))
    basis, alpha, beta, _, _ = jax.lax.fori_loop(0, steps, body, start)
    finite: Bool[Array, ""] = jnp.all(jnp.isfinite(alpha))
    alpha = require(alpha, finite, "The products with the operator are not finite: is the loss finite at `params`?")
    return basis, alpha, beta


def _tridiagonal(alpha, beta):
    return jnp.diag(alpha) + jnp.diag(beta, 1) + jnp.diag(beta, -1)


def _steps(num_steps: int, size: int) -> int:
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"`num_steps` must be a whole number of at least one; got {num_steps!r}.")
    return min(num_steps, size)
