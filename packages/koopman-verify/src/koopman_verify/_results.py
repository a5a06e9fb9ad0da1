from typing import Any

import implicit_core


class RESULTS(implicit_core.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """Say how a computation ended: every outcome of `implicit_core.RESULTS`, and those of this package.

    Those that are reported here are

    - `successful`: the answer is what was asked for, within the bound that comes with it;
    - `nonfinite`: a NaN or an infinity was met;
    - `uncertifiable`: the data cannot support the claim;
    - `nothing_found`: no point of the grid came with a bound that says anything;
    - `not_measure_preserving`: the data contradict the assumption that was declared.

    !!! Example

        ```python
        spectrum = koopman_verify.verified_spectrum(factor, grid, throw=False)
        assert spectrum.result == koopman_verify.RESULTS.successful
        ```
    """

    uncertifiable = (
        "The data cannot support the claim: fewer than ten snapshots per function of the dictionary, and the residuals "
        "are those of the data of the fit, which are then far too small. Take more snapshots or fewer functions, or "
        "certify on held-out data. `throw=False` returns the numbers, which are no bounds."
    )
    nothing_found = (
        "No point of the grid has a bound below one, so nothing was found. Likely causes: the grid misses the "
        "spectrum; or the dictionary is too poor. `throw=False` returns the empty set, with an infinite error."
    )
    not_measure_preserving = (
        "`measure_preserving=True` was declared, and the data contradict it: there is a function g with "
        "|1 - |z|| clearly larger than |(K - z)g| / |g|. Likely causes: a dissipative map; snapshots that do not come "
        "from an invariant measure; or too few of them. Leave the declaration out, or weight the snapshots."
    )


def choose(pred: Any, yes: Any, no: Any) -> RESULTS:
    """Return the member `yes` where `pred` holds, else `no`."""
    return RESULTS.where(pred, yes, no)
