from typing import Any, Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from .mpedmd import checked


Weight: TypeAlias = Literal["bump", "uniform"]


class LaplaceAverage(eqx.Module):
    r"""Components of an observable along given eigenvalues, by averages over trajectories.

    **Attributes:**

    - `values`: $P_{\lambda_j}g$ at the initial states, `[k, *s]`.
    - `num_steps`: how many steps entered each average, `[k]`. Below the largest modulus $\rho$ it is capped: errors of what
        was subtracted before grow like $(\rho/|\lambda_j|)^n$.
    - `change`: the largest difference to the same average over half as many steps, `[k]`. A sign of convergence, and not
        a bound.

    !!! Example

        ```python
        average = koopman_verify.laplace_average(series, [1.0, jnp.exp(1j * omega)])
        print(average.values, average.change)
        ```
    """

    values: Complex[Array, "k ..."]
    num_steps: Int[Array, " k"]
    change: Float[Array, " k"]


@eqx.filter_jit
def laplace_average(values: Any, eigenvalues: Any, *, weight: Weight = "bump") -> LaplaceAverage:
    r"""Find the component of an observable for each eigenvalue: generalised Laplace analysis.

    $$P_\lambda g = \lim_n\sum_{k<n}w_k\,\lambda^{-k}\,g\circ F^k,\qquad\sum_kw_k = 1.$$

    With the bump weights $\exp(-1/(t(1-t)))$, $t = (k+1)/(n+1)$, the average converges faster than any power for smooth
    quasi-periodic data, where uniform weights give $O(1/n)$. Eigenvalues are treated from the largest modulus downward, and
    each component found is subtracted before the next. What is wrong with a component of modulus $\rho$ by $\delta$ then
    enters those of smaller modulus as $\delta(\rho/|\lambda|)^n$, so that $n$ is at most
    $\frac12\log(1/\delta)/\log(\rho/|\lambda|)$, with $\delta$ estimated from `change`: half of its digits are
    left. The third modulus has few steps and one or two digits. Components that are not listed and decay slower than
    $\lambda$ spoil the average.

    **Arguments:**

    - `values`: $g(F^k(x))$, `[T, *s]`: time first, then any number of initial states and observables.
    - `eigenvalues`: $\lambda$, `[k]`, not zero.
    - `weight`: `"bump"` or `"uniform"`.

    **Returns:** [`koopman_verify.LaplaceAverage`][], in the order of `eigenvalues`.

    **Raises:** `ValueError` for wrong shapes, values that are not finite, or an eigenvalue zero.

    ??? cite "Reference"

        Das, Saiki, Sander and Yorke, *Quantitative quasiperiodicity*, arXiv:1601.06051 (the weights).

    !!! Example

        ```python
        koopman_verify.laplace_average(series, [1.0, jnp.exp(1j * omega)]).values
        ```
    """
    if weight not in get_args(Weight):
        raise ValueError(f"`weight` must be one of {get_args(Weight)}; got {weight!r}")
    g = jnp.asarray(values)
    real = jnp.finfo(g.dtype).dtype if jnp.issubdtype(g.dtype, jnp.inexact) else jnp.result_type(float)
    dtype = np.result_type(real, np.complex64)
    z = jnp.asarray(eigenvalues).astype(dtype)
    if g.ndim < 1 or len(g) < 2 or z.ndim != 1 or len(z) == 0:
        raise ValueError(
            f"`values` and `eigenvalues` must be [T, ...] with T >= 2 and [k]; got {list(g.shape)} and {list(z.shape)}"
        )
    g = checked("values", g.astype(dtype), jnp.isfinite(g), "finite")
    z = checked("eigenvalues", z, (jnp.abs(z) > 0) & jnp.isfinite(z), "finite and not zero")
    total, shape = len(g), g.shape[1:]
    order = jnp.argsort(-jnp.abs(z))
    sizes, scale = jnp.abs(z), jnp.max(jnp.abs(g))
    scale = jnp.where(scale > 0, scale, jnp.ones_like(scale))
    eps = jnp.finfo(real).eps

    def peel(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        rest, errors = carry
        num = _cap(total, errors, sizes, sizes[index], eps)
        powers = _powers(z[index], total)
        average = lambda num: (_weights(num, total, weight, real).astype(dtype) / powers) @ rest
        found = average(num)
        change = jnp.max(jnp.abs(found - average(jnp.maximum(num // 2, 1)))) / scale
        rest = rest - powers[:, None] * found[None]
        return (rest, errors.at[index].set(change**power)), (found, num, change * scale)

    # The bump leaves exp(-2 sqrt(n log(ratio))) of a faster decaying component: half of n, the root of two in the exponent.
    power = float(np.sqrt(2)) if weight == "bump" else 1.0
    nothing = jnp.full_like(sizes, -1)  # not peeled yet
    _, (found, caps, change) = jax.lax.scan(peel, (g.reshape(total, -1), nothing), order)
    place = jnp.argsort(order)
    return LaplaceAverage(found[place].reshape(len(z), *shape), caps[place], change[place])


def _cap(total: int, errors: Array, sizes: Array, size: Array, eps: Any) -> Array:
    r"""Return the number of steps after which what was wrong before has grown to the root of itself."""
    error = jnp.clip(errors, eps, 0.5)
    growth = jnp.log(sizes / size)
    # A modulus that differs by rounding only does not grow.
    counts = (errors >= 0) & (growth * total > 1)
    limit = -0.5 * jnp.log(error) / jnp.where(counts, growth, jnp.ones_like(growth))
    limit = jnp.min(jnp.where(counts, limit, jnp.full_like(limit, total)))
    return jnp.clip(jnp.floor(limit).astype(int), 2, total)


def _powers(z: Array, num: int) -> Array:
    """Return $z^k$ in polar form, where the modulus cannot make the angle inaccurate."""
    k = jnp.arange(num).astype(z.real.dtype)
    size, turn = jnp.abs(z) ** k, jnp.angle(z) * k
    return jax.lax.complex(size * jnp.cos(turn), size * jnp.sin(turn))


def _weights(num: Array, total: int, weight: Weight, real: Any) -> Array:
    """Return weights of sum one on the first `num` of `total` steps."""
    k = jnp.arange(total)
    inside = k < num
    if weight == "bump":
        t = jnp.where(inside, (k + 1) / (num + 1), 0.5).astype(real)
        raw = jnp.exp(-1 / (t * (1 - t)))
    else:
        raw = jnp.ones(total, real)
    raw = jnp.where(inside, raw, jnp.zeros_like(raw))
    return raw / jnp.sum(raw)
