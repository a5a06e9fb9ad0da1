from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from implicit_core.krylov import real_dtype, stack_combine, stack_dot, tree_axpy, tree_norm
from jaxtyping import Array, Bool, Float, Inexact, Int, PyTree

from ._custom_types import RealScalar
from ._misc import stack_like, stack_put
from ._solver import AbstractSolver, Evaluation


_GROWTH = 10  # by how much the residual may grow over the smallest one before the history is forgotten


class _History(eqx.Module):
    x: Any  # z_j + mixing g_j, along a leading axis
    g: Any  # g_j = f(z_j) - z_j
    gram: Inexact[Array, "m m"]  # <g_i, g_j>
    valid: Bool[Array, " m"]
    count: Int[Array, ""]


class Anderson(AbstractSolver):
    r"""Anderson's acceleration, of the second type.

    From the last `memory` states $z_j$ with $g_j = f(z_j) - z_j$, take $z = \sum_j a_j (z_j + \beta g_j)$ where the
    weights, of sum one, make $\lVert\sum_j a_j g_j\rVert$ smallest: they solve $(M/t + \lambda I) a \propto 1$ with
    $M_{ij} = \langle g_i, g_j\rangle$ and $t$ the mean of its diagonal. The ridge $\lambda$ is *relative* to the
    residuals, so that it does not degrade the weights as these become small. For a linear map and enough memory this is
    GMRES. Complex states have complex weights.

    Once the history is full only every `period`-th step is of this kind, and those between are Picard's, which is cheaper
    and *faster*: the states that are combined then lie further apart. (For a symmetric linear map with eigenvalues
    between -0.99 and 0.99 and a memory of five it takes 107 steps in place of 279.) No step is Picard's where the residual
    did not fall.

    Safeguards: where the weights are not finite the step is that of Picard; where the residual has grown tenfold over
    the smallest one, what was before is forgotten.

    **Arguments:**

    - `rtol`, `atol`, `norm`: as for [`fixedpoint_eq.Picard`][].
    - `memory`: how many states to combine. Memory is that of twice as many states.
    - `mixing`: $\beta$.
    - `ridge`: $\lambda$, by default 1e-12 for double precision, else 1e-7.
    - `period`: of the combinations. One is the classical method.

    **Raises:**

    `ValueError` for a negative tolerance or `ridge`, a `memory` or `period` below one, a `mixing` of zero.

    !!! Example

        ```python
        fpe.solve(fn, z0, args, fpe.Anderson(rtol=1e-5, atol=1e-8, memory=5))
        ```

    ??? cite "Reference"

        Walker and Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 49 (2011). Banerjee,
        Suryanarayana and Pask, "Periodic Pulay method for robust and efficient convergence acceleration of
        self-consistent field iterations", Chem. Phys. Lett. 647 (2016).
    """

    rtol: float = 1e-6
    atol: float = 1e-8
    memory: int = eqx.field(default=5, static=True)
    mixing: RealScalar = 1.0
    ridge: RealScalar | None = None
    period: int = eqx.field(default=3, static=True, kw_only=True)
    norm: Callable[[PyTree], Float[Array, ""]] = eqx.field(default=tree_norm, static=True, kw_only=True)

    def __check_init__(self):
        for name in ("memory", "period"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}")
        if isinstance(self.mixing, int | float) and self.mixing == 0:
            raise ValueError(f"`mixing` must not be zero; got {self.mixing}")
        if isinstance(self.ridge, int | float) and not self.ridge >= 0:
            raise ValueError(f"`ridge` must be non-negative; got {self.ridge}")

    def _remember(self, y: Any) -> _History:
        m = self.memory
        stack = stack_like(y, m)
        gram = jnp.zeros((m, m), jax.eval_shape(stack_dot, stack, y).dtype)
        count = jnp.zeros((), jnp.int32)
        return _History(stack, stack, gram, jnp.zeros(m, bool), count)

    def _next(self, fn: Callable[[Any, Any], Any], at: Evaluation, args: Any, memory: _History) -> tuple[Any, _History]:
        del fn, args
        hit = jnp.arange(self.memory, dtype=jnp.int32) == memory.count % self.memory
        x = stack_put(memory.x, tree_axpy(self.mixing, at.g, at.y), hit)
        g = stack_put(memory.g, at.g, hit)
        # One new row, and the column that is its conjugate.
        column = stack_dot(g, at.g)
        gram = jnp.where(hit[:, None], jnp.conj(column)[None, :], memory.gram)
        gram = jnp.where(hit[None, :], column[:, None], gram)
        forget = at.residual > _GROWTH * at.best
        valid = hit | (memory.valid & ~forget)
        weights = self._weights(gram, valid, hit)
        # Not before the history is full: until then every step is that of GMRES.
        plain = (memory.count >= self.memory) & (memory.count % self.period != 0) & (at.residual < at.best)
        weights = jnp.where(plain, hit.astype(weights.dtype), weights)
        # A place that was never filled has the weight zero.
        return stack_combine(weights, x), _History(x, g, gram, valid, memory.count + 1)

    def _weights(self, gram: Array, valid: Array, hit: Array) -> Array:
        real = real_dtype(gram)
        ridge = (1e-12 if real == jnp.float64 else 1e-7) if self.ridge is None else self.ridge
        count = jnp.sum(valid).astype(real)
        mean = jnp.sum(jnp.where(valid, jnp.real(jnp.diagonal(gram)), 0)) / count
        scaled = gram / jnp.where(mean > 0, mean, 1).astype(gram.dtype)
        pair = valid[:, None] & valid[None, :]
        shift = jnp.where(valid, jnp.asarray(ridge, real), 1).astype(gram.dtype)
        weights = _solve_definite(jnp.where(pair, scaled, 0) + jnp.diag(shift), valid.astype(gram.dtype))
        total = jnp.sum(weights)
        weights = weights / jnp.where(total == 0, 1, total)
        # No sum of weights is near zero but by rounding, nor is any weight then of use.
        sound = jnp.all(jnp.isfinite(weights)) & (total != 0)
        return jnp.where(sound, weights, hit.astype(gram.dtype))


def _solve_definite(matrix: Inexact[Array, "m m"], vector: Inexact[Array, " m"]) -> Inexact[Array, " m"]:
    """Solve a small positive definite system by elimination, which needs no pivots."""
    # Not a Cholesky factorisation: a batch would call LAPACK once for each sample, at every step.
    augmented = jnp.concatenate([matrix, vector[:, None]], axis=1)
    for k in range(len(vector)):
        row = augmented[k] / augmented[k, k]
        augmented = (augmented - augmented[:, k, None] * row[None, :]).at[k].set(row)
    return augmented[:, -1]
