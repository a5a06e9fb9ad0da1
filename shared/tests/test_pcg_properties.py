import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from implicit_core import RESULTS
from implicit_core.krylov import PCG


N = 12


@eqx.filter_jit
def solve(matrix, b, rtol):
    return lx.linear_solve(lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag), b, PCG(rtol), throw=False)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@hypothesis.settings(max_examples=60)
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    log_cond=st.floats(0, 1),
    log_scale=st.floats(-1, 1),
    log_rhs=st.floats(-1, 1),
    log_rtol=st.floats(0.3, 0.8),
)
def test_random_systems(dtype, seed, log_cond, log_scale, log_rhs, log_rtol):
    eps = float(np.finfo(dtype).eps)
    reach = 12 if dtype == np.float32 else 20
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(N, N)))
    cond = eps ** (-0.5 * log_cond)
    eigenvalues = np.exp(rng.uniform(0, np.log(cond), N)) if cond > 1 else np.ones(N)
    matrix = ((q * eigenvalues[None, :]) @ q.T * 10 ** (reach * log_scale)).astype(dtype)
    b = (rng.normal(size=N) * 10 ** (reach * log_rhs)).astype(dtype)
    rtol = eps**log_rtol
    solution = solve(jnp.asarray(matrix), jnp.asarray(b), jnp.asarray(rtol, dtype))
    x = np.asarray(solution.value)
    assert np.all(np.isfinite(x))
    wide = np.longdouble
    true = float(np.linalg.norm(b.astype(wide) - matrix.astype(wide) @ x.astype(wide)) / np.linalg.norm(b.astype(wide)))
    assert true <= max(1.1 * rtol, 100 * eps * cond)
    # The certificate is the true residual, up to the rounding of one product.
    floor = 20 * eps * cond
    assert abs(float(solution.stats["certificate"].true_relres) - true) <= 0.01 * true + floor
    assert bool(solution.result == lx.RESULTS.successful) == bool(solution.stats["result"] == RESULTS.successful)
