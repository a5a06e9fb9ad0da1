import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray


@eqx.filter_jit
def orbit(fn: Callable[[Array], Array], z0: Float[Array, " d"], num_steps: int) -> Float[Array, "T d"]:
    r"""Iterate a map.

    **Arguments:**

    - `fn`: the map, from one state `[d]` to the next.
    - `z0`: the first state `[d]`.
    - `num_steps`: how often it is applied.

    **Returns:** the states $z_0, F(z_0), \ldots, F^n(z_0)$, `[num_steps + 1, d]`.

    !!! Example

        ```python
        gtf.orbit(lambda x: 4 * x * (1 - x), jnp.array([0.3]), 10)
        ```
    """
    if num_steps < 0:
        raise ValueError(f"`num_steps` must not be negative; got {num_steps}")

    def step(z, _):
        new = fn(z)
        return new, new

    _, tail = jax.lax.scan(step, z0, None, length=num_steps)
    return jnp.concatenate([z0[None], tail])


class AbstractSimulator(eqx.Module):
    r"""A map $F$ of a latent space into itself, with what is proved about it.

    Training, metrics and forcing take any of these.

    !!! Example

        ```python
        isinstance(gtf.ShallowPLRNN(3, 50, key=key), gtf.AbstractSimulator)
        ```
    """

    @abc.abstractmethod
    def __call__(self, z: Float[Array, " M"]) -> Float[Array, " M"]:
        """Return the next state."""

    @abc.abstractmethod
    def jacobian(self, z: Float[Array, " M"]) -> Float[Array, "M M"]:
        r"""Return $\partial F/\partial z$."""

    @abc.abstractmethod
    def lipschitz(self) -> Float[Array, ""]:
        r"""Return an $L$ with $|F(x) - F(y)| \le L|x - y|$ for all states, `inf` where none is known."""

    @abc.abstractmethod
    def invariant_radius(self) -> Float[Array, ""]:
        r"""Return an $R$ such that $|z| \le R'$ implies $|F(z)| \le R'$ for every $R' \ge R$, `inf` where none is known."""

    def orbit(self, z0: Float[Array, " M"], num_steps: int) -> Float[Array, "T M"]:
        """Return `z0` and the `num_steps` states that follow it, `[num_steps + 1, M]`."""
        return orbit(self, z0, num_steps)


class ShallowPLRNN(AbstractSimulator):
    r"""The shallow piecewise-linear recurrent network.

    $$ F(z) = A z + W_1\,\big[\,(W_2 z + h_2)_+ - (W_2 z)_+\,\big] + h_1, \qquad A \text{ diagonal}. $$

    The term $-(W_2 z)_+$ makes it *clipped*: unit $j$ then moves between zero and $h_{2,j}$ only, so that orbits are
    bounded where $|A| < 1$.

    **Arguments:**

    - `latent`: the dimension $M$ of the state.
    - `hidden`: the number $H$ of hidden units.
    - `key`: for the first weights: $W_1, W_2$ and $h_2$ are uniform in $\pm1/\sqrt{\text{fan-in}}$, and $A$ is the
        diagonal of $R^\top R/M + I$, divided by the largest eigenvalue, for a Gaussian $R$.
    - `clipped`: whether the second term is there.
    - `dtype`: of the weights; `None` is JAX's default.

    **Raises:** `ValueError` if a dimension is not positive.

    !!! Example

        ```python
        model = gtf.ShallowPLRNN(3, 50, key=jax.random.key(0))
        model.orbit(jnp.zeros(3), 1000)
        ```

    ??? cite "Reference"

        ```bibtex
        @inproceedings{hess2023generalized,
            title={Generalized Teacher Forcing for Learning Chaotic Dynamics},
            author={Hess, Florian and Monfared, Zahra and Brenner, Manuel and Durstewitz, Daniel},
            booktitle={ICML}, year={2023}, note={arXiv:2306.04406},
        }
        ```
    """

    A: Float[Array, " M"]
    W1: Float[Array, "M H"]
    W2: Float[Array, "H M"]
    h1: Float[Array, " M"]
    h2: Float[Array, " H"]
    clipped: bool = eqx.field(static=True)

    def __init__(self, latent: int, hidden: int, *, key: PRNGKeyArray, clipped: bool = True, dtype: Any = None):
        for name, value in (("latent", latent), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}")
        dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
        key_a, key_1, key_2, key_h = jr.split(key, 4)
        r = jr.normal(key_a, (latent, latent), dtype)
        positive = r.T @ r / latent + jnp.eye(latent, dtype=dtype)
        self.A = jnp.diag(positive) / jnp.linalg.eigvalsh(positive)[-1]
        self.W1 = _uniform(key_1, (latent, hidden), hidden, dtype)
        self.W2 = _uniform(key_2, (hidden, latent), latent, dtype)
        self.h1 = jnp.zeros(latent, dtype)
        self.h2 = _uniform(key_h, (hidden,), latent, dtype)
        self.clipped = clipped

    def __call__(self, z: Float[Array, " M"]) -> Float[Array, " M"]:
        """Return the next state."""
        s = self.W2 @ z
        activity = jax.nn.relu(s + self.h2)
        if self.clipped:
            activity = activity - jax.nn.relu(s)
        return self.A * z + self.W1 @ activity + self.h1

    def jacobian(self, z: Float[Array, " M"]) -> Float[Array, "M M"]:
        r"""Return $A + W_1\,\mathrm{diag}\big(1[W_2z > -h_2] - 1[W_2z > 0]\big)\,W_2$."""
        s = self.W2 @ z
        slope = (s + self.h2 > 0).astype(s.dtype)
        if self.clipped:
            slope = slope - (s > 0).astype(s.dtype)
        return jnp.diag(self.A) + (self.W1 * slope[None]) @ self.W2

    @eqx.filter_jit
    def lipschitz(self) -> Float[Array, ""]:
        r"""Bound the Lipschitz constant of the map, from its parameters alone.

        The slope of unit $j$ is zero or $s_j$, with $s_j = 1$ (clipped: $s_j = \mathrm{sign}\,h_{2,j}$), so the Jacobian
        is $A + \tfrac12 W_1 S W_2 + \tfrac12 W_1 E W_2$ with $E$ diagonal and $|E_{jj}| \le |s_j|$. Hence

        $$ L = \lVert A + \tfrac12 W_1SW_2\rVert_2 + \tfrac12\lVert W_1T^{-1}\rVert_2\lVert TW_2\rVert_2 $$

        over the units with $s_j \ne 0$, for every positive diagonal $T$; the smaller value of $T = I$ and of the $T$ that
        balances columns against rows is taken. It is never above $\max|A| + \lVert W_1\rVert_2\lVert W_2\rVert_2$, the
        bound of arXiv:2306.04406. A margin of $8(M + H)$ units of rounding is added.
        """
        sign = self._signs()
        first, second = self.W1 * jnp.abs(sign)[None], self.W2 * jnp.abs(sign)[:, None]
        column, row = jnp.linalg.norm(first, axis=0), jnp.linalg.norm(second, axis=1)
        live = (column > 0) & (row > 0)
        scale = jnp.sqrt(jnp.where(live, column, 1.0) / jnp.where(live, row, 1.0))
        down, up = jnp.where(live, 1 / scale, 0.0), jnp.where(live, scale, 0.0)
        centre = _norm(jnp.diag(self.A) + (self.W1 * (sign / 2)[None]) @ self.W2)
        plain = _norm(first) * _norm(second)
        # A unit that lacks its column or its row does nothing.
        balanced = _norm(first * down[None]) * _norm(second * up[:, None])
        return self._margin() * (centre + jnp.minimum(plain, balanced) / 2)

    @eqx.filter_jit
    def invariant_radius(self) -> Float[Array, ""]:
        r"""Bound the ball that orbits do not leave.

        Clipped with $a = \max|A| < 1$: the hidden units add a vector of the box between $0$ and $h_2$, so $|F(z)| \le
        a|z| + b$, with $b = |h_1 + \tfrac12W_1h_2| + \tfrac12\min(\lVert W_1\rVert_2|h_2|, \sum_j|w_{1,j}||h_{2,j}|)$, and the
        radius is $b/(1 - a)$. Where $L < 1$, $|F(0)|/(1 - L)$ is one too. `inf` where neither holds. Every orbit ends
        up arbitrarily close to this ball, wherever it starts. This is about the map in exact arithmetic.
        """
        margin = self._margin()
        contraction = _radius(margin * jnp.linalg.norm(self(jnp.zeros_like(self.h1))), self.lipschitz())
        if not self.clipped:
            return contraction
        spread = jnp.minimum(
            _norm(self.W1) * jnp.linalg.norm(self.h2), jnp.linalg.norm(self.W1, axis=0) @ jnp.abs(self.h2)
        )
        b = jnp.linalg.norm(self.h1 + self.W1 @ self.h2 / 2) + spread / 2
        return jnp.minimum(contraction, _radius(margin * b, margin * jnp.max(jnp.abs(self.A))))

    def _signs(self) -> Array:
        return jnp.sign(self.h2) if self.clipped else jnp.ones_like(self.h2)

    def _margin(self) -> float:
        return 1 + 8 * (len(self.h1) + len(self.h2)) * float(np.finfo(self.A.dtype).eps)


class AbstractObservation(eqx.Module):
    """How latent states become data, and data become the latent states that force a model.

    !!! Example

        ```python
        gtf.IdentityObservation().encode(x)
        ```
    """

    @abc.abstractmethod
    def decode(self, z: Float[Array, "... M"]) -> Float[Array, "... d"]:
        """Return what is observed of latent states."""

    @abc.abstractmethod
    def encode(self, x: Float[Array, "... d"]) -> Float[Array, "... M"]:
        """Return the latent states that data stand for."""


class IdentityObservation(AbstractObservation):
    """The latent state is the data.

    !!! Example

        ```python
        gtf.IdentityObservation().decode(z)
        ```
    """

    def decode(self, z: Float[Array, "... M"]) -> Float[Array, "... M"]:
        """Return `z`."""
        return z

    def encode(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Return `x`."""
        return x


class LinearObservation(AbstractObservation):
    r"""A learned matrix, $x = B z$, inverted in the sense of least squares, $\bar z = B^+ x$.

    For data of many channels (EEG: 64) that a small latent state explains.

    **Arguments:**

    - `latent`: the dimension $M$ of the state.
    - `observed`: the number $d$ of channels.
    - `key`: for the first $B$, Gaussian of variance $1/M$.
    - `dtype`: of $B$; `None` is JAX's default.

    !!! Example

        ```python
        gtf.LinearObservation(16, 64, key=jax.random.key(0))
        ```
    """

    B: Float[Array, "d M"]

    def __init__(self, latent: int, observed: int, *, key: PRNGKeyArray, dtype: Any = None):
        if latent < 1 or observed < 1:
            raise ValueError(f"`latent` and `observed` must be at least 1; got {latent} and {observed}")
        self.B = jr.normal(key, (observed, latent), jnp.result_type(float) if dtype is None else dtype) / latent**0.5

    def decode(self, z: Float[Array, "... M"]) -> Float[Array, "... d"]:
        """Return $B z$."""
        return z @ self.B.T

    def encode(self, x: Float[Array, "... d"]) -> Float[Array, "... M"]:
        """Return $B^+ x$ (of least norm where there are fewer channels than latent dimensions)."""
        operator, solver = lx.MatrixLinearOperator(self.B), lx.QR()
        unit = jnp.eye(len(self.B), dtype=self.B.dtype)
        inverse = jax.vmap(lambda e: lx.linear_solve(operator, e, solver).value, out_axes=1)(unit)
        return x @ inverse.T


def _uniform(key: Array, shape: tuple[int, ...], fan: int, dtype: Any) -> Array:
    bound = fan**-0.5
    return jr.uniform(key, shape, dtype, -bound, bound)


def _norm(matrix: Array) -> Array:
    return jnp.linalg.svd(matrix, compute_uv=False)[0]


def _radius(offset: Array, factor: Array) -> Array:
    return jnp.where(factor < 1, offset / jnp.where(factor < 1, 1 - factor, 1.0), jnp.inf)
