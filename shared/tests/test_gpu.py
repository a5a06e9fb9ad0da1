import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from implicit_core.krylov import PCG
from implicit_core.operators import SparseOperator


pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_pcg_on_a_sparse_operator(dtype):
    # -u'' + u on a line, on the GPU: scatter-add there is not ordered, the solution must not depend on it.
    n = 10_000
    i = np.arange(n)
    rows, cols = np.concatenate([i, i[1:], i[:-1]]), np.concatenate([i, i[:-1], i[1:]])
    values = np.concatenate([np.full(n, 3.0), np.full(2 * (n - 1), -1.0)])
    with jax.default_device(jax.devices("gpu")[0]):
        operator = SparseOperator(
            jnp.asarray(values, dtype), jnp.asarray(rows), jnp.asarray(cols), (n, n), tags=lx.positive_semidefinite_tag
        )
        b = jnp.asarray(np.random.default_rng(0).normal(size=n), dtype)
        rtol = 1e-5 if dtype == jnp.float32 else 1e-12
        solution = lx.linear_solve(operator, b, PCG(rtol))
    residual = np.asarray(b - operator.mv(solution.value))
    assert np.linalg.norm(residual) <= 10 * rtol * np.linalg.norm(np.asarray(b))
