import optimistix as optx


# The messages of inherited members cannot be reworded: Equinox warns at every further subclass when a base and a
# derived enumeration disagree on the text of one name, and the packages all subclass this one.
class RESULTS(optx.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """Say how a solve ended: every outcome of Lineax and Optimistix, and those that our solvers add.

    Every package of the family extends this enumeration and never makes a second one, so that one
    comparison works everywhere: `result == RESULTS.successful`. The inherited members that our solvers
    report are

    - `successful`: the stated tolerance was met;
    - `max_steps_reached`, `nonlinear_max_steps_reached`: the step limit came first;
    - `stagnation`: rounding, or an inconsistent system, stops the residual above the tolerance;
    - `nonfinite`: a NaN or an infinity was met;

    and the one that they add is

    - `indefinite`: an operator that had to be positive definite has a direction of non-positive curvature.

    !!! Example

        ```python
        solution = lx.linear_solve(operator, b, PCG(rtol=1e-6, mode="soft"))
        outcome = solution.stats["result"]
        assert outcome == implicit_core.RESULTS.successful
        ```
    """

    indefinite = (
        "A direction of non-positive curvature was met: the operator, or its preconditioner, is not positive "
        "definite. Likely causes: the point is a saddle or a maximum rather than a minimum; the operator is singular "
        "(for example an unfixed constant shift); or a `positive_semidefinite_tag` is wrong. Use a solver for "
        "indefinite systems, remove the null space, or correct the tag."
    )
