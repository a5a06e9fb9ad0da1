import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Float, PRNGKeyArray


def tree_allclose(x: Any, y: Any, *, rtol: float = 1e-5, atol: float = 1e-8) -> bool:
    """Say whether two pytrees have one structure, the same types, shapes and dtypes, and close values."""
    return bool(eqx.tree_equal(x, y, typematch=True, rtol=rtol, atol=atol))


def finite_difference_jvp(fn: Callable[..., Any], primals: tuple, tangents: tuple, *, step: float | None = None) -> Any:
    """Return the directional derivative of `fn` at `primals` along `tangents`, by central differences.

    `step` defaults to the cube root of the dtype's epsilon, which balances truncation against rounding: expect about
    ten digits in float64 and four in float32 for a function of unit scale.
    """
    flat, unravel = jfu.ravel_pytree(primals)
    direction, _ = jfu.ravel_pytree(tangents)
    if not jnp.issubdtype(flat.dtype, jnp.inexact):
        raise ValueError(f"`primals` must be of floating point; got {flat.dtype}")
    h = float(jnp.finfo(flat.dtype).eps) ** (1 / 3) if step is None else step
    above = fn(*unravel(flat + h * direction))
    below = fn(*unravel(flat - h * direction))
    return jtu.tree_map(lambda a, b: (a - b) / (2 * h), above, below)


def vjp_matches_jvp(fn: Callable[..., Any], primals: tuple, *, key: PRNGKeyArray, rtol: float | None = None) -> bool:
    """Say whether reverse and forward mode of `fn` agree: `<c, J t> = <J^T c, t>` for random `t` and `c`.

    `rtol` is relative to `|c| |J t|` and defaults to `sqrt(eps)` of the dtype.
    """
    tangent_key, cotangent_key = jr.split(key)
    tangents = _random_like(primals, key=tangent_key)
    out, jvp = jax.jvp(fn, primals, tangents)
    cotangents = _random_like(out, key=cotangent_key)
    _, vjp_fn = jax.vjp(fn, *primals)
    forward = _inner(cotangents, jvp)
    reverse = _inner(vjp_fn(cotangents), tangents)
    scale = jnp.sqrt(_inner(cotangents, cotangents) * _inner(jvp, jvp))
    bound = float(jnp.finfo(scale.dtype).eps) ** 0.5 if rtol is None else rtol
    return bool(jnp.abs(forward - reverse) <= bound * scale)


def implicit_jacobian(residual: Callable[[Any, Any], Any], y: Any, args: Any) -> Float[Array, "y args"]:
    r"""Return the dense $dy/d\text{args}$ of the root `residual(y, args) = 0`, by the implicit function theorem.

    The reference that every implicit rule is tested against: both partial Jacobians are built whole and one dense
    solve is made. `y` and `args` may be pytrees; rows and columns are in the order of `ravel_pytree`.
    """
    flat_y, unravel_y = jfu.ravel_pytree(y)
    flat_args, unravel_args = jfu.ravel_pytree(args)

    def flat_residual(y_, args_):
        return jfu.ravel_pytree(residual(unravel_y(y_), unravel_args(args_)))[0]

    by_y, by_args = jax.jacfwd(flat_residual, argnums=(0, 1))(flat_y, flat_args)
    return -jnp.linalg.solve(by_y, by_args)


def no_retrace(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fn` under `eqx.filter_jit`, raising `RuntimeError` the second time that it is traced."""
    return eqx.filter_jit(eqx.debug.assert_max_traces(fn, max_traces=1))


def converges_at_order(
    errors: Sequence[float], order: float, *, steps: Sequence[float] | None = None, slack: float = 0.25
) -> bool:
    r"""Say whether `errors` fall at least as fast as `order`, less `slack`.

    With `steps` (grid sizes $h_k$) this is the slope of $\log e_k$ against $\log h_k$, between the first and the last.
    Without, `errors` are successive iterates of one method and the order is the best
    $\log(e_{k+1}/e_k)/\log(e_k/e_{k-1})$ seen: early iterates are not yet in the asymptotic regime, and the last ones
    stand at rounding level, so neither may decide.
    """
    if steps is not None:
        slope = math.log(errors[0] / errors[-1]) / math.log(steps[0] / steps[-1])
        return slope >= order - slack
    if len(errors) < 3:
        raise ValueError("`errors` needs at least three iterates to show an order")
    falls = [math.log(after / before) for before, after in itertools.pairwise(errors)]
    rates = [later / earlier for earlier, later in itertools.pairwise(falls) if earlier < 0]
    return bool(rates) and max(rates) >= order - slack


def _random_like(tree: Any, *, key: PRNGKeyArray) -> Any:
    leaves, treedef = jtu.tree_flatten(tree)
    keys = jr.split(key, len(leaves))
    return jtu.tree_unflatten(
        treedef,
        [jr.normal(k, jnp.shape(leaf), jnp.result_type(leaf)) for k, leaf in zip(keys, leaves, strict=True)],
    )


def _inner(x: Any, y: Any) -> Float[Array, ""]:
    return jnp.vdot(jfu.ravel_pytree(x)[0], jfu.ravel_pytree(y)[0])
