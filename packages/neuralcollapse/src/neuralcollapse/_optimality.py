from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ._class_stats import ClassStats
from ._custom_types import FloatScalar
from ._gof import product_of
from ._product import product
from ._ufm_mse import MSESolution, solve_mse


class Optimality(eqx.Module):
    r"""Hold how far a network's loss is above the least one that any features and any head of its shape can have.

    **Attributes:**

    - `loss`: the loss of the network, squared error and regularisation of features and head together.
    - `optimum`: the least one, of [`neuralcollapse.ufm.solve_mse`][].
    - `excess`: `loss / optimum - 1`.
    - `parts`: what the loss is made of: `"fit of the means"`, `"scatter in the logits"`, `"scatter of the features"`,
        `"means of the features"`, then `"head layer 1"` and on. They add up to `loss`.
    - `optimal_parts`: the same at the optimum, where there is no scatter. They add up to `optimum`.
    - `solution`: the optimum itself.
    """

    loss: FloatScalar
    optimum: FloatScalar
    excess: FloatScalar
    parts: dict[str, FloatScalar]
    optimal_parts: dict[str, FloatScalar]
    solution: MSESolution


def optimality(
    stats: ClassStats,
    weights: Sequence[Float[ArrayLike, "_ _"]],
    lam_W: Any,
    lam_H: int | float,
    bias: Float[ArrayLike, " k"] | None = None,
) -> Optimality:
    r"""Say how many per cent a linear head and its features are above the theoretical optimum, and which part is at fault.

    The loss is $\frac{1}{2N}\lVert W_M \cdots W_1 H + b 1^\top - Y\rVert_F^2 + \sum_m \frac{\lambda_m}{2}
    \lVert W_m\rVert_F^2 + \frac{\lambda_H}{2}\lVert H\rVert_F^2$. It depends on the features through their class means and
    the covariance within classes alone, so no pass over the data is made.

    **Arguments:**

    - `stats`: statistics of the features that enter $W_1$, with the full covariance (`within="full"`).
    - `weights`: $[W_1, \ldots, W_M]$, first layer first, each of shape `(out, in)`.
    - `lam_W`: the strength for the weights: a scalar, or one for each.
    - `lam_H`: the strength for the features.
    - `bias`: that of the last layer, if it has one; it is compared with the optimum of a free bias.

    **Returns:**

    A [`neuralcollapse.ufm.Optimality`][].

    **Raises:**

    `ValueError` if shapes do not fit, a class is empty, the covariance was not kept, or a strength is not positive.

    !!! Example

        ```python
        found = neuralcollapse.ufm.optimality(stats, [W], lam_W=1e-3, lam_H=1e-3)
        print(f"{100 * found.excess:.2f} % above the optimum")
        ```

    ??? cite "Reference"

        Dang et al., "Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data", arXiv:2301.00437.
    """
    stats = stats.validated()
    dtype = stats.anchor.dtype
    end_to_end, means = product_of(weights, stats), stats.means()
    matrices = [jnp.asarray(w).astype(dtype) for w in weights]
    widths = tuple(w.shape[1] for w in matrices)
    counts = stats.counts.astype(dtype)
    solution = solve_mse(counts, len(matrices), lam_W, lam_H, "none" if bias is None else "free", widths)
    shift = jnp.zeros(stats.num_classes, dtype) if bias is None else jnp.asarray(bias).astype(dtype)
    if shift.shape != (stats.num_classes,):
        raise ValueError(f"`bias` must have shape ({stats.num_classes},), one a class; got {shift.shape}.")
    share, total = stats.proportions(), jnp.sum(counts)
    error = product(means, end_to_end.T) + shift[None] - jnp.eye(stats.num_classes, dtype=dtype)
    within = stats.within_cov()
    strengths = solution.strengths
    values = [
        jnp.sum(share[:, None] * error**2) / 2,
        jnp.sum(end_to_end * product(end_to_end, within)) / 2,
        strengths[0] / 2 * total * jnp.trace(within),
        strengths[0] / 2 * jnp.sum(counts[:, None] * means**2),
        *(lam / 2 * jnp.sum(w**2) for lam, w in zip(strengths[1:], matrices, strict=True)),
    ]
    penalties = solution.penalties
    zero = jnp.zeros((), dtype)
    best = [solution.loss - jnp.sum(penalties), zero, zero, *penalties]
    loss = sum(values, zero)
    return Optimality(loss, solution.loss, loss / solution.loss - 1, _named(values), _named(best), solution)


def _named(values: list[Array]) -> dict[str, Array]:
    first = ["fit of the means", "scatter in the logits", "scatter of the features", "means of the features"]
    return dict(zip([*first, *(f"head layer {m + 1}" for m in range(len(values) - 4))], values, strict=True))
