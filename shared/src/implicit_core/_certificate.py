from typing import Literal, TypeAlias

import equinox as eqx
from jaxtyping import Array, ArrayLike, Float


Kind: TypeAlias = Literal["proved", "statistical", "estimated"]


class Certificate(eqx.Module):
    r"""State how wrong a result can be: which quantity, by how much, of which kind, under which assumptions.

    A number that is not a bound is never called one: `value` bounds `quantity` if `kind` is `"proved"` (under the
    stated assumptions, up to rounding) or `"statistical"` (with the stated probability), and is a mere estimate if it
    is `"estimated"`.

    **Arguments:**

    - `quantity`: what `value` speaks of, in words.
    - `value`: the number, a scalar array, or one per member of a batch.
    - `kind`: `"proved"`, `"statistical"` or `"estimated"`.
    - `assumptions`: what must hold for the statement, in words.
    - `true_relres`: $\lVert b - A x\rVert/\lVert b\rVert$, recomputed from `x`. Here and below `None` means not computed.
    - `recurrence_relres`: the same by the solver's recurrence, which rounding makes too small.
    - `cond_estimate`: estimate, from below, of the condition number of the (preconditioned) operator. Not a bound that
        can be relied on from above.
    - `error_lower`, `error_upper`: bounds on the norm of the error in `x`, and
    - `error_norm`: which norm: `"2-norm"`, or `"energy norm"` for $(e^* A e)^{1/2}$.

    !!! Example

        ```python
        Certificate("relative residual", jnp.array(1e-9), "proved", ("up to rounding",))
        ```
    """

    quantity: str = eqx.field(static=True)
    value: Float[ArrayLike, "..."]
    kind: Kind = eqx.field(static=True)
    assumptions: tuple[str, ...] = eqx.field(static=True, default=())
    true_relres: Float[Array, "..."] | None = None
    recurrence_relres: Float[Array, "..."] | None = None
    cond_estimate: Float[Array, "..."] | None = None
    error_lower: Float[Array, "..."] | None = None
    error_upper: Float[Array, "..."] | None = None
    error_norm: str | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.kind not in ("proved", "statistical", "estimated"):
            raise ValueError(f'`kind` must be "proved", "statistical" or "estimated"; got {self.kind!r}')
