import functools as ft
from typing import Literal

import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize
from implicit_core import RESULTS, dist
from stationary_testkit import finite_difference_jvp, implicit_jacobian, tree_allclose


def distance(x, y):
    x, y = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(z)]) for z in (x, y))
    return np.linalg.norm(x - y) / np.linalg.norm(y)


@pytest.mark.parametrize("method", ["qr", "cholesky"])
def test_least_squares_and_its_gradient_at_any_residual(method, getkey):
    m, n = 30, 5
    A, w, noise = jr.normal(getkey(), (m, n)), jr.normal(getkey(), (n,)), jr.normal(getkey(), (m,))
    A = A * jnp.array([1e-3, 1, 1, 1e2, 1])[None, :]
    ct = jr.normal(getkey(), (n,))

    def loss(A, y, ridge):
        out = dist.least_squares(A, y, ridge=ridge, method=method)
        return jnp.vdot(ct, out.value), out

    def peer(A, y, ridge):
        stacked = lx.MatrixLinearOperator(jnp.concatenate([A, jnp.sqrt(ridge) * jnp.eye(n)]))
        return lx.linear_solve(stacked, jnp.concatenate([y, jnp.zeros(n)]), lx.QR()).value

    gradient, peer = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True)), jax.jit(peer)
    directions = (A * jr.normal(getkey(), A.shape), jr.normal(getkey(), (m,)))
    for level in (0.0, 1e-3, 1.0):
        y = A @ w + level * noise
        for ridge in (jnp.array(0.0), jnp.array(0.3)):
            (_, out), ours = gradient(A, y, ridge)
            assert out.result == RESULTS.successful
            best = np.asarray(peer(A, y, ridge))
            assert distance(out.value, best) < 1e-11
            r = A @ best - y
            assert np.allclose(out.stats["residual_norm"], np.linalg.norm(r), rtol=1e-9, atol=1e-12)
            # -(r z^T + A z w^T), A z and -z^T w.
            z = np.linalg.solve(A.T @ A + ridge * np.eye(n), ct)
            exact = (-(np.outer(r, z) + np.outer(A @ z, best)), A @ z, -np.vdot(z, best))
            assert all(distance(a, b) < 1e-8 for a, b in zip(ours, exact, strict=True))
            tangents = (*directions, ridge)
            slope = sum(jnp.vdot(g, t) for g, t in zip(ours, tangents, strict=True))
            differences = finite_difference_jvp(lambda *args: gradient(*args)[0][0], (A, y, ridge), tangents)
            assert abs(slope - differences) < 1e-6 * abs(differences)
        # What leaves out the residual is right only without one.
        assert (distance(-np.outer(A @ z, best), exact[0]) > 1e-6) == (level > 0 or ridge > 0)


def test_least_squares_second_order(getkey):
    A, y = jr.normal(getkey(), (6, 3)), jr.normal(getkey(), (6,))

    def ours(A, y, ridge):
        return jnp.sum(jnp.sin(dist.least_squares(A, y, ridge=ridge).value))

    def exact(A, y, ridge):
        return jnp.sum(jnp.sin(jnp.linalg.solve(A.T @ A + ridge * jnp.eye(3), A.T @ y)))

    args = (A, y, jnp.array(0.2))
    hessians = [jax.jit(jax.hessian(fn, (0, 1, 2)))(*args) for fn in (ours, exact)]
    assert tree_allclose(*hessians, rtol=1e-9, atol=1e-11)


def test_least_squares_keeps_the_accuracy_of_qr():
    # A condition number of 1e9: normal equations would have no digit.
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(40, 8)))
    v, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    A, w = jnp.asarray((u * np.logspace(0, -9, 8)) @ v.T), jnp.asarray(rng.normal(size=8))
    qr, cholesky = (jax.jit(ft.partial(dist.least_squares, method=method))(A, A @ w) for method in ("qr", "cholesky"))
    assert qr.result == RESULTS.successful
    assert distance(qr.value, w) < 1e-6
    assert cholesky.result == RESULTS.indefinite
    assert jnp.all(jnp.isfinite(cholesky.value))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_least_squares_is_never_nan(dtype, getkey):
    A, y = jr.normal(getkey(), (8, 4), dtype), jr.normal(getkey(), (8,), dtype)
    cases = {
        "fine": A,
        "tiny and large columns": A * jnp.array([1e-18, 1, 1e15, 1], dtype)[None, :],
        "repeated column": A.at[:, 1].set(A[:, 0]),
        "zero column": A.at[:, 2].set(0),
        "zero": 0 * A,
        "nan": A.at[0, 0].set(jnp.nan),
    }
    expected = [RESULTS.successful] * 2 + [RESULTS.indefinite] * 3 + [RESULTS.nonfinite]
    batch = jnp.stack(list(cases.values()))

    def loss(A, y, method):
        out = dist.least_squares(A, y, method=method)
        return jnp.sum(out.value), out

    for method in ("qr", "cholesky"):
        one = jax.value_and_grad(ft.partial(loss, method=method), has_aux=True)
        (_, out), gradient = jax.jit(jax.vmap(one, (0, None)))(batch, y)
        assert out.value.dtype == gradient.dtype == dtype
        for i, result in enumerate(expected):
            assert jax.tree.map(lambda x, i=i: x[i], out.result) == result
        assert jnp.all(jnp.isfinite(out.value[:-1]))
        assert jnp.all(jnp.isfinite(gradient[:-1]))
        # A regularised solution is still one: its residual is as small as the pseudo-inverse's.
        for i in (2, 3):
            A_i, y_i = np.asarray(batch[i]), np.asarray(y)
            best = np.linalg.norm(A_i @ np.linalg.lstsq(A_i, y_i)[0] - y_i)
            assert out.stats["residual_norm"][i] <= best * (1 + 1e-3)


def test_least_squares_with_fewer_rows_than_columns(getkey):
    A, y = jr.normal(getkey(), (3, 5)), jr.normal(getkey(), (3,))
    out = jax.jit(jax.vmap(lambda ridge: dist.least_squares(A, y, ridge=ridge)))(jnp.array([0.0, 0.1]))
    assert (out.result == RESULTS.indefinite).tolist() == [True, False]
    assert jnp.all(jnp.isfinite(out.value))
    assert distance(out.value[1], np.linalg.solve(A.T @ A + 0.1 * np.eye(5), A.T @ y)) < 1e-11


def test_least_squares_errors(untyped):
    A, y = jnp.ones((3, 2)), jnp.ones(3)
    for args, kwargs, error, match in [
        ((A, jnp.ones(2)), {}, ValueError, r"`A` must be of shape \(m, n\)"),
        ((A, y), {"method": "svd"}, ValueError, "`method` must be"),
        ((A, y), {"ridge": -1.0}, ValueError, "`ridge` must be non-negative"),
        ((jnp.ones((3, 2), int), y), {}, TypeError, "`A` must be real"),
        ((A, y.astype(complex)), {}, TypeError, "`y` must be real"),
    ]:
        with pytest.raises(error, match=match):
            dist.least_squares(*args, **kwargs)


def residual_fn(w, args):
    X, y = args
    return w["c"][0] * jnp.tanh(X @ w["v"]) + w["c"][1] * jnp.sin(X[:, 0] + w["v"][0]) - y


def problems(key, level, size=10):
    keys = jr.split(key, 4)
    X = jr.normal(keys[0], (size, 30, 4))
    w = {"v": jr.normal(keys[1], (size, 4)), "c": 1 + jr.uniform(keys[2], (size, 2))}
    y = jax.vmap(residual_fn)(w, (X, jnp.zeros((size, 30))))
    w0 = jax.tree.map(lambda x: x + 0.1, w)
    return w0, (X, y + level * jr.normal(keys[3], y.shape))


solve_all = jax.jit(jax.vmap(lambda w, args: dist.levenberg_marquardt(residual_fn, w, args)))


@pytest.mark.parametrize("level", [0.0, 1e-2])
def test_levenberg_marquardt_equals_optimistix_and_scipy(level, getkey):
    w0, args = problems(getkey(), level)
    out = solve_all(w0, args)
    assert jnp.all(out.result == RESULTS.successful)

    def peer(w, args, tol=1e-10):
        solver = optx.LevenbergMarquardt(tol, tol)
        return optx.least_squares(residual_fn, solver, w, args, throw=False, max_steps=200).value

    theirs = jax.jit(jax.vmap(peer))(w0, args)
    for i in range(10):
        w, ours, target, args_i = jax.tree.map(lambda x, i=i: x[i], (w0, out.value, theirs, args))
        flat, unravel = jfu.ravel_pytree(w)
        fn = jax.jit(lambda v, args, unravel=unravel: residual_fn(unravel(v), args))
        reference = scipy.optimize.least_squares(
            lambda v, fn=fn, args=args_i: np.asarray(fn(v, args)), flat, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15
        )
        assert distance(ours, unravel(jnp.asarray(reference.x))) < 1e-7
        assert abs(out.stats["cost"][i] - reference.cost) <= 1e-8 * reference.cost + 1e-20
        # Optimistix stops earlier on some, and so is compared by what it minimises.
        cost = 0.5 * jnp.sum(residual_fn(target, args_i) ** 2)
        assert out.stats["cost"][i] <= cost * (1 + 1e-8) + 1e-20


def test_levenberg_marquardt_gradient(getkey):
    w0, args = jax.tree.map(lambda x: x[0], problems(getkey(), 0.1, 1))
    flat, unravel = jfu.ravel_pytree(w0)
    ct = jr.normal(getkey(), flat.shape)

    def loss(inputs, w0, adjoint: Literal["full", "gauss_newton"] = "full"):
        args, ridge = inputs
        w = dist.levenberg_marquardt(residual_fn, w0, args, ridge=ridge, adjoint=adjoint).value
        w, _ = jfu.ravel_pytree(w)
        return jnp.vdot(ct, w), w

    inputs = (args, jnp.array(0.2))
    value_and_grad = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, w), (ours, by_w0) = value_and_grad(inputs, w0)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(by_w0))

    def gradient(w, inputs):
        args, ridge = inputs
        return jax.grad(lambda w: 0.5 * jnp.sum(residual_fn(unravel(w), args) ** 2) + 0.5 * ridge * jnp.sum(w**2))(w)

    exact = ct @ jax.jit(lambda w, inputs: implicit_jacobian(gradient, w, inputs))(w, inputs)
    flat, _ = jfu.ravel_pytree(ours)
    assert distance(flat, exact) < 1e-9
    tangents = jax.tree.map(lambda x: jr.normal(getkey(), x.shape), inputs)
    slope = jnp.vdot(flat, jfu.ravel_pytree(tangents)[0])
    differences = finite_difference_jvp(lambda inputs: value_and_grad(inputs, w0)[0][0], (inputs,), (tangents,))
    assert abs(slope - differences) < 1e-6 * abs(differences)
    forward = jax.jit(lambda t: jax.jvp(lambda inputs: loss(inputs, w0)[0], (inputs,), (t,))[1])(tangents)
    assert abs(slope - forward) < 1e-9 * abs(forward)

    # Optimistix' implicit derivative, without a ridge.
    def peer(args):
        solver = optx.LevenbergMarquardt(1e-12, 1e-12)
        w = optx.least_squares(residual_fn, solver, w0, args, throw=False, max_steps=500).value
        return jnp.vdot(ct, jfu.ravel_pytree(w)[0])

    _, ((without_ridge, _), _) = value_and_grad((args, jnp.array(0.0)), w0)
    assert distance(without_ridge, jax.jit(jax.grad(peer))(args)) < 1e-6

    # Gauss-Newton: -J^+ dr, which is another thing at this residual.
    gauss_newton, _ = jax.jit(jax.grad(lambda x: loss(x, w0, "gauss_newton"), has_aux=True))(inputs)
    J = np.asarray(jax.jacfwd(lambda w: residual_fn(unravel(w), args))(w))
    z = np.linalg.solve(J.T @ J + 0.2 * np.eye(6), ct)
    _, pullback = jax.vjp(lambda args: residual_fn(unravel(w), args), args)
    assert distance(gauss_newton, (pullback(-J @ z)[0], -np.vdot(z, w))) < 1e-8
    assert distance(gauss_newton, ours) > 1e-2


def test_levenberg_marquardt_second_order_and_captured_arrays():
    # The minimiser of (w - a)^2 + (w - w^2 b)^2 is a root of 2(w - a) + 2(w - w^2 b)(1 - 2wb).
    def ours(a, b):
        return dist.levenberg_marquardt(lambda w, a: jnp.stack([w - a, w - w**2 * b]), jnp.array(1.0), a).value

    def newton(a, b):
        gradient = jax.grad(lambda w: (w - a) ** 2 + (w - w**2 * b) ** 2)
        w = jax.lax.stop_gradient(ours(a, b))
        for _ in range(2):  # each step gives one more order of the derivative, at least
            w = w - gradient(w) / jax.grad(gradient)(w)
        return w

    at = (jnp.array(0.7), jnp.array(0.3))
    for order in (jax.jacrev, jax.hessian):
        assert tree_allclose(*(jax.jit(order(fn, (0, 1)))(*at) for fn in (ours, newton)), rtol=1e-9)
    third = jax.jit(jax.jacfwd(jax.hessian(ours)))(*at)
    assert jnp.allclose(third, jax.jit(jax.jacfwd(jax.hessian(newton)))(*at), rtol=1e-8)


def test_levenberg_marquardt_says_how_it_ended():
    def run(fn, w0, args=1.0, **kwargs):
        def loss(args):
            out = dist.levenberg_marquardt(fn, w0, args, **kwargs)
            return jnp.sum(out.value), out

        (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(args, w0.dtype))
        assert jnp.all(jnp.isfinite(out.value))
        assert jnp.isfinite(gradient)
        return out, gradient

    for dtype in (jnp.float32, jnp.float64):
        # Units do not matter: a decay per second and one per microsecond.
        t = jnp.arange(4, dtype=dtype)
        out, gradient = run(lambda w, a, t=t: jnp.exp(-1e6 * w * t) - jnp.exp(-a * t), jnp.full((1,), 1e-7, dtype))
        assert out.result == RESULTS.successful
        assert out.value.dtype == dtype
        assert jnp.allclose(1e6 * jnp.stack([out.value[0], gradient]), 1, rtol=1e-4)
    # Only the sum is determined: one of the solutions, and a derivative that is right for the sum.
    total, start = lambda w, a: jnp.atleast_1d(jnp.sum(w) - a), jnp.array([3.0, 0.0])
    out, gradient = run(total, start)
    assert out.result == RESULTS.indefinite
    assert jnp.allclose(jnp.stack([jnp.sum(out.value), gradient]), 1, rtol=1e-4)
    for fn, w0, kwargs, expected in [
        (total, start, {"ridge": 1e-3}, RESULTS.successful),
        (lambda w, a: w - a, jnp.zeros(1), {}, RESULTS.successful),
        # Stationary, but a maximum.
        (lambda w, a: w**2 - a, jnp.zeros(1), {}, RESULTS.indefinite),
        (lambda w, a: jnp.exp(w) - a, jnp.full(1, 5.0), {"max_steps": 2}, RESULTS.nonlinear_max_steps_reached),
        # The first steps would leave the domain.
        (lambda w, a: jnp.log(w) - a, jnp.full(1, 10.0), {}, RESULTS.successful),
        # So would all.
        (lambda w, a: jnp.where(w == 0, 1, jnp.nan) + a * w, jnp.zeros(1), {}, RESULTS.stagnation),
    ]:
        assert run(fn, w0, **kwargs)[0].result == expected
    out = jax.jit(lambda a: dist.levenberg_marquardt(lambda w, a: w + a, jnp.zeros(1), a))(jnp.array(jnp.nan))
    assert out.result == RESULTS.nonfinite
    assert out.value == 0


def test_levenberg_marquardt_errors(untyped):
    for fn, w0, kwargs, error, match in [
        (jnp.add, jnp.ones(1, int), {}, TypeError, "`w0` must be real"),
        (lambda w, a: w + 1j * a, jnp.ones(1), {}, TypeError, "`residual_fn` must be real"),
        (jnp.add, jnp.ones(1), {"ridge": -1.0}, ValueError, "`ridge` must be non-negative"),
        (jnp.add, jnp.ones(1), {"adjoint": "unroll"}, ValueError, "`adjoint` must be"),
    ]:
        with pytest.raises(error, match=match), jax.numpy_dtype_promotion("standard"):
            dist.levenberg_marquardt(fn, w0, jnp.ones(1), **kwargs)
