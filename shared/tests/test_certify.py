import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from implicit_core import certify
from implicit_core.krylov import PCG


def matrix_of(shape, cond, key, dtype=jnp.float64):
    u, _ = jnp.linalg.qr(jr.normal(key, (shape[0], shape[0])))
    v, _ = jnp.linalg.qr(jr.normal(jr.fold_in(key, 1), (shape[1], shape[1])))
    k = min(shape)
    return ((u[:, :k] * jnp.geomspace(1, cond, k)[None, :]) @ v[:, :k].T).astype(dtype)


@pytest.mark.parametrize("shape", [(40, 40), (40, 25), (25, 40)])
def test_condition(shape, getkey):
    matrix = matrix_of(shape, 300.0, getkey())
    operator = lx.MatrixLinearOperator(matrix)
    whole = certify.condition(operator, key=getkey(), num_steps=40)
    assert whole.kind == "estimated"
    assert float(jnp.asarray(whole.value)) == pytest.approx(300.0, rel=1e-8)
    for steps in (5, 15):
        # From below, and better with more steps.
        part = certify.condition(operator, key=jr.key(3), num_steps=steps)
        assert 1 <= jnp.asarray(part.value) <= 300.0 * (1 + 1e-10)
    few = matrix_of(shape, 3.0, getkey())
    assert jnp.asarray(certify.condition(lx.MatrixLinearOperator(few), key=getkey(), num_steps=15).value) >= 2.5


def test_condition_of_special_operators(getkey):
    condition = lambda matrix: jnp.asarray(certify.condition(lx.MatrixLinearOperator(matrix), key=jr.key(0)).value)
    assert float(condition(3 * jnp.eye(6))) == pytest.approx(1.0)
    assert float(condition(jnp.diag(jnp.array([1.0, 1, 1, 4])))) == pytest.approx(4.0)
    assert condition(jnp.diag(jnp.array([1.0, 2, 0]))) == jnp.inf
    assert condition(jnp.zeros((3, 3))) == jnp.inf
    unitary, _ = jnp.linalg.qr(jr.normal(getkey(), (8, 8), jnp.complex128))
    assert float(condition(unitary * jnp.geomspace(1, 7, 8).astype(unitary.dtype)[None, :])) == pytest.approx(7.0)
    single = matrix_of((20, 20), 50.0, getkey(), jnp.float32)
    assert float(jax.jit(condition)(single)) == pytest.approx(50.0, rel=1e-3)
    tree = lx.FunctionLinearOperator(
        lambda v: {"a": 2 * v["a"], "b": 10 * v["b"]},
        {"a": jax.ShapeDtypeStruct((3,), float), "b": jax.ShapeDtypeStruct((2, 2), float)},
    )
    assert float(jnp.asarray(certify.condition(tree, key=getkey()).value)) == pytest.approx(5.0)


def test_residual(getkey):
    matrix, b = matrix_of((20, 20), 50.0, getkey()), jr.normal(getkey(), (20,))
    gram = matrix.T @ matrix
    operator = lx.MatrixLinearOperator(gram, lx.positive_semidefinite_tag)
    x = lx.linear_solve(operator, b, PCG(1e-3)).value
    certificate = certify.residual(operator, x, b, lower_bound=1.0)
    expected = np.linalg.norm(b - gram @ x) / np.linalg.norm(b)
    assert float(jnp.asarray(certificate.value)) == pytest.approx(expected, rel=1e-10)
    assert certificate.kind == "proved"
    error = jnp.linalg.norm(x - jnp.linalg.solve(gram, b))
    assert certificate.error_upper is not None
    assert error <= certificate.error_upper
    assert certify.residual(operator, x, b).error_upper is None
    assert certify.residual(operator, 0 * x, 0 * b).value == 0
    with pytest.raises(ValueError, match="`b` must have the operator's structure"):
        certify.residual(operator, x, b[:3])
