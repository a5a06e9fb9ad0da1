import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from implicit_core.implicit import ImplicitAdjoint, root
from implicit_core.krylov import PCG
from stationary_testkit import finite_difference_jvp, implicit_jacobian, no_retrace, tree_allclose, vjp_matches_jvp


PSD = frozenset({lx.positive_semidefinite_tag})


@root(lambda z, theta: jnp.cos(theta * z) - z)
def cosine(theta):
    return jax.lax.fori_loop(0, 100, lambda _, z: jnp.cos(theta * z), jnp.zeros_like(theta))


def cosine_derivative(theta):
    z = cosine(theta)
    return -z * jnp.sin(theta * z) / (1 + theta * jnp.sin(theta * z))


# Closed forms.


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.float64, 1e-10)])
def test_cosine(dtype, tolerance):
    theta = jnp.asarray(0.7, dtype)
    exact = cosine_derivative(theta)
    for derivative in (jax.jacfwd(cosine), jax.jacrev(cosine)):
        value = jax.jit(derivative)(theta)
        assert value.dtype == dtype
        assert abs(value - exact) <= tolerance


def test_cosine_to_third_order():
    theta = jnp.array(0.7)
    h = 1e-4
    second = (cosine_derivative(theta + h) - cosine_derivative(theta - h)) / (2 * h)
    for derivative in (jax.hessian(cosine), jax.grad(jax.grad(cosine)), jax.jacfwd(jax.jacfwd(cosine))):
        assert jnp.allclose(jax.jit(derivative)(theta), second, rtol=1e-7)
    hessian = jax.jit(jax.hessian(cosine))
    third = jax.jit(jax.grad(jax.hessian(cosine)))(theta)
    assert jnp.allclose(third, finite_difference_jvp(hessian, (theta,), (jnp.array(1.0),)), rtol=1e-6)
    # A plain number is a valid argument too.
    assert jnp.allclose(jax.grad(cosine)(0.7), cosine_derivative(theta))


@pytest.mark.parametrize("solver", [None, PCG(1e-13), lambda *_: PCG(1e-13, mode="soft")])
def test_ridge(solver, getkey):
    x, y = jr.normal(getkey(), (30, 6)), jr.normal(getkey(), (30,))
    gram = x.T @ x

    # `x` and `y` are captured: they are hoisted, so their derivatives are right too (below).
    @root(lambda w, lam: x.T @ (x @ w - y) + lam * w, linear_solver=solver, tags=PSD)
    def ridge(lam):
        return jnp.linalg.solve(gram + lam * jnp.eye(6), x.T @ y)

    w = ridge(0.5)
    exact = -jnp.linalg.solve(gram + 0.5 * jnp.eye(6), w)
    assert jnp.allclose(jax.jit(jax.jacfwd(ridge))(0.5), exact)
    assert jnp.allclose(jax.jit(jax.grad(lambda lam: ridge(lam)[0]))(0.5), exact[0])


def test_linear_fixed_point(getkey):
    w = 0.1 * jr.normal(getkey(), (6, 6))

    @root(lambda z, theta: theta["w"] @ z + theta["x"] - z)
    def solve(theta, z0, *, num_steps):
        # The first guess is differentiated by nothing.
        return jax.lax.fori_loop(0, num_steps, lambda _, z: theta["w"] @ z + theta["x"], z0)

    theta = {"w": w, "x": jr.normal(getkey(), (6,))}
    fn = ft.partial(solve, z0=jnp.zeros(6), num_steps=60)
    jacobian = jax.jit(jax.jacrev(fn))(theta)
    inverse = jnp.linalg.inv(jnp.eye(6) - w)
    assert jnp.allclose(jacobian["x"], inverse)
    assert jnp.allclose(jacobian["w"], jnp.einsum("ij,k->ijk", inverse, fn(theta)))
    zero = jax.grad(lambda z0: jnp.sum(solve(theta, z0, num_steps=3)))(jnp.ones(6))
    assert jnp.array_equal(zero, jnp.zeros(6))
    assert vjp_matches_jvp(jax.jit(fn), (theta,), key=getkey())


def test_pytree_solution_against_dense_theorem(getkey):
    def residual(z, theta):
        a, b = z["a"], z["b"]
        return {"a": a**3 + a + jnp.sum(b) * theta[:2], "b": b + jnp.tanh(a[0] * theta[2]) - theta}

    @root(residual)
    def solve(theta):
        z0 = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
        newton = optx.Newton(1e-13, 1e-13)
        return optx.root_find(lambda z, _: residual(z, theta), newton, z0, throw=False).value

    theta = 0.3 * jr.normal(getkey(), (3,))
    z = solve(theta)
    dense = implicit_jacobian(residual, z, theta)
    ours = jax.jit(jax.jacfwd(solve))(theta)
    assert jnp.allclose(jnp.concatenate([ours["a"], ours["b"]]), dense, atol=1e-10)
    assert tree_allclose(ours, jax.jit(jax.jacrev(solve))(theta), rtol=1e-9, atol=1e-10)

    def loss(theta):
        return jnp.sum(solve(theta)["a"] ** 2)

    hessian = jax.jit(jax.hessian(loss))(theta)
    assert jnp.allclose(hessian, hessian.T, atol=1e-10)
    fd = finite_difference_jvp(jax.jit(jax.grad(loss)), (theta,), (jnp.ones(3),))
    assert jnp.allclose(hessian @ jnp.ones(3), fd, rtol=1e-6, atol=1e-8)


# Any solver will do.


def test_plain_numpy_solver(getkey):
    matrix, b = jr.normal(getkey(), (5, 5)) + 4 * jnp.eye(5), jr.normal(getkey(), (5,))

    @root(lambda z, theta: theta @ z - b)
    def solve(theta):
        return np.linalg.solve(np.asarray(theta), np.asarray(b))

    exact = jax.grad(lambda m: jnp.sum(jnp.linalg.solve(m, b) ** 2))(matrix)
    assert jnp.allclose(jax.grad(lambda m: jnp.sum(solve(m) ** 2))(matrix), exact)


def test_host_callback_with_captured_arrays(getkey):
    matrix, b = jr.normal(getkey(), (5, 5)) + 4 * jnp.eye(5), jr.normal(getkey(), (5,))

    def loss(matrix, b):
        @root(lambda z, theta: theta @ z - b)
        def solve(theta):
            shape = jax.ShapeDtypeStruct((5,), jnp.float64)
            return jax.pure_callback(np.linalg.solve, shape, theta, b, vmap_method="sequential")

        return jnp.sum(solve(matrix) ** 2)

    exact = jax.grad(lambda m, v: jnp.sum(jnp.linalg.solve(m, v) ** 2), (0, 1))(matrix, b)
    assert tree_allclose(jax.jit(jax.grad(loss, (0, 1)))(matrix, b), exact, rtol=1e-9)
    batch = jnp.stack([matrix, 2 * matrix])
    batched = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None)))(batch, b)
    assert jnp.allclose(batched[0], exact[0])


def test_method_and_partial_solvers(getkey):
    class Model(eqx.Module):
        b: jax.Array

        def solve(self, theta, scale):
            return jnp.linalg.solve(theta, scale * self.b)

    matrix, b = jr.normal(getkey(), (4, 4)) + 4 * jnp.eye(4), jr.normal(getkey(), (4,))

    def loss(b, wrap):
        solve = root(lambda z, theta: theta @ z - 2 * b)(wrap(Model(b).solve))
        return jnp.sum(solve(matrix, 2.0) ** 2)

    exact = jax.grad(lambda b: jnp.sum(jnp.linalg.solve(matrix, 2 * b) ** 2))(b)
    for wrap in (lambda f: f, lambda f: lambda t, s: f(t, s)):
        assert jnp.allclose(jax.jit(jax.grad(ft.partial(loss, wrap=wrap)))(b), exact)


# Transformations.


def test_vmap_jit_and_retracing():
    thetas = jnp.linspace(0.1, 0.9, 5)
    values = jax.jit(jax.vmap(jax.value_and_grad(cosine)))(thetas)
    for k, theta in enumerate(thetas):
        assert jnp.allclose(values[0][k], cosine(theta))
        assert jnp.allclose(values[1][k], cosine_derivative(theta))
    compiled = no_retrace(jax.grad(cosine))
    for theta in thetas:
        assert jnp.allclose(compiled(theta), cosine_derivative(theta))


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_no_linear_solve_for_an_unused_solution(mode):
    # Programs contain the solve only where the solution is used: counted by its `while` loops.
    @root(lambda z, theta: theta * z - 1, linear_solver=PCG(1e-8), tags=PSD)
    def solve(theta):
        return 1 / theta

    def used(theta):
        return jnp.sum(solve(theta)), jnp.sum(theta**2)

    def loops(fn):
        text = jax.jit(mode(fn)).lower(jnp.ones(3)).compile().as_text()
        return (text or "").count(" while(")

    assert loops(lambda theta: used(theta)[0]) > 0
    assert loops(lambda theta: used(theta)[1]) == 0
    assert loops(lambda theta: jax.lax.stop_gradient(used(theta)[0]) + used(theta)[1]) == 0


def test_solver_runs_once(getkey):
    calls = []

    @root(lambda z, theta: theta * z - 1)
    def solve(theta):
        def count(t):
            calls.append(0)
            return 1 / t

        return jax.pure_callback(count, jax.ShapeDtypeStruct((), jnp.float64), theta, vmap_method="sequential")

    assert jnp.allclose(jax.hessian(solve)(2.0), 0.25)
    assert len(calls) == 1


# The drop-in for Optimistix.


def fn(y, args):
    return jnp.tanh(args @ y) + y - 1


@pytest.mark.parametrize(
    ("solver", "options"),
    [(None, None), (lx.GMRES(1e-12, 1e-12), {"y0": np.ones(4)}), (lambda *_: lx.QR(), None)],
)
def test_root_find(solver, options, getkey):
    matrix = 0.3 * jr.normal(getkey(), (4, 4))

    def loss(matrix, adjoint):
        newton = optx.Newton(1e-12, 1e-12)
        return jnp.sum(optx.root_find(fn, newton, jnp.zeros(4), matrix, adjoint=adjoint).value ** 2)

    options = None if options is None else {name: jnp.asarray(value) for name, value in options.items()}
    gradient = eqx.filter_jit(jax.grad(loss))
    theirs = gradient(matrix, optx.ImplicitAdjoint())
    ours = gradient(matrix, ImplicitAdjoint(solver, options))
    assert jnp.allclose(ours, theirs, rtol=1e-8)


def test_every_driver(getkey):
    # An ill-scaled strongly convex problem, large enough for the default to be conjugate gradients.
    n = 300
    scales = jnp.logspace(0, 3, n)

    def phi(w, target):
        return 0.5 * jnp.sum(scales * (w - target) ** 2) + jnp.sum(jnp.log(jnp.cosh(w)))

    def precondition(w, residual, inputs):
        del residual, inputs
        inverse = lx.DiagonalLinearOperator(1 / (scales + 1 / jnp.cosh(w) ** 2))
        return PCG(1e-12, max_steps=3, precond=lx.TaggedLinearOperator(inverse, PSD))

    def fit(target, adjoint):
        newton = optx.Newton(1e-12, 1e-12, linear_solver=PCG(1e-12, precond=None, mode="soft"))
        grad = jax.grad(phi)
        return optx.root_find(grad, newton, target, target, adjoint=adjoint, tags=PSD).value

    target = jr.normal(getkey(), (n,))
    w = fit(target, ImplicitAdjoint())
    # The derivative is diagonal here.
    exact = scales / (scales + 1 / jnp.cosh(w) ** 2)
    for adjoint in (ImplicitAdjoint(), ImplicitAdjoint(precondition)):
        gradient = jax.jit(jax.grad(ft.partial(lambda t, adjoint: jnp.sum(fit(t, adjoint)), adjoint=adjoint)))(target)
        assert jnp.allclose(gradient, exact, rtol=1e-7)

    def contraction(y, args):
        return 0.5 * jnp.cos(y) + args

    def fixed(args, adjoint):
        solver = optx.FixedPointIteration(1e-13, 1e-13)
        return optx.fixed_point(contraction, solver, jnp.array(0.0), args, adjoint=adjoint).value

    assert jnp.allclose(jax.grad(fixed)(0.3, ImplicitAdjoint()), jax.grad(fixed)(0.3, optx.ImplicitAdjoint()))

    def minimise(args, adjoint):
        solver = optx.BFGS(1e-10, 1e-10)
        out = optx.minimise(lambda y, a: (y - a) ** 2 + y**4, solver, jnp.array(0.1), args, adjoint=adjoint)
        return out.value

    assert jnp.allclose(jax.grad(minimise)(0.3, ImplicitAdjoint()), jax.grad(minimise)(0.3, optx.ImplicitAdjoint()))


def test_residual_is_a_constant():
    def run(inputs):
        theta, _ = inputs
        return jnp.sqrt(theta), {"steps": theta * 2}

    adjoint = ImplicitAdjoint()

    def apply(theta):
        return adjoint.apply(run, lambda z, _, inputs: z**2 - inputs[0], (theta,), frozenset())

    value, residual = apply(jnp.array(4.0))
    assert value == 2
    assert residual["steps"] == 8
    assert jnp.allclose(jax.grad(lambda t: apply(t)[0])(4.0), 0.25)
    assert jnp.array_equal(jax.jvp(lambda t: apply(t)[1]["steps"], (4.0,), (1.0,))[1], 0)
    assert jax.grad(lambda t: apply(t)[1]["steps"])(4.0) == 0


def test_errors():
    @root(lambda z, theta: z[:2] - theta)
    def wrong_shape(theta):
        return jnp.ones(3)

    with pytest.raises(ValueError, match="`F` must have the shapes of the solution"):
        wrong_shape(1.0)

    @root(lambda z, theta: z - theta)
    def integers(theta):
        return jnp.arange(3)

    with pytest.raises(TypeError, match="floating point"):
        integers(1.0)
