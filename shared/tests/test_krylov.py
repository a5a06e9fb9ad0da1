import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from implicit_core import RESULTS
from implicit_core.krylov import FGMRES, MINRES, PCG, ConjugateDirections, Deflated, Refined
from stationary_testkit import finite_difference_jvp, tree_allclose


PSD = lx.positive_semidefinite_tag
SYM = lx.symmetric_tag


def matrix_with(eigenvalues, key, dtype=jnp.float64):
    n = len(eigenvalues)
    q, _ = jnp.linalg.qr(jr.normal(key, (n, n), jnp.float64))
    return ((q * jnp.asarray(eigenvalues)[None, :]) @ q.T).astype(dtype)


def symmetric(n, key, dtype=jnp.float64, cond=50.0):
    eigenvalues = np.geomspace(1, cond, n) * np.where(np.arange(n) % 3 == 0, -1, 1)
    return matrix_with(eigenvalues, key, dtype)


def general(n, key, dtype=jnp.float64):
    return (2 * jnp.eye(n) + 0.7 * jr.normal(key, (n, n)) / np.sqrt(n)).astype(dtype)


def saddle_point(n, m, cond, key):
    H = matrix_with(np.geomspace(1, cond, n), key)
    C = jr.normal(jr.fold_in(key, 1), (m, n))
    return H, C, jnp.block([[H, C.T], [C, jnp.zeros((m, m))]])


def relres(matrix, x, b):
    matrix, x, b = (np.asarray(array, np.clongdouble) for array in (matrix, x, b))
    return float(np.linalg.norm(b - matrix @ x) / np.linalg.norm(b))


@eqx.filter_jit
def solve(matrix, b, solver, tags: object = SYM, throw: bool = False):
    return lx.linear_solve(lx.MatrixLinearOperator(matrix, tags), b, solver, throw=throw)


CASES = {
    "minres": (MINRES(), SYM, symmetric),
    "fgmres": (FGMRES(), (), general),
    "directions": (
        ConjugateDirections(lambda r: r),
        PSD,
        lambda n, key, d: symmetric(n, key, d, 20.0) @ symmetric(n, key, d, 20.0),
    ),
    "refined": (Refined(lx.LU(), jnp.float32), (), general),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", list(CASES))
def test_value_and_certificate(name, dtype, getkey):
    solver, tags, make = CASES[name]
    matrix, b = make(30, getkey(), dtype), jr.normal(getkey(), (30,), dtype)
    solution = solve(matrix, b, solver, tags)
    eps = float(jnp.finfo(dtype).eps)
    assert solution.value.dtype == dtype
    assert solution.stats["result"] == RESULTS.successful
    assert relres(matrix, solution.value, b) <= 1.01 * eps**0.75
    assert float(solution.stats["certificate"].true_relres) == pytest.approx(
        relres(matrix, solution.value, b), abs=50 * eps
    )
    assert solution.stats["num_matvecs"] >= solution.stats["num_steps"]
    zero = solve(matrix, jnp.zeros_like(b), solver, tags)
    assert zero.stats["num_steps"] == 0
    assert jnp.array_equal(zero.value, jnp.zeros_like(b))


@pytest.mark.parametrize("name", list(CASES))
def test_derivatives(name, getkey):
    solver, tags, make = CASES[name]
    matrix, b = make(12, getkey(), jnp.float64), jr.normal(getkey(), (12,))
    dmatrix = jr.normal(getkey(), (12, 12))
    dmatrix = dmatrix + dmatrix.T if tags else dmatrix

    @jax.jit
    def fn(matrix, b):
        operator = lx.MatrixLinearOperator(matrix, tags)
        return lx.linear_solve(
            operator, b, eqx.tree_at(lambda s: s.rtol, solver, 1e-12, is_leaf=lambda x: x is None)
        ).value

    primals, tangents = (matrix, b), (dmatrix, jr.normal(getkey(), (12,)))
    _, tangent = jax.jvp(fn, primals, tangents)
    assert tree_allclose(tangent, finite_difference_jvp(fn, primals, tangents), rtol=1e-5, atol=1e-7)
    expected = jnp.linalg.solve(matrix, tangents[1] - dmatrix @ fn(*primals))
    assert tree_allclose(tangent, expected, rtol=1e-8, atol=1e-9)
    cotangent = jr.normal(getkey(), (12,))
    assert tree_allclose(
        jax.vjp(fn, *primals)[1](cotangent)[1], jnp.linalg.solve(matrix.T, cotangent), rtol=1e-8, atol=1e-9
    )
    batch = jax.vmap(fn, in_axes=(None, 0))(matrix, jnp.stack([b, 0 * b, 1e-30 * b]))
    assert tree_allclose(batch, jnp.stack([fn(*primals), 0 * b, 1e-30 * fn(*primals)]), rtol=1e-8, atol=1e-40)


@pytest.mark.parametrize("name", ["minres", "fgmres", "refined"])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_scale(name, size, getkey):
    # The right-hand side and the operator by themselves, in float32.
    solver, tags, make = CASES[name]
    matrix, b = make(20, getkey(), jnp.float32), jr.normal(getkey(), (20,), jnp.float32)
    reference = np.asarray(solve(matrix, b, solver, tags).value, np.float64)
    scaled = np.asarray(solve(matrix, jnp.float32(size) * b, solver, tags).value, np.float64)
    assert np.linalg.norm(scaled / float(np.float32(size)) - reference) <= 1e-4 * np.linalg.norm(reference)
    shrunk = jnp.float32(size ** (1 / 3))
    scaled = np.asarray(solve(shrunk * matrix, b, solver, tags).value, np.float64)
    assert np.linalg.norm(scaled * float(shrunk) - reference) <= 1e-4 * np.linalg.norm(reference)


def test_minres_takes_three_steps_to_a_preconditioned_saddle_point(getkey):
    # With blockdiag(H^-1, (C H^-1 C^T)^-1) the eigenvalues are 1 and (1 +- sqrt 5) / 2.
    H, C, matrix = saddle_point(80, 30, 1e3, getkey())
    inverse = jnp.linalg.inv(H)
    schur = jnp.linalg.inv(C @ inverse @ C.T)
    precond = jax.scipy.linalg.block_diag((inverse + inverse.T) / 2, (schur + schur.T) / 2)
    b = jr.normal(getkey(), (110,))
    solution = solve(matrix, b, MINRES(1e-8, precond=lx.MatrixLinearOperator(precond, PSD)))
    assert solution.stats["num_steps"] == 3
    assert relres(matrix, solution.value, b) <= 1e-8
    plain = solve(matrix, b, MINRES(1e-8))
    assert plain.stats["num_steps"] > 100
    assert relres(matrix, plain.value, b) <= 1e-8


def test_minres_residual_is_minimal(getkey):
    # Against a dense least-squares problem over the Krylov space.
    matrix, b = symmetric(25, getkey()), jr.normal(getkey(), (25,))
    steps = 8
    powers = [b]
    for _ in range(steps - 1):
        powers.append(matrix @ powers[-1] / jnp.linalg.norm(matrix @ powers[-1]))
    basis, _ = jnp.linalg.qr(jnp.stack(powers, axis=1))
    y, *_ = jnp.linalg.lstsq(matrix @ basis, b)
    for solver in (MINRES(0.0, max_steps=steps), FGMRES(0.0, max_steps=steps)):
        assert tree_allclose(solve(matrix, b, solver).value, basis @ y, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("solver", [MINRES(), FGMRES(restart=40)], ids=["minres", "fgmres"])
def test_singular(solver, dtype, getkey):
    eigenvalues = np.concatenate([np.zeros(3), -np.geomspace(0.5, 5, 17), np.geomspace(0.2, 10, 20)])
    matrix, b = matrix_with(eigenvalues, getkey(), dtype), jr.normal(getkey(), (40,), dtype)
    consistent = solve(matrix, matrix @ b, solver)
    eps = float(jnp.finfo(dtype).eps)
    assert consistent.stats["result"] == RESULTS.successful
    assert relres(matrix, consistent.value, matrix @ b) <= 1.01 * eps**0.75
    inconsistent = solve(matrix, b, solver)
    assert inconsistent.stats["result"] == RESULTS.stagnation
    assert inconsistent.result != lx.RESULTS.successful
    assert jnp.all(jnp.isfinite(inconsistent.value))
    # What it returns is the least-squares residual, about.
    least, *_ = np.linalg.lstsq(np.asarray(matrix, np.float64), np.asarray(b, np.float64), rcond=1e-5)
    assert relres(matrix, inconsistent.value, b) <= 1.01 * relres(matrix, least, b)


FUZZ = {
    "pcg": (PCG(max_steps=50), PSD),
    "minres": (MINRES(max_steps=50), SYM),
    "minres-preconditioned": (
        MINRES(max_steps=50, precond=lx.DiagonalLinearOperator(jnp.arange(1.0, 9.0, dtype=jnp.float32))),
        SYM,
    ),
    "fgmres": (FGMRES(max_steps=50), SYM),
    "directions": (ConjugateDirections(lambda r: r + jnp.roll(r, 1) ** 2, max_steps=50), PSD),
    "refined": (Refined(PCG(1e-2, max_steps=50), jnp.float32), PSD),
}


@pytest.mark.parametrize("name", list(FUZZ))
@hypothesis.settings(max_examples=40)
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["indefinite", "singular", "zero", "rank one", "graded"]),
    log_scale=st.floats(-30, 30),
    log_rhs=st.floats(-35, 35),
)
def test_never_nan_and_never_a_lie(name, seed, kind, log_scale, log_rhs):
    solver, tags = FUZZ[name]
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    spectrum = {
        "indefinite": rng.normal(size=8),
        "singular": np.where(np.arange(8) < 3, 0, rng.uniform(0.1, 1, 8)),
        "zero": np.zeros(8),
        "rank one": np.eye(8)[0],
        "graded": np.geomspace(1e-6, 1, 8),
    }[kind]
    if name == "minres-preconditioned":
        solver = eqx.tree_at(lambda s: s.precond, solver, lx.TaggedLinearOperator(solver.precond, PSD))
    matrix = ((q * spectrum[None, :]) @ q.T * 10**log_scale).astype(np.float32)
    matrix = (matrix + matrix.T) / 2
    b = (rng.normal(size=8) * 10**log_rhs).astype(np.float32)
    hypothesis.assume(np.all(np.isfinite(matrix)) and np.all(np.isfinite(b)))
    solution = solve(jnp.asarray(matrix), jnp.asarray(b), solver, tags)
    honest = bool(solution.stats["result"] == RESULTS.successful)
    claimed = float(solution.stats["certificate"].true_relres)
    assert np.all(np.isfinite(np.asarray(solution.value))) or not honest
    assert honest == bool(solution.result == lx.RESULTS.successful)
    if (
        honest
        and np.linalg.norm(b.astype(np.float64)) > 1e-30
        and np.linalg.norm(solution.value.astype(np.float64)) < 1e37
    ):
        # Ten times the tolerance is what counts as success; tiny solutions lose digits to underflow.
        tiny = 1e-37 * np.linalg.norm(matrix.astype(np.float64)) / np.linalg.norm(b.astype(np.float64))
        assert relres(matrix, solution.value, b) <= 1.1 * max(claimed, 1e-5) + 10 * tiny
        assert claimed <= 10 * 6.5e-6


def test_fgmres_takes_any_preconditioner(getkey):
    matrix, b = general(60, getkey()), jr.normal(getkey(), (60,))
    stiff = jnp.diag(jnp.geomspace(1, 1e4, 60)) @ matrix
    diagonal = jnp.diagonal(stiff)
    varying = lx.FunctionLinearOperator(lambda v: v / diagonal * (1 + 0.1 * jnp.tanh(v)), jax.eval_shape(lambda: b))
    for precond in (lx.DiagonalLinearOperator(1 / diagonal), varying):
        solution = solve(stiff, b, FGMRES(1e-10, precond=precond), ())
        assert solution.stats["result"] == RESULTS.successful
        assert relres(stiff, solution.value, b) <= 1e-10
    assert solve(stiff, b, FGMRES(1e-10, max_steps=200), ()).stats["result"] != RESULTS.successful


def test_fgmres_stops_inside_a_cycle_and_restarts(getkey):
    matrix, b = general(60, getkey()), jr.normal(getkey(), (60,))
    whole = solve(matrix, b, FGMRES(1e-6, restart=60), ())
    assert whole.stats["num_steps"] < 40
    assert whole.stats["num_matvecs"] == whole.stats["num_steps"] + 1
    short = solve(matrix, b, FGMRES(1e-6, restart=5), ())
    assert short.stats["result"] == RESULTS.successful
    assert short.stats["num_steps"] >= whole.stats["num_steps"]
    # Distinct eigenvalues bound the steps.
    few = matrix_with(np.repeat([-1.0, 2.0, 5.0], 10), getkey())
    assert solve(few, b[:30], FGMRES(1e-10)).stats["num_steps"] == 3


def test_complex(getkey):
    q, _ = jnp.linalg.qr(jr.normal(getkey(), (20, 20), jnp.complex128))
    hermitian = (q * jnp.linspace(1, 9, 20).astype(q.dtype)[None, :]) @ q.conj().T
    b = jr.normal(getkey(), (20,), jnp.complex128)
    for solver, matrix, tags in (
        (MINRES(), hermitian, PSD),
        (FGMRES(), hermitian + jnp.asarray(3j) * jnp.eye(20, dtype=q.dtype), ()),
        (Refined(lx.LU()), hermitian, ()),
    ):
        solution = solve(matrix, b, solver, tags)
        assert relres(matrix, solution.value, b) <= 1e-11
        gradient = jax.grad(lambda m, s=solver, t=tags: jnp.sum(jnp.abs(solve(m, b, s, t, True).value) ** 2))(matrix)
        expected = jax.grad(lambda m: jnp.sum(jnp.abs(jnp.linalg.solve(m, b)) ** 2))(matrix)
        assert tree_allclose(gradient, expected, rtol=1e-7, atol=1e-9)


def test_pytrees(getkey):
    matrix, b = symmetric(12, getkey()), jr.normal(getkey(), (12,))
    flat = lambda v: jnp.concatenate([v["a"], v["b"][:, 0]])
    nest = lambda y: {"a": y[:5], "b": y[5:].reshape(7, 1)}
    fn = lambda v: nest(matrix @ flat(v))
    tree = nest(b)
    operator = lx.FunctionLinearOperator(fn, jax.eval_shape(lambda: tree), SYM)
    for solver in (MINRES(), FGMRES()):
        assert tree_allclose(
            flat(lx.linear_solve(operator, tree, solver).value), jnp.linalg.solve(matrix, b), rtol=1e-9, atol=1e-10
        )


def test_conjugate_directions_is_conjugate_gradients(getkey):
    matrix, b = matrix_with(np.geomspace(1, 100, 40), getkey()), jr.normal(getkey(), (40,))
    ours, theirs = (
        solve(matrix, b, ConjugateDirections(lambda r: r, 1e-8, memory=1), PSD),
        solve(matrix, b, PCG(1e-8), PSD),
    )
    assert abs(int(ours.stats["num_steps"]) - int(theirs.stats["num_steps"])) <= 1
    assert tree_allclose(ours.value, theirs.value, rtol=1e-6, atol=1e-7)


def test_conjugate_directions_with_a_nonlinear_function(getkey):
    matrix, b = matrix_with(np.geomspace(1, 1e4, 60), getkey()), jr.normal(getkey(), (60,))
    inverse = jnp.linalg.inv(matrix + 0.01 * matrix_with(np.linspace(1, 2, 60), getkey()))
    learned = lambda r: inverse @ r + 1e-6 * jnp.abs(r)
    counts = [
        int(solve(matrix, b, ConjugateDirections(learned, 1e-8, memory=m), PSD).stats["num_steps"]) for m in (0, 2)
    ]
    assert counts[1] <= counts[0]
    assert counts[1] < 20
    # The energy norm of the error falls monotonically whatever the function is.
    exact = jnp.linalg.solve(matrix, b)
    errors = []
    for steps in range(1, 8):
        e = solve(matrix, b, ConjugateDirections(lambda r: jnp.sin(9 * r), 0.0, max_steps=steps), PSD).value - exact
        errors.append(float(e @ matrix @ e))
    assert errors == sorted(errors, reverse=True)
    # A useless one, or one that is not finite, falls back on the residual, and every such step costs a product.
    for useless in (jnp.zeros_like, lambda r: r * jnp.nan):
        solution = solve(matrix, b, ConjugateDirections(useless, 1e-4, memory=1), PSD)
        assert solution.stats["result"] == RESULTS.successful
        assert solution.stats["num_matvecs"] == 2 * solution.stats["num_steps"] + 1


def test_refined_reaches_double_precision(getkey):
    for cond in (1e2, 1e4, 1e6):
        matrix, b = matrix_with(np.geomspace(1, cond, 60), getkey()), jr.normal(getkey(), (60,))
        solution = solve(matrix, b, Refined(lx.LU(), rtol=1e-12), ())
        assert solution.stats["num_steps"] <= 7
        error = jnp.linalg.norm(solution.value - jnp.linalg.solve(matrix, b)) / jnp.linalg.norm(solution.value)
        assert error <= 1e-12 * cond
    hopeless = matrix_with(np.geomspace(1, 1e11, 60), getkey())
    assert solve(hopeless, b, Refined(lx.LU()), ()).stats["result"] != RESULTS.successful
    inner = solve(matrix_with(np.geomspace(1, 100, 60), getkey()), b, Refined(PCG(1e-3)), PSD)
    assert inner.stats["result"] == RESULTS.successful


def test_deflated(getkey):
    # Outliers that are known cost nothing; so do zeros in the buffer.
    eigenvalues = np.concatenate([[1e-3, 1e3, 5e3], np.linspace(1, 2, 60)])
    matrix, b = matrix_with(eigenvalues, getkey()), jr.normal(getkey(), (63,))
    _, vectors = jnp.linalg.eigh(matrix)
    W = jnp.concatenate([vectors.T[:1], vectors.T[-2:], jnp.zeros((2, 63))])
    plain, deflated = solve(matrix, b, PCG(1e-8), PSD), solve(matrix, b, Deflated(PCG(1e-8), W), PSD)
    assert deflated.stats["num_steps"] <= 13 < plain.stats["num_steps"]
    assert relres(matrix, deflated.value, b) <= 1e-8
    # Recycling: the solutions of similar systems.
    past = jnp.linalg.solve(matrix, (b[:, None] + 0.01 * jr.normal(getkey(), (63, 4)))).T
    recycled = solve(matrix, b, Deflated(PCG(1e-8), past), PSD)
    assert recycled.stats["num_steps"] < plain.stats["num_steps"]
    gradient = jax.grad(lambda b: jnp.sum(solve(matrix, b, Deflated(PCG(1e-10), W), PSD).value))(b)
    assert tree_allclose(gradient, jnp.linalg.solve(matrix, jnp.ones(63)), rtol=1e-6, atol=1e-6)
    indefinite = symmetric(40, getkey())
    solution = solve(indefinite, b[:40], Deflated(MINRES(), jr.normal(getkey(), (3, 40))))
    assert relres(indefinite, solution.value, b[:40]) <= 1e-11
    with pytest.raises(ValueError, match="tagged symmetric"):
        solve(general(5, getkey()), b[:5], Deflated(FGMRES(), jnp.ones((1, 5))), ())


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1), log_cond=st.floats(0, 4), slack=st.floats(0.3, 1), steps=st.integers(1, 40)
)
def test_error_bounds_hold(seed, log_cond, slack, steps):
    # Gauss-Radau at every step of the way, in the energy norm.
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(30, 30)))
    matrix = (q * np.exp(rng.uniform(0, log_cond * np.log(10), 30))[None, :]) @ q.T
    b = rng.normal(size=30)
    low = np.linalg.eigvalsh(matrix)[0]
    lower, upper, x = bounded(jnp.asarray(matrix), jnp.asarray(b), jnp.asarray(slack * low), jnp.asarray(0.0), steps)
    e = np.asarray(x) - np.linalg.solve(matrix, b)
    error = np.sqrt(e @ matrix @ e)
    floor = 1e-13 * np.linalg.norm(b) * 10 ** (log_cond / 2)
    assert lower <= error * (1 + 1e-6) + floor
    assert error <= upper * (1 + 1e-6) + floor


@eqx.filter_jit
def bounded(matrix, b, low, rtol, steps):
    certificate = lx.linear_solve(
        lx.MatrixLinearOperator(matrix, PSD), b, PCG(rtol, max_steps=steps, lower_bound=low, mode="soft"), throw=False
    )
    stats = certificate.stats["certificate"]
    return stats.error_lower, stats.error_upper, certificate.value


def test_error_bounds_are_tight(getkey):
    # Within 2.6 of the error over the whole run, on a spectrum with condition 1e3 and a bound of 0.9 of the smallest.
    matrix, b = matrix_with(np.geomspace(1, 1e3, 60), getkey()), jr.normal(getkey(), (60,))
    exact = jnp.linalg.solve(matrix, b)
    diagonal = jnp.diagonal(matrix)
    for steps in (5, 20, 40):
        _, upper, x = bounded(matrix, b, jnp.asarray(0.9), jnp.asarray(0.0), steps)
        error = jnp.sqrt((x - exact) @ matrix @ (x - exact))
        assert error <= upper <= 4 * error
    # With a preconditioner the bound is on the spectrum of M A.
    low = 0.9 * float(jnp.min(jnp.linalg.eigvals(matrix / diagonal[:, None]).real))
    precond = lx.TaggedLinearOperator(lx.DiagonalLinearOperator(1 / diagonal), PSD)
    solution = solve(matrix, b, PCG(1e-3, precond=precond, lower_bound=low), PSD)
    error = jnp.sqrt((solution.value - exact) @ matrix @ (solution.value - exact))
    certificate = solution.stats["certificate"]
    assert certificate.error_lower <= error <= certificate.error_upper <= 5 * error


def test_no_error_bound_where_its_assumption_fails(getkey):
    # An operator that is not definite: whatever was computed, it bounds nothing.
    matrix, b = symmetric(20, getkey()), jr.normal(getkey(), (20,))
    certificate = solve(matrix, b, PCG(1e-8, lower_bound=0.5), PSD).stats["certificate"]
    assert certificate.error_upper == jnp.inf
    assert jnp.isfinite(certificate.error_lower)
    assert any("lower_bound" in assumption for assumption in certificate.assumptions)
    definite = solve(matrix @ matrix, 0 * b, PCG(1e-8, lower_bound=0.5), PSD).stats["certificate"]
    assert definite.error_upper == definite.error_lower == 0


def test_bad_input(getkey):
    b = jnp.ones(4)
    matrix = lx.MatrixLinearOperator(jnp.eye(4))
    with pytest.raises(ValueError, match="tagged symmetric"):
        lx.linear_solve(matrix, b, MINRES())
    with pytest.raises(ValueError, match="tagged positive semidefinite"):
        lx.linear_solve(matrix, b, ConjugateDirections(lambda r: r))
    with pytest.raises(ValueError, match="square"):
        lx.linear_solve(lx.MatrixLinearOperator(jnp.ones((4, 3))), b, FGMRES())
    with pytest.raises(ValueError, match="`precond` must have the operator's structure"):
        lx.linear_solve(matrix, b, FGMRES(precond=lx.MatrixLinearOperator(jnp.eye(3))))
    with pytest.raises(ValueError, match="`restart`"):
        FGMRES(restart=0)
    with pytest.raises(ValueError, match="`memory`"):
        ConjugateDirections(lambda r: r, memory=-1)
    with pytest.raises(ValueError, match="`lower_bound`"):
        PCG(lower_bound=0.0)
    operator = lx.FunctionLinearOperator(lambda v: 2 * v, jax.eval_shape(lambda: b))
    with pytest.raises(ValueError, match="cannot convert"):
        lx.linear_solve(operator, b, Refined(lx.LU()))
    complex_symmetric = lx.MatrixLinearOperator(jnp.asarray(1j) * jnp.eye(4, dtype=jnp.complex128), SYM)
    with pytest.raises(ValueError, match="definite, if it is complex"):
        lx.linear_solve(complex_symmetric, b.astype(jnp.complex128), MINRES())
    for solver in (MINRES(), FGMRES()):
        assert solve(jnp.eye(4), b.at[1].set(jnp.nan), solver).stats["result"] == RESULTS.nonfinite
        assert solve(jnp.eye(4).at[0, 0].set(jnp.inf), b, solver).stats["result"] == RESULTS.nonfinite
    indefinite = lx.TaggedLinearOperator(lx.DiagonalLinearOperator(jnp.array([1.0, -1, 1, 1])), PSD)
    assert solve(jnp.eye(4), b, MINRES(precond=indefinite)).value is not None
    assert solve(symmetric(4, getkey()), -b, MINRES(precond=indefinite)).stats["result"] in (
        RESULTS.indefinite,
        RESULTS.successful,
    )
