import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact


class AbstractDictionary(eqx.Module):
    r"""A list of observables $\psi_1, \ldots, \psi_N$ on the state space.

    Every callable that maps one state `[d]` to the values `[N]` works as a dictionary; this class adds what is known
    about the functions, which certificates use. Complex values are right: all inner products conjugate their first
    factor.

    !!! Example

        ```python
        factor = koopman_verify.factor(lambda x: jnp.concatenate([jnp.ones(1), x, x**2]), snapshots)
        ```
    """

    @abc.abstractmethod
    def __call__(self, x: Float[Array, " d"]) -> Inexact[Array, " N"]:
        r"""Return $\psi_1(x), \ldots, \psi_N(x)$."""

    @abc.abstractmethod
    def supremum(self) -> Float[Array, " N"] | None:
        r"""Return bounds on $\sup_x |\psi_j(x)|$, or `None` where a function is unbounded or nothing is known."""

    @abc.abstractmethod
    def lipschitz(self) -> Float[Array, " N"] | None:
        r"""Return Lipschitz constants of $\psi_j$ in the Euclidean norm, or `None` where there are none or unknown."""


def one_state(x: Any, dimension: int) -> Float[Array, " d"]:
    """Return a state as a JAX array (a NumPy one may have a precision that JAX has not), or raise."""
    x = jnp.asarray(x)
    if x.shape != (dimension,):
        raise ValueError(f"`x` must be one state of shape [{dimension}], as the dictionary has it; got {list(x.shape)}")
    return x


class Fourier(AbstractDictionary):
    r"""Characters of the torus, $\psi_k(x) = e^{2\pi i\, k\cdot x/p}$.

    With equispaced nodes (or a lattice rule) their integrals are exact, so that residuals are.

    **Arguments:**

    - `frequencies`: integers `[N]` for a circle, `[N, d]` for a torus of dimension `d`.
    - `period`: the period $p$ of each coordinate.

    **Raises:** `ValueError` if `frequencies` are not integers of one of these shapes, or if one occurs twice.

    !!! Example

        ```python
        Fourier(range(-8, 9))(jnp.array([0.3]))
        ```
    """

    frequencies: Float[Array, "N d"]
    period: float = eqx.field(static=True)

    def __init__(self, frequencies: Any, period: float = 2 * math.pi):
        k = np.asarray(list(frequencies) if isinstance(frequencies, range) else frequencies)
        if k.ndim not in (1, 2) or k.size == 0 or not np.all(np.equal(k, np.round(k))):
            raise ValueError(f"`frequencies` must be integers of shape [N] or [N, d]; got {k.dtype} of shape {k.shape}")
        k = k[:, None] if k.ndim == 1 else k
        if len(np.unique(k, axis=0)) < len(k):
            raise ValueError("`frequencies` holds one frequency twice: the dictionary would be rank-deficient")
        if not isinstance(period, (int, float, np.number)) or not 0 < period < math.inf:
            raise ValueError(f"`period` must be one positive number, that of every coordinate; got {period!r}")
        self.frequencies = jnp.asarray(k, jnp.result_type(float))
        self.period = float(period)

    def __call__(self, x: Float[Array, " d"]) -> Inexact[Array, " N"]:
        r"""Return $e^{2\pi i\,k\cdot x/p}$ for every frequency."""
        x = one_state(x, self.frequencies.shape[1])
        phase = (2 * math.pi / self.period) * (self.frequencies.astype(x.dtype) @ x)
        return jax.lax.complex(jnp.cos(phase), jnp.sin(phase))

    def supremum(self) -> Float[Array, " N"]:
        """Return ones."""
        return jnp.ones(len(self.frequencies), self.frequencies.dtype)

    def lipschitz(self) -> Float[Array, " N"]:
        r"""Return $2\pi|k|/p$."""
        return (2 * math.pi / self.period) * jnp.linalg.norm(self.frequencies, axis=1)
