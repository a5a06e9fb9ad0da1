import implicit_core


class RESULTS(implicit_core.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """How a solve ended: every outcome of `implicit_core.RESULTS`, which extends Optimistix's.

    The ones that [`ot_sns.solve`][] produces are

    - `successful`: the error on both marginals is at most the tolerance;
    - `nonlinear_max_steps_reached`: `max_steps` steps were made first;
    - `marginal_stagnation`: the error on the marginals stopped falling above the tolerance;
    - `nonfinite`: a non-finite value appeared. No such value is ever called a success.
    """

    marginal_stagnation = (
        "The error on the marginals stopped falling above the tolerance. Likely causes: rounding, "
        "where `tol` is below what float32, or `epsilon` much smaller than the cost, can represent; "
        "a `Sinkhorn` or `SNS` solver on a problem that needs `SparseNewton`. Pass float64 arrays, "
        "a larger `tol` or a larger `epsilon`; `throw=False` returns the best potentials found, and "
        '`stats["error"]` says how good they are.'
    )
