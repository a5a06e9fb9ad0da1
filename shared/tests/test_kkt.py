import functools as ft

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from implicit_core.implicit import KKTPoint, fixed_point, kkt
from jax.test_util import check_grads
from stationary_testkit import finite_difference_jvp, tree_allclose


# Closed forms.


def test_equality_qp(getkey):
    root, constraints = jr.normal(getkey(), (6, 6)), jr.normal(getkey(), (2, 6))
    hessian = root @ root.T + jnp.eye(6)
    inverse = jnp.linalg.inv(jnp.block([[hessian, constraints.T], [constraints, jnp.zeros((2, 2))]]))

    def phi(x, theta):
        return 0.5 * x @ hessian @ x + theta["c"] @ x

    def solver(theta):
        out = inverse @ jnp.concatenate([-theta["c"], theta["b"]])
        return KKTPoint(out[:6], eq=out[6:])

    theta = {"c": jr.normal(getkey(), (6,)), "b": jr.normal(getkey(), (2,))}
    solve = kkt(phi, lambda x, theta: constraints @ x - theta["b"])(solver)
    bare = kkt(phi, lambda x, theta: constraints @ x - theta["b"])(lambda theta: solver(theta).x)
    assert tree_allclose(bare(theta), solver(theta), rtol=1e-9)  # the multipliers are found again
    for jacobian in (jax.jit(jax.jacfwd(solve))(theta), jax.jit(jax.jacrev(bare))(theta)):
        assert jnp.allclose(jacobian.x["c"], -inverse[:6, :6], atol=1e-12)
        assert jnp.allclose(jacobian.x["b"], inverse[:6, 6:], atol=1e-12)
        assert jnp.allclose(jacobian.eq["c"], -inverse[6:, :6], atol=1e-12)
        assert jnp.allclose(jacobian.eq["b"], inverse[6:, 6:], atol=1e-12)


def project_on_simplex(v):
    ordered = jnp.sort(v)[::-1]
    excess = (jnp.cumsum(ordered) - 1) / jnp.arange(1, v.size + 1, dtype=v.dtype)
    return jnp.maximum(v - excess[jnp.sum(ordered > excess) - 1], 0)


def project_pytree(theta):
    v = theta["v"]
    return {"v": project_on_simplex(v)}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_projection_on_the_simplex(dtype):
    theta = jnp.asarray([0.5, 0.1, 0.6, -0.7, 0.3], dtype)
    s = (project_on_simplex(theta) > 0).astype(dtype)
    exact = jnp.diag(s) - jnp.outer(s, s) / jnp.sum(s)
    project = kkt(
        lambda x, theta: 0.5 * jnp.sum((x["v"] - theta["v"]) ** 2),
        lambda x, _: jnp.sum(x["v"]) - 1,
        lambda x, _: {"positive": -x["v"]},
    )(project_pytree)
    tolerance = 10 * float(jnp.finfo(dtype).eps)
    jacobian = jax.jit(jax.jacrev(lambda theta: project({"v": theta})))(theta)
    assert jacobian.x["v"].dtype == dtype
    assert jnp.allclose(jacobian.x["v"], exact, atol=tolerance)
    point = jax.jit(project)({"v": theta})
    report = jax.jit(project.optimality.report)(point, {"v": theta})
    assert report.num_active == theta.size - int(jnp.sum(s))
    assert report.residual <= tolerance
    assert report.margin > 0.01
    # The nearest change of the active set, and the multipliers, whose closed form is z - theta + nu.
    assert jnp.allclose(point.ineq["positive"], point.x["v"] - theta + point.eq, atol=tolerance)
    assert report.index == jnp.argmin(jnp.abs(point.ineq["positive"] - point.x["v"]))


def test_box_qp(getkey):
    root = jr.normal(getkey(), (5, 5))
    hessian = root @ root.T + jnp.eye(5)
    lower = jnp.array([True, False, False, True, False])
    # A problem made for its solution: bounds hold on `lower`, with multipliers one.
    x = jnp.where(lower, 0.0, jnp.array([0.0, 0.4, 0.7, 0.0, 0.2]))
    c = -hessian @ x + jnp.where(lower, 1.0, 0.0)

    def solver(c):
        free = jnp.diag(jnp.where(lower, 0.0, 1.0))
        matrix = free @ hessian @ free + jnp.eye(5) - free
        return jnp.linalg.solve(matrix, -free @ c)

    solve = kkt(lambda x, c: 0.5 * x @ hessian @ x + c @ x, ineq=lambda x, _: (-x, x - 1))(solver)
    point = solve(c)
    assert jnp.allclose(point.x, x)
    assert jnp.allclose(point.ineq[0], jnp.where(lower, 1.0, 0.0), atol=1e-10)
    assert jnp.allclose(point.ineq[1], 0, atol=1e-10)
    free = jnp.flatnonzero(~lower)
    exact = jnp.zeros((5, 5)).at[jnp.ix_(free, free)].set(-jnp.linalg.inv(hessian[jnp.ix_(free, free)]))
    assert jnp.allclose(jax.jit(jax.jacfwd(lambda c: solve(c).x))(c), exact, atol=1e-12)


def test_softmax(getkey):
    # The maximiser of x.theta plus entropy on the simplex.
    solve = kkt(lambda x, theta: -x @ theta + jnp.sum(x * jnp.log(x)), lambda x, _: jnp.sum(x) - 1)(jax.nn.softmax)
    theta = jr.normal(getkey(), (4,))
    p = jax.nn.softmax(theta)
    jacobian, hessian = jax.jit(lambda t: (jax.jacrev(solve)(t), jax.hessian(lambda t: solve(t).x[0])(t)))(theta)
    assert jnp.allclose(jacobian.x, jnp.diag(p) - jnp.outer(p, p), atol=1e-12)
    # The multiplier is 1 - log of the partition function, with the opposite sign to the constraint's.
    assert jnp.allclose(jacobian.eq, p, atol=1e-12)
    assert jnp.allclose(hessian, jax.hessian(lambda t: jax.nn.softmax(t)[0])(theta), atol=1e-12)


def test_bilevel_toy_as_one_saddle_problem():
    # min 1/2 |x - y2|^2 + 1/2 |y1 - e|^2, where (y1, y2) minimises 1/2 |y1|^2 - x.y1 + e.y2 with e.(x + y1 + y2) = 0.
    # The lower optimality conditions, y1 = x - multiplier, multiplier = -1, are the constraints of the upper level.
    n = 5

    def phi(v, e):
        return 0.5 * jnp.sum((v["x"] - v["y2"]) ** 2) + 0.5 * jnp.sum((v["y1"] - e) ** 2)

    def lower(v, e):
        return v["y1"] - v["x"] - e, jnp.sum(v["x"] + v["y1"] + v["y2"])

    solve = kkt(phi, lower)(lambda e: {"x": -0.3 * e, "y1": 0.7 * e, "y2": -0.4 * e})
    e = jnp.ones(n)
    point = solve(e)
    report = jax.jit(solve.optimality.report)(point, e)
    assert report.residual <= 1e-13  # so it is the solution
    assert jnp.isinf(report.margin)
    assert report.index == -1
    # F* = n / 20, and the solution is linear in the size of e, if not in e.
    value, derivative = jax.jit(lambda e: jax.jvp(lambda e: phi(solve(e).x, e), (e,), (e,)))(e)
    assert jnp.allclose(value, n / 20)
    assert jnp.allclose(derivative, n / 10)


# A nonlinear problem that is made for its solution.


def solution(theta):
    return KKTPoint(jnp.sinh(theta), jnp.sin(theta[0]), jnp.stack([jnp.exp(theta[1]), jnp.zeros(())]))


def sphere(x, theta):
    return jnp.sum(x**2) - jnp.sum(solution(theta).x ** 2)


def caps(x, theta):
    # The first holds at the solution, the second does not.
    return jnp.stack([jnp.exp(x[0]) - jnp.exp(solution(theta).x[0]), x[1] - 3])


def objective(x, theta):
    point = solution(theta)
    multipliers = point.eq * sphere(x, theta) + point.ineq[0] * caps(x, theta)[0]
    return jnp.sum(jnp.cosh(x - point.x)) + jnp.sum(x**2 - point.x**2) ** 2 - multipliers


def test_nonlinear():
    solve = kkt(objective, sphere, caps)(solution)
    theta = jnp.array([[0.5, 0.4, 0.6], [0.7, -0.2, 0.3]])
    report = jax.jit(jax.vmap(solve.optimality.report))(jax.vmap(solution)(theta), theta)
    assert jnp.all(report.residual <= 1e-14)
    assert report.num_active.tolist() == [1, 1]

    def derivatives(fn, theta):
        def scalar(theta):
            point = fn(theta)
            return jnp.sum(jnp.sin(point.x)) + point.eq * point.ineq[0]

        return jax.jacfwd(fn)(theta), jax.jacrev(fn)(theta), jax.hessian(scalar)(theta)

    ours = jax.jit(jax.vmap(ft.partial(derivatives, solve)))(theta)
    assert tree_allclose(ours, jax.vmap(ft.partial(derivatives, solution))(theta), rtol=1e-9, atol=1e-11)
    check_grads(jax.jit(solve), (theta[0],), order=2, modes=("fwd", "rev"), rtol=1e-4, atol=1e-4)


# Dependent constraints; a host solver; large problems; bad input.


def test_dependent_constraints_need_regularisation():
    def line(x, theta):
        return jnp.stack([jnp.sum(x) - theta, 2 * (jnp.sum(x) - theta)])

    def phi(x, theta):
        return 0.5 * jnp.sum(jnp.array([1.0, 2.0]) * x**2)

    def solver(theta):
        return theta * jnp.array([2.0, 1.0]) / 3

    # The multipliers are not unique: the least ones are recovered.
    point = kkt(phi, line)(solver)(1.0)
    assert jnp.allclose(point.eq, -2 / 15 * jnp.array([1.0, 2.0]))
    assert jax.jit(kkt(phi, line)(solver).optimality.report)(point, jnp.array(1.0)).condition > 1e15
    gradient = jax.jacrev(lambda theta: kkt(phi, line, regularise=1e-10)(solver)(theta).x)
    assert jnp.allclose(jax.jit(gradient)(1.0), jnp.array([2.0, 1.0]) / 3, atol=1e-6)


def test_host_solver():
    solve = kkt(lambda x, c: 0.5 * jnp.sum(x**2) - c @ x, ineq=lambda x, _: -x)(lambda c: np.maximum(np.asarray(c), 0))
    c = jnp.array([0.3, -0.2, 0.5])
    assert jnp.allclose(jax.jacrev(lambda c: solve(c).x)(c), jnp.diag(jnp.array([1.0, 0.0, 1.0])), atol=1e-12)


def test_large_problem(getkey):
    n = 400
    diagonal = jnp.linspace(1, 5, n)
    solve = kkt(
        lambda x, theta: 0.5 * jnp.sum(diagonal * x**2) - theta @ x,
        lambda x, _: jnp.sum(x) / n**0.5,
        lambda x, _: -x - 10,
    )(lambda theta: (theta - jnp.sum(theta / diagonal) / jnp.sum(1 / diagonal)) / diagonal)
    theta, c = jr.normal(getkey(), (2, n))
    point = jax.jit(solve)(theta)
    assert jnp.allclose(point.eq, jnp.sum(theta / diagonal) / jnp.sum(1 / diagonal) * n**0.5)
    gradient = jax.jit(jax.grad(lambda theta: c @ solve(theta).x))(theta)
    exact = (c - jnp.sum(c / diagonal) / jnp.sum(1 / diagonal)) / diagonal
    assert jnp.allclose(gradient, exact, atol=1e-8)
    report = jax.jit(solve.optimality.report)(point, theta)
    assert report.num_active == 0
    row = jnp.full((1, n), n**-0.5)
    exact = jnp.linalg.cond(jnp.block([[jnp.diag(diagonal), row.T], [row, jnp.zeros((1, 1))]]))
    assert 0.99 * exact < report.condition < 1.0001 * exact


def test_margin_finds_a_nearly_active_constraint():
    solve = kkt(lambda x, c: 0.5 * jnp.sum((x - c) ** 2), ineq=lambda x, _: -x)(lambda c: jnp.maximum(c, 0))
    report = jax.jit(jax.vmap(lambda c: solve.optimality.report(solve(c), c)))(
        jnp.array([[0.3, -1e-6, 0.5], [1e-5, -1.0, 0.5]])
    )
    assert jnp.allclose(report.margin, jnp.array([1e-6, 1e-5]))
    assert report.index.tolist() == [1, 0]
    assert report.num_active.tolist() == [1, 1]


def test_agrees_with_projected_gradient(getkey):
    # Two optimality maps of one problem.
    theta = jnp.array([0.5, 0.1, 0.6, -0.7, 0.3])
    step = fixed_point(lambda z, theta: project_on_simplex(z - 0.5 * (z - theta)))(project_on_simplex)
    conditions = kkt(lambda x, theta: 0.5 * jnp.sum((x - theta) ** 2), lambda x, _: jnp.sum(x) - 1, lambda x, _: -x)(
        project_on_simplex
    )
    jacobians = jax.jit(lambda t: (jax.jacrev(step)(t), jax.jacrev(lambda t: conditions(t).x)(t)))(theta)
    assert jnp.allclose(*jacobians, atol=1e-12)
    direction = jr.normal(getkey(), (5,))
    numeric = finite_difference_jvp(project_on_simplex, (theta,), (direction,))
    assert jnp.allclose(jacobians[1] @ direction, numeric, atol=1e-8)


def test_errors():
    def phi(x, theta):
        return jnp.sum((x - theta) ** 2)

    with pytest.raises(ValueError, match="the multipliers `eq` must have the shape of the constraint"):
        kkt(phi, lambda x, _: x[:2])(lambda t: KKTPoint(t, eq=jnp.ones(3)))(jnp.ones(3))
    with pytest.raises(ValueError, match="`ineq`"):
        kkt(phi)(lambda t: KKTPoint(t, ineq=jnp.ones(3)))(jnp.ones(3))
    # No constraint at all is a minimisation, and a singular system raises.
    assert jnp.allclose(jax.jacrev(lambda t: kkt(phi)(lambda t: t)(t).x)(jnp.ones(3)), jnp.eye(3))
    flat = kkt(lambda x, theta: jnp.sum(x - theta) ** 2, linear_solver=lx.LU())(lambda t: t)
    with pytest.raises(RuntimeError):
        jax.jacrev(lambda t: flat(t).x)(jnp.zeros(2))
