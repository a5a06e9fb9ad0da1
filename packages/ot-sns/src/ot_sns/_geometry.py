import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from ._check import as_float, require


# Above this dimension |x - y|^2 is expanded, so that the n*m*d work is a matrix product. Below it
# the differences are formed directly: as fast, and free of the expansion's cancellation.
_MAX_DIRECT_DIMENSION = 16


class AbstractGeometry(eqx.Module):
    """A cost between `n` source atoms and `m` target atoms."""

    @abc.abstractmethod
    def cost_matrix(self) -> Float[Array, "n m"]:
        """Return the cost $C$, differentiable in whatever the geometry holds."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """The numbers of source and target atoms `(n, m)`."""

    @property
    @abc.abstractmethod
    def dtype(self) -> jnp.dtype:
        """The floating-point type in which problems on this geometry are solved."""


class DenseCost(AbstractGeometry):
    """A cost that is given as a matrix.

    **Arguments:**

    - `cost`: the matrix $C$, of shape `(n, m)`, float32 or float64, finite.

    **Raises:**

    A `ValueError` if `cost` is not a non-empty matrix or is not finite (under `jit` Equinox's
    run-time error), a `TypeError` if it does not hold real numbers.

    ```python
    import jax.numpy as jnp
    import ot_sns

    geometry = ot_sns.DenseCost(jnp.array([[0.0, 1.0], [1.0, 0.0]]))
    assert geometry.shape == (2, 2)
    ```
    """

    cost: Float[Array, "n m"]

    def __init__(self, cost: Real[ArrayLike, "n m"]):
        matrix = as_float(cost, "cost")
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise ValueError(f"`cost` must be a non-empty matrix of shape (n, m), got shape {matrix.shape}.")
        self.cost = require(
            matrix,
            jnp.all(jnp.isfinite(matrix)),
            "`cost` must be finite, but has NaN or infinite entries.",
            number_of_nonfinite_entries=jnp.sum(~jnp.isfinite(matrix)),
        )

    def cost_matrix(self) -> Float[Array, "n m"]:
        """Return the matrix that was given."""
        return self.cost

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of source and target atoms `(n, m)`."""
        n, m = self.cost.shape
        return n, m

    @property
    def dtype(self) -> jnp.dtype:
        """The matrix's floating-point type."""
        return self.cost.dtype


class PointCloud(AbstractGeometry):
    """A cost between two clouds of points, by default $C_{ij} = |x_i - y_j|^2$.

    **Arguments:**

    - `x`: the source points, of shape `(n, d)`.
    - `y`: the target points, of shape `(m, d)`, of the same dtype.
    - `cost_fn`: the cost of one pair, `cost_fn(x_i, y_j) -> scalar` for points of shape `(d,)`.
        `None` is the squared Euclidean distance, which has a fast path.

    Values, potentials and plans are differentiable with respect to the points.

    **Raises:**

    A `ValueError` if a cloud is empty, has the wrong rank or is not finite, or if the dimensions
    differ; a `TypeError` if the dtypes differ or are not real.

    ```python
    import jax.numpy as jnp
    import ot_sns

    geometry = ot_sns.PointCloud(jnp.zeros((3, 2)), jnp.ones((4, 2)))
    assert geometry.shape == (3, 4)
    ```
    """

    x: Float[Array, "n d"]
    y: Float[Array, "m d"]
    cost_fn: Callable[[Array, Array], Array] | None = eqx.field(static=True)

    def __init__(
        self,
        x: Real[ArrayLike, "n d"],
        y: Real[ArrayLike, "m d"],
        cost_fn: Callable[[Array, Array], Array] | None = None,
    ):
        source, target = _points(x, "x"), _points(y, "y")
        if source.shape[1] != target.shape[1]:
            raise ValueError(
                "`x` and `y` must have the same dimension, got points of dimension "
                f"{source.shape[1]} and {target.shape[1]}."
            )
        if source.dtype != target.dtype:
            raise TypeError(f"`x` and `y` must have the same dtype, got {source.dtype} and {target.dtype}.")
        self.x, self.y, self.cost_fn = source, target, cost_fn

    def cost_matrix(self) -> Float[Array, "n m"]:
        """Return the cost of every pair."""
        if self.cost_fn is not None:
            rows = jax.vmap(self.cost_fn, in_axes=(None, 0))
            return jax.vmap(rows, in_axes=(0, None))(self.x, self.y)
        if self.x.shape[1] <= _MAX_DIRECT_DIMENSION:
            return jnp.sum((self.x[:, None, :] - self.y[None, :, :]) ** 2, axis=-1)
        # Squared distances do not change under a shift; centring keeps the expansion accurate.
        centre = jax.lax.stop_gradient(jnp.mean(self.y, axis=0, keepdims=True))
        x, y = self.x - centre, self.y - centre
        # "highest": TensorFloat-32 products would be wrong in the fourth digit.
        xy = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
        squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :]
        return jnp.maximum(squares - 2 * xy, 0)

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of source and target atoms `(n, m)`."""
        return self.x.shape[0], self.y.shape[0]

    @property
    def dtype(self) -> jnp.dtype:
        """The points' floating-point type."""
        return self.x.dtype


def rescale_cost(geometry: AbstractGeometry) -> DenseCost:
    r"""Divide a cost by its largest entry, as every published small-`epsilon` result does.

    The paper's $\eta = 1200$ is `epsilon = 1 / 1200` for a cost in $[0, 1]$.

    **Arguments:**

    - `geometry`: the geometry to rescale.

    **Returns:**

    The geometry of $C / \max_{ij} C_{ij}$, differentiable in the original one.

    **Raises:**

    A `ValueError` if no entry of the cost is positive.

    ```python
    import jax.numpy as jnp
    import ot_sns

    cloud = ot_sns.PointCloud(jnp.zeros((3, 2)), 2 * jnp.ones((4, 2)))
    assert ot_sns.rescale_cost(cloud).cost.max() == 1
    ```
    """
    cost = geometry.cost_matrix()
    largest = jnp.max(cost)
    largest = require(largest, largest > 0, "`geometry` must have a positive largest cost.", largest=largest)
    return DenseCost(cost / largest)


def _points(given: Real[ArrayLike, "n d"], name: str) -> Float[Array, "n d"]:
    points = as_float(given, name)
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"`{name}` must be a non-empty cloud of shape (points, dimension), got shape {points.shape}.")
    return require(
        points,
        jnp.all(jnp.isfinite(points)),
        f"`{name}` must be finite, but has NaN or infinite entries.",
        number_of_nonfinite_entries=jnp.sum(~jnp.isfinite(points)),
    )
