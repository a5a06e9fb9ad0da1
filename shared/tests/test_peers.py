"""Our decorators around the solvers of jaxopt, which is unmaintained: its users can move over.

Equal to its gradient where that is right, and right where it is not.
"""

import functools as ft
import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from implicit_core.implicit import KKTPoint, argmin, fixed_point, kkt, least_squares, root


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of itself
    import jaxopt
    import jaxopt.projection


@pytest.fixture(autouse=True)
def as_jaxopt_expects():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def agree(ours, theirs, theta, rtol):
    # Not under `jit`: the solvers compile themselves, once for both.
    gradients = [jax.grad(lambda theta, fn=fn: jnp.sum(jnp.sin(fn(theta))))(theta) for fn in (ours, theirs)]
    assert jnp.linalg.norm(gradients[1]) > 1e-3
    return bool(jnp.linalg.norm(gradients[0] - gradients[1]) <= rtol * jnp.linalg.norm(gradients[1]))


# Roots.


def cubic(x, theta):
    return x**3 + jnp.exp(theta) * x - 2


def test_bisection():
    solver = jaxopt.Bisection(cubic, lower=0.0, upper=2.0, tol=1e-12, maxiter=60, check_bracket=False)

    def theirs(theta):
        return solver.run(theta=theta).params

    assert agree(root(cubic)(theirs), theirs, jnp.array(0.3), 1e-8)


def system(z, theta):
    return jnp.stack([z[0] + jnp.tanh(z[1] * theta[0]) - theta[1], 2 * z[1] - jnp.sin(z[0]) * theta[2]])


@pytest.mark.parametrize("name", ["Broyden", "ScipyRootFinding"])
def test_systems(name):
    if name == "Broyden":
        solver = jaxopt.Broyden(system, tol=1e-12, maxiter=200)
    else:
        solver = jaxopt.ScipyRootFinding(optimality_fun=system, method="hybr", tol=1e-12)

    def theirs(theta):
        return solver.run(jnp.array([0.1, 0.2]), theta).params

    # The one around SciPy cannot be traced, and ours does not ask for it.
    theta = jnp.array([0.5, 0.7, 0.3])
    assert agree(root(system)(theirs), theirs, theta, 1e-5)
    assert jnp.allclose(jax.jacfwd(root(system)(theirs))(theta), jax.jacrev(theirs)(theta), rtol=1e-5)


# Fixed points and minima.


def test_fixed_point_iteration(getkey):
    w = jr.normal(getkey(), (6, 6))
    w = 0.5 * w / jnp.linalg.norm(w, 2)

    def mapping(z, theta):
        return jnp.tanh(w @ z + theta)

    solver = jaxopt.FixedPointIteration(mapping, tol=1e-13, maxiter=200)

    def theirs(theta):
        return solver.run(jnp.zeros(6), theta).params

    ours = fixed_point(mapping, contraction=0.5)(theirs)
    theta = jr.normal(getkey(), (6,))
    assert agree(ours, theirs, theta, 1e-5)
    # What it cannot do, having no forward mode.
    hessian = jax.jit(jax.hessian(lambda theta: jnp.sum(ours(theta))))(theta)
    assert jnp.allclose(hessian, hessian.T, atol=1e-11)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jacfwd(theirs)(theta)


def test_lbfgs(getkey):
    x, y = jr.normal(getkey(), (30, 5)), jr.bernoulli(getkey(), shape=(30,)).astype(jnp.float64)

    def logistic(w, theta):
        logits = x @ w
        return jnp.sum(jnp.logaddexp(0.0, logits) - y * logits) + 0.5 * jnp.sum(jnp.exp(theta) * w**2)

    solver = jaxopt.LBFGS(logistic, tol=1e-9, maxiter=500, linesearch="backtracking")

    def theirs(theta):
        return solver.run(jnp.zeros(5), theta).params

    assert agree(argmin(logistic)(theirs), theirs, jr.normal(getkey(), (5,)), 1e-5)


@pytest.mark.parametrize("name", ["simplex", "box"])
def test_projected_gradient(name, getkey):
    a = jr.normal(getkey(), (8, 5))
    project, hyper = {
        "simplex": (jaxopt.projection.projection_simplex, 1.0),
        "box": (jaxopt.projection.projection_box, (0.0, 0.5)),
    }[name]

    def phi(w, theta):
        return 0.5 * jnp.sum((a @ w - theta) ** 2)

    solver = jaxopt.ProjectedGradient(phi, projection=project, stepsize=0.05, tol=1e-11, maxiter=5000)

    def theirs(theta):
        return solver.run(jnp.full(5, 0.2), hyperparams_proj=hyper, theta=theta).params

    theta = a @ jnp.array([0.7, 0.1, -0.3, 0.2, 0.6])
    ours = fixed_point(lambda w, theta: project(w - 0.1 * jax.grad(phi)(w, theta), hyper))(theirs)
    assert agree(ours, theirs, theta, 1e-5)
    if name == "simplex":
        conditions = kkt(phi, lambda w, _: jnp.sum(w) - 1, lambda w, _: -w)(theirs)
    else:
        conditions = kkt(phi, ineq=lambda w, _: (-w, w - 0.5))(theirs)
    assert agree(lambda theta: conditions(theta).x, theirs, theta, 1e-5)


def test_levenberg_marquardt():
    t = jnp.linspace(0, 1, 8)

    def residual(w, theta):
        return w[0] * jnp.exp(-w[1] * t) - theta

    solver = jaxopt.LevenbergMarquardt(residual, tol=1e-12, maxiter=100)

    def theirs(theta):
        return solver.run(jnp.array([1.0, 1.0]), theta).params

    theta = 2 * jnp.exp(-1.5 * t) + 0.2 * jnp.sin(9 * t)
    ours = least_squares(residual)(theirs)
    assert agree(ours, theirs, theta, 1e-5)
    # The residual does not vanish, so Gauss-Newton would be wrong.
    assert not agree(least_squares(residual, gauss_newton=True)(theirs), theirs, theta, 1e-3)


# Quadratic programs, where the default of jaxopt is wrong.


def random_qp(cond, *, n=20, num_eq=5, num_ineq=30):
    rng = np.random.default_rng(2)
    basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
    Q = basis @ np.diag(np.logspace(0, np.log10(cond), n)) @ basis.T
    inside = rng.normal(size=n)
    c, A, G = cond**0.5 * rng.normal(size=n), rng.normal(size=(num_eq, n)), rng.normal(size=(num_ineq, n))
    data = {"Q": (Q + Q.T) / 2, "c": c, "A": A, "b": A @ inside, "G": G, "h": G @ inside + rng.uniform(size=num_ineq)}
    return {name: jnp.asarray(value) for name, value in data.items()}, rng.normal(size=n)


def osqp(theta):
    solver = jaxopt.OSQP(tol=1e-9, maxiter=20_000)
    objective, eq, ineq = (theta["Q"], theta["c"]), (theta["A"], theta["b"]), (theta["G"], theta["h"])
    return solver.run(None, params_obj=objective, params_eq=eq, params_ineq=ineq).params


@ft.cache
def ours_of():
    decorate = kkt(
        lambda x, theta: 0.5 * x @ theta["Q"] @ x + theta["c"] @ x,
        lambda x, theta: theta["A"] @ x - theta["b"],
        lambda x, theta: theta["G"] @ x - theta["h"],
        active_tol=1e-5,
    )
    solve = decorate(lambda _, found: found)
    return jax.jit(jax.grad(lambda theta, found, weights: weights @ solve(theta, found).x))


@ft.cache
def theirs_of():
    @jax.jit
    def run(theta, weights):
        point, pullback = jax.vjp(osqp, theta)
        zeros = jax.tree_util.tree_map(jnp.zeros_like, point)
        return point, pullback(zeros._replace(primal=weights))[0]

    return run


def dense_gradient(theta, x, nu, lam, weights):
    # The theorem, with the matrix of the active constraints, in NumPy.
    data = {name: np.asarray(value, np.float64) for name, value in theta.items()}
    active = lam > -(data["G"] @ x - data["h"])
    C = np.concatenate([data["A"], data["G"][active]])
    zeros = np.zeros((len(C), len(C)))
    solution = np.linalg.solve(np.block([[data["Q"], C.T], [C, zeros]]), np.concatenate([weights, 0 * zeros[0]]))
    u, v = -solution[: x.size], -solution[x.size :]
    multipliers = np.concatenate([nu, lam[active]])
    rows = np.outer(multipliers, u) + np.outer(v, x)
    G, h = np.zeros_like(data["G"]), np.zeros_like(data["h"])
    G[active], h[active] = rows[len(nu) :], -v[len(nu) :]
    outer = np.outer(u, x)
    return {"Q": outer, "c": u, "A": rows[: len(nu)], "b": -v[: len(nu)], "G": G, "h": h}, active.sum()


def error(gradient, exact):
    # Relative, over all parameters. In Q only the symmetric part is determined.
    def flat(tree):
        tree = {**tree, "Q": tree["Q"] + tree["Q"].T}
        return np.concatenate([np.asarray(tree[name], np.float64).ravel() for name in sorted(exact)])

    return np.linalg.norm(flat(gradient) - flat(exact)) / np.linalg.norm(flat(exact))


@pytest.mark.parametrize("cond", [1e1, 1e3, 1e5])
def test_quadratic_programs(cond):
    theta, weights = random_qp(cond)
    point, theirs = theirs_of()(theta, jnp.asarray(weights))
    x, nu, lam = (np.asarray(v) for v in (point.primal, point.dual_eq, point.dual_ineq))
    exact, num_active = dense_gradient(theta, x, nu, lam, weights)
    assert num_active >= 10
    for dtype, tolerance in ((jnp.float64, 1e-9), (jnp.float32, 1e-3)):
        data = {name: value.astype(dtype) for name, value in theta.items()}
        point = KKTPoint(*(jnp.asarray(v, dtype) for v in (x, nu, lam)))
        w = jnp.asarray(weights, dtype)
        for found in (point, point.x):  # with and without multipliers
            gradient = ours_of()(data, found, w)
            assert gradient["Q"].dtype == dtype
            assert error(gradient, exact) <= tolerance
    if cond >= 1e3:
        assert error(theirs, exact) > 1
