"""Rational kernels on the circle and the line, of orders one to six."""

import functools as ft
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


MAX_ORDER = 6


@ft.cache
def poles_and_residues(order: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Return the poles $a_j = 2j/(m+1)-1+i$ and residues with $\sum_j\alpha_ja_j^k = \delta_{k0}$, $k<m$, in float64.

    The system is solved in closed form: Lagrange's polynomials at zero, $\alpha_j = \prod_{i\ne j}a_i/(a_i-a_j)$.
    """
    poles = 2 * np.arange(1, order + 1) / (order + 1) - 1 + 1j
    others = [np.delete(poles, j) for j in range(order)]
    residues = np.array([np.prod(rest / (rest - a)) for a, rest in zip(poles, others, strict=True)])
    return poles, residues


def checked_order(order: Any) -> int:
    """Return the order as an `int` between one and six."""
    if isinstance(order, bool) or not isinstance(order, (int, np.integer)) or not 1 <= order <= MAX_ORDER:
        raise ValueError(f"`order` must be a whole number from 1 to {MAX_ORDER}; got {order!r}")
    return int(order)


@ft.partial(jax.jit, static_argnums=3)
def circle_kernel(
    phases: Float[Array, " r"], theta: Float[Array, " T"], epsilon: Float[Array, ""], order: int
) -> Float[Array, "T r"]:
    r"""Return $K_\varepsilon(\phi_l - \theta_t)$, the kernel that smooths a measure on the circle.

    The transform $(\mu+z)/(\mu-z)$ at $\mu = e^{i\phi}$, $z = e^{i\theta-i\varepsilon a}$ is $(q+1)/(q-1)$ with
    $q = e^{i(\phi-\theta+\varepsilon a)}$; `expm1` keeps the digits that $\mu - z$ would lose at a small $\varepsilon$.
    """
    offset = phases[None] - theta[:, None]
    # An offset of almost a full turn is a small one.
    offset = offset - 2 * jnp.pi * jnp.round(offset / (2 * jnp.pi))
    total = jnp.zeros_like(offset)
    for pole, residue in _python_pairs(order):
        exponent = jax.lax.complex(-epsilon * pole.imag + 0 * offset, offset + epsilon * pole.real)
        q_minus_one = jnp.expm1(exponent)
        total = total + _real_part(residue, (q_minus_one + 2) / q_minus_one)
    return -total / (2 * jnp.pi)


@ft.partial(jax.jit, static_argnums=3)
def line_kernel(
    points: Float[Array, " r"], x: Float[Array, " T"], epsilon: Float[Array, ""], order: int
) -> Float[Array, "T r"]:
    r"""Return $\frac1\pi\mathrm{Im}\sum_j\alpha_j/(\lambda_l - x_t - \varepsilon a_j)$, the kernel on the real line.

    The sign makes the kernel of order one the Poisson kernel, which is positive.
    """
    offset = points[None] - x[:, None]
    total = jnp.zeros_like(offset)
    for pole, residue in _python_pairs(order):
        inverse = 1 / jax.lax.complex(offset - epsilon * pole.real, -epsilon * pole.imag + 0 * offset)
        total = total + _real_part(-1j * residue, inverse)
    return total / jnp.pi


def _real_part(number: complex, values: Array) -> Array:
    """Return Re(number * values), the number in the precision of the values."""
    return number.real * values.real - number.imag * values.imag


def _python_pairs(order: int) -> zip:
    """Return poles and residues as Python numbers, which take the precision of what they meet."""
    return zip(*(a.tolist() for a in poles_and_residues(order)), strict=True)
