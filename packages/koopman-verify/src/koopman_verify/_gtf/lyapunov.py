from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float


@eqx.filter_jit
def lyapunov_exponents(
    fn: Callable[[Array], Array],
    z0: Float[Array, " d"],
    num_steps: int,
    *,
    burn_in: int = 0,
    dt: float = 1.0,
    num_exponents: int | None = None,
) -> Float[Array, " k"]:
    r"""Estimate the Lyapunov exponents of a map along an orbit, by the method of Benettin.

    An orthonormal frame is carried along by the derivative of the map and made orthonormal again after each step,
    $DF\,Q_t = Q_{t+1}R_t$; the exponents are $\frac{1}{T\Delta t}\sum_t\log|R_{t,ii}|$.

    **Arguments:**

    - `fn`: the map, from states `[d]` to states; a model, or any differentiable callable.
    - `z0`: the first state `[d]`.
    - `num_steps`: the number $T$ of steps that are averaged.
    - `burn_in`: steps before, in which orbit and frame settle.
    - `dt`: the time that one step stands for, so that exponents are rates per time.
    - `num_exponents`: how many, the largest first; `None` is all.

    **Returns:** the exponents `[k]`, in the order of the frame: decreasing once it has settled. `-inf` belongs to
    directions that the map forgets at once.

    **Raises:** `ValueError` for arguments outside of their range; at run time, where the orbit diverges.

    !!! Example

        ```python
        gtf.lyapunov_exponents(lambda x: 4 * x * (1 - x), jnp.array([0.3]), 10_000)  # log 2
        ```
    """
    size = len(z0) if num_exponents is None else num_exponents
    if not 1 <= size <= len(z0):
        raise ValueError(f"`num_exponents` must be in 1...d = {len(z0)}; got {num_exponents}")
    if num_steps < 1 or burn_in < 0:
        raise ValueError(f"`num_steps` must be positive and `burn_in` not negative; got {num_steps} and {burn_in}")

    def step(carry, index):
        z, frame, total, lost = carry
        new, push = jax.linearize(fn, z)
        frame, r = jnp.linalg.qr(jax.vmap(push, in_axes=1, out_axes=1)(frame))
        growth = jnp.where(index >= burn_in, jnp.log(jnp.abs(jnp.diag(r))), 0.0)
        # A long sum of small terms: without compensation (Kahan) float32 loses the digits that averaging gains.
        term = growth - lost
        summed = total + term
        lost = jnp.where(jnp.isfinite(summed), (summed - total) - term, 0.0)
        return (new, frame, summed, lost), None

    zeros = jnp.zeros(size, z0.dtype)
    # The axes may be invariant directions, and would never turn towards the fastest one: begin with a generic frame.
    frame, _ = jnp.linalg.qr(jr.normal(jr.key(0), (len(z0), size), z0.dtype))
    start = (z0, frame, zeros, zeros)
    (z, _, total, _), _ = jax.lax.scan(step, start, jnp.arange(burn_in + num_steps))
    broken = ~jnp.all(jnp.isfinite(z)) | jnp.any(jnp.isnan(total))
    total = eqx.error_if(total, broken, "the orbit of `fn` from `z0` diverges: it has no Lyapunov exponents")
    return total / (num_steps * dt)


def lyapunov_exponent(
    fn: Callable[[Array], Array], z0: Float[Array, " d"], num_steps: int, *, burn_in: int = 0, dt: float = 1.0
) -> Float[Array, ""]:
    r"""Estimate the largest Lyapunov exponent $\lambda_{\max}$ of a map.

    **Arguments:** those of [`koopman_verify.gtf.lyapunov_exponents`][].

    **Returns:** the exponent; a positive one means chaos.

    !!! Example

        ```python
        gtf.lyapunov_exponent(model, data[0], 20_000, burn_in=1000, dt=0.01)
        ```
    """
    return lyapunov_exponents(fn, z0, num_steps, burn_in=burn_in, dt=dt, num_exponents=1)[0]
