from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._class_stats import ClassStats
from ._custom_types import FloatScalar
from ._product import product


Weighting = Literal["balanced", "weighted"]
ConventionName = Literal["papyan", "fsoft", "weighted"]


class Convention(eqx.Module):
    r"""Say which of the definitions in use is meant. They differ as soon as the classes differ in size.

    | name | global mean | between-class covariance | who |
    | --- | --- | --- | --- |
    | `"papyan"` | mean of the class means | $\frac1K \sum_k$ | Papyan, Han and Donoho's notebook; neural-collapse |
    | `"fsoft"` | mean of the samples | $\frac1K \sum_k$ | the code of arXiv:2301.00437 |
    | `"weighted"` | mean of the samples | $\sum_k \frac{n_k}{N}$ | total covariance = within + between, exactly |

    ```python
    from neuralcollapse import Convention

    Convention.of("weighted").between  # "weighted"
    Convention(global_mean="balanced", between="weighted")  # a definition of your own
    ```

    **Arguments:**

    - `global_mean`: `"balanced"` is the mean of the class means, `"weighted"` the mean of the samples.
    - `between`: weights of the classes in the between-class covariance: equal, or by their sizes.
    - `within`: weights of the classes in the trace of the within-class covariance. The matrix itself is that of the
        samples: a weighted sum over classes cannot be updated in one pass without one matrix a class.
    """

    global_mean: Weighting = eqx.field(static=True, default="balanced")
    between: Weighting = eqx.field(static=True, default="balanced")
    within: Weighting = eqx.field(static=True, default="weighted")

    def __check_init__(self):
        for name in ("global_mean", "between", "within"):
            if getattr(self, name) not in ("balanced", "weighted"):
                raise ValueError(f"`{name}` must be 'balanced' or 'weighted', got {getattr(self, name)!r}.")

    @staticmethod
    def of(name: "ConventionName | Convention") -> "Convention":
        """Return the convention of that name, or the convention itself.

        **Raises:**

        `ValueError` for an unknown name.
        """
        if isinstance(name, Convention):
            return name
        if name not in _NAMED:
            raise ValueError(
                f"`convention` must be one of {', '.join(map(repr, _NAMED))} or a Convention, got {name!r}."
            )
        return _NAMED[name]


_NAMED = {
    "papyan": Convention(),
    "fsoft": Convention(global_mean="weighted"),
    "weighted": Convention(global_mean="weighted", between="weighted"),
}


def class_weights(stats: ClassStats, weighting: Weighting) -> Float[Array, " k"]:
    """Return the weights of the classes, of sum one."""
    if weighting == "weighted":
        return stats._proportions()
    return jnp.full(stats.num_classes, 1 / stats.num_classes, stats.anchor.dtype)


def centred_means(stats: ClassStats, convention: Convention) -> Float[Array, "k d"]:
    """Return the class means minus the convention's global mean."""
    return stats._centred(class_weights(stats, convention.global_mean))


def global_mean(stats: ClassStats, convention: Convention) -> Float[Array, " d"]:
    """Return the convention's global mean."""
    return product(class_weights(stats, convention.global_mean), stats.anchor + stats.shift)


def weighted_means(stats: ClassStats, convention: Convention) -> Float[Array, "k d"]:
    """Return A with the between-class covariance A^T A."""
    return jnp.sqrt(class_weights(stats, convention.between))[:, None] * centred_means(stats, convention)


def within_trace(stats: ClassStats, convention: Convention) -> FloatScalar:
    """Return the trace of the within-class covariance."""
    if convention.within == "weighted":
        return stats._within_trace()
    return jnp.mean(stats._class_variances())
