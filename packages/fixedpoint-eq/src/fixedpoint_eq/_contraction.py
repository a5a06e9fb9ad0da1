from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from implicit_core.certify import Certificate
from implicit_core.krylov import stop_gradient, tree_axpy, tree_norm
from jaxtyping import Array, Float, PRNGKeyArray

from ._batch import dense
from ._custom_types import RealScalar
from ._jacobian import real_jacobian
from ._misc import tree_sub


class Contraction(eqx.Module):
    r"""A factor by which a map shrinks distances, and what says so. It may be given to [`fixedpoint_eq.solve`][].

    **Attributes:**

    - `factor`: $\gamma$. Below one it makes $\lVert z - z^\star\rVert \le \lVert f(z) - z\rVert/(1-\gamma)$.
    - `norm`: in which norm, in words.
    - `kind`: `"proved"`, under `assumptions`, or `"estimated"`: then it is no certificate.
    - `assumptions`: in words.
    - `weights`: $w$ of the weighted norm $\max_i |z_i| / w_i$, in the order of `ravel_pytree`; else `None`.
    """

    factor: Float[Array, ""]
    norm: str = eqx.field(static=True)
    kind: Literal["proved", "estimated"] = eqx.field(static=True)
    assumptions: tuple[str, ...] = eqx.field(static=True)
    weights: Float[Array, " n"] | None = None

    def distance(self, difference: Any) -> Float[Array, ""]:
        """Return the norm of a difference of states."""
        if self.weights is None:
            return tree_norm(difference)
        return jnp.max(jnp.abs(jfu.ravel_pytree(difference)[0]) / self.weights)

    def certificate(self) -> Certificate:
        """Return the factor as a certificate of the core."""
        return Certificate(f"contraction factor in {self.norm}", self.factor, self.kind, self.assumptions)


def contraction(
    fn: Callable[[Any, Any], Any],
    z: Any,
    args: Any = None,
    *,
    norm: Literal["two", "infinity", "one-sided", "empirical"] = "two",
    radius: RealScalar = 1.0,
    num_pairs: int = 64,
    key: PRNGKeyArray | None = None,
) -> Contraction:
    r"""Estimate by how much a map shrinks distances, at or around a state.

    What is known of the Jacobian at one state proves nothing of others, so the result is of the kind `"estimated"`,
    unless the map is affine. For proofs see [`fixedpoint_eq.diagnostics.layer_contraction`][] and
    [`fixedpoint_eq.diagnostics.perron_contraction`][].

    **Arguments:**

    - `fn`, `args`: the map, `(z, args) -> z`. Complex states count as pairs of reals.
    - `z`: the state, without a batch axis (`jax.vmap` the call).
    - `norm`: `"two"`, the largest singular value of $J$; `"infinity"`, the spectral radius of $|J|$, which is the factor in
        the best weighted infinity norm (for real states); `"one-sided"`, the largest eigenvalue of $(J + J^\top)/2$, which is
        one more than the logarithmic norm of the flow $f(z) - z$; or `"empirical"`, the largest
        $\lVert f(a) - f(b)\rVert/\lVert a - b\rVert$ over random pairs, which is below the true factor.
    - `radius`, `num_pairs`, `key`: for `"empirical"`: pairs are drawn from a normal distribution of that standard
        deviation around `z`.

    **Returns:**

    A [`fixedpoint_eq.diagnostics.Contraction`][].

    !!! Example

        ```python
        contraction(lambda z, W: jnp.tanh(W @ z), jnp.zeros(8), W, norm="one-sided").factor
        ```
    """
    fn, z, args = stop_gradient((fn, z, args))
    if norm == "empirical":
        factor = _empirical(fn, z, args, radius, num_pairs, jr.key(0) if key is None else key)
        return Contraction(factor, "the 2-norm", "estimated", (f"{num_pairs} random pairs: the true factor is larger",))
    if norm not in ("two", "infinity", "one-sided"):
        raise ValueError(f'`norm` must be "two", "infinity", "one-sided" or "empirical"; got {norm!r}')
    matrix = dense(real_jacobian(lambda z: fn(z, args), z))
    local = ("the Jacobian at one state",)
    if norm == "two":
        return Contraction(jnp.linalg.norm(matrix, 2), "the 2-norm", "estimated", local)
    if norm == "one-sided":
        largest = jnp.linalg.eigvalsh((matrix + matrix.T) / 2)[-1]
        return Contraction(largest, "the 2-norm", "estimated", (*local, "the factor is a one-sided one"))
    if any(map(jnp.iscomplexobj, jtu.tree_leaves(z))):
        raise TypeError('`norm="infinity"` is for real states; got a complex one; use "two" or "one-sided"')
    factor, weights = _perron(jnp.abs(matrix))
    return Contraction(factor, "the weighted infinity norm", "estimated", local, weights)


def _empirical(fn, z, args, radius, num_pairs, key) -> Float[Array, ""]:
    leaves, treedef = jtu.tree_flatten(z)

    def draw(key):
        keys = jr.split(key, len(leaves))
        noise = treedef.unflatten(jr.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True))
        return tree_axpy(radius, noise, z)

    def ratio(key):
        a, b = map(draw, jr.split(key))
        return tree_norm(tree_sub(fn(a, args), fn(b, args))) / tree_norm(tree_sub(a, b))

    return jnp.max(jax.lax.map(ratio, jr.split(key, num_pairs)))


def layer_contraction(
    matrices: Sequence[Float[Array, "_ _"]], slopes: RealScalar | Sequence[RealScalar] = 1.0
) -> Contraction:
    r"""Prove a factor in the 2-norm for a chain of layers $\phi_L(W_L \cdots \phi_1(W_1 z + b_1) \cdots + b_L)$.

    It is $\prod_l \lVert W_l\rVert_2 s_l$, everywhere, where $s_l$ bounds the slope of $\phi_l$.

    **Arguments:**

    - `matrices`: $W_1, \dots, W_L$.
    - `slopes`: $s_l$, or one for all. One serves tanh, ReLU and sine; 1/4 the logistic function.

    **Returns:**

    A [`fixedpoint_eq.diagnostics.Contraction`][] of the kind `"proved"`, up to rounding.

    !!! Example

        ```python
        fpe.solve(lambda z, W: jnp.tanh(W @ z + 1), z0, W, contraction=layer_contraction([W]))
        ```
    """
    matrices = stop_gradient(list(matrices))
    slopes = list(slopes) if isinstance(slopes, Sequence) else [slopes] * len(matrices)
    if len(slopes) != len(matrices) or not matrices:
        raise ValueError(
            f"`slopes` must have one number for each of the `matrices`; got {len(slopes)} and {len(matrices)}"
        )
    factor = jnp.ones((), matrices[0].dtype)
    for matrix, slope in zip(matrices, slopes, strict=True):
        factor = factor * jnp.linalg.norm(matrix, 2) * jnp.asarray(slope, factor.dtype)
    return Contraction(factor, "the 2-norm", "proved", ("`slopes` bound those of the activations", "up to rounding"))


def perron_contraction(bound: Float[Array, "n n"]) -> Contraction:
    r"""Prove a factor in a weighted infinity norm for a map with $|J_{ij}(z)| \le N_{ij}$ everywhere.

    Any positive $w$ with $N w \le \gamma w$ proves that $f$ is a contraction with the factor $\gamma$ in
    $\max_i |z_i| / w_i$. The best $\gamma$ is the spectral radius of $N$, and $w$ its Perron vector; here $w$ is found by
    iteration, and $\gamma = \max_i (N w)_i / w_i$ is valid whatever the accuracy of $w$.

    **Arguments:**

    - `bound`: $N$, non-negative; for $\phi(Wz + b)$ it is the bound on the slope times $|W|$.

    **Returns:**

    A [`fixedpoint_eq.diagnostics.Contraction`][] of the kind `"proved"`, up to rounding.

    !!! Example

        ```python
        perron_contraction(jnp.abs(W)).factor  # for tanh(W z + b)
        ```
    """
    if bound.ndim != 2 or bound.shape[0] != bound.shape[1]:
        raise ValueError(f"`bound` must be a square matrix; got the shape {bound.shape}")
    bound = eqx.error_if(bound, ~jnp.all(bound >= 0), "`bound` must not have negative entries.")
    factor, weights = _perron(stop_gradient(bound))
    assumptions = ("`bound` bounds the entries of the Jacobian everywhere", "up to rounding")
    return Contraction(factor, "the weighted infinity norm", "proved", assumptions, weights)


def _perron(bound: Float[Array, "n n"]) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    # The shift makes the iteration converge where the matrix is periodic, and keeps every weight positive.
    shift = jnp.max(jnp.sum(bound, axis=1)) / 4
    shift = jnp.where(shift > 0, shift, 1)

    def body(_, w):
        w = bound @ w + shift * w
        # A weight of zero would prove nothing: of a reducible matrix the best vector may have some.
        return jnp.maximum(w / jnp.max(w), 1e-6)

    weights = jax.lax.fori_loop(0, 500, body, jnp.ones_like(bound[0]))
    return jnp.max(bound @ weights / weights), weights
