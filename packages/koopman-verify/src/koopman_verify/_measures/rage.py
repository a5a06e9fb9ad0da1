from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.scipy.linalg as jsp
import jax.scipy.signal as jss
import numpy as np
from jaxtyping import Array, Float, Inexact

from .._factor.factor import promoted
from .mpedmd import checked


class PointPart(eqx.Module):
    r"""How much of an observable stays near a finite-dimensional space: the RAGE split of its spectral measure.

    $$R(n,L) = \frac1L\sum_{\ell<L}\frac{\lVert P_nK^\ell g\rVert^2}{\lVert g\rVert^2},\qquad
    \lim_{n}\lim_{L}R(n,L) = \frac{\mu_g^{pp}(\mathbb T)}{\mu_g(\mathbb T)}$$

    for an isometry. The limits do not commute, and no finite $n$ and $L$ bound them: `share` is evidence, and it is not
    a bound on the point part.

    **Attributes:**

    - `share`: $R(n, L)$ for $n = 1, \ldots$ and $L = 1, \ldots$: `[n, L]`.

    !!! Example

        ```python
        part = koopman_verify.rage(functions, orbit)
        print(part.value, part.share[:, -1])
        ```
    """

    share: Float[Array, "n L"]

    @property
    def value(self) -> Float[Array, ""]:
        """The share at the largest $n$ and $L$."""
        return self.share[-1, -1]


@eqx.filter_jit
def rage(functions: Any, orbit: Any, *, weights: Any = None) -> PointPart:
    r"""Split an observable of a measure-preserving map into its point and its continuous part.

    **Arguments:**

    - `functions`: values at the states $x_m$ of functions that span the spaces, `[M, n]`: $P_j$ projects on the first $j$.
    - `orbit`: $g(F^\ell(x_m))$, `[M, L]`.
    - `weights`: positive quadrature weights `[M]`; `None` is equal ones.

    **Returns:** [`koopman_verify.PointPart`][] with the share for every number of functions and every $L$ at once.

    **Raises:** `ValueError` for shapes that do not fit, values that are not finite, more functions than states; a
    run-time error for functions that depend on each other or a vanishing observable.

    ??? cite "Reference"

        Colbrook, Mezić and Stepanenko, arXiv:2407.06312 (their algorithms for the point spectrum rest on the RAGE theorem).

    !!! Example

        ```python
        koopman_verify.rage(jax.vmap(dictionary)(x), jnp.stack([g(x), g(F(x)), g(F(F(x)))], axis=1)).share
        ```
    """
    f, g = promoted(jnp.asarray(functions), jnp.asarray(orbit))
    f, g = (f, g) if jnp.issubdtype(f.dtype, jnp.inexact) else (f.astype(float), g.astype(float))
    if f.ndim != 2 or g.ndim != 2 or len(f) != len(g) or f.shape[1] > len(f) or 0 in f.shape or 0 in g.shape:
        raise ValueError(
            f"`functions` and `orbit` must be [M, n] and [M, L] with n <= M; got {list(f.shape)} and {list(g.shape)}"
        )
    if weights is not None:
        w = jnp.asarray(weights, jnp.finfo(f.dtype).dtype)
        if w.shape != f.shape[:1]:
            raise ValueError(f"`weights` must have shape [M] = [{len(f)}]; got {list(w.shape)}")
        root = jnp.sqrt(checked("weights", w, (w > 0) & jnp.isfinite(w), "positive and finite"))[:, None].astype(
            f.dtype
        )
        f, g = f * root, g * root
    f = checked("functions", f, jnp.isfinite(f), "finite")
    g = checked("orbit", g, jnp.isfinite(g), "finite")
    q, r = jnp.linalg.qr(f)
    q = eqx.error_if(q, _dependent(r), "`functions` depend linearly on each other")
    return _shares(q.conj().T @ g, jnp.linalg.norm(g[:, 0]) ** 2)


@eqx.filter_jit
def rage_series(series: Any, *, num_delays: int, num_steps: int, stride: int = 1) -> PointPart:
    r"""Do the split for one long trajectory, with delays of the observable as the functions.

    The same as [`koopman_verify.rage`][] with functions $g, K^sg, K^{2s}g, \ldots$, without storing $g\circ F^\ell$ for every
    $\ell$: the products are correlations.

    **Arguments:**

    - `series`: $g(x_k)$ along a trajectory, `[T]`. Its mean is a point part of its own (the constant function's): subtract
        it first if that is not meant.
    - `num_delays`, `stride`: how many delays span the largest space, and their distance $s$ in steps.
    - `num_steps`: the largest $L$. The states are the first $M = T - \max(L-1, (n-1)s)$.

    **Returns:** [`koopman_verify.PointPart`][].

    **Raises:** `ValueError` if the series is too short or not finite.

    !!! Example

        ```python
        koopman_verify.measures.rage_series(energy - energy.mean(), num_delays=20, stride=10, num_steps=1000).value
        ```
    """
    g = jnp.asarray(series)
    g = g if jnp.issubdtype(g.dtype, jnp.inexact) else g.astype(jnp.result_type(float))
    reach = max(num_steps - 1, (num_delays - 1) * stride)
    if g.ndim != 1 or min(num_delays, num_steps, stride) < 1 or len(g) - reach < num_delays:
        raise ValueError(
            "`series` must be [T] with at least num_delays states after max(num_steps - 1, (num_delays - 1) * stride) = "
            f"{reach} steps; got {list(g.shape)}"
        )
    g = checked("series", g, jnp.isfinite(g), "finite")
    num = len(g) - reach
    shifts = stride * np.arange(num_delays)
    f = jnp.stack([g[s : s + num] for s in shifts], axis=1)
    r = jnp.linalg.qr(f, mode="r")
    r = eqx.error_if(
        r, _dependent(r), "delays of `series` depend linearly on each other: fewer delays, or a larger stride"
    )
    reached = g[: num + num_steps - 1]
    # sum over m of conj f[m, j] g[m + l]
    products = [jss.fftconvolve(reached, f[::-1, j].conj(), mode="valid") for j in range(num_delays)]
    projected = jsp.solve_triangular(r, jnp.stack(products), trans="C")
    return _shares(projected, jnp.linalg.norm(g[:num]) ** 2)


def _dependent(r: Inexact[Array, "n n"]) -> Array:
    diagonal = jnp.abs(jnp.diagonal(r))
    return jnp.min(diagonal) <= 8 * len(r) * jnp.finfo(diagonal.dtype).eps * jnp.max(diagonal)


def _shares(projected: Inexact[Array, "n L"], squared_norm: Float[Array, ""]) -> PointPart:
    squared_norm = eqx.error_if(squared_norm, squared_norm == 0, "the observable vanishes on the states")
    kept = jnp.cumsum(jnp.abs(projected) ** 2, axis=0) / squared_norm
    lengths = jnp.arange(1, projected.shape[1] + 1).astype(kept.dtype)
    return PointPart(jnp.cumsum(kept, axis=1) / lengths[None])
