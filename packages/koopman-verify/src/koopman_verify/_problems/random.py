import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from .._dictionaries.polynomials import Monomials
from .base import SpectralProblem


class StochasticSystem(eqx.Module):
    r"""A Markov chain, whose operator is $(Kg)(x)=\mathbb{E}\,g(F(x,\xi))$.

    **Attributes:**

    - `name`: what it is called in the documentation.
    - `transition_fn`: draws a successor, `transition_fn(x, key)`, of a state `[d]`.
    - `eigenvalues`: exact eigenvalues of the operator.
    - `dictionary`: one that spans an invariant space.

    !!! Example

        ```python
        system = problems.ornstein_uhlenbeck()
        system.transition_fn(jnp.zeros(1), jr.key(0))
        ```
    """

    name: str = eqx.field(static=True)
    transition_fn: Callable
    eigenvalues: Complex[Array, " k"]
    dictionary: Any = None

    def successors(self, x: Float[Array, "M d"], num: int = 1, *, key: PRNGKeyArray) -> Float[Array, "num M d"]:
        """Draw `num` independent successors of every state (two of them give the variance residual)."""
        keys = jr.split(key, (num, len(x)))
        return jax.vmap(jax.vmap(self.transition_fn), in_axes=(None, 0))(x, keys)


def ornstein_uhlenbeck(
    gamma: float = 1.0, tau: float = 0.5, sigma: float = 1.0, *, degree: int = 5
) -> StochasticSystem:
    r"""Draw from $dX=-\gamma X\,dt+\sigma\,dW$ after a time $\tau$, exactly: eigenvalues $e^{-n\gamma\tau}$.

    Eigenfunctions are the Hermite polynomials of the stationary law, a normal one of variance $\sigma^2/2\gamma$.

    **Arguments:**

    - `gamma`, `tau`, `sigma`: the rate, the time step and the strength of the noise.
    - `degree`: how many eigenvalues to list after $n=0$, and the degree of the dictionary.

    **Returns:** the system, with monomials (scaled by the stationary deviation) for a dictionary.

    !!! Example

        ```python
        problems.ornstein_uhlenbeck(tau=0.1).eigenvalues
        ```
    """
    decay, deviation = math.exp(-gamma * tau), sigma / math.sqrt(2 * gamma)
    spread = deviation * math.sqrt(-math.expm1(-2 * gamma * tau))
    return StochasticSystem(
        name="Ornstein-Uhlenbeck",
        transition_fn=lambda x, key: decay * x + spread * jr.normal(key, x.shape, x.dtype),
        eigenvalues=jnp.asarray(decay ** np.arange(degree + 1), jnp.result_type(complex)),
        dictionary=Monomials(1, degree, scale=deviation),
    )


def noisy_logistic(order: int = 10, r: float = 4.0, *, num_nodes: int = 2000) -> StochasticSystem:
    r"""Draw from $rx(1-x)+\xi \bmod 1$ with the trigonometric noise of density $\propto\cos^{2M}(\pi\xi)$.

    The operator has rank $2M+1$. With $c_k=\mathbb{E}\,e^{2\pi ik\xi}=\binom{2M}{M+k}/\binom{2M}{M}$ its non-zero
    eigenvalues are those of $T_{lk}=c_k\int_0^1e^{2\pi i(kF(x)-lx)}\,dx$, $|k|,|l|\le M$.

    **Arguments:**

    - `order`: $M$; kooplearn's `LogisticMap` calls $2M$ the order.
    - `r`: the parameter of the map.
    - `num_nodes`: Gauss-Legendre nodes for the integrals.

    **Returns:** the system, eigenvalues by falling modulus.

    !!! Example

        ```python
        problems.noisy_logistic().eigenvalues[:3]
        ```
    """
    t, w = np.polynomial.legendre.leggauss(num_nodes)
    x, w = (t + 1) / 2, w / 2
    k = np.arange(-order, order + 1)
    c = np.array([math.comb(2 * order, order + j) for j in k]) / math.comb(2 * order, order)
    left, right = np.exp(-2j * np.pi * np.outer(k, x)), np.exp(2j * np.pi * np.outer(r * x * (1 - x), k))
    eigenvalues = np.linalg.eigvals((left * w) @ right * c)
    eigenvalues = eigenvalues[np.argsort(-np.abs(eigenvalues), kind="stable")]

    def transition(x: Float[Array, " d"], key: PRNGKeyArray) -> Float[Array, " d"]:
        size, sign = jr.split(key)
        # The squared sine of the noise has a beta law.
        square = jr.beta(size, 0.5, order + 0.5, x.shape, x.dtype)
        noise = jnp.arcsin(jnp.sqrt(square)) / math.pi * jr.rademacher(sign, x.shape, x.dtype)
        return jnp.mod(r * x * (1 - x) + noise, 1)

    return StochasticSystem(
        name="noisy logistic map",
        transition_fn=transition,
        eigenvalues=jnp.asarray(eigenvalues, jnp.result_type(complex)),
    )


def lazy_random_walk(num: int = 101) -> SpectralProblem:
    r"""Step by $-1$, 0 or 1 on the integers, with $g=\tfrac12(\delta_1-\delta_{-1})$.

    The operator is self-adjoint with spectrum $[-1/3,1]$, and the density of the measure of $g$ is
    $\tfrac{3}{4\pi}\sqrt{3+6x-9x^2}$, of mass $\tfrac12$.

    **Arguments:**

    - `num`: integers kept, an odd number; moments below `num - 1` are exact.

    **Returns:** operator, vector, density and moments (by Gauss-Chebyshev quadrature, exact up to order 200).

    **Raises:** `ValueError` if `num` is not odd, or less than 3.

    !!! Example

        ```python
        problems.lazy_random_walk().density_fn(jnp.array([0.0]))
        ```
    """
    if num < 3 or num % 2 == 0:
        raise ValueError(f"`num` must be odd and at least 3; got {num}")
    walk = (np.eye(num) + np.eye(num, k=1) + np.eye(num, k=-1)) / 3
    g = np.zeros(num)
    g[num // 2 + 1], g[num // 2 - 1] = 0.5, -0.5
    theta = np.pi * np.arange(1, 128) / 128

    def moment(n: Any) -> Float[Array, "..."]:
        nodes = jnp.asarray((1 + 2 * np.cos(theta)) / 3, jnp.result_type(float))
        weights = jnp.asarray(np.sin(theta) ** 2 / 128, nodes.dtype)
        order = jnp.asarray(n, nodes.dtype)
        powers = nodes.reshape((1,) * order.ndim + (-1,)) ** order[..., None]
        return powers @ weights

    return SpectralProblem(
        name="lazy random walk",
        operator=jnp.asarray(walk, jnp.result_type(float)),
        vector=jnp.asarray(g, jnp.result_type(float)),
        density_fn=lambda x: 3 / (4 * math.pi) * jnp.sqrt(jnp.maximum(3 + 6 * x - 9 * x**2, 0)),
        moment_fn=moment,
    )


def rogers_szego(q: float = 0.95, num: int = 200) -> SpectralProblem:
    r"""Return the CMV matrix of the Rogers-Szegő polynomials, a banded unitary operator, with $g=e_0$.

    The Verblunsky coefficients are $\alpha_k=(-1)^kq^{(k+1)/2}$. The measure of $e_0$ is a wrapped normal law: moments
    $q^{n^2/2}$, density $\tfrac{1}{2\pi}\sum_nq^{n^2/2}e^{in\theta}$.

    **Arguments:**

    - `q`: between 0 and 1.
    - `num`: the size. The last coefficient is replaced by one of modulus 1, so that the matrix is unitary; moments below
        about `num / 2` are exact.

    **Returns:** operator, vector, density and moments.

    **Raises:** `ValueError` for an argument out of its range.

    ??? cite "Reference"

        Simon, *Orthogonal polynomials on the unit circle*, Part 1, Example 1.6.5.

    !!! Example

        ```python
        problems.rogers_szego(0.95).moment_fn(jnp.arange(4))
        ```
    """
    if not 0 < q < 1 or num < 2:
        raise ValueError(f"`q` must be in (0, 1) and `num` at least 2; got {q} and {num}")
    k = np.arange(num)
    alpha = (-1.0) ** k * q ** ((k + 1) / 2)
    alpha[-1] = np.sign(alpha[-1])
    rho = np.sqrt(1 - alpha**2)
    even, odd = np.eye(num), np.eye(num)
    for j in range(num):
        target = even if j % 2 == 0 else odd
        if j + 1 < num:
            target[j : j + 2, j : j + 2] = [[alpha[j], rho[j]], [rho[j], -alpha[j]]]
        else:
            target[j, j] = alpha[j]
    terms = np.arange(1, 1 + math.ceil(math.sqrt(2 * 40 / -math.log(q))))

    def density(theta: Any) -> Float[Array, "..."]:
        t = jnp.asarray(theta)[..., None]
        n = jnp.asarray(terms, t.dtype).reshape((1,) * (t.ndim - 1) + (-1,))
        return (1 + 2 * jnp.sum(q ** (n**2 / 2) * jnp.cos(n * t), axis=-1)) / (2 * math.pi)

    return SpectralProblem(
        name="Rogers-Szegő",
        operator=jnp.asarray(even @ odd, jnp.result_type(float)),
        vector=jnp.zeros(num).at[0].set(1),
        density_fn=density,
        moment_fn=lambda n: q ** (jnp.asarray(n, jnp.result_type(float)) ** 2 / 2),
    )
