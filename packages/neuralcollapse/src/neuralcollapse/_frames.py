"""NC2: how far class means or classifiers are from a frame. Every function takes one vector a row."""

import math
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._check import require
from ._custom_types import FloatScalar
from ._pairs import PairMoments, frame_distance, over_pairs
from ._product import product


_ZERO = "The vectors are all zero, so their angles and relative lengths are not defined."


def equinorm(x: Float[Array, "k d"], *, ddof: int = 0) -> FloatScalar:
    r"""Return the spread of the lengths, $\operatorname{std}_k \|x_k\| / \operatorname{mean}_k \|x_k\|$: zero at collapse.

    **Arguments:**

    - `x`: centred class means or classifiers, one a row.
    - `ddof`: 1 for the unbiased standard deviation of Papyan's notebook.

    **Returns:**

    The coefficient of variation of the lengths.
    """
    norms = _norms(_vectors(x))
    return jnp.std(norms, ddof=ddof) / jnp.mean(norms)


def equiangular(x: Float[Array, "k d"]) -> FloatScalar:
    r"""Return the standard deviation of $\cos(x_k, x_l)$ over $k \ne l$: zero at collapse. A zero vector has cosine 0."""
    return jnp.sqrt(cosines(_vectors(x)).variance)


def max_equiangle(x: Float[Array, "k d"]) -> FloatScalar:
    r"""Return the mean of $|\cos(x_k, x_l) + \frac{1}{K-1}|$ over $k \ne l$: zero where all angles are as large as can be."""
    return angle_excess(_vectors(x)).mean


def etf_distance(x: Float[Array, "k d"]) -> FloatScalar:
    r"""Return the distance of the normalised Gram matrix from that of a simplex equiangular tight frame.

    $$\left\| \frac{XX^\top}{\|XX^\top\|_F} - \frac{I - \frac1K 11^\top}{\sqrt{K-1}} \right\|_F$$

    **Arguments:**

    - `x`: centred class means or classifiers, one a row. Centre them: see [`neuralcollapse.metrics.of_distance`][] for
        vectors that are not.

    **Returns:**

    The distance, at least [`neuralcollapse.metrics.etf_floor`][], which is zero unless $K > d + 1$.
    """
    x = _vectors(x)
    return frame_distance(x, x, *etf_target(x))


def etf_floor(num_classes: int, dim: int) -> float:
    r"""Return the least [`neuralcollapse.metrics.etf_distance`][] that vectors of that dimension can have.

    A simplex frame of $K$ vectors has rank $K - 1$. Of rank $d < K - 1$ the nearest Gram matrix is a projection, at
    distance $\sqrt{2 - 2\sqrt{d/(K-1)}}$ (von Neumann's trace inequality).
    """
    return math.sqrt(max(0.0, 2 - 2 * math.sqrt(min(dim, num_classes - 1) / (num_classes - 1))))


def of_distance(x: Float[Array, "k d"]) -> FloatScalar:
    r"""Return the distance of the normalised Gram matrix from that of an orthogonal frame, $I/\sqrt K$.

    **Arguments:**

    - `x`: class means that are *not* centred, or classifiers, of a model without bias; one a row.
    """
    x = _vectors(x)
    return frame_distance(x, x, *of_target(x))


def gof_distance(x: Float[Array, "k d"], squared_lengths: Float[Array, " k"]) -> FloatScalar:
    r"""Return the distance of the normalised Gram matrix from that of a general orthogonal frame, $\operatorname{diag}(s)$.

    **Arguments:**

    - `x`: class means that are *not* centred, or classifiers, of a model without bias; one a row.
    - `squared_lengths`: the predicted $s_k = \|x_k\|^2$, up to a common factor; not all zero.

    ??? cite "Reference"

        Dang et al., Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data, arXiv:2301.00437.
    """
    x = _vectors(x)
    return frame_distance(x, x, gof_target(x, squared_lengths), 0.0)


def gnc2(
    x: Float[Array, "k d"], kernel: Literal["distance", "log", "riesz"] = "log"
) -> tuple[FloatScalar, FloatScalar]:
    r"""Return mean and variance over pairs of a kernel of the distance of the directions $x_k/\|x_k\|$.

    Uniformity on the sphere: what stands in for the simplex frame where $K > d + 1$ and there is none.

    **Arguments:**

    - `x`: centred class means or classifiers, one a row.
    - `kernel`: `"distance"` is $r$, `"log"` is $-\log r$, `"riesz"` is $\operatorname{sign}(s)\, r^{-s}$ with $s = d - 2$.

    **Returns:**

    The mean and the variance. Infinite if two directions coincide, but for `"distance"`.

    ??? cite "Reference"

        Liu et al., Generalizing and Decoupling Neural Collapse via Hyperspherical Uniformity Gap, arXiv:2303.06484.
    """
    if kernel not in ("distance", "log", "riesz"):
        raise ValueError(f"`kernel` must be 'distance', 'log' or 'riesz', got {kernel!r}.")
    x = _vectors(x)
    s = x.shape[1] - 2

    def value(some, every):
        square = squared_distances(some, every)
        if kernel == "distance":
            return jnp.sqrt(square)
        if kernel == "log":
            return -0.5 * jnp.log(square)
        return math.copysign(1, s) * square ** (-s / 2)

    moments = over_pairs(value, _unit(x), x.shape[0])
    return moments.mean, jnp.where(jnp.isfinite(moments.mean), moments.variance, jnp.inf)


def cosines(x: Float[Array, "k d"]) -> PairMoments:
    """Return the moments of cos(x_k, x_l)."""
    return over_pairs(_cosine, (x, _norms(x)), x.shape[0])


def angle_excess(x: Float[Array, "k d"]) -> PairMoments:
    """Return the moments of |cos(x_k, x_l) + 1/(K - 1)|."""
    k = x.shape[0]
    return over_pairs(lambda some, every: jnp.abs(_cosine(some, every) + 1 / (k - 1)), (x, _norms(x)), k)


def _cosine(some: Any, every: Any) -> Float[Array, "t k"]:
    # From products of the vectors, not of their directions: those are what all metrics share, so they are formed once.
    (x, n), (y, m) = some, every
    lengths = n[:, None] * m[None]
    return product(x, y.T) / jnp.where(lengths > 0, lengths, 1)


def squared_distances(some: Float[Array, "t d"], every: Float[Array, "k d"]) -> Float[Array, "t k"]:
    """Return |x_k - x_l|^2: from differences where those are few numbers, else from products."""
    if some.shape[0] * every.shape[0] * every.shape[1] <= 1 << 22:
        return jnp.sum((some[:, None] - every[None]) ** 2, axis=-1)
    squares = jnp.sum(some**2, axis=1)[:, None] + jnp.sum(every**2, axis=1)[None]
    return jnp.maximum(squares - 2 * product(some, every.T), 0)


def etf_target(x: Float[Array, "k d"]) -> tuple[Float[Array, " k"], float]:
    """Return the normalised Gram matrix of a simplex frame, as its diagonal part and a constant."""
    k = x.shape[0]
    return jnp.full(k, 1 / math.sqrt(k - 1), x.dtype), -1 / (k * math.sqrt(k - 1))


def of_target(x: Float[Array, "k d"]) -> tuple[Float[Array, " k"], float]:
    """Return the normalised Gram matrix of an orthogonal frame, in the same form."""
    return jnp.full(x.shape[0], 1 / math.sqrt(x.shape[0]), x.dtype), 0.0


def gof_target(x: Float[Array, "k d"], squared_lengths: Float[Array, " k"]) -> Float[Array, " k"]:
    """Return the diagonal of the normalised Gram matrix of a general orthogonal frame."""
    s = jnp.asarray(squared_lengths).astype(x.dtype)
    if s.shape != x.shape[:1]:
        raise ValueError(f"`squared_lengths` must have shape {x.shape[:1]}, one for each row; got {s.shape}.")
    good = jnp.all(jnp.isfinite(s)) & jnp.all(s >= 0) & jnp.any(s > 0)
    s = require(s, good, "`squared_lengths` must be finite, none negative, and not all zero.", squared_lengths=s)
    return s / jnp.sqrt(jnp.sum(s**2))


def _vectors(x: Float[Array, "k d"]) -> Float[Array, "k d"]:
    x = jnp.asarray(x)
    if x.ndim != 2 or x.shape[0] < 2:
        raise ValueError(f"Vectors must be the rows of a matrix with at least two; got shape {x.shape}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"Vectors must hold real floating-point numbers, got dtype {x.dtype}.")
    x = require(x, jnp.all(jnp.isfinite(x)), "The vectors must be finite.")
    return require(x, jnp.any(x != 0), _ZERO)


def _norms(x: Float[Array, "k d"]) -> Float[Array, " k"]:
    return jnp.sqrt(jnp.sum(x**2, axis=1))


def _unit(x: Float[Array, "k d"]) -> Float[Array, "k d"]:
    norms = _norms(x)[:, None]
    return x / jnp.where(norms > 0, norms, 1)
