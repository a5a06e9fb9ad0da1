import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def softmax_collapsed(logits: Float[Array, "*batch K"], labels: Int[Array, "..."]) -> Bool[Array, "*batch"]:
    """Say which samples have a softmax cross-entropy of exactly zero in their own dtype: softmax collapse.

    The sum of exponentials has then been rounded to the label's own term. The gradient of that logit is exactly zero,
    and such a sample teaches nothing more.

    **Arguments:**

    - `logits`: in the dtype in which the loss is computed.
    - `labels`: the classes; out of range raises nothing, and counts as not collapsed.

    **Returns:**

    A mask over the samples. Logits that are not finite are not called collapsed.

    !!! Example

        ```python
        neuralcollapse.numerics.softmax_collapsed(jnp.array([[20.0, 0.0], [5.0, 0.0]], jnp.float32), jnp.array([0, 0]))
        # [True, False]
        ```

    ??? cite "Reference"

        Prieto et al., "Grokking at the Edge of Numerical Stability", arXiv:2501.04697.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"`labels` must have shape {logits.shape[:-1]} to go with `logits`; got {labels.shape}.")
    inside = (labels >= 0) & (labels < logits.shape[-1])
    index = jnp.where(inside, labels, 0)[..., None]
    own = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), index, axis=-1)[..., 0]
    return (own == 0) & inside & jnp.all(jnp.isfinite(logits), axis=-1)


def softmax_collapse_fraction(logits: Float[Array, "*batch K"], labels: Int[Array, "..."]) -> Float[Array, ""]:
    """Return the fraction of samples in softmax collapse, see [`neuralcollapse.numerics.softmax_collapsed`][].

    **Arguments:**

    - `logits`: in the dtype in which the loss is computed; at least one sample.
    - `labels`: the classes.
    """
    mask = softmax_collapsed(logits, labels)
    if mask.size == 0:
        raise ValueError("`logits` has no samples.")
    return jnp.mean(mask.astype(jnp.float32))


def collapse_onset(dtype: Any, num_classes: int) -> tuple[float, float]:
    r"""Return the gap between logits beyond which softmax collapse can set in, and beyond which it must.

    For the gap $z_y - z_k$, the same for all $k \ne y$: between $\log 2^p$ and $\log((K-1) 2^p)$ with $p$ significand
    bits, by how the sum is rounded. The floor below which training with cross-entropy cannot push.

    **Arguments:**

    - `dtype`: of the logits.
    - `num_classes`: $K \ge 2$.

    !!! Example

        ```python
        neuralcollapse.numerics.collapse_onset("float32", 2)  # (16.64, 16.64)
        ```
    """
    if not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f"`num_classes` must be a whole number of at least two; got {num_classes!r}.")
    bits = jnp.finfo(dtype).nmant + 1
    first = bits * math.log(2)
    return first, first + math.log(num_classes - 1)


def log_stablemax(x: Float[Array, "*batch K"], axis: int = -1) -> Float[Array, "*batch K"]:
    r"""Return the logarithm of [`neuralcollapse.numerics.stablemax`][], stably.

    StableMax is the softmax of $\operatorname{sign}(x)\log(1+|x|)$.

    **Arguments:**

    - `x`: logits.
    - `axis`: over which to normalise.
    """
    return jax.nn.log_softmax(_log_scale(x), axis=axis)


def stablemax(x: Float[Array, "*batch K"], axis: int = -1) -> Float[Array, "*batch K"]:
    r"""Return $s(x_k)/\sum_j s(x_j)$ with $s(x) = x + 1$ for $x \ge 0$, $1/(1-x)$ else: a softmax that does not collapse.

    Probabilities approach one like one over the logits instead of exponentially.

    **Arguments:**

    - `x`: logits.
    - `axis`: over which to normalise.

    !!! Example

        ```python
        neuralcollapse.numerics.stablemax(jnp.array([1.0, 0.0, -1.0]))  # [0.5714, 0.2857, 0.1429]
        ```

    ??? cite "Reference"

        Prieto et al., "Grokking at the Edge of Numerical Stability", arXiv:2501.04697.
    """
    return jax.nn.softmax(_log_scale(x), axis=axis)


def stablemax_cross_entropy(logits: Float[Array, "*batch K"], labels: Int[Array, "..."]) -> Float[Array, "*batch"]:
    """Return the cross-entropy of each sample with StableMax in the place of softmax.

    **Arguments:**

    - `logits`: the last axis is that of the classes.
    - `labels`: the classes.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"`labels` must have shape {logits.shape[:-1]} to go with `logits`; got {labels.shape}.")
    return -jnp.take_along_axis(log_stablemax(logits), labels[..., None], axis=-1)[..., 0]


def _log_scale(x: Array) -> Array:
    # Not sign(x) log1p(|x|), whose derivative at zero is 0 in JAX: it is 1.
    negative = x < 0
    return jnp.where(negative, -1, 1).astype(x.dtype) * jnp.log1p(jnp.where(negative, -x, x))
