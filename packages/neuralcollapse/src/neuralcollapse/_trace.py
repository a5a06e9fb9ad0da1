import functools as ft
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, PRNGKeyArray

from ._check import require
from ._hessian import Curvature, flat_product


class Estimate(eqx.Module):
    """A statistical estimate, with its standard error.

    **Attributes:**

    - `value`: the estimate, unbiased.
    - `standard_error`: the estimated standard deviation of `value`; zero if it is exact.
    - `num_probes`: how many independent samples the standard error rests on (zero: `value` is exact).
    - `num_matvecs`: how many products were made.
    """

    value: Float[Array, "..."]
    standard_error: Float[Array, "..."]
    num_probes: int = eqx.field(static=True)
    num_matvecs: int = eqx.field(static=True)

    def interval(self, level: float = 0.95) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Return a confidence interval by Student's t distribution, as if the samples were Gaussian."""
        if not 0 < level < 1:
            raise ValueError(f"`level` must be between zero and one; got {level}.")
        if self.num_probes < 2:
            return self.value, self.value
        half = _student(jnp.asarray((1 + level) / 2, self.value.dtype), self.num_probes - 1) * self.standard_error
        return self.value - half, self.value + half


def trace(
    fn: Curvature,
    params: Any = None,
    *,
    key: PRNGKeyArray,
    num_matvecs: int = 90,
    method: Literal["hutch++", "hutchinson"] = "hutch++",
) -> Estimate:
    r"""Estimate the trace of a Hessian or symmetric operator, with a standard error.

    Hutch++ spends a third of the products on finding the dominant directions, a third on their exact share of the
    trace, and the last on random probes of the rest. With at least three times as many products as parameters, or where
    the operator is of low rank, it is exact.

    **Arguments:**

    - `fn`: a loss of the parameters, whose Hessian is meant, or a symmetric Lineax operator.
    - `params`: where; leave out with an operator.
    - `key`: draws the probes.
    - `num_matvecs`: the products to make, at least six; fewer are made where the trace is then known exactly.
    - `method`: `"hutch++"`, or `"hutchinson"`, random probes alone.

    **Returns:**

    A [`neuralcollapse.sharpness.Estimate`][].

    **Raises:**

    `ValueError` for a loss that is not scalar, an operator not tagged symmetric, or too few products; a run-time error
    where the products are not finite.

    !!! Example

        ```python
        estimate = neuralcollapse.sharpness.trace(loss, params, key=jax.random.key(0))
        estimate.interval(0.95)
        ```

    ??? cite "Reference"

        Meyer, Musco, Musco, Woodruff, "Hutch++: Optimal Stochastic Trace Estimation", arXiv:2010.09649.
    """
    if method not in ("hutch++", "hutchinson"):
        raise ValueError(f'`method` must be "hutch++" or "hutchinson"; got {method!r}.')
    return _estimate(fn, params, key, num_matvecs, method, squared=False)


def frobenius(fn: Curvature, params: Any = None, *, key: PRNGKeyArray, num_matvecs: int = 90) -> Estimate:
    r"""Estimate the *squared* Frobenius norm $\operatorname{tr} A^2 = \mathbb E\lVert Av\rVert^2$, with a standard error.

    By Hutch++ on the square, whose products with dominant directions come for free.

    **Arguments:**

    - `fn`, `params`, `key`, `num_matvecs`: as for [`neuralcollapse.sharpness.trace`][].

    **Returns:**

    A [`neuralcollapse.sharpness.Estimate`][] of the square.
    """
    return _estimate(fn, params, key, num_matvecs, "hutch++", squared=True)


def _estimate(fn, params, key, num_matvecs, method, *, squared) -> Estimate:
    if not isinstance(num_matvecs, int) or num_matvecs < 6:
        raise ValueError(f"`num_matvecs` must be a whole number of at least 6; got {num_matvecs!r}.")
    product, size, dtype, _ = flat_product(fn, params)
    # One product after another: a batch of them would need that many times the memory of a gradient.
    many = ft.partial(jax.lax.map, product)
    if num_matvecs >= size:
        whole = many(jnp.eye(size, dtype=dtype))
        value = jnp.sum(whole**2) if squared else jnp.trace(whole)
        return Estimate(_checked(value), jnp.zeros((), dtype), 0, size)
    sketch = 0 if method == "hutchinson" else num_matvecs // 3
    probes = num_matvecs - 2 * sketch
    sketch_key, probe_key = jr.split(key)
    signs = jr.rademacher(probe_key, (probes, size), dtype)
    exact = jnp.zeros((), dtype)
    if sketch:
        start = jr.rademacher(sketch_key, (sketch, size), dtype)
        basis = jnp.linalg.qr(many(start).T)[0].T
        moved = many(basis)
        exact = jnp.sum(moved**2) if squared else jnp.sum(basis * moved)
        signs = signs - (signs @ basis.T) @ basis
    pushed = many(signs)
    samples = jnp.sum(pushed**2 if squared else signs * pushed, axis=1)
    error = jnp.std(samples, ddof=1) / jnp.sqrt(probes)
    return Estimate(_checked(exact + jnp.mean(samples)), error, probes, num_matvecs)


def _checked(value: Array) -> Array:
    message = "The products with the operator are not finite: is the loss finite at `params`?"
    return require(value, jnp.isfinite(value), message)


def _student(p: Array, dof: int) -> Array:
    """Return a quantile of Student's t distribution, by the Cornish-Fisher expansion; relative error below 1e-3 from 5 on."""
    z = ndtri(p)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / dof + second / dof**2 + third / dof**3
