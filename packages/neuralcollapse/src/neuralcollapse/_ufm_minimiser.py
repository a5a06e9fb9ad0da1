import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray


class Minimiser(eqx.Module):
    r"""Factors of a deep linear unconstrained-features model.

    **Attributes:**

    - `features`: $H$ by rows: one for each class, whose samples all have it, or one for each sample if targets were
        given.
    - `weights`: $(W_1, \dots, W_M)$, of shapes `[d_m, d_{m-1}]`.
    - `bias`: `[K]`, or `None` in a model without one.
    """

    features: Float[Array, "columns d"]
    weights: tuple[Float[Array, "..."], ...]
    bias: Float[Array, " classes"] | None

    @property
    def end_to_end(self) -> Float[Array, "classes d"]:
        r"""The product $W_M \cdots W_1$."""
        product = self.weights[0]
        for weight in self.weights[1:]:
            product = weight @ product
        return product

    @property
    def logits(self) -> Float[Array, "columns classes"]:
        """The logits, one row for each row of `features`."""
        out = self.features
        for weight in self.weights:
            out = out @ weight.T
        return out if self.bias is None else out + self.bias[None]


@eqx.filter_jit
def factor_minimiser(
    left: Float[Array, "classes rank"],
    right: Float[Array, "columns rank"],
    values: Float[Array, "factors rank"],
    widths: tuple[int, ...],
    bias: Float[Array, " classes"] | None,
    key: PRNGKeyArray,
) -> Minimiser:
    """Spread the modes over the factors: `H = Q_0 t_0 V'`, `W_m = Q_m t_m Q_(m-1)'`, `W_M = U t_M Q_(M-1)'`."""
    rank = left.shape[1]
    keys = jr.split(key, len(widths))
    frames = [jnp.linalg.qr(jr.normal(k, (d, rank), left.dtype))[0] for k, d in zip(keys, widths, strict=True)]
    outer = [*frames[1:], left]
    weights = tuple((q * t[None]) @ p.T for q, t, p in zip(outer, values[1:], frames, strict=True))
    return Minimiser((right * values[0][None]) @ frames[0].T, weights, bias)
