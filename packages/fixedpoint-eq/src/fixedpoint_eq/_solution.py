from typing import Any, Generic

import equinox as eqx
from implicit_core.certify import Certificate

from ._custom_types import Y
from ._results import RESULTS


class Solution(eqx.Module, Generic[Y]):
    r"""The result of [`fixedpoint_eq.solve`][].

    **Attributes:**

    - `value`: the state with the smallest residual that was met; differentiable in `args` and in what `fn` captures.
    - `result`: how the solve ended, a member of [`fixedpoint_eq.RESULTS`][]; with a batch axis one for each sample.
    - `stats`: `num_steps`, the number of evaluations of the map (of steps, for solvers that make several a step);
        `residual`, $\lVert f(z) - z\rVert$ at `value`, infinite if it was never finite; with `keep_trace` also `trace`, the
        residual at every step, NaN beyond the last. With a batch axis each has a leading axis of samples.
    - `certificate`: a bound on the distance of `value` from the fixed point, if `contraction` was given, else `None`.
    """

    value: Y
    result: RESULTS
    stats: dict[str, Any]
    certificate: Certificate | None
