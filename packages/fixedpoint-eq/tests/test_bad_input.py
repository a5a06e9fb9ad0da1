"""Bad input is a clear error, or a status: never a silent answer."""

import equinox as eqx
import fixedpoint_eq as fpe
import jax
import jax.numpy as jnp
import optimistix as optx
import pytest
from fixedpoint_eq import RESULTS


halve = lambda z, _: 0.5 * z + 1
Z0 = jnp.zeros((3, 2))


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        (dict(z0=jnp.zeros(2, int)), TypeError, "`z0` must be of floating point"),
        (dict(z0=1), TypeError, "`z0` must be of floating point"),
        (dict(z0="a"), TypeError, "`z0` must be a pytree of arrays"),
        (dict(z0=()), ValueError, "`z0` must have an array"),
        (dict(z0=jnp.zeros(0)), ValueError, "`z0` must have an array"),
        (dict(fn=3), TypeError, "`fn` must be a function"),
        (dict(fn=lambda z, _: (z, z)), ValueError, "`fn` must return the structure"),
        (dict(fn=lambda z, _: z[0]), ValueError, "`fn` must return the shapes"),
        (dict(fn=lambda z, _: z.astype(jnp.float32)), ValueError, "float32"),
        (dict(fn=lambda z, _: z[0], batch_axis=0), ValueError, "whole batch"),
        (dict(solver=fpe.Anderson), TypeError, "the class `Anderson` itself"),
        (dict(solver=None), TypeError, "`solver` must be"),
        (dict(adjoint=fpe.Implicit), TypeError, "the class `Implicit` itself"),
        (dict(batch_axis=2), ValueError, "`batch_axis=2`"),
        (dict(batch_axis="x"), TypeError, "`batch_axis` must be"),
        (dict(z0=(Z0, Z0[:2]), fn=lambda z, _: z, batch_axis=0), ValueError, "agree in size"),
        (dict(max_steps=0), ValueError, "`max_steps` must be"),
        (dict(on_failure="ignore"), ValueError, "`on_failure` must be"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_static_errors(kwargs, error, match):
    kwargs = {"fn": halve, "z0": Z0, **kwargs}
    with pytest.raises(error, match=match):
        fpe.solve(kwargs.pop("fn"), kwargs.pop("z0"), **kwargs)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: fpe.Picard(-1.0), "`rtol`"),
        (lambda: fpe.Anderson(atol=-1.0), "`atol`"),
        (lambda: fpe.Anderson(memory=0), "`memory`"),
        (lambda: fpe.Anderson(period=0), "`period`"),
        (lambda: fpe.Anderson(mixing=0.0), "`mixing`"),
        (lambda: fpe.Anderson(ridge=-1.0), "`ridge`"),
        (lambda: fpe.Damped(0.0), "`tau`"),
        (lambda: fpe.Broyden(memory=0), "`memory`"),
        (lambda: fpe.NewtonKrylov(restart=0), "`restart`"),
        (lambda: fpe.NewtonKrylov(max_halvings=0), "`max_halvings`"),
        (lambda: fpe.Relaxation(interval=0.0), "`interval` must be positive; got 0.0"),
        (lambda: fpe.Relaxation(accuracy=-1.0), "`accuracy`"),
        (lambda: fpe.Reversible(1.0), "`beta` must be in"),
        (lambda: fpe.ImplicitFP(mode="firm"), '`mode` must be "strict" or "soft"; got \'firm\''),  # pyright: ignore[reportArgumentType]
        (lambda: fpe.Neumann(0), "`num_terms`"),
        (lambda: fpe.Phantom(0), "`num_steps`"),
        (lambda: fpe.ImplicitFP(max_steps=0), "`max_steps`"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_constructors(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: fpe.Picard(norm=2), "`norm` must be a function of a state; got 2"),  # pyright: ignore[reportArgumentType]
        (lambda: fpe.Implicit("lu"), "`linear_solver` must be a Lineax solver or `None`; got 'lu'"),  # pyright: ignore[reportArgumentType]
        (lambda: fpe.ImplicitFP(optx.FixedPointIteration(1e-6, 1e-6)), "`solver` must be a solver of this package"),  # pyright: ignore[reportArgumentType]
    ],
)  # fmt: skip
@pytest.mark.usefixtures("untyped")
def test_kinds(make, match):
    with pytest.raises(TypeError, match=match):
        make()


def test_results_say_what_to_do():
    assert "not holomorphic" in RESULTS[RESULTS.nudge_too_large]
    for member in (RESULTS.free_phase_unsettled, RESULTS.nudged_phase_unsettled, RESULTS.nudge_too_large):
        assert "Use a smaller" in RESULTS[member] or "use a smaller" in RESULTS[member]


@pytest.mark.usefixtures("untyped")
def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError):
        fpe.Anderson(f_stop_mode="rel")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("fn", "max_steps", "member"),
    [
        (lambda z, _: 2 * z + 1, 200, RESULTS.nonlinear_divergence),
        (lambda z, _: z**2 + 2, 200, RESULTS.nonlinear_divergence),
        (halve, 3, RESULTS.nonlinear_max_steps_reached),
        (lambda z, _: jnp.where(z > 1, jnp.nan, 0.5 * z + 1), 200, RESULTS.nonfinite),
        (lambda z, _: jnp.log(z - 1.0), 200, RESULTS.nonfinite),
        (lambda z, _: 1 - z, 200, RESULTS.no_progress),
    ],
)
def test_failures_have_a_status(fn, max_steps, member):
    solution = fpe.solve(fn, jnp.array([0.25]), solver=fpe.Picard(), max_steps=max_steps, throw=False)
    assert bool(solution.result == member)
    assert bool(jnp.isfinite(solution.value).all())


def test_throw():
    with pytest.raises(eqx.EquinoxRuntimeError, match="maximum number of steps"):
        jax.block_until_ready(fpe.solve(halve, Z0, max_steps=2, solver=fpe.Picard()).value)
    with pytest.raises(eqx.EquinoxRuntimeError, match="maximum number of steps"):
        jax.block_until_ready(fpe.solve(halve, Z0, max_steps=2, solver=fpe.Picard(), batch_axis=0).value)


def test_mixing_samples_is_an_error():
    fn = lambda z, a: 0.5 * z + a * jnp.mean(z, axis=0, keepdims=True).repeat(3, axis=0) + 1
    loss = lambda a: jnp.sum(fpe.solve(fn, Z0, a, batch_axis=0).value)
    with pytest.raises(eqx.EquinoxRuntimeError, match="mixes samples"):
        jax.block_until_ready(eqx.filter_jit(jax.grad(loss))(0.1))


def test_a_singular_jacobian_is_an_error():
    # Every point of a line is a fixed point.
    fn = lambda z, a: a * jnp.stack([z[0], 0.5 * z[1]])
    loss = lambda a: jnp.sum(fpe.solve(fn, jnp.ones(2), a).value)
    with pytest.raises(eqx.EquinoxRuntimeError):
        jax.block_until_ready(eqx.filter_jit(jax.grad(loss))(1.0))
