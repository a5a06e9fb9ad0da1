from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import optimistix as optx
from jaxtyping import Array, Float, PRNGKeyArray

from ._results import RESULTS, choose
from ._ufm_minimiser import Minimiser
from ._ufm_mse import MSESolution


class Fit(eqx.Module):
    """What direct optimisation found.

    **Attributes:**

    - `value`: the factors, a [`neuralcollapse.ufm.Minimiser`][].
    - `loss`: the objective there.
    - `gradient_norm`: the largest entry of the gradient there.
    - `result`: how the optimisation ended.
    - `stats`: `num_steps`.
    """

    value: Minimiser
    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    result: RESULTS
    stats: dict[str, Array]


def fit(
    solution: MSESolution,
    *,
    key: PRNGKeyArray,
    scale: float = 0.3,
    solver: Any = None,
    max_steps: int = 10_000,
    throw: bool = True,
) -> Fit:
    """Minimise the objective of a solution directly, from random factors: the experiment that the oracle replaces.

    Deep narrow models have local minima with fewer modes, so the loss found may be above `solution.loss`. It is never
    below, but for rounding.

    **Arguments:**

    - `solution`: from [`neuralcollapse.ufm.solve_mse`][]; defines the objective and the shapes.
    - `key`: draws the first factors.
    - `scale`: their standard deviation.
    - `solver`: an Optimistix minimiser; `None` is `optimistix.LBFGS` to about the square root of the precision.
    - `max_steps`: the most steps it makes.
    - `throw`: whether to raise where it does not converge.

    **Returns:**

    A [`neuralcollapse.ufm.Fit`][].

    !!! Example

        ```python
        oracle = neuralcollapse.ufm.solve_mse([12, 8, 4, 2], 2, 1e-3, 2e-3)
        found = neuralcollapse.ufm.fit(oracle, key=jax.random.key(0))
        found.loss - oracle.loss  # 2e-16
        ```
    """
    shape_key, key = jr.split(key)
    shapes = jax.eval_shape(solution.construct, shape_key)
    leaves, treedef = jtu.tree_flatten(shapes)
    keys = jr.split(key, len(leaves))
    start = [scale * jr.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    start = jtu.tree_unflatten(treedef, start)
    if solver is None:
        eps = float(jnp.finfo(solution.loss.dtype).eps)
        solver = optx.LBFGS(rtol=eps**0.75, atol=eps)
    found = optx.minimise(
        lambda point, solution: solution.objective(point), solver, start, solution, max_steps=max_steps, throw=throw
    )
    loss, gradient = jax.value_and_grad(solution.objective)(found.value)
    peaks = [jnp.max(jnp.abs(leaf)) for leaf in jtu.tree_leaves(gradient)]
    result = RESULTS.promote(found.result)
    result = choose(jnp.isfinite(loss), result, RESULTS.nonfinite)
    return Fit(found.value, loss, jnp.max(jnp.stack(peaks)), result, {"num_steps": found.stats["num_steps"]})
