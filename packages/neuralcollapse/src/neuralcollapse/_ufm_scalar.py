"""The scalar problem to which the deep linear model with squared loss reduces, one for every singular value."""

import functools as ft
import math

import jax
import jax.numpy as jnp
import lineax as lx
from implicit_core.implicit import root
from jaxtyping import Array, ArrayLike, Float

from ._arguments import as_float, check_depth
from ._check import require


def threshold(depth: int) -> float:
    r"""Return $\theta_M = (M-1)^{(M-1)/M}/M$, the ratio at and above which a class collapses.

    In the deep linear unconstrained-features model with squared loss, a mode with $q = b_M/\tau^2$ (for the model
    without bias $\tau^2 = n_k$, the class size) is zero at the global minimum if and only if $q \ge \theta_M$.

    **Arguments:**

    - `depth`: the number $M$ of weight matrices.

    **Returns:**

    A Python float: 1 for depth 1, 0.5 for depth 2.

    !!! Example

        ```python
        neuralcollapse.ufm.threshold(2)  # 0.5
        ```
    """
    check_depth(depth)
    return math.exp(_log_threshold(depth))


def spinodal(depth: int) -> float:
    r"""Return the ratio up to which a nonzero local minimum survives, at least [`neuralcollapse.ufm.threshold`][].

    Between the two a class is collapsed at the global minimum, but gradient descent that starts from a fitted class
    need not find out: hysteresis. At depth 1 the two are the same.

    **Arguments:**

    - `depth`: the number $M$ of weight matrices.

    !!! Example

        ```python
        neuralcollapse.ufm.spinodal(2)  # 0.6495
        ```
    """
    check_depth(depth)
    if depth == 1:
        return 1.0
    power = (depth - 1) / (depth + 1)
    return depth * power ** ((depth - 1) / depth) / (power + 1) ** 2


def fitted_fraction(q: Float[ArrayLike, "..."], depth: int, *, local: bool = False) -> Float[Array, "..."]:
    r"""Return the fraction $\sigma/\tau = x^M/(x^M+1)$ of its target that a mode reaches at the global minimum.

    Here $x \ge 0$ minimises $1/(x^M+1) + q x$. For depth 1 that is $\max(0, 1 - \sqrt q)$. For greater depth it jumps
    from $(M-1)/M$ to zero at $q = \theta_M$: the value is differentiable in `q` on both sides, and not across.

    **Arguments:**

    - `q`: the ratio $b_M/\tau^2$, positive (infinite where there is no target); any shape.
    - `depth`: the number $M$ of weight matrices.
    - `local`: follow the nonzero local minimum up to the spinodal value instead of the global one up to the threshold.

    **Returns:**

    An array like `q`, exactly zero where the mode is collapsed.

    **Raises:**

    `ValueError` if `q` is not positive (a run-time error where it is traced).

    !!! Example

        ```python
        neuralcollapse.ufm.fitted_fraction(jnp.array([0.1, 0.49, 0.51]), 2)  # [0.9473, 0.5144, 0.]
        ```

    ??? cite "Reference"

        Dang et al., "Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data", arXiv:2301.00437.
        The test against the global minimum, here `q < threshold(depth)`, is not in its code.
    """
    check_depth(depth)
    q = as_float(q, "q")
    q = require(q, jnp.all(q > 0), "`q` must be positive.", q=q)
    return fraction_of_log(jnp.log(q), depth, local)


def fraction_of_log(log_q: Float[Array, "..."], depth: int, local: bool = False) -> Float[Array, "..."]:
    """Return the fitted fraction of `log q`, which neither overflows nor underflows."""
    limit = math.log(spinodal(depth)) if local else _log_threshold(depth)
    alive = log_q < limit
    log_q = jnp.where(alive, log_q, limit - 1.0)
    if depth == 1:
        fraction = -jnp.expm1(log_q / 2)
    else:
        fraction = jax.nn.sigmoid(depth * _log_root(log_q.ravel(), depth).reshape(log_q.shape))
    return jnp.where(alive, fraction, 0.0)


def log_ratio(tau: Array, total: Array, log_product: Array, depth: int) -> Array:
    r"""Return $\log(b_M/\tau^2)$ with $b_M = M N (N \Lambda)^{1/M}$; plus infinity where `tau` is zero."""
    zero = tau <= 0
    log_b = math.log(depth) + jnp.log(total) + (jnp.log(total) + log_product) / depth
    return jnp.where(zero, jnp.inf, log_b - 2 * jnp.log(jnp.where(zero, 1, tau)))


def mode_value(sigma: Array, tau: Array, total: Array, log_product: Array, depth: int) -> Array:
    r"""Return $(\sigma-\tau)^2/(2N) + \frac{M+1}{2} \Lambda^{1/(M+1)} \sigma^{2/(M+1)}$."""
    return (sigma - tau) ** 2 / (2 * total) + mode_penalty(sigma, log_product, depth)


def mode_penalty(sigma: Array, log_product: Array, depth: int) -> Array:
    r"""Return $\frac{M+1}{2} \Lambda^{1/(M+1)} \sigma^{2/(M+1)}$, the least cost of a singular value of the product."""
    dead = sigma <= 0
    root = jnp.exp((log_product + 2 * jnp.log(jnp.where(dead, 1, sigma))) / (depth + 1))
    return jnp.where(dead, 0, (depth + 1) / 2 * root)


def _log_threshold(depth: int) -> float:
    return 0.0 if depth == 1 else (depth - 1) / depth * math.log(depth - 1) - math.log(depth)


@ft.partial(jax.jit, static_argnums=1)
def _log_root(log_q: Float[Array, " k"], depth: int) -> Float[Array, " k"]:
    """Return the logarithm of the largest root of `M x^(M-1) / (x^M+1)^2 = q`, with its implicit derivative."""

    def equation(u, log_q):
        return log_q + 2 * jax.nn.softplus(depth * u) - (depth - 1) * u - math.log(depth)

    # The equation is convex in u = log x and positive at this upper bound of the root, so Newton's method comes down
    # to the largest root without ever passing it. The derivative there is only zero at the spinodal.
    def newton(log_q):
        def body(_, u):
            slope = 2 * depth * jax.nn.sigmoid(depth * u) - (depth - 1)
            return u - equation(u, log_q) / jnp.where(slope > 0, slope, 1)

        return jax.lax.fori_loop(0, 40, body, (math.log(depth) - log_q) / (depth + 1))

    solve = root(equation, linear_solver=lx.Diagonal(), tags=frozenset({lx.diagonal_tag}))(newton)
    return solve(log_q)
