from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import optimistix as optx
from jaxtyping import Array, Float, PRNGKeyArray

from ._arguments import Counts, Scalar, check_depth, class_counts, positive
from ._results import RESULTS, choose
from ._ufm_mse import strengths
from ._ufm_scalar import mode_penalty


class UpperBound(eqx.Module):
    """A configuration of a deep linear model with cross-entropy, and its value: no more than an upper bound.

    **Attributes:**

    - `loss`: the objective there. The global minimum is at most this, and may be lower.
    - `logits`: its logits, one row for each class, `[K, K]`.
    - `singular_values`: of $X = \\bar Z \\operatorname{diag}(\\sqrt{n_k})$, descending, `[K]`.
    - `rank`: how many of them are above $10^{-4}$ of the largest.
    - `result`: how the search ended; `successful` says that a stationary point was found, never that it is global.
    """

    loss: Float[Array, ""]
    logits: Float[Array, "K K"]
    singular_values: Float[Array, " K"]
    rank: Array
    result: RESULTS


def deep_ce_etf(num_classes: int, class_size: Scalar, depth: int, lam_W: Any, lam_H: Scalar) -> UpperBound:
    r"""Return the best simplex-frame configuration of a deep linear model with cross-entropy: an upper bound.

    Logits are $\alpha(I - 11^\top/K)$, with the best $\alpha \ge 0$. At depth 1 this is the global minimum. At greater
    depth it is a critical point, and *not* the global minimum in general, whatever has been published:
    [`neuralcollapse.ufm.deep_ce_cross_polytope`][] is lower for 6 classes at depth 2.

    **Arguments:**

    - `num_classes`, `class_size`: $K$ classes of $n$ samples each.
    - `depth`, `lam_W`, `lam_H`: as for [`neuralcollapse.ufm.solve_mse`][].

    **Returns:**

    A [`neuralcollapse.ufm.UpperBound`][].

    !!! Example

        ```python
        neuralcollapse.ufm.deep_ce_etf(6, 1, 2, 1e-3, 1e-3).loss  # 0.031490
        neuralcollapse.ufm.deep_ce_cross_polytope(6, 1, 2, 1e-3, 1e-3).loss  # 0.029568
        ```

    ??? cite "Reference"

        Claimed globally optimal in arXiv:2301.00437; a lower rank is also found better in arXiv:2410.23169.
    """
    size = _classes(num_classes)
    gram = jnp.eye(size) - 1 / size
    return _family(gram, size - 1, 1.0, class_size, depth, lam_W, lam_H)


def deep_ce_cross_polytope(num_classes: int, class_size: Scalar, depth: int, lam_W: Any, lam_H: Scalar) -> UpperBound:
    r"""Return the best configuration with antipodal pairs of class means, of rank $K/2$: an upper bound.

    Logits are $\alpha U^\top U$ for the means $\pm e_1, \dots, \pm e_{K/2}$. As the strengths go to zero it is below the
    simplex frame if and only if $2^{(1-M)/(1+M)} < 1 - 1/K$: for depth 2 from 6 classes on, for more depth from 4 on.

    **Arguments:**

    - `num_classes`: $K$, even.
    - `class_size`, `depth`, `lam_W`, `lam_H`: as for [`neuralcollapse.ufm.deep_ce_etf`][].

    **Returns:**

    A [`neuralcollapse.ufm.UpperBound`][].

    **Raises:**

    `ValueError` if the number of classes is odd.
    """
    size = _classes(num_classes)
    if size % 2:
        raise ValueError(f"`num_classes` must be even: means come in antipodal pairs; got {size}.")
    gram = jnp.kron(jnp.eye(size // 2), jnp.array([[1.0, -1.0], [-1.0, 1.0]]))
    return _family(gram, size // 2, 2.0, class_size, depth, lam_W, lam_H)


def deep_ce_search(
    counts: Counts,
    depth: int,
    lam_W: Any,
    lam_H: Scalar,
    *,
    key: PRNGKeyArray,
    num_starts: int = 16,
    scale: float = 1.0,
    max_steps: int = 4000,
) -> UpperBound:
    """Search for the minimum of a deep linear model with cross-entropy from many random starts: an upper bound.

    The search is over all factors, on one sample for each class, whose size is a weight: minima have equal features
    within a class.

    **Arguments:**

    - `counts`: the class sizes, `[K]`.
    - `depth`, `lam_W`, `lam_H`: as for [`neuralcollapse.ufm.solve_mse`][].
    - `key`: draws the starts.
    - `num_starts`: how many.
    - `scale`: the standard deviation of their entries.
    - `max_steps`: the most steps of L-BFGS from each.

    **Returns:**

    A [`neuralcollapse.ufm.UpperBound`][], the best of all starts.

    !!! Example

        ```python
        neuralcollapse.ufm.deep_ce_search([1] * 6, 2, 1e-3, 1e-3, key=jax.random.key(0)).loss
        ```
    """
    check_depth(depth)
    n = class_counts(counts)
    if not isinstance(num_starts, int) or num_starts < 1:
        raise ValueError(f"`num_starts` must be at least one; got {num_starts!r}.")
    return _search(n, strengths(lam_W, lam_H, depth, n.dtype), key, num_starts, jnp.asarray(scale, n.dtype), max_steps)


@eqx.filter_jit
def _search(n, lams, key, num_starts, scale, max_steps) -> UpperBound:
    size, depth = n.shape[0], lams.shape[0] - 1
    p, log_product = n / jnp.sum(n), jnp.sum(jnp.log(lams))
    # With factors scaled by the square root of their strength all penalties are alike.
    stretch = jnp.exp(-log_product / 2)

    def matrix(factors):
        product = factors[0]
        for i in range(1, depth + 1):
            product = factors[i] @ product
        return product * stretch

    def objective(factors, _):
        z = matrix(factors) / jnp.sqrt(n)[None]
        return jnp.sum(p * (jax.nn.logsumexp(z, axis=0) - jnp.diag(z))) + jnp.sum(factors**2) / 2

    def run(key):
        start = jr.normal(key, (depth + 1, size, size), n.dtype) * scale * jnp.sqrt(jnp.mean(lams))
        eps = float(jnp.finfo(n.dtype).eps)
        solver = optx.LBFGS(rtol=eps**0.7, atol=eps**0.9)
        found = optx.minimise(objective, solver, start, max_steps=max_steps, throw=False)
        return found.value, objective(found.value, None), found.result

    factors, values, results = jax.vmap(run)(jr.split(key, num_starts))
    best = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
    result = RESULTS.promote(jtu.tree_map(lambda each: each[best], results))
    x = matrix(factors[best])
    # The least penalty of the product: what balanced factors would have.
    s = jnp.linalg.svd(x, compute_uv=False)
    z = x / jnp.sqrt(n)[None]
    fit = jnp.sum(p * (jax.nn.logsumexp(z, axis=0) - jnp.diag(z)))
    return _bound(fit + jnp.sum(mode_penalty(s, log_product, depth)), z, s, result)


def _family(gram, rank, unit, class_size, depth, lam_W, lam_H) -> UpperBound:
    """Minimise over the scale of logits with `rank` singular values `unit`, times the scale."""
    check_depth(depth)
    dtype = jnp.result_type(float)
    root = jnp.sqrt(positive(class_size, "class_size", dtype))
    return _best_scale(gram.astype(dtype), rank, unit, root, strengths(lam_W, lam_H, depth, dtype))


@eqx.filter_jit
def _best_scale(gram, rank, unit, root, lams) -> UpperBound:
    depth, dtype, log_product = lams.shape[0] - 1, gram.dtype, jnp.sum(jnp.log(lams))

    def value(alpha):
        fit = jax.nn.logsumexp(alpha * gram[0]) - alpha * gram[0, 0]
        return fit + rank * mode_penalty(unit * alpha * root, log_product, depth)

    # The penalty is concave in alpha from depth 2 on: look everywhere, then refine around the best.
    grid = jnp.exp(jnp.linspace(-10, 6, 4001, dtype=dtype))
    values = jax.vmap(value)(grid)
    index = jnp.clip(jnp.argmin(values), 1, 3999)
    low, high = grid[index - 1], grid[index + 1]
    slope = jax.grad(value)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        up = slope(middle) > 0
        return jnp.where(up, low, middle), jnp.where(up, middle, high)

    low, high = jax.lax.fori_loop(0, 80, halve, (low, high))
    alpha = (low + high) / 2
    alpha = jnp.where(value(alpha) < value(0 * alpha), alpha, 0)
    s = jnp.where(jnp.arange(gram.shape[0]) < rank, unit * alpha * root, 0)
    result = choose(jnp.isfinite(alpha), RESULTS.successful, RESULTS.nonfinite)
    return _bound(value(alpha), alpha * gram, s, result)


def _bound(loss, columns, s, result) -> UpperBound:
    return UpperBound(loss, columns.T, s, jnp.sum(s > 1e-4 * s[0]), result)


def _classes(num_classes: int) -> int:
    if not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f"`num_classes` must be a whole number of at least two; got {num_classes!r}.")
    return num_classes
