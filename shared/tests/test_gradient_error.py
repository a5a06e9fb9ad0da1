import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, strategies as st
from implicit_core.certify import Certificate
from implicit_core.implicit import argmin, fixed_point, kkt, root
from implicit_core.krylov import PCG


def ridge_objective(w, theta):
    x, y, lam = theta
    return 0.5 * jnp.sum((x @ w - y) ** 2) + 0.5 * lam * jnp.sum(w**2)


def descend(theta, w0, num_steps):
    x, _, lam = theta
    rate = 1 / (jnp.linalg.norm(x, 2) ** 2 + lam)
    return jax.lax.fori_loop(0, num_steps, lambda _, w: w - rate * jax.grad(ridge_objective)(w, theta), w0)


def ridge_of(x, y):
    # The derivative is in the regularisation only, so its Lipschitz constants are known: the objective is quadratic, and
    # the derivative of the gradient in `lam` is w.
    def solver(lam, w0, num_steps):
        return descend((x, y, lam), w0, num_steps)

    decorate = argmin(lambda w, lam: ridge_objective(w, (x, y, lam)), strong_convexity=lambda lam: lam)
    return decorate(solver)


def exact_ridge(x, y, lam):
    gram = x.T @ x + lam * jnp.eye(x.shape[1])
    w = jnp.linalg.solve(gram, x.T @ y)
    return w, -jnp.linalg.solve(gram, w)


def test_ridge_after_sixty_steps(getkey):
    # Fewer rows than columns: gradient descent is slow in the null space, at the rate that the bound assumes.
    x, y, w0 = jr.normal(getkey(), (5, 8)), jr.normal(getkey(), (5,)), jr.normal(getkey(), (8,))
    lam = jnp.array(0.5)
    solve = ridge_of(x, y)
    w = solve(lam, w0, 60)
    _, exact = exact_ridge(x, y, lam)
    error = jax.jit(jax.jacfwd(lambda lam: solve(lam, w0, 60)))(lam) - exact
    cotangent = error / jnp.linalg.norm(error)  # so that the error of the gradient is that of the Jacobian
    certificate = jax.jit(lambda c: solve.certify(w, lam, c, beta=0.0, gamma=1.0))(cotangent)
    assert isinstance(certificate, Certificate)
    assert certificate.kind == "proved"
    assert 1e-6 < jnp.linalg.norm(error) <= certificate.value <= 1.05 * jnp.linalg.norm(error)
    assert certificate.error_upper is not None
    assert certificate.true_relres is not None
    assert certificate.true_relres <= 1e-12
    error_of_w = jnp.linalg.norm(w - exact_ridge(x, y, lam)[0])
    assert error_of_w <= certificate.error_upper <= 1.05 * error_of_w


@jax.jit
def certified_ridge(seed, scale, lam, num_steps):
    keys = jr.split(jr.key(seed), 4)
    x, y, w0, target = (jr.normal(key, shape) for key, shape in zip(keys, ((6, 4), (6,), (4,), (4,)), strict=True))
    x = x * scale
    solve = ridge_of(x, y)

    def loss(w):
        return 0.5 * jnp.sum((w - target) ** 2)

    w = solve(lam, w0, num_steps)
    gradient = jax.grad(lambda lam: loss(solve(lam, w0, num_steps)))(lam)
    exact, jacobian = exact_ridge(x, y, lam)
    error = jnp.abs(gradient - jnp.vdot(exact - target, jacobian))
    certificate = solve.certify(w, lam, loss, beta=0.0, gamma=1.0, smoothness=1.0)
    return error, certificate, jnp.linalg.norm(w - exact), jnp.abs(gradient)


@given(st.integers(0, 2**31), st.floats(-2, 2), st.floats(-3, 2), st.integers(0, 200))
def test_the_bound_is_one(seed, scale, lam, num_steps):
    error, certificate, error_of_w, size = certified_ridge(seed, 10.0**scale, 10.0**lam, num_steps)
    rounding = 1e-10 * (1 + size)
    assert error <= certificate.value + rounding
    assert error_of_w <= certificate.error_upper + rounding


def tanh_map(z, theta):
    return jnp.tanh(theta["w"] @ z + theta["x"])


@pytest.mark.parametrize("all_parameters", [False, True])
def test_contraction_at_every_step(all_parameters, getkey):
    lipschitz = 0.6
    w = jr.normal(getkey(), (12, 12))
    w = lipschitz * w / jnp.linalg.norm(w, 2)
    x, c = jr.normal(getkey(), (12,)), jr.normal(getkey(), (12,))
    fixed = {} if all_parameters else {"w": w}
    theta = {"x": x, "w": w} if all_parameters else {"x": x}
    solve = fixed_point(lambda z, theta: tanh_map(z, {**theta, **fixed}), contraction=lipschitz)(
        lambda theta, num_steps: jax.lax.fori_loop(
            0, num_steps, lambda _, z: tanh_map(z, {**theta, **fixed}), jnp.zeros(12)
        )
    )
    # |tanh''| <= 4 / (3 sqrt 3), and iterates lie in the unit box. In w, the derivative is an outer product with z.
    curvature = 4 / (3 * 3**0.5)
    beta = curvature * lipschitz**2
    gamma = curvature * lipschitz * (1 + 12**0.5) + 1 if all_parameters else curvature * lipschitz

    @jax.jit
    def run(num_steps):
        z, pullback = jax.vjp(lambda theta: solve(theta, num_steps), theta)
        gradient = jfu.ravel_pytree(pullback(c)[0])[0]
        proved = solve.certify(z, theta, c, beta=beta, gamma=gamma)
        return z, gradient, proved, solve.certify(z, theta, c)

    exact_z, exact, _, _ = run(200)
    for num_steps in (0, 1, 2, 5, 10, 20, 40):
        z, gradient, proved, estimated = run(num_steps)
        error = jnp.linalg.norm(gradient - exact)
        assert error <= proved.value
        assert jnp.linalg.norm(z - exact_z) <= proved.error_upper
        assert (proved.kind, estimated.kind) == ("proved", "estimated")
        if 5 <= num_steps <= 20:
            assert 0.9 * error <= estimated.value <= 1.1 * error
        if num_steps == 20:
            assert proved.value <= 1e3 * error


def test_a_truncated_backward_solve_counts(getkey):
    # The solution is exact; the error is that of three steps of conjugate gradients.
    x, y = jr.normal(getkey(), (20, 10)), jr.normal(getkey(), (20,))
    lam, cotangent = jnp.array(0.5), jr.normal(getkey(), (10,))
    w, jacobian = exact_ridge(x, y, lam)
    for steps, least in ((3, 1e-3), (30, 0.0)):
        solve = argmin(
            lambda w, lam: ridge_objective(w, (x, y, lam)),
            linear_solver=PCG(1e-14, max_steps=steps, mode="soft"),
            strong_convexity=0.5,
        )(lambda _: w)

        @jax.jit
        def run(lam, solve=solve):
            gradient = jax.grad(lambda lam: solve(lam) @ cotangent)(lam)
            return gradient, solve.certify(w, lam, cotangent, beta=0.0, gamma=1.0)

        gradient, certificate = run(lam)
        error = jnp.abs(gradient - jacobian @ cotangent)
        assert least * jnp.abs(jacobian @ cotangent) <= error <= certificate.value + 1e-13
        assert certificate.true_relres is not None
        assert (certificate.true_relres > 1e-6) == (least > 0)


def test_without_constants_it_is_an_estimate(getkey):
    theta = jr.normal(getkey(), (300,))
    solve = argmin(lambda z, theta: jnp.sum(jnp.cosh(z - theta)), strong_convexity=1.0)(lambda theta: theta + 1e-3)
    z = solve(theta)
    # Too many parameters for the norm of the cross derivative, unless it is given.
    constants = {"beta": 2.0, "gamma": 2.0, "smoothness": 0.0}
    estimate = jax.jit(lambda z: solve.certify(z, theta, jnp.sum, **constants))(z)
    assert estimate.kind == "estimated"
    assert estimate.error_upper is not None  # the error of z is bounded all the same
    assert jnp.linalg.norm(z - theta) <= estimate.error_upper

    def kind(**constants):
        return eqx.filter_eval_shape(lambda z: solve.certify(z, theta, jnp.sum, **constants), z).kind

    assert kind(cross=2.0, **constants) == "proved"
    # A loss of unknown smoothness bounds nothing.
    assert kind(cross=2.0, beta=2.0, gamma=2.0) == "estimated"
    plain = root(jax.grad(lambda z, theta: jnp.sum(jnp.cosh(z - theta))))(lambda theta: theta)
    estimate = jax.jit(plain.certify)(theta, theta, jnp.ones(300))
    assert estimate.error_upper is None
    assert jnp.all(estimate.value <= 1e-12)


def test_unknown_is_infinite():
    solve = argmin(lambda w, t: 0.5 * jnp.sum(w**2) - t * jnp.sum(w))(lambda t: t * jnp.ones(2))
    batch = jax.vmap(lambda z, alpha: solve.certify(z, 1.0, jnp.ones(2), alpha=alpha, beta=0.0, gamma=0.0))(
        jnp.array([[1.0, 1.0], [1.5, 1.0], [1.0, 1.0], [np.nan, 1.0]]), jnp.array([1.0, 0.5, 0.0, 1.0])
    )
    assert batch.error_upper is not None
    assert jnp.allclose(batch.error_upper, jnp.array([0.0, 1.0, np.inf, np.inf]))
    assert jnp.allclose(batch.value, jnp.array([0.0, 0.0, np.inf, np.inf]))


def test_kkt_point():
    # An inexact point of a problem with constraints: the projection on the simplex of a nonlinear function of theta.
    solve = kkt(lambda x, t: 0.5 * jnp.sum((x - jnp.sin(t)) ** 2), lambda x, _: jnp.sum(x**2) - 1)(
        lambda t, error: jnp.sin(t) / jnp.linalg.norm(jnp.sin(t)) + error
    )
    theta, error = jnp.array([0.5, 0.9, 1.2]), 1e-4 * jnp.array([1.0, -2.0, 1.0])

    def loss(point):
        return point.x[0]

    gradient_of = jax.jit(jax.grad(lambda t, error: loss(solve(t, error))))
    exact, gradient = gradient_of(theta, 0 * error), gradient_of(theta, error)
    certificate = jax.jit(lambda t: solve.certify(solve(t, error), t, loss))(theta)
    true = jnp.linalg.norm(gradient - exact)
    assert 0.9 * true <= certificate.value <= 1.1 * true
