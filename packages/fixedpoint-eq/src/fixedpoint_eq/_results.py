import implicit_core


class RESULTS(implicit_core.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """Say how a solve ended: every outcome of `implicit_core.RESULTS`, and those that are new here.

    The ones that [`fixedpoint_eq.solve`][] reports, for each sample of a batch, are

    - `successful`: the residual met the tolerance;
    - `nonlinear_max_steps_reached`: `max_steps` steps were made first;
    - `nonlinear_divergence`: the residual grew to a million times the smallest one seen;
    - `no_progress`: the smallest residual is fifty steps old: rounding, or a cycle;
    - `nonfinite`: a NaN or an infinity was met. No such value is ever called a success.

    The others belong to [`fixedpoint_eq.ep.gradient`][], for each sample.
    """

    no_progress = (
        "The iteration makes no progress: its smallest residual is many steps old. The map may not be a contraction and "
        "have a cycle, or the tolerance is beyond what the precision can reach. Use `Damped` or `NewtonKrylov`, a map "
        "with a smaller Jacobian, a larger tolerance, or double precision."
    )

    free_phase_unsettled = (
        "The free phase of equilibrium propagation did not settle: the residual of the free equilibrium is above the "
        "tolerance, so the gradient has a bias that nothing controls. Allow more steps, use a smaller `tau`, or scale "
        "the recurrent weights down."
    )
    nudged_phase_unsettled = (
        "A nudged phase of equilibrium propagation did not settle. Use a smaller `beta`, more steps or a smaller `tau`."
    )
    nudge_too_large = (
        "The nudge of equilibrium propagation reaches beyond the radius within which the equilibrium is a holomorphic "
        "function of it: the states around the circle do not average to the free equilibrium. Use a smaller `beta`, or "
        "more points. Or the field is not holomorphic, and no `beta` is small enough: it must do without `conj`, `abs`, "
        "`max`, `relu` and `sign`."
    )
