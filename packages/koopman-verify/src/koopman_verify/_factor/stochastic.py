from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Inexact

from .factor import Dictionary, Factor, _check_num, _coordinates, _truncated, promoted, witnesses_of
from .snapshots import Snapshots, num_distinct


class StochasticFactor(eqx.Module):
    r"""The stochastic Koopman operator $Kg(x) = \mathbb E\,g(F(x,\tau))$ on a dictionary, from two successors of each state.

    With $S$ the mean and $D$ half the difference of the two successors' values,

    $$L = \tfrac12(\Psi_Y^*W\Psi_Y + \Psi_{Y'}^*W\Psi_{Y'}) = S^*S + D^*D,\qquad
    H = \tfrac12(\Psi_Y^*W\Psi_{Y'} + \Psi_{Y'}^*W\Psi_Y) = S^*S - D^*D.$$

    So the residual with $L$ is the norm of a vector. The one with $H$, which tends to $\lVert(K-\lambda)g\rVert^2$, is a
    difference of two such squares: $H$ need not be positive for finite data, and a difference below the noise says nothing.

    **Attributes:**

    - `variance`: a [`koopman_verify.Factor`][] with $L$: its residuals are $\sqrt{\lVert(K-\lambda)g\rVert^2 +
        \int\mathrm{Var}\,g(F(x,\tau))\,d\omega}$ (relative), and everything that takes a factor takes it.
    - `mean`: a factor with $S$ alone: its residuals are above those of $K$ by half of that variance.
    - `noise`: the part of $D$, `[s, r]`: $\lVert Du\rVert^2$ is half of the variance.

    !!! Example

        ```python
        stochastic = koopman_verify.stochastic_factor(dictionary, Snapshots(x, y), y_again)
        koopman_verify.edmd(stochastic.variance).residuals
        ```
    """

    variance: Factor
    mean: Factor
    noise: Inexact[Array, "s r"]

    def variance_residual(self, z: Any, u: Any) -> Float[Array, " k"]:
        r"""Return $\sqrt{\lVert(K-z_j)g_j\rVert^2 + \mathrm{Var}}/\lVert g_j\rVert$ for coordinates $u$ `[r, k]`."""
        return self.variance.residual(jnp.asarray(z), jnp.asarray(u))

    def expected_residual(self, z: Any, u: Any) -> "ExpectedResidual":
        r"""Return the residual of the expected operator, $\lVert(K-z_j)g_j\rVert/\lVert g_j\rVert$, as far as it shows.

        **Arguments:**

        - `z`: points `[k]`.
        - `u`: coordinates `[r, k]`.

        **Returns:** [`koopman_verify.ExpectedResidual`][].
        """
        z, u = promoted(z, u)
        noise, columns = promoted(self.noise, u)
        upper = self.mean.residual(z, u)
        noise = jnp.linalg.norm(noise @ columns, axis=0) / jnp.linalg.norm(columns, axis=0)
        # (a - b)(a + b) has a relative error of rounding size where a^2 - b^2 may have none that is right.
        squared = (upper - noise) * (upper + noise)
        # `squared` is the mean of Re(e conj e') for the two errors e, e' at a state: its spread is about E|e|^2 / sqrt(M).
        spread = (upper**2 + noise**2) / jnp.sqrt(jnp.asarray(self.mean.num_snapshots, noise.dtype))
        return ExpectedResidual(squared, upper, squared > 3 * spread + self.mean.rounding(z) ** 2)


class ExpectedResidual(eqx.Module):
    r"""The residual of a stochastic Koopman operator's expectation: a difference, with its sign.

    **Attributes:**

    - `squared`: the estimate of $\lVert(K-\lambda)g\rVert^2/\lVert g\rVert^2$, `[k]`. It may be negative, in finite data, and
        is given as it is.
    - `upper`: the root of the estimate before the noise is subtracted, `[k]`: never less in expectation.
    - `resolved`: whether `squared` is above three times its own spread, `[k]`, at independent states.

    !!! Example

        ```python
        expected = stochastic.expected_residual(pairs.eigenvalues, pairs.coordinates)
        expected.value[expected.resolved]
        ```
    """

    squared: Float[Array, " k"]
    upper: Float[Array, " k"]
    resolved: Bool[Array, " k"]

    @property
    def value(self) -> Float[Array, " k"]:
        """The root of `squared` where it is resolved, and `upper` elsewhere."""
        return jnp.where(self.resolved, jnp.sqrt(jnp.where(self.resolved, self.squared, 1.0)), self.upper)


def stochastic_factor(
    dictionary: Dictionary, snapshots: Snapshots, second: Any, *, rank_tol: float | None = None
) -> StochasticFactor:
    r"""Factorise a stochastic system from two independent successors of each state.

    **Arguments:**

    - `dictionary`: as in [`koopman_verify.factor`][].
    - `snapshots`: states and their first successors.
    - `second`: second successors $y'$ of the same states, drawn independently of the first, `[M, d]`. Identical ones would
        make the variance vanish, and are refused.
    - `rank_tol`: as in [`koopman_verify.factor`][].

    **Returns:** [`koopman_verify.StochasticFactor`][].

    **Raises:** `ValueError` if `second` has another shape than the successors or equals them, and what
        [`koopman_verify.factor`][] raises.

    ??? cite "Reference"

        Colbrook, Li, Raut and Townsend, *Beyond expectations: residual dynamic mode decomposition and variance for
        stochastic dynamical systems*, arXiv:2308.10697. The form without squares is ours.

    !!! Example

        ```python
        stochastic = koopman_verify.stochastic_factor(dictionary, Snapshots(x, y), y_again)
        pairs = koopman_verify.edmd(stochastic.variance)
        stochastic.expected_residual(pairs.eigenvalues, pairs.coordinates).value
        ```
    """
    again = Snapshots(snapshots.x, second, snapshots.weights, snapshots.kind)
    _check_num(dictionary, snapshots, snapshots.num_snapshots)
    same = snapshots.y == again.y
    if not isinstance(same, Tracer) and bool(jnp.all(same)):
        raise ValueError("`second` equals the first successors: they must be drawn independently of each other")
    triangle = _triangle(dictionary, snapshots, again.y)
    distinct = num_distinct(snapshots, triangle.shape[1] // 3)
    n = triangle.shape[1] // 3
    upper, outside, noise = triangle[:n, : 2 * n], triangle[n : 2 * n, n : 2 * n], triangle[:, 2 * n :]
    # L = S*S + D*D: the noise is one more part that lies outside of the span.
    both = jnp.linalg.qr(jnp.concatenate([outside, noise]), mode="r")

    def with_outside(rows: Array) -> Factor:
        stacked = jnp.concatenate([upper, jnp.concatenate([jnp.zeros_like(rows), rows], axis=1)])
        parts = _coordinates(stacked, 1.0, distinct) if rank_tol is None else _truncated(stacked, rank_tol)
        num, kind = snapshots.num_snapshots, snapshots.kind
        return Factor(dictionary=dictionary, num_snapshots=num, kind=kind, witnesses=witnesses_of(snapshots.x), **parts)

    mean = with_outside(outside)
    return StochasticFactor(with_outside(both), mean, noise @ mean.basis)


@eqx.filter_jit
def _triangle(dictionary: Dictionary, snapshots: Snapshots, again: Array) -> Array:
    x, y, z = (jax.vmap(dictionary)(states) for states in (snapshots.x, snapshots.y, again))
    weights = snapshots.weights
    scale = jnp.ones(len(x), snapshots.x.dtype) if weights is None else jnp.sqrt(weights)
    scale = scale / jnp.sqrt(jnp.asarray(len(x) if weights is None else 1, scale.dtype))
    rows = jnp.concatenate([x, (y + z) / 2, (y - z) / 2], axis=1) * scale[:, None].astype(x.dtype)
    missing = max(0, rows.shape[1] - len(rows))
    return jnp.linalg.qr(jnp.pad(rows, [(0, missing), (0, 0)]), mode="r")
