import implicit_core


class RESULTS(implicit_core.RESULTS):  # pyright: ignore
    """How a solve ended: every outcome of `implicit_core.RESULTS`, which extends Optimistix's.

    The ones that [`ot_sns.solve`][] produces are

    - `successful`: the error on both marginals is at most the tolerance;
    - `nonlinear_max_steps_reached`: `max_steps` steps were made first;
    - `stagnation`: rounding stops the error above the tolerance (typical of float32, or
        of a tolerance near machine precision);
    - `nonfinite`: a non-finite value appeared. No such value is ever called a success.
    """
