from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Complex, Float, PRNGKeyArray


class FixedPointProblem(eqx.Module):
    r"""A map, where to start, and what is known of its fixed point.

    **Attributes:**

    - `name`: under which the benchmarks list it.
    - `fn`, `z0`, `args`, `batch_axis`: the arguments of [`fixedpoint_eq.solve`][].
    - `contraction`: a proved factor by which the map shrinks distances in the 2-norm, or `None`.
    - `value`: the fixed point, if it is known by other means than iterating.
    """

    name: str = eqx.field(static=True)
    fn: Callable[[Any, Any], Any] = eqx.field(static=True)
    z0: Array
    args: Any
    batch_axis: int | None = eqx.field(default=None, static=True)
    contraction: float | None = eqx.field(default=None, static=True)
    value: Array | None = None


def tanh_deq(
    key: PRNGKeyArray,
    size: int = 256,
    batch: int = 64,
    *,
    norm: float = 0.99,
    symmetric: bool = True,
    input_scale: float = 0.3,
    dtype: Any = None,
) -> FixedPointProblem:
    r"""Draw a deep equilibrium layer, $z = \tanh(W z + x)$, for a batch of inputs.

    $W$ is Gaussian, symmetrised or not, scaled to $\lVert W\rVert_2 =$ `norm`; $x$ is normal. The defaults are where
    acceleration pays: Picard's iteration takes about 75 steps to a relative residual of 1e-5. With `norm=0.95` and
    `symmetric=False` the spectral radius is about half the norm, Picard's takes 16, and acceleration cannot help.

    **Arguments:**

    - `key`: a key.
    - `size`, `batch`: of the state, and how many inputs.
    - `norm`: positive. Below one the map is a contraction, and the problem says so.
    - `symmetric`: whether $W$ is.
    - `input_scale`: the standard deviation of $x$. The larger, the more units saturate, and the easier the problem.
    - `dtype`: of everything; by default JAX's.

    **Returns:**

    A [`fixedpoint_eq.problems.FixedPointProblem`][], whose `args` are a dictionary of `W` and `x`.

    **Raises:**

    `ValueError` for a number that is not positive.

    !!! Example

        ```python
        p = problems.tanh_deq(jr.key(0))
        fpe.solve(p.fn, p.z0, p.args, batch_axis=p.batch_axis)
        ```
    """
    _check_positive(norm=norm, size=size, batch=batch, input_scale=input_scale)
    dtype = jnp.result_type(float) if dtype is None else dtype
    w_key, x_key = jr.split(key)
    args = {
        "W": _matrix(w_key, size, norm, symmetric, dtype),
        "x": input_scale * jr.normal(x_key, (batch, size), dtype),
    }
    kind = "sym" if symmetric else "gauss"
    z0 = jnp.zeros((batch, size), dtype)
    return FixedPointProblem(f"deq-{kind}-{norm:g}", _tanh, z0, args, 0, norm if norm < 1 else None)


def affine(key: PRNGKeyArray, size: int = 64, *, norm: float = 0.9, dtype: Any = None) -> FixedPointProblem:
    r"""Draw an affine map, $z = M z + b$, with its fixed point by a dense solve.

    **Arguments:**

    - `key`, `size`, `norm`, `dtype`: as for [`fixedpoint_eq.problems.tanh_deq`][]; $M$ is not symmetric.

    **Returns:**

    A [`fixedpoint_eq.problems.FixedPointProblem`][] with a `value`, whose `args` are `(M, b)`.

    **Raises:**

    `ValueError` for a `norm` or `size` that is not positive.

    !!! Example

        ```python
        p = problems.affine(jr.key(0))
        error = fpe.solve(p.fn, p.z0, p.args).value - p.value
        ```
    """
    _check_positive(norm=norm, size=size)
    dtype = jnp.result_type(float) if dtype is None else dtype
    m_key, b_key = jr.split(key)
    M, b = _matrix(m_key, size, norm, False, dtype), jr.normal(b_key, (size,), dtype)
    value = jnp.linalg.solve(jnp.eye(size, dtype=dtype) - M, b)
    contraction = norm if norm < 1 else None
    return FixedPointProblem(f"affine-{norm:g}", _affine, jnp.zeros_like(b), (M, b), None, contraction, value)


def complex_field(key: PRNGKeyArray, side: int = 316, *, dtype: Any = None) -> FixedPointProblem:
    r"""Draw a complex field on a torus, $z = \tfrac12 S z + \tfrac15 z^2 + c$, with $S$ the mean of four neighbours.

    A holomorphic map of $\text{side}^2$ unknowns, 99,856 by default. As $|c| < 1/4$, it maps the fields of modulus at
    most $3/4$ into themselves, and contracts them by $4/5$ in the infinity norm, so it has one fixed point there.

    **Arguments:**

    - `key`: of $c$.
    - `side`: of the square grid.
    - `dtype`: complex; by default JAX's.

    **Returns:**

    A [`fixedpoint_eq.problems.FixedPointProblem`][], whose `args` are $c$.

    **Raises:**

    `ValueError` for a `side` that is not positive.

    !!! Example

        ```python
        p = problems.complex_field(jr.key(0))
        fpe.solve(p.fn, p.z0, p.args, fpe.Anderson(rtol=1e-5))
        ```
    """
    _check_positive(side=side)
    dtype = jnp.result_type(complex) if dtype is None else dtype
    real = jnp.finfo(dtype).dtype
    modulus_key, phase_key = jr.split(key)
    modulus = 0.25 * jr.uniform(modulus_key, (side, side), real)
    phase = 2 * jnp.pi * jr.uniform(phase_key, (side, side), real)
    c = jax.lax.complex(modulus * jnp.cos(phase), modulus * jnp.sin(phase))
    return FixedPointProblem(f"complex-field-{side}", _complex_field, jnp.zeros_like(c), c)


def _matrix(key: PRNGKeyArray, size: int, norm: float, symmetric: bool, dtype: Any) -> Float[Array, "n n"]:
    G = jr.normal(key, (size, size), dtype)
    G = (G + G.T) / 2 if symmetric else G
    return norm * G / jnp.linalg.norm(G, 2)


def _tanh(z: Float[Array, "... n"], args: dict[str, Array]) -> Float[Array, "... n"]:
    return jnp.tanh(z @ args["W"].T + args["x"])


def _affine(z: Float[Array, " n"], args: tuple[Array, Array]) -> Float[Array, " n"]:
    M, b = args
    return M @ z + b


def _complex_field(z: Complex[Array, "n n"], c: Complex[Array, "n n"]) -> Complex[Array, "n n"]:
    neighbours = sum(jnp.roll(z, shift, axis) for shift in (-1, 1) for axis in (0, 1))
    return neighbours / 8 + 0.2 * z**2 + c


def _check_positive(**numbers: int | float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"`{name}` must be positive; got {number}")
