"""I1 and I2: value and gradient through a fixed point and through a convex minimisation, in float64."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import jaxopt
import lineax as lx
import numpy as np
import optimistix as optx
from implicit_core import implicit
from implicit_core.krylov import FGMRES, PCG

from .protocol import OURS, Case, Goal, Method, as_fast, at_most, relative


def cases(quick: bool) -> Iterator[Case]:
    """Yield both cases."""
    yield _deep_equilibrium(300 if quick else 1500)
    yield _logistic(600)


def _layer(z, theta):
    w, x = theta
    return jnp.tanh(w @ z + x)


def _iterate(step: Callable, start):
    """Iterate to a relative change of 1e-10: the forward solve of every method, and the adjoint one by hand."""
    size = lambda v: jnp.sqrt(jnp.sum(v * v))

    def active(carry):
        z, previous, k = carry
        return (size(z - previous) > 1e-10 * size(z)) & (k < 500)

    return jax.lax.while_loop(active, lambda c: (step(c[0]), c[0], c[2] + 1), (step(start), start, 1))[0]


def _equilibrium(theta):
    return _iterate(lambda z: _layer(z, theta), jnp.zeros_like(theta[1]))


@jax.custom_vjp
def _by_hand(theta):
    return _equilibrium(theta)


def _by_hand_bwd(saved, c):
    theta, z = saved
    _, pull_z = jax.vjp(lambda z: _layer(z, theta), z)
    u = _iterate(lambda u: c + pull_z(u)[0], c)
    return jax.vjp(lambda theta: _layer(z, theta), theta)[1](u)


_by_hand.defvjp(lambda theta: (z := _equilibrium(theta), (theta, z)), _by_hand_bwd)


def _deep_equilibrium(size: int) -> Case:
    r = np.random.default_rng(0)
    w, x = 0.6 * r.standard_normal((size, size)) / size**0.5, r.standard_normal(size)
    z = np.zeros(size)
    for _ in range(300):
        z = np.tanh(w @ z + x)
    slope = 1 - z**2
    exact = slope * np.linalg.solve((np.eye(size) - slope[:, None] * w).T, 2 * z)

    def by_optimistix(linear_solver):
        def solve(theta):
            solver = optx.FixedPointIteration(1e-10, 1e-10)
            adjoint = optx.ImplicitAdjoint(linear_solver)
            start = jnp.zeros_like(theta[1])
            return optx.fixed_point(_layer, solver, start, theta, adjoint=adjoint, max_steps=500, throw=False).value

        return solve

    gmres = partial(jaxopt.linear_solve.solve_gmres, tol=1e-10)
    normal_cg = partial(jaxopt.linear_solve.solve_normal_cg, tol=1e-10)
    solver_of = lambda solve: jaxopt.implicit_diff.custom_fixed_point(_layer, solve=solve)(
        lambda _, theta: _equilibrium(theta)
    )
    by_jaxopt = lambda solve: lambda theta: solver_of(solve)(None, theta)
    solver = implicit.fixed_point(_layer, linear_solver=FGMRES(rtol=1e-10))(_equilibrium)

    def ours(theta):
        # With what the backward solve attained, which is the certificate.
        state = implicit.AdjointState(theta[1])
        loss = lambda theta, state: jnp.sum(solver(theta, adjoint_state=state) ** 2)
        value, (gradient, state) = jax.value_and_grad(loss, (0, 1))(theta, state)
        return value, gradient, state.relres

    def gradient(solve):
        return jax.value_and_grad(lambda theta: jnp.sum(solve(theta) ** 2))

    def error(out):
        note = f"backward relative residual {float(out[2]):.0e}" if len(out) == 3 else ""
        return relative(out[1][1], exact), note

    methods = [
        Method(OURS, "implicit-core", ours),
        Method("ours, without the certificate", "implicit-core", gradient(solver)),
        Method("by hand: custom_vjp, Neumann", "jax", gradient(_by_hand)),
        Method("optimistix, default", "optimistix", gradient(by_optimistix(lx.AutoLinearSolver(well_posed=None)))),
        Method("optimistix, BiCGStab", "optimistix", gradient(by_optimistix(lx.BiCGStab(1e-10, 1e-10)))),
        Method("optimistix, GMRES", "optimistix", gradient(by_optimistix(lx.GMRES(1e-10, 1e-10)))),
        Method("jaxopt, GMRES", "jaxopt", gradient(by_jaxopt(gmres))),
        Method("jaxopt, normal CG", "jaxopt", gradient(by_jaxopt(normal_cg))),
    ]
    goal = Goal(
        "time ≤ by hand, certificate included; relative error ≤ 1e-8",
        lambda rows: at_most(rows[OURS], 1e-8) and as_fast(rows, "by hand: custom_vjp, Neumann", 1.0),
    )
    theta = (w, x)
    return Case(f"I1 tanh equilibrium n={size}", (theta,), methods, error, goal, x64=True)


def _logistic(size: int) -> Case:
    """Gradient of the validation loss in the logarithm of the ridge, at a solution that is given."""
    r = np.random.default_rng(0)
    samples = size
    x, x_valid = r.standard_normal((2, samples, size))
    teacher = r.standard_normal(size) / size**0.5
    y, y_valid = (np.sign(a @ teacher + 0.3 * r.standard_normal(samples)) for a in (x, x_valid))
    theta = np.log(1e-2)

    def objective(w, args):
        theta, x, y = args
        return jnp.mean(jax.nn.softplus(-y * (x @ w))) + 0.5 * jnp.exp(theta) * jnp.sum(w**2)

    w = np.zeros(size)
    for _ in range(30):
        p = 1 / (1 + np.exp(y * (x @ w)))
        gradient = -x.T @ (y * p) / samples + np.exp(theta) * w
        hessian = (x.T * (p * (1 - p))) @ x / samples + np.exp(theta) * np.eye(size)
        w = w - np.linalg.solve(hessian, gradient)
    cotangent = -x_valid.T @ (y_valid / (1 + np.exp(y_valid * (x_valid @ w)))) / samples
    exact = -np.exp(theta) * w @ np.linalg.solve(hessian, cotangent)

    given = lambda _, w: w
    ours = implicit.argmin(objective)(given)
    matched = implicit.argmin(objective, linear_solver=PCG(rtol=1e-8))(given)
    by_jaxopt = jaxopt.implicit_diff.custom_root(jax.grad(objective))(lambda w, _: w)

    def by_optimistix(linear_solver, tags=frozenset()):
        def solve(args, w):
            # A step of gradient descent, which finds nothing to improve: Optimistix derives only what it solved.
            solver = optx.GradientDescent(1e-3, rtol=1e-6, atol=1e-6)
            adjoint = optx.ImplicitAdjoint(linear_solver)
            return optx.minimise(objective, solver, w, args, adjoint=adjoint, tags=tags, throw=False).value

        return solve

    def gradient(solve):
        def fn(theta, w, x, y, x_valid, y_valid):
            def loss(theta):
                w_star = solve((theta, x, y), w)
                return jnp.mean(jax.nn.softplus(-y_valid * (x_valid @ w_star)))

            return jax.value_and_grad(loss)(theta)

        return fn

    psd = frozenset({lx.positive_semidefinite_tag})
    methods = [
        Method(OURS, "implicit-core", gradient(ours)),
        Method("ours, PCG(1e-8)", "implicit-core", gradient(matched)),
        Method("optimistix, default", "optimistix", gradient(by_optimistix(lx.AutoLinearSolver(well_posed=None)))),
        Method("optimistix, CG and tag", "optimistix", gradient(by_optimistix(lx.CG(1e-8, 1e-8), psd))),
        Method("jaxopt, default", "jaxopt", gradient(lambda args, w: by_jaxopt(w, args))),
    ]
    goal = Goal(
        "≤ 10 ms; relative error ≤ 1e-6",
        lambda rows: at_most(rows[OURS], 1e-6) and rows[OURS]["seconds"] <= 0.010,
    )
    arguments = (theta, w, x, y, x_valid, y_valid)
    error = lambda out: (relative(out[1], exact), "")
    return Case(f"I2 logistic hypergradient n={size}", arguments, methods, error, goal, x64=True)
