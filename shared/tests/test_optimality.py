import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from implicit_core.implicit import ImplicitFunction, argmin, fixed_point, least_squares, root
from implicit_core.krylov import FGMRES, PCG
from jax.test_util import check_grads
from stationary_testkit import finite_difference_jvp, tree_allclose


def ridge_objective(w, theta):
    return 0.5 * jnp.sum((theta["x"] @ w - theta["y"]) ** 2) + 0.5 * theta["lam"] * jnp.sum(w**2)


def solve_ridge(theta):
    x, y, lam = theta["x"], theta["y"], theta["lam"]
    return jnp.linalg.solve(x.T @ x + lam * jnp.eye(x.shape[1], dtype=x.dtype), x.T @ y)


ridge = argmin(ridge_objective)(solve_ridge)


def ridge_data(getkey, rows=30, columns=6, dtype=jnp.float64):
    x, y = jr.normal(getkey(), (rows, columns), dtype), jr.normal(getkey(), (rows,), dtype)
    return {"x": x, "y": y, "lam": jnp.asarray(0.5, dtype)}


def project_on_simplex(v):
    ordered = jnp.sort(v)[::-1]
    excess = (jnp.cumsum(ordered) - 1) / jnp.arange(1, v.size + 1, dtype=v.dtype)
    return jnp.maximum(v - excess[jnp.sum(ordered > excess) - 1], 0)


# Closed forms.


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.float64, 1e-12)])
def test_ridge(dtype, tolerance, getkey):
    theta = ridge_data(getkey, dtype=dtype)
    x, lam = theta["x"], theta["lam"]
    exact = -jnp.linalg.solve(x.T @ x + lam * jnp.eye(6, dtype=dtype), solve_ridge(theta))
    for mode in (jax.jacfwd, jax.jacrev):
        derivative = jax.jit(mode(lambda lam: ridge({**theta, "lam": lam})))(lam)
        assert derivative.dtype == dtype
        assert jnp.linalg.norm(derivative - exact) <= tolerance * jnp.linalg.norm(exact)


def test_ridge_in_every_parameter(getkey):
    # Differentiating the closed form itself, to second order.
    theta = ridge_data(getkey, 4, 2)
    loss = [lambda theta, solve=solve: jnp.sum(jnp.sin(solve(theta))) for solve in (ridge, solve_ridge)]
    ours, exact = (jax.jit(lambda t, fn=fn: (jax.grad(fn)(t), jax.hessian(fn)(t)))(theta) for fn in loss)
    assert tree_allclose(ours, exact, rtol=1e-9, atol=1e-11)


def test_fixed_points(getkey):
    @fixed_point(lambda z, theta: theta["w"] @ z + theta["x"], contraction=0.9)
    def linear(theta):
        return jnp.linalg.solve(jnp.eye(5) - theta["w"], theta["x"])

    theta = {"w": 0.1 * jr.normal(getkey(), (5, 5)), "x": jr.normal(getkey(), (5,))}
    inverse = jnp.linalg.inv(jnp.eye(5) - theta["w"])
    jacobian = jax.jit(jax.jacrev(linear))(theta)
    assert jnp.allclose(jacobian["x"], inverse)
    assert jnp.allclose(jacobian["w"], jnp.einsum("ij,k->ijk", inverse, linear(theta)))

    @fixed_point(lambda z, theta: jnp.cos(theta * z))
    def cosine(theta):
        return jax.lax.fori_loop(0, 100, lambda _, z: jnp.cos(theta * z), jnp.zeros_like(theta))

    z = cosine(0.7)
    exact = -z * jnp.sin(0.7 * z) / (1 + 0.7 * jnp.sin(0.7 * z))
    assert abs(jax.grad(cosine)(0.7) - exact) <= 1e-10


def test_projection_on_the_simplex(getkey):
    # The fixed point of a projected gradient method: any step length gives the same derivative.
    theta = jnp.array([0.5, 0.1, 0.6, -0.7, 0.3])
    support = project_on_simplex(theta) > 0
    s = support.astype(theta.dtype)
    exact = jnp.diag(s) - jnp.outer(s, s) / jnp.sum(s)
    assert 1 < jnp.sum(s) < theta.size
    for step in (0.3, 1.0):
        solve = fixed_point(lambda z, theta, step=step: project_on_simplex(z - step * (z - theta)))(project_on_simplex)
        assert jnp.allclose(jax.jit(jax.jacrev(solve))(theta), exact, atol=1e-12)


def residuals(z, theta):
    # Zero at z = theta, whatever else the third row does.
    first, second = z[0] * jnp.exp(z[1]) - theta[0] * jnp.exp(theta[1]), z[1] ** 3 + z[1] - theta[1] ** 3 - theta[1]
    return {"a": jnp.stack([first, second]), "b": first * second + jnp.sin(first)}


def test_least_squares():
    theta = jnp.array([0.8, 0.3])

    def loss(theta, shift, gauss_newton):
        def rho(z, theta):
            out = residuals(z, theta)
            return {**out, "b": out["b"] - shift}  # `shift` makes the residual not vanish

        def solve(theta):
            gradient = jax.grad(lambda z: 0.5 * sum(jnp.sum(r**2) for r in jax.tree_util.tree_leaves(rho(z, theta))))

            def newton(_, z):
                return z - jnp.linalg.solve(jax.jacfwd(gradient)(z), gradient(z))

            return jax.lax.fori_loop(0, 20, newton, theta)

        return jnp.sum(least_squares(rho, gauss_newton=gauss_newton)(solve)(theta) ** 2)

    def derivatives(theta, shift):
        fns = [ft.partial(loss, shift=shift, gauss_newton=gauss_newton) for gauss_newton in (False, True)]
        return [(jax.grad(fn)(theta), jax.hessian(fn)(theta)) for fn in fns]

    derivatives = jax.jit(derivatives)
    # The solution is `theta` where the residual vanishes, and there Gauss-Newton is right, to second order too.
    for gradient, hessian in derivatives(theta, 0.0):
        assert jnp.allclose(gradient, 2 * theta, rtol=1e-10)
        assert jnp.allclose(hessian, 2 * jnp.eye(2), atol=1e-9)
    true, biased = (gradient for gradient, _ in derivatives(theta, 0.3))
    value = jax.jit(ft.partial(loss, shift=0.3, gauss_newton=False))
    numeric = [finite_difference_jvp(value, (theta,), (direction,)) for direction in jnp.eye(2)]
    assert jnp.allclose(true, jnp.stack(numeric), rtol=1e-7)
    assert jnp.linalg.norm(biased - true) > 1e-3


# Every transformation, for every decorator.


def solution(theta):
    return jnp.sinh(theta) + 0.3 * theta[::-1]


def quartic(z, theta):
    offset = z - solution(theta)
    return jnp.sum(jnp.cosh(theta) * jnp.cosh(offset)) + jnp.sum(offset) ** 2


# Equations whose solution is known, so that no solver is compiled with its derivatives.
CASES = {
    "root": root(lambda z, theta: jnp.cumsum(jnp.sinh(z - solution(theta)) * jnp.exp(theta)))(solution),
    "fixed_point": fixed_point(lambda z, t: solution(t) + 0.5 * jnp.tanh(jnp.cumsum(z - solution(t))))(solution),
    "argmin": argmin(quartic)(solution),
    "least_squares": least_squares(lambda z, t: (z - solution(t), jnp.sin(z) - jnp.sin(solution(t))))(solution),
}


def test_transformations():
    # All at once, since what takes the time is compiling.
    def solve(theta):
        return jnp.stack([case(theta) for case in CASES.values()])

    def exact(theta):
        return jnp.stack([solution(theta) for _ in CASES])

    def derivatives(fn, theta):
        return jax.jacfwd(fn)(theta), jax.jacrev(fn)(theta), jax.hessian(fn)(theta)

    theta = jnp.array([[0.2, -0.4], [0.4, -0.8]])
    ours = jax.jit(jax.vmap(ft.partial(derivatives, solve)))(theta)
    assert tree_allclose(ours, jax.vmap(ft.partial(derivatives, exact))(theta), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["fixed_point", "argmin"])
def test_finite_differences(name):
    # Every order of the modes; beyond `F` and its tags the decorators are one.
    theta = jnp.array([0.2, -0.4])
    check_grads(jax.jit(CASES[name]), (theta,), order=2, modes=("fwd", "rev"), rtol=1e-4, atol=1e-4)


# Tiny cotangents, large systems.


def large(dtype, n, definite=None, general=None):
    scales = jnp.linspace(1, 30, n, dtype=dtype)
    mix = jnp.asarray(np.random.default_rng(0).standard_normal((n, n)) / (3 * np.sqrt(n)), dtype)
    quadratic = argmin(
        lambda z, theta: 0.5 * jnp.sum(scales * z**2) + 0.5 * jnp.sum(z - theta) ** 2 / n, linear_solver=definite
    )
    minimum = quadratic(lambda theta: jnp.sum(theta) / scales / (n + jnp.sum(1 / scales)))
    linear = fixed_point(lambda z, theta: mix @ z + theta, linear_solver=general)(
        lambda theta: jnp.linalg.solve(jnp.eye(n, dtype=dtype) - mix, theta)
    )
    return minimum, linear, scales, mix


@pytest.mark.parametrize("n", [20, 300])
def test_tiny_cotangents(n, getkey):
    theta, c = jr.normal(getkey(), (2, n), jnp.float32)
    solvers = (None, None) if n < 256 else (PCG(3e-7, mode="soft"), FGMRES(3e-7, mode="soft"))
    for solve in large(jnp.float32, n, *solvers)[:2]:
        pullback = jax.jit(lambda c, solve=solve: jax.vjp(solve, theta)[1](c)[0])
        reference = pullback(c)
        for scale in (1e-22, 1e-30, 1e22):
            error = pullback(c * jnp.float32(scale)) / jnp.float32(scale) - reference
            assert jnp.linalg.norm(error) <= 1e-5 * jnp.linalg.norm(reference)


def test_large_systems_have_no_dense_matrix(getkey):
    n = 300
    minimum, linear, scales, mix = large(jnp.float64, n)
    theta = jr.normal(getkey(), (n,))
    matrix = {"minimum": jnp.diag(scales) + 1 / n, "linear": jnp.eye(n) - mix}
    exact = [jnp.sum(jnp.linalg.solve(matrix["minimum"], jnp.ones(n))) * jnp.ones(n) / n]
    exact.append(jnp.linalg.solve(matrix["linear"].T, jnp.ones(n)))
    for solve, value in zip((minimum, linear), exact, strict=True):
        gradient = jax.jit(jax.grad(lambda theta, solve=solve: jnp.sum(solve(theta))))
        assert jnp.allclose(gradient(theta), value, rtol=1e-8)
    diagonal = argmin(lambda z, theta: jnp.sum(jnp.cosh(z - theta)))(lambda theta: theta)
    wide = jnp.zeros(50_000, jnp.float32)  # its Hessian would be 10 GB
    assert jnp.allclose(jax.jit(jax.grad(lambda theta: jnp.sum(diagonal(theta))))(wide), 1)


# Bad input.


@pytest.mark.parametrize("n", [3, 300])
def test_a_saddle_point_raises(n):
    curvature = jnp.where(jnp.arange(n) == 1, -1.0, 1.0)

    def phi(z, theta):
        return 0.5 * jnp.sum(curvature * (z - theta) ** 2)

    gradient = eqx.filter_jit(lambda solve: jax.grad(lambda t: jnp.sum(jnp.arange(1.0 * n) * solve(t)))(jnp.zeros(n)))
    with pytest.raises(RuntimeError):
        gradient(argmin(phi)(lambda theta: theta))
    # Without the wrong promise the derivative is right.
    assert jnp.allclose(gradient(argmin(phi, convex=False)(lambda theta: theta)), jnp.arange(1.0 * n))


def test_nan_raises():
    solve = argmin(lambda z, theta: jnp.sum((z - theta) ** 4 + z**2))(lambda theta: theta / jnp.sum(theta))
    assert jnp.all(jnp.isfinite(jax.jacrev(solve)(jnp.ones(2))))
    with pytest.raises(RuntimeError):
        jax.jacrev(solve)(jnp.zeros(2))


@pytest.mark.parametrize(
    ("decorate", "message"),
    [
        (lambda: fixed_point(lambda z, _: z, contraction=1.0), r"`contraction` .* \[0, 1\); got 1.0"),
        (lambda: argmin(lambda z, _: z, strong_convexity=0.0), "`strong_convexity` must be positive; got 0.0"),
        (lambda: fixed_point(lambda z, _: z[:2])(lambda t: t)(jnp.ones(3)), "shape"),
    ],
)
def test_errors(decorate, message):
    with pytest.raises((ValueError, TypeError), match=message):
        decorate()


# What is decorated stays a function.


def test_name_doc_and_jit(getkey):
    shift = jr.normal(getkey(), (3,))

    class Model(eqx.Module):
        scale: jax.Array

        @root(lambda z, model: model.scale * z - 1)
        def inverse(self):
            """Say what it is."""
            return 1 / self.scale

    @root(lambda z, theta: z - theta * shift, linear_solver=lx.QR(), options={"array": jnp.ones(2)})
    def solve(theta):
        """Say what it is."""
        return theta * shift

    for fn in (Model.inverse, solve):
        assert isinstance(fn, ImplicitFunction)
        assert fn.__doc__ == "Say what it is."
    assert (solve.__name__, Model.inverse.__name__) == ("solve", "inverse")
    # Hashable, whatever it captures, so `jax.jit` takes it as it is.
    assert jnp.allclose(jax.jit(solve)(jnp.array(2.0)), 2 * shift)
    gradient = jax.grad(lambda model: jnp.sum(model.inverse()))(Model(jnp.array(2.0)))
    assert jnp.allclose(gradient.scale, -0.25)
