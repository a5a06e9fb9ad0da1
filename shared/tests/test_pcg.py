import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from implicit_core import RESULTS, certify
from implicit_core.krylov import PCG, pcg, tree_dot
from stationary_testkit import finite_difference_jvp, no_retrace, tree_allclose, vjp_matches_jvp


PSD = lx.positive_semidefinite_tag


def matrix_with(eigenvalues, key, dtype=jnp.float64):
    n = len(eigenvalues)
    q, _ = jnp.linalg.qr(jr.normal(key, (n, n), jnp.float64))
    return ((q * jnp.asarray(eigenvalues)[None, :]) @ q.T).astype(dtype)


def graded(n, cond, key, dtype=jnp.float64):
    return matrix_with(np.logspace(0, np.log10(cond), n), key, dtype)


def solve(matrix, b, solver, **kwargs):
    return lx.linear_solve(lx.MatrixLinearOperator(matrix, PSD), b, solver, **kwargs)


def attempt(matrix, b, rtol, **kwargs):
    # `rtol` traced, so that tests on the same shapes share one compilation.
    return _attempt(matrix, b, jnp.asarray(rtol), **kwargs)


@eqx.filter_jit
def _attempt(matrix, b, rtol, **kwargs):
    return solve(matrix, b, PCG(rtol, **kwargs), throw=False)


def relres(matrix, x, b):
    matrix, x, b = (np.asarray(array, np.longdouble) for array in (matrix, x, b))
    return float(np.linalg.norm(b - matrix @ x) / np.linalg.norm(b))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_value_and_certificate(dtype, getkey):
    matrix, b = graded(40, 50, getkey(), dtype), jr.normal(getkey(), (40,), dtype)
    solution = solve(matrix, b, PCG())
    eps = float(jnp.finfo(dtype).eps)
    assert solution.value.dtype == dtype
    assert jnp.allclose(solution.value, jnp.linalg.solve(matrix, b), atol=1e3 * eps**0.75)
    certificate = solution.stats["certificate"]
    assert isinstance(certificate, certify.Certificate)
    assert certificate.kind == "proved"
    assert certificate.true_relres is not None
    assert certificate.cond_estimate is not None
    assert relres(matrix, solution.value, b) == pytest.approx(float(certificate.true_relres), abs=100 * eps)
    assert certificate.true_relres <= eps**0.75
    assert 5 <= certificate.cond_estimate <= 50 * (1 + 1e-3)
    assert solution.stats["result"] == RESULTS.successful
    assert solution.stats["num_matvecs"] == solution.stats["num_steps"] + 1


# The rows of the table of measured defects that conjugate gradients must not have.


@pytest.mark.parametrize(("n", "scale"), [(10_000, 0.1), (40_000, 1.0), (45_000, 1.0), (100_000, 1.0)])
def test_float32_large(n, scale):
    diagonal = scale * jnp.linspace(1, 3, n, dtype=jnp.float32)
    operator = lx.TaggedLinearOperator(lx.DiagonalLinearOperator(diagonal), PSD)
    b = jr.normal(jr.key(0), (n,), jnp.float32)
    solution = eqx.filter_jit(lx.linear_solve)(operator, b, PCG(rtol=1e-6))
    product = np.asarray(diagonal, np.float64) * np.asarray(solution.value, np.float64)
    assert np.linalg.norm(np.asarray(b) - product) <= 1e-6 * np.linalg.norm(b)
    assert solution.stats["num_steps"] <= 12


@pytest.mark.parametrize(("cond", "attainable", "steps"), [(1e2, 1e-5, 90), (1e3, 1e-4, 280), (1e4, 2e-3, 850)])
def test_float32_attainable(cond, attainable, steps, getkey):
    matrix, b = graded(256, cond, getkey(), jnp.float32), jr.normal(getkey(), (256,), jnp.float32)
    solution = attempt(matrix, b, 1e-6)
    reached = relres(matrix, solution.value, b)
    reference, _ = jax.scipy.sparse.linalg.cg(lambda v: matrix @ v, b, tol=1e-6, maxiter=2560)
    assert reached <= min(attainable, 2 * relres(matrix, reference, b))
    assert solution.stats["num_steps"] <= steps
    assert float(solution.stats["certificate"].true_relres) == pytest.approx(reached, rel=0.2)
    honest = RESULTS.successful if reached <= 1e-5 else RESULTS.stagnation
    assert solution.stats["result"] == honest
    assert (solution.result == lx.RESULTS.successful) == (reached <= 1e-5)


@eqx.filter_jit
def scaled_gradient(matrix, b, c):
    operator = lx.MatrixLinearOperator(matrix, PSD)
    return jax.grad(lambda b: c * jnp.sum(lx.linear_solve(operator, b, PCG(1e-6)).value))(b)


@eqx.filter_jit
def kernel(matrix, b, rtol, max_steps: int | jax.Array = 100):
    return pcg(lambda v: matrix @ v, b, rtol=rtol, max_steps=max_steps)


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e-18, 1e18, 1e30])
def test_scale_invariance(size, getkey):
    # `grad(c L) / c` does not depend on `c`: today's libraries lose a cotangent of 1e-22 in float32.
    matrix, b = graded(20, 10, getkey(), jnp.float32), jr.normal(getkey(), (20,), jnp.float32)
    reference = np.asarray(scaled_gradient(matrix, b, jnp.float32(1)), np.float64)
    scaled = np.asarray(scaled_gradient(matrix, b, jnp.float32(size)), np.float64)
    assert np.linalg.norm(scaled / float(np.float32(size)) - reference) <= 1e-5 * np.linalg.norm(reference)
    # The same digits for a power of two.
    power = float(2.0 ** np.round(0.9 * np.log2(size)))
    x, info = kernel(matrix, b, 1e-6)
    y, other = kernel(matrix, b * jnp.float32(power), 1e-6)
    assert info.num_steps == other.num_steps
    assert np.array_equal(np.asarray(x, np.float64) * power, np.asarray(y, np.float64))


@pytest.mark.parametrize("factor", [1e-10, 1e10])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_operator_scale(factor, dtype, getkey):
    matrix, b = graded(20, 10, getkey(), dtype), jr.normal(getkey(), (20,), dtype)
    reference = attempt(matrix, b, 1e-6)
    scaled = attempt(jnp.asarray(factor, dtype) * matrix, b, 1e-6)
    assert jnp.allclose(scaled.value * jnp.asarray(factor, dtype), reference.value, rtol=1e-4, atol=1e-5)
    assert abs(int(scaled.stats["num_steps"]) - int(reference.stats["num_steps"])) <= 1


def test_zero_right_hand_side(getkey):
    matrix = graded(5, 10, getkey())
    solution = solve(matrix, jnp.zeros(5), PCG(1e-6), options={"y0": jnp.ones(5)})
    assert jnp.array_equal(solution.value, jnp.zeros(5))
    assert solution.stats["num_steps"] == 0
    gradient = jax.grad(lambda b: jnp.sum(solve(matrix, b, PCG(1e-9)).value))(jnp.zeros(5))
    assert jnp.allclose(gradient, jnp.linalg.solve(matrix, jnp.ones(5)), atol=1e-7)


def test_finite_termination(getkey):
    eigenvalues = np.repeat([1.0, 3.0, 7.0, 20.0], 10)
    matrix, b = matrix_with(eigenvalues, getkey()), jr.normal(getkey(), (40,))
    assert solve(matrix, b, PCG(1e-10)).stats["num_steps"] == 4


def test_chebyshev_bound(getkey):
    cond = 100.0
    matrix, b = graded(60, cond, getkey()), jr.normal(getkey(), (60,))
    exact = jnp.linalg.solve(matrix, b)
    rate = (np.sqrt(cond) - 1) / (np.sqrt(cond) + 1)
    previous = np.inf
    for k in range(0, 50, 5):
        e = kernel(matrix, b, jnp.array(0.0), jnp.array(k))[0] - exact
        error = float(jnp.sqrt(e @ matrix @ e))
        assert error <= 2 * rate**k * float(jnp.sqrt(exact @ b)) * (1 + 1e-9)
        assert error <= previous
        previous = error


def test_slow_start_is_not_stagnation():
    # The residual of -u'' = 1 grows for n/2 steps, far more than `stagnation`, before it falls to zero at once.
    n = 400

    def mv(u):
        return 2 * u - jnp.pad(u[1:], (0, 1)) - jnp.pad(u[:-1], (1, 0))

    u, info = pcg(mv, jnp.ones(n), rtol=1e-10, max_steps=n)
    i = jnp.arange(1.0, n + 1)
    assert info.num_steps == n // 2
    assert not info.stagnated
    assert jnp.allclose(u, 0.5 * i * (n + 1 - i), rtol=1e-9)


def test_estimates_are_inside_the_spectrum(getkey):
    matrix, b = graded(80, 1e3, getkey()), jr.normal(getkey(), (80,))
    jacobi = 1 / jnp.diagonal(matrix)
    _, info = kernel(matrix, b, jnp.array(1e-12), jnp.array(500))
    assert 1 <= info.ritz_min <= 20
    assert 500 <= info.ritz_max <= 1000 * (1 + 1e-8)
    assert jnp.allclose(info.norm_estimate, info.ritz_max, rtol=1e-12)
    _, info = pcg(lambda v: matrix @ v, b, precond_mv=lambda r: jacobi * r, rtol=1e-12, max_steps=500)
    root = jnp.sqrt(jacobi)
    spectrum = jnp.linalg.eigvalsh(root[:, None] * matrix * root[None, :])
    assert spectrum[0] * (1 - 1e-8) <= info.ritz_min <= info.ritz_max <= spectrum[-1] * (1 + 1e-8)
    assert 200 <= info.norm_estimate <= 5000


@pytest.mark.parametrize("mode", ["strict", "soft"])
def test_indefinite(mode, getkey):
    matrix, b = matrix_with(np.linspace(-1, 2, 20), getkey()), jr.normal(getkey(), (20,))
    solution = attempt(matrix, b, 1e-8, mode=mode)
    assert jnp.all(jnp.isfinite(solution.value))
    assert solution.stats["result"] == RESULTS.indefinite
    expected = lx.RESULTS.successful if mode == "soft" else lx.RESULTS.breakdown
    assert solution.result == expected
    if mode == "soft":
        solve(matrix, b, PCG(1e-8, mode=mode))
    else:
        with pytest.raises(Exception, match="breakdown"):
            solve(matrix, b, PCG(1e-8, mode=mode))


def test_indefinite_preconditioner(getkey):
    matrix, b = graded(10, 10, getkey()), jr.normal(getkey(), (10,))
    signs = jnp.where(jnp.arange(10) < 5, 1.0, -1.0)
    x, info = pcg(lambda v: matrix @ v, b, precond_mv=lambda r: signs * r, rtol=1e-8, max_steps=50)
    assert info.indefinite
    assert jnp.all(jnp.isfinite(x))


def test_limit_on_steps(getkey):
    matrix, b = graded(20, 1e4, getkey()), jr.normal(getkey(), (20,))
    solution = attempt(matrix, b, 1e-12, max_steps=5)
    assert solution.stats["num_steps"] == 5
    assert solution.result == lx.RESULTS.max_steps_reached
    assert solution.stats["result"] == RESULTS.max_steps_reached
    # A backward pass that misses its tolerance does not raise in soft mode.
    gradient = jax.grad(lambda b: jnp.sum(solve(matrix, b, PCG(1e-12, max_steps=5, mode="soft")).value))(b)
    assert jnp.all(jnp.isfinite(gradient))
    with pytest.raises(Exception, match="max_steps"):
        solve(matrix, b, PCG(1e-12, max_steps=5))


def test_nonfinite_input(getkey):
    matrix = graded(5, 10, getkey())
    b = jnp.ones(5).at[2].set(jnp.nan)
    solution = attempt(matrix, b, 1e-6)
    assert solution.result == lx.RESULTS.nonfinite_input
    assert solution.stats["result"] == RESULTS.nonfinite
    x, info = pcg(lambda v: matrix @ v * jnp.where(v[0] > 0, jnp.nan, jnp.nan), jnp.ones(5), rtol=1e-6, max_steps=5)
    assert info.nonfinite
    assert jnp.array_equal(x, jnp.zeros(5))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("kind", ["indefinite", "consistent", "inconsistent", "zero", "tiny", "huge", "negative"])
def test_never_nan(kind, dtype, getkey):
    eigenvalues = {
        "indefinite": np.linspace(-1, 1, 12),
        "consistent": np.arange(12.0),
        "inconsistent": np.arange(12.0),
        "zero": np.zeros(12),
        "tiny": 1e-30 * np.arange(1.0, 13),
        "huge": 1e30 * np.arange(1.0, 13),
        "negative": -np.arange(1.0, 13),
    }[kind]
    matrix, b = matrix_with(eigenvalues, getkey(), dtype), jr.normal(getkey(), (12,), dtype)
    if kind == "consistent":
        b = matrix @ b
    solution = attempt(matrix, b, 1e-4)
    assert jnp.all(jnp.isfinite(solution.value))
    met = bool(solution.stats["certificate"].true_relres <= 1e-3)
    assert met == (kind in ("consistent", "tiny", "huge"))
    assert bool(solution.stats["result"] == RESULTS.successful) == met
    assert bool(solution.result == lx.RESULTS.successful) == met


def test_refinement_reaches_the_floor(getkey):
    # The recurrence says 1e-6; one restart from the true residual makes it true where rounding allows.
    matrix, b = graded(256, 30, getkey(), jnp.float32), jr.normal(getkey(), (256,), jnp.float32)
    solution = attempt(matrix, b, 2e-7)
    assert solution.stats["certificate"].true_relres <= 2e-6
    assert solution.stats["certificate"].recurrence_relres <= 2e-7


# Structure: pytrees, complex, negative definite, preconditioners.


def test_pytree_with_mixed_dtypes(getkey):
    b = {"a": jr.normal(getkey(), (3, 2)), "b": (jr.normal(getkey(), (4,), jnp.float32),)}
    x, info = pcg(
        lambda v: jax.tree_util.tree_map(lambda leaf: 3 * leaf, v),
        b,
        precond_mv=lambda v: v,
        rtol=1e-6,
        max_steps=5,
    )
    assert info.num_steps == 1
    assert tree_allclose(x, jax.tree_util.tree_map(lambda leaf: leaf / 3, b), rtol=1e-6)
    assert info.relres.dtype == jnp.float64
    assert jnp.allclose(tree_dot(b, b), jnp.sum(b["a"] ** 2) + jnp.sum(b["b"][0] ** 2).astype(jnp.float64))


def test_complex_hermitian(getkey):
    factor = jax.lax.complex(jr.normal(getkey(), (12, 12)), jr.normal(getkey(), (12, 12)))
    matrix = factor @ factor.conj().T + jnp.eye(12, dtype=factor.dtype)
    b = jax.lax.complex(jr.normal(getkey(), (12,)), jr.normal(getkey(), (12,)))
    diagonal = lx.DiagonalLinearOperator(1 / jnp.diagonal(matrix))
    solver = PCG(1e-12, precond=lx.TaggedLinearOperator(diagonal, PSD))
    assert jnp.allclose(solve(matrix, b, solver).value, jnp.linalg.solve(matrix, b))

    def loss(how, c):
        return jnp.sum(jnp.abs(how(matrix, b + jax.lax.complex(c, 2 * c) * b[::-1])) ** 2)

    ours = jax.grad(ft.partial(loss, lambda m, v: solve(m, v, solver).value))(0.3)
    assert jnp.allclose(ours, jax.grad(ft.partial(loss, jnp.linalg.solve))(0.3))


def test_negative_definite(getkey):
    matrix, b = graded(12, 10, getkey()), jr.normal(getkey(), (12,))
    operator = lx.MatrixLinearOperator(-matrix, lx.negative_semidefinite_tag)
    solution = lx.linear_solve(operator, b, PCG(1e-12), options={"y0": b})
    assert jnp.allclose(solution.value, -jnp.linalg.solve(matrix, b))


def test_preconditioner_reaches_the_derivative(getkey):
    scales = jnp.logspace(0, 3, 60)
    matrix = scales[:, None] * graded(60, 5, getkey()) * scales[None, :]
    b = jr.normal(getkey(), (60,))
    precond = lx.TaggedLinearOperator(lx.DiagonalLinearOperator(1 / jnp.diagonal(matrix)), PSD)
    plain = solve(matrix, b, PCG(1e-8), throw=False)
    baked = solve(matrix, b, PCG(1e-8, precond=precond))
    passed = solve(matrix, b, PCG(1e-8), options={"preconditioner": precond})
    assert baked.stats["num_steps"] < 60 < plain.stats["num_steps"]
    assert jnp.array_equal(baked.value, passed.value)

    # `strict`, so the backward solve would raise without its preconditioner within these steps.
    def loss(matrix, b):
        inverse = lx.TaggedLinearOperator(lx.DiagonalLinearOperator(1 / jnp.diagonal(matrix)), PSD)
        return jnp.sum(solve(matrix, b, PCG(1e-10, precond=inverse, max_steps=60)).value)

    exact = jax.grad(lambda m, v: jnp.sum(jnp.linalg.solve(m, v)), (0, 1))(matrix, b)
    assert tree_allclose(jax.grad(loss, (0, 1))(matrix, b), exact, rtol=1e-5, atol=1e-9)


def test_first_iterate(getkey):
    matrix, b = graded(30, 1e3, getkey()), jr.normal(getkey(), (30,))
    exact = jnp.linalg.solve(matrix, b)
    cold = solve(matrix, b, PCG(1e-10))
    warm = solve(matrix, b, PCG(1e-10), options={"y0": exact * (1 + 1e-7)})
    assert int(warm.stats["num_steps"]) < 0.8 * int(cold.stats["num_steps"])
    assert warm.stats["num_matvecs"] == warm.stats["num_steps"] + 2
    x, info = pcg(lambda v: matrix @ v, b, rtol=1e-10, max_steps=100, x0=exact)
    assert info.num_steps == 0
    assert jnp.allclose(x, exact, rtol=1e-14)


# Transformations.


def test_derivatives(getkey):
    matrix, b = graded(15, 20, getkey()), jr.normal(getkey(), (15,))

    @jax.jit
    def fn(matrix, b):
        return solve(0.5 * (matrix + matrix.T), b, PCG(1e-13)).value

    tangents = jr.normal(getkey(), (15, 15)), jr.normal(getkey(), (15,))
    _, jvp = jax.jvp(fn, (matrix, b), tangents)
    assert tree_allclose(jvp, finite_difference_jvp(fn, (matrix, b), tangents), rtol=1e-6, atol=1e-8)
    assert vjp_matches_jvp(fn, (matrix, b), key=getkey())


def test_second_derivative(getkey):
    matrix, b = graded(15, 20, getkey()), jr.normal(getkey(), (15,))

    def loss(t):
        return jnp.sum(solve(matrix + t * jnp.eye(15), b, PCG(1e-13)).value ** 3)

    def exact(t):
        return jnp.sum(jnp.linalg.solve(matrix + t * jnp.eye(15), b) ** 3)

    assert jnp.allclose(jax.jit(jax.hessian(loss))(0.3), jax.hessian(exact)(0.3))


def test_vmap_with_unequal_steps(getkey):
    conds = [2.0, 30.0, 1e3]
    matrices = jnp.stack([graded(20, cond, getkey()) for cond in conds])
    b = jr.normal(getkey(), (3, 20)).at[1].set(0)

    def fn(matrix, b):
        solution = solve(matrix, b, PCG(1e-10))
        return solution.value, solution.stats["num_steps"], solution.stats["certificate"]

    values, steps, certificates = jax.vmap(fn)(matrices, b)
    tangents = jr.normal(getkey(), (3, 20))
    jvps = jax.vmap(lambda m, v, t: jax.jvp(lambda w: fn(m, w)[0], (v,), (t,))[1])(matrices, b, tangents)
    for k in range(3):
        value, num_steps, certificate = fn(matrices[k], b[k])
        assert jnp.allclose(values[k], value, rtol=1e-8, atol=1e-12)
        assert abs(int(steps[k]) - int(num_steps)) <= 2
        assert certificates.true_relres.shape == (3,)
        assert certificate.true_relres <= 1e-9
        assert jnp.allclose(jvps[k], jnp.linalg.solve(matrices[k], tangents[k]), atol=1e-7)
    assert steps[1] == 0


def test_jit_and_traced_tolerances(getkey):
    matrix, b = graded(20, 10, getkey()), jr.normal(getkey(), (20,))

    @no_retrace
    def fn(b, rtol, max_steps):
        by_solver = solve(matrix, b, PCG(rtol)).value
        return by_solver, pcg(lambda v: matrix @ v, b, rtol=rtol, atol=rtol, max_steps=max_steps)

    exact = jnp.linalg.solve(matrix, b)
    for rtol, steps in ((1e-6, 100), (1e-10, 3)):
        value, (x, info) = fn(b, jnp.asarray(rtol), jnp.asarray(steps))
        assert jnp.allclose(value, exact, atol=1e-4)
        assert info.num_steps <= steps
        assert steps == 3 or jnp.allclose(x, exact, atol=1e-4)
    assert jnp.allclose(solve(matrix, b, PCG(1e-10)).value, exact)


def test_inside_optimistix(getkey):
    x, y = jr.normal(getkey(), (50, 8)), jr.normal(getkey(), (50,))

    def grad_fn(w, lam):
        return jax.grad(lambda w: jnp.mean(jnp.log(jnp.cosh(x @ w - y))) + 0.5 * lam * w @ w)(w)

    def fit(lam, solver, adjoint):
        tags = frozenset({PSD})
        newton = optx.Newton(1e-10, 1e-10, linear_solver=solver)
        return optx.root_find(grad_fn, newton, jnp.zeros(8), lam, adjoint=adjoint, tags=tags).value

    ours = jax.jacfwd(fit)(0.1, PCG(1e-12), optx.ImplicitAdjoint(PCG(1e-12)))
    assert jnp.allclose(ours, jax.jacrev(fit)(0.1, lx.Cholesky(), optx.ImplicitAdjoint()), rtol=1e-8)


# Bad input.


def test_errors(getkey):
    matrix, b = graded(5, 10, getkey()), jnp.ones(5)
    with pytest.raises(ValueError, match="`rtol` must be non-negative"):
        PCG(-1.0)
    with pytest.raises(ValueError, match="`atol` must be non-negative"):
        PCG(1e-6, float("nan"))
    with pytest.raises(ValueError, match="`stagnation`"):
        PCG(1e-6, stagnation=0)
    with pytest.raises(ValueError, match="`max_steps`"):
        PCG(1e-6, max_steps=-1)
    with pytest.raises(ValueError, match="tagged positive or negative semidefinite"):
        lx.linear_solve(lx.MatrixLinearOperator(matrix), b, PCG(1e-6))
    with pytest.raises(ValueError, match="square"):
        lx.linear_solve(lx.MatrixLinearOperator(jnp.ones((5, 3))), b, PCG(1e-6))
    untagged = lx.DiagonalLinearOperator(jnp.ones(5))
    with pytest.raises(ValueError, match="`precond` must be tagged"):
        solve(matrix, b, PCG(1e-6, precond=untagged))
    other = lx.TaggedLinearOperator(lx.DiagonalLinearOperator(jnp.ones(4)), PSD)
    with pytest.raises(ValueError, match="`precond` must have the operator's structure"):
        solve(matrix, b, PCG(1e-6, precond=other))
    with pytest.raises(TypeError, match="floating point"):
        pcg(lambda v: v, jnp.ones(3, jnp.int32), rtol=1e-6, max_steps=5)
    with pytest.raises(ValueError, match="at least one array"):
        pcg(lambda v: v, (), rtol=1e-6, max_steps=5)


def test_solver_is_a_plain_pytree(getkey):
    solver = PCG(1e-6, precond=lx.IdentityLinearOperator(jax.ShapeDtypeStruct((5,), jnp.float64)))
    assert eqx.tree_equal(solver, PCG(1e-6, precond=solver.precond)) is True
    matrix, b = graded(5, 10, getkey()), jnp.ones(5)
    # Exactly one product a step, and one at the end: one traced call in the loop, one outside of it.
    calls = []
    pcg(lambda v: calls.append(0) or matrix @ v, b, rtol=1e-6, max_steps=20)
    assert len(calls) == 1
