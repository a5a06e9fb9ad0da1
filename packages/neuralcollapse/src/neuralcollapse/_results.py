from typing import Any

import implicit_core
from jaxtyping import Array, Bool


class RESULTS(implicit_core.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """Say how a computation ended: every outcome of `implicit_core.RESULTS`, and those of this package.

    The ones that the solvers of `neuralcollapse` report are

    - `successful`: the stated tolerance was met;
    - `nonlinear_max_steps_reached`: the step limit came first;
    - `nonfinite`: a NaN or an infinity was met. No such value is ever called a success;
    - `gap_stagnation`: a certificate stopped improving above its tolerance;
    - `nc1_reached`: a central path was stopped by its event.

    !!! Example

        ```python
        solution = neuralcollapse.ufm.solve_convex("ce", counts, 1e-3, 1e-3, throw=False)
        assert solution.result == neuralcollapse.RESULTS.successful
        ```
    """

    gap_stagnation = (
        "The duality gap stopped falling above the tolerance. Likely cause: rounding; `tol` is below what the dtype "
        "can represent. Pass float64 arrays or a larger `tol`. `throw=False` returns the point and the gap reached, "
        "which bounds its distance from the optimal value all the same."
    )
    nc1_reached = "The within-class variability fell below `stop_nc1`, and the path was ended there, as asked."


def choose(pred: Bool[Array, "..."], yes: Any, no: Any) -> RESULTS:
    """Return the member `yes` where `pred` holds, else `no`."""
    return RESULTS.where(pred, yes, no)
