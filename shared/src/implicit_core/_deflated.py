from typing import Any

import equinox as eqx
import lineax as lx
from jaxtyping import Array, Inexact, PyTree

from ._misc import stop_gradient
from ._precond import deflation


class Deflated(lx.AbstractLinearSolver[Any]):
    r"""Solve with what earlier solves have learned: deflate given vectors from a Hermitian system.

    `inner` gets the preconditioner [`implicit_core.precond.deflation`][] made of `vectors`, with its own as the rest. For a
    sequence of similar systems keep the last few solutions as `vectors`; zeros do no harm, so a buffer may start empty. Costs
    `k + 2` products before the first step.

    **Arguments:**

    - `inner`: `PCG` or `MINRES`, or any solver that takes a `"preconditioner"` option.
    - `vectors`: a pytree of the operator's structure whose leaves have one more, leading, axis of length `k`.

    **Raises:**

    `ValueError` if the operator is not tagged symmetric or definite, or `vectors` has another structure.

    !!! Example

        ```python
        lx.linear_solve(operator, b, Deflated(PCG(rtol=1e-6), last_solutions))
        ```

    ??? cite "Reference"

        Saad, Yeung, Erhel and Guyomarc'h, "A deflated version of the conjugate gradient algorithm", SIAM J. Sci. Comput.
        21 (2000).
    """

    inner: lx.AbstractLinearSolver
    vectors: PyTree[Inexact[Array, "k ..."]] = eqx.field(converter=stop_gradient)

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Any:
        """Build the preconditioner. See `lineax.AbstractLinearSolver.init`."""
        checks = (lx.is_symmetric, lx.is_positive_semidefinite, lx.is_negative_semidefinite)
        if not any(check(operator) for check in checks):
            raise ValueError(
                "`Deflated` needs an operator that is tagged symmetric or definite. If it is, say so with "
                "`lineax.TaggedLinearOperator(operator, lineax.symmetric_tag)`."
            )
        operator = lx.linearise(operator)
        base = options.get("preconditioner", getattr(self.inner, "precond", None))
        precond = deflation(operator, self.vectors, base)
        return self.inner.init(operator, {**options, "preconditioner": precond})

    def compute(self, state: Any, vector: PyTree[Array], options: dict[str, Any]) -> Any:
        """Solve against `vector`. See `lineax.AbstractLinearSolver.compute`."""
        return self.inner.compute(state, vector, options)

    def transpose(self, state: Any, options: dict[str, Any]) -> Any:
        """See `lineax.AbstractLinearSolver.transpose`."""
        return self.inner.transpose(state, options)

    def conj(self, state: Any, options: dict[str, Any]) -> Any:
        """See `lineax.AbstractLinearSolver.conj`."""
        return self.inner.conj(state, options)

    def assume_full_rank(self) -> bool:
        """Return what `inner` does."""
        return self.inner.assume_full_rank()
