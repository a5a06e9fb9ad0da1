import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from implicit_core.implicit import AdjointState, argmin, fixed_point, kkt
from implicit_core.krylov import FGMRES, PCG
from stationary_testkit import tree_allclose


def quadratic(z, theta):
    return 0.5 * jnp.sum(theta["scales"] * z**2) + 0.5 * jnp.sum(z) ** 2 - theta["b"] @ z


def minimise(theta):
    inverse = 1 / theta["scales"]
    z = inverse * theta["b"]
    return z - inverse * jnp.sum(z) / (1 + jnp.sum(inverse))


def loss_of(solve, c):
    return lambda theta, state: c @ solve(theta, adjoint_state=state)


def dense(theta):
    return np.diag(theta["scales"]) + 1.0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_residual_per_example(dtype, getkey):
    # Three systems of rising condition number, each with the same few steps.
    n, steps = 12, 4
    scales = jnp.stack([jnp.linspace(1, high, n, dtype=dtype) for high in (1.5, 10.0, 1000.0)])
    theta = {"scales": scales, "b": jr.normal(getkey(), (3, n), dtype)}
    c = jr.normal(getkey(), (n,), dtype)
    solve = argmin(quadratic, linear_solver=PCG(1e-6, max_steps=steps, mode="soft"))(minimise)
    state = AdjointState(c, size=2)
    gradients, states = jax.jit(jax.vmap(jax.grad(loss_of(solve, c), (0, 1)), (0, None)))(theta, state)
    assert states.relres.dtype == dtype
    errors = []
    for k in range(3):
        u = np.asarray(states.solutions[k, 0], np.float64)
        one = {name: np.asarray(value[k], np.float64) for name, value in theta.items()}
        residual = np.asarray(c, np.float64) - dense(one) @ u
        relres = np.linalg.norm(residual) / np.linalg.norm(c)
        assert np.allclose(states.relres[k], relres, rtol=1e-3, atol=10 * jnp.finfo(dtype).eps)
        # With b in the objective as -b.z, the cotangent of b is the adjoint solution.
        assert np.allclose(gradients["b"][k], u, rtol=1e-6)
        exact = np.linalg.solve(dense(one), np.asarray(c, np.float64))
        errors.append(np.linalg.norm(np.asarray(gradients["b"][k]) - exact) / np.linalg.norm(exact))
    # The residual tracks the error of the gradient, from 1e-3 to 1.
    ratios = np.asarray(errors) / np.asarray(states.relres)
    assert np.all(np.diff(states.relres) > 0)
    assert np.all((ratios > 0.05) & (ratios < 20))
    assert states.num_steps.tolist() == [steps, steps, steps]
    assert jnp.all(states.solutions[:, 1] == 0)


@pytest.mark.parametrize("steps", [5, 15, 80])
def test_residual_tracks_the_error(steps, getkey):
    w = jr.normal(getkey(), (40, 40))
    theta = {"w": 0.9 * w / jnp.linalg.norm(w, 2), "b": jr.normal(getkey(), (40,))}
    c = jr.normal(getkey(), (40,))
    decorate = fixed_point(
        lambda z, theta: theta["w"] @ z + theta["b"], linear_solver=FGMRES(1e-13, max_steps=steps, mode="soft")
    )
    solve = decorate(lambda theta: jnp.linalg.solve(jnp.eye(40) - theta["w"], theta["b"]))
    gradient, state = jax.jit(jax.grad(loss_of(solve, c), (0, 1)))(theta, AdjointState(c))
    exact = jnp.linalg.solve(jnp.eye(40) - theta["w"].T, c)
    error = jnp.linalg.norm(gradient["b"] - exact) / jnp.linalg.norm(c)
    # The smallest singular value is at least 0.1.
    assert state.relres / 2 <= error + 1e-14
    assert error <= 10 * state.relres + 1e-14
    assert (state.relres > 1e-9) == (steps < 80)


def test_without_the_state_nothing_changes(getkey):
    theta = {"scales": jnp.linspace(1, 5, 6), "b": jr.normal(getkey(), (6,))}
    c = jr.normal(getkey(), (6,))
    solve = argmin(quadratic)(minimise)
    reference = jax.grad(lambda theta: c @ solve(theta))(theta)
    gradient, state = jax.jit(jax.grad(loss_of(solve, c), (0, 1)))(theta, AdjointState(c, size=1))
    assert tree_allclose(gradient, reference, rtol=1e-12)
    assert state.num_steps == 0  # a direct solver makes none
    assert state.relres <= 1e-15
    assert jnp.allclose(state.solutions[0], jnp.linalg.solve(dense(theta), c))
    # It may be left out of the differentiation, and captured arrays have their derivatives as ever.
    assert tree_allclose(jax.grad(loss_of(solve, c))(theta, AdjointState(c)), reference, rtol=1e-12)

    def captured(b):
        fn = argmin(lambda z, scales: quadratic(z, {"scales": scales, "b": b}))(
            lambda scales: minimise({"scales": scales, "b": b})
        )
        return c @ fn(theta["scales"], adjoint_state=AdjointState(c))

    assert jnp.allclose(jax.jit(jax.grad(captured))(theta["b"]), reference["b"])


@pytest.mark.parametrize("solver", [PCG, FGMRES])
def test_warm_start(solver, getkey):
    n = 60
    c, b, drift = jr.normal(getkey(), (3, n))
    solve = argmin(quadratic, linear_solver=solver(1e-8, mode="soft"))(minimise)
    gradient_of = jax.jit(jax.grad(loss_of(solve, c), (0, 1)))

    def run(size):
        state, steps = AdjointState(c, size=size), []
        for t in range(6):
            scales = jnp.linspace(1, 100, n) * jnp.exp(0.02 * t * drift)
            gradient, state = gradient_of({"scales": scales, "b": b}, state)
            exact = jnp.linalg.solve(dense({"scales": scales}), c)
            assert jnp.linalg.norm(gradient["b"] - exact) <= 1e-6 * jnp.linalg.norm(exact)
            assert state.relres <= 1e-7
            steps.append(int(state.num_steps))
        return steps

    cold, warm, recycled = (run(size) for size in (0, 1, 4))
    assert cold[0] == warm[0] == recycled[0]
    assert all(w < c for w, c in zip(warm[1:], cold[1:], strict=True))
    assert sum(recycled[2:]) < 0.8 * sum(warm[2:])


def test_precondition_is_transposed(getkey):
    # With the exact inverse, unsymmetric, for a preconditioner there is one step.
    w = 0.2 * jr.normal(getkey(), (8, 8))
    c = jr.normal(getkey(), (8,))
    inverse = lx.MatrixLinearOperator(jnp.linalg.inv(w - jnp.eye(8)))
    for solver, options in ((FGMRES(1e-10, precond=inverse), None), (FGMRES(1e-10), {"preconditioner": inverse})):
        decorate = fixed_point(lambda z, b: w @ z + b, linear_solver=solver, options=options)
        solve = decorate(lambda b: jnp.linalg.solve(jnp.eye(8) - w, b))
        gradient, state = jax.jit(jax.grad(loss_of(solve, c), (0, 1)))(jnp.ones(8), AdjointState(c, size=1))
        assert state.num_steps == 1
        assert jnp.allclose(gradient, jnp.linalg.solve(jnp.eye(8) - w.T, c))


def test_pytree_solutions_and_failure():
    solve = kkt(lambda x, t: 0.5 * jnp.sum((x["a"] - t) ** 2), lambda x, _: jnp.sum(x["a"]) - 1)(
        lambda t: {"a": t + (1 - jnp.sum(t)) / 3}
    )
    theta = jnp.array([0.2, 0.3, 0.6])
    state = AdjointState(jax.eval_shape(solve, theta), size=2)
    fn = jax.jit(jax.grad(lambda t, state: solve(t, adjoint_state=state).x["a"][0], (0, 1)))
    gradient, state = fn(theta, state)
    assert jnp.allclose(gradient, jnp.array([2.0, -1.0, -1.0]) / 3)
    assert jnp.allclose(state.solutions.x["a"][0], jnp.array([2.0, -1.0, -1.0]) / 3)
    # A backward solve that fails does not raise. It says so.
    singular = argmin(lambda z, t: jnp.sum(z - t) ** 2, linear_solver=PCG())(lambda t: t)
    fn = jax.jit(jax.grad(lambda t, state: singular(t, adjoint_state=state)[0], (0, 1)))
    _, state = fn(theta, AdjointState(theta))
    assert state.relres > 0.1


def test_errors():
    solve = argmin(quadratic)(minimise)
    theta = {"scales": jnp.ones(4), "b": jnp.ones(4)}
    with pytest.raises(ValueError, match="`adjoint_state` must be made for the solution"):
        solve(theta, adjoint_state=AdjointState(jnp.ones(5)))
    with pytest.raises(ValueError, match="`size` must not be negative"):
        AdjointState(jnp.ones(5), size=-1)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jacfwd(lambda b: solve({**theta, "b": b}, adjoint_state=AdjointState(jnp.ones(4))))(theta["b"])
