from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from ._factor.factor import Dictionary, Factor, checked_factor, evaluate, promoted
from ._measures.mpedmd import checked, coordinates_of
from ._spectra.edmd import Eigenpairs


ErrorKind: TypeAlias = Literal["bound", "estimate"]


class Forecast(eqx.Module):
    r"""Predictions of an observable, with their error in the norm of $L^2(\omega)$.

    **Attributes:**

    - `coefficients`: dictionary coefficients of the predicted function $g_n\approx K^ng$, `[num_steps + 1, N]` or `[num_steps
        + 1, N, k]`; the first is $g$ itself.
    - `error`: an upper bound or an estimate of $\lVert K^ng - g_n\rVert$, `[num_steps + 1]` or `[num_steps + 1, k]`.
    - `kind`: `"bound"` or `"estimate"`: which of the two `error` is.
    - `assumptions`: what the error rests on.
    - `initial`: the states that were asked for, `[m, d]`, or `None`.
    - `dictionary`: the callable of the factor.

    !!! Example

        ```python
        prediction = koopman_verify.forecast(factor, coefficients, 20, norm_bound=1.0)
        print(prediction.kind, prediction.error[-1], prediction.assumptions)
        ```
    """

    coefficients: Inexact[Array, "steps N ..."]
    error: Float[Array, "steps ..."]
    dictionary: Dictionary
    initial: Float[Array, "m d"] | None
    kind: ErrorKind = eqx.field(static=True)
    assumptions: tuple[str, ...] = eqx.field(static=True)

    @property
    def mean(self) -> Inexact[Array, "steps m ..."]:
        """The predicted values at the initial states, `[num_steps + 1, m]` or `[num_steps + 1, m, k]`."""
        if self.initial is None:
            raise ValueError("`initial` states were not given to `forecast`: call `values` with some")
        return self.values(self.initial)

    @property
    def bound(self) -> Float[Array, "steps ..."] | None:
        """The error if it is a bound, and `None` if it is only an estimate."""
        return self.error if self.kind == "bound" else None

    def values(self, x: Any) -> Inexact[Array, "steps m ..."]:
        """Return the predicted values of the observable for trajectories that start at the states `[m, d]`."""
        psi, v = promoted(evaluate(self.dictionary, _states(x)), self.coefficients)
        return jnp.einsum("mj,nj...->nm...", psi, v)


def forecast(
    factor: Factor,
    observable_coefficients: Any,
    num_steps: int,
    *,
    norm_bound: Any = None,
    initial: Any = None,
) -> Forecast:
    r"""Predict an observable, with the error that leaving the dictionary's span has made.

    $g_n$ has the coordinates $A^nu$, and step $j$ leaves out a function of norm $\lVert BA^ju\rVert$, so that

    $$\lVert K^ng - g_n\rVert\le\sum_{j<n}\lVert K\rVert^{n-1-j}\,\lVert BA^ju\rVert.$$

    The error is in the mean square over the measure $\omega$: there is no pointwise bound outside of a reproducing kernel
    space. It is called a bound only if `norm_bound` is given and the norms that enter it are those of the operator, which
    takes exact integrals: quadrature nodes, or a kernel factor. (That the rule is exact for the dictionary is the caller's
    word.) For sampled data it is an estimate on the data of the fit, which is too small when $M < 10N$.

    **Arguments:**

    - `factor`: from [`koopman_verify.factor`][].
    - `observable_coefficients`: dictionary coefficients of $g$, `[N]`, or `[N, k]` of several.
    - `num_steps`: how far.
    - `norm_bound`: an upper bound of $\lVert K\rVert$; 1 for a measure-preserving map. `None` takes the norm of $K$ on the
        span, which is a lower bound of it, and the error is then an estimate.
    - `initial`: states `[m, d]` at which `mean` gives the prediction.

    **Returns:** [`koopman_verify.Forecast`][].

    **Raises:** `ValueError` for wrong lengths, a negative number of steps, or a `norm_bound` that is not positive.

    ??? cite "Reference"

        Colbrook, *An introductory guide to Koopman learning*, arXiv:2510.22002 (the error of a subspace).

    !!! Example

        ```python
        prediction = koopman_verify.forecast(factor, coefficients, 20, norm_bound=1.0, initial=x0)
        print(prediction.mean[:, 0], prediction.bound)
        ```
    """
    checked_factor(factor)
    u = coordinates_of(factor, observable_coefficients)
    _check_steps(num_steps)
    norm = None if norm_bound is None else _norm(norm_bound, factor.cond.dtype)
    coefficients, error = _propagated(factor, u, jnp.asarray(observable_coefficients), norm, int(num_steps))
    kind, assumptions = _what_it_is(factor.kind, factor.space, norm_bound is not None)
    return Forecast(
        coefficients=coefficients,
        error=error,
        dictionary=factor.dictionary,
        initial=None if initial is None else _states(initial),
        kind=kind,
        assumptions=assumptions,
    )


@eqx.filter_jit
def _propagated(factor: Factor, u: Array, v: Array, norm: Array | None, num_steps: int) -> tuple[Array, Array]:
    """Return the coefficients of the predictions and their errors, for every number of steps."""
    norm = jnp.linalg.norm(jnp.concatenate([factor.A, factor.B]), 2) if norm is None else norm
    a, b, basis, u = promoted(factor.A, factor.B, factor.basis, u)
    # Each step's rounding, as a share of the norm of what it acts on.
    rounding = factor.rounding(jnp.zeros_like(norm))

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        u, error = carry
        left_out = jnp.linalg.norm(b @ u, axis=0) + rounding * jnp.linalg.norm(u, axis=0)
        error = norm * error + left_out
        return (a @ u, error), (a @ u, error)

    r11, v = promoted(factor.R11, v, u)[:2]
    # What a truncated space does not hold of g is an error from the start; a full one holds all of it.
    missing = jnp.linalg.norm(r11 @ v - (r11 @ basis.astype(r11.dtype)) @ u.astype(r11.dtype), axis=0)
    start = (u, missing if factor.rank < factor.size else jnp.zeros_like(missing))
    _, (steps, errors) = jax.lax.scan(step, start, None, length=num_steps)
    steps = jnp.concatenate([u[None], steps])
    return jnp.einsum("jr,nr...->nj...", basis, steps), jnp.concatenate([start[1][None], errors])


def modal_forecast(
    pairs: Eigenpairs, amplitudes: Any, num_steps: int, *, norm_bound: Any = None, initial: Any = None
) -> Forecast:
    r"""Predict a sum of eigenfunctions, $g = \sum_ja_jg_j$, with an error from their residuals.

    $$\Big\lVert K^ng - \sum_ja_j\lambda_j^ng_j\Big\rVert\le\sum_j|a_j|\lVert g_j\rVert r_j\sum_{i<n}|\lambda_j|^i\lVert
    K\rVert^{n-1-i}$$

    with the residuals $r_j$: for an isometry and $|\lambda_j|\le1$ at most $n\sum_j|a_j|r_j$. What an observable has outside
    of these eigenfunctions is the caller's to add.

    **Arguments:**

    - `pairs`: a few [`koopman_verify.Eigenpairs`][] with small residuals, of norm one.
    - `amplitudes`: $a$, `[k]`, or `[k, p]` for $p$ observables.
    - `num_steps`, `norm_bound`, `initial`: as in [`koopman_verify.forecast`][]. Without `norm_bound` the error takes
        $\lVert K\rVert = \max(1, |\lambda_j|)$, and is an estimate.

    **Returns:** [`koopman_verify.Forecast`][].

    **Raises:** as [`koopman_verify.forecast`][].

    !!! Example

        ```python
        good = pairs[pairs.residuals < 0.01]
        koopman_verify.modal_forecast(good, amplitudes, 36, norm_bound=1.0, initial=x0).mean
        ```
    """
    _check_steps(num_steps)
    amplitudes = jnp.asarray(amplitudes)
    if amplitudes.ndim not in (1, 2) or len(amplitudes) != len(pairs):
        raise ValueError(f"`amplitudes` must be [k] or [k, p] with k = {len(pairs)}; got {list(amplitudes.shape)}")
    z, v, a = promoted(pairs.eigenvalues, pairs.coefficients, amplitudes)
    a = checked("amplitudes", a, jnp.isfinite(a), "finite")
    norm = None if norm_bound is None else _norm(norm_bound, z.real.dtype)
    coefficients, error = _modes_propagated(pairs, z, v, a, norm, int(num_steps))
    # The norm of another library's eigenfunctions is not known.
    data, space = (None, None) if pairs.coordinates is None else (pairs.kind, pairs.space)
    kind, assumptions = _what_it_is(data, space, norm_bound is not None)
    return Forecast(
        coefficients=coefficients,
        error=error,
        dictionary=pairs.dictionary,
        initial=None if initial is None else _states(initial),
        kind=kind,
        assumptions=assumptions,
    )


@eqx.filter_jit
def _modes_propagated(
    pairs: Eigenpairs, z: Array, v: Array, a: Array, norm: Array | None, num_steps: int
) -> tuple[Array, Array]:
    size = jnp.abs(z)
    norm = jnp.maximum(jnp.max(size), 1) if norm is None else norm
    lengths = jnp.ones_like(size) if pairs.coordinates is None else jnp.linalg.norm(pairs.coordinates, axis=0)
    residuals = (pairs.residuals + pairs.rounding) * lengths

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        power, error = carry
        error = norm * error + jnp.abs(power) * residuals
        return (power * z, error), (power * z, error)

    start = (jnp.ones_like(z), jnp.zeros_like(size))
    _, (powers, errors) = jax.lax.scan(step, start, None, length=num_steps)
    powers, errors = jnp.concatenate([start[0][None], powers]), jnp.concatenate([start[1][None], errors])
    return jnp.einsum("jl,nl,l...->nj...", v, powers, a), jnp.einsum("nl,l...->n...", errors, jnp.abs(a))


def _what_it_is(data: Any, space: Any, norm_given: bool) -> tuple[ErrorKind, tuple[str, ...]]:
    exact = space == "rkhs" or data == "quadrature"
    norm = "`norm_bound` bounds the norm of K" if norm_given else "the norm of K is estimated, from below"
    integrals = {
        "rkhs": "inner products of a reproducing kernel space, exact for finite data",
        "quadrature": "the quadrature rule is exact for products of dictionary functions and their images",
    }.get("rkhs" if space == "rkhs" else data, "norms are means over the data of the fit")
    return ("bound" if exact and norm_given else "estimate"), (norm, integrals)


def _check_steps(num_steps: Any) -> None:
    if isinstance(num_steps, bool) or num_steps != int(num_steps) or num_steps < 0:
        raise ValueError(f"`num_steps` must be a whole number, not negative; got {num_steps!r}")


def _norm(norm_bound: Any, dtype: Any) -> Array:
    norm = jnp.asarray(norm_bound, dtype)
    if norm.ndim != 0:
        raise ValueError(f"`norm_bound` must be one number; got shape {list(norm.shape)}")
    return checked("norm_bound", norm, (norm > 0) & jnp.isfinite(norm), "positive and finite")


def _states(x: Any) -> Float[Array, "m d"]:
    x = jnp.asarray(x)
    if x.ndim != 2:
        raise ValueError(f"`initial` states must have shape [m, d]; got {list(x.shape)}")
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))
    return checked("initial", x, jnp.isfinite(x), "finite")
