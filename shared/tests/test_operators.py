import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import lineax as lx
import numpy as np
import pytest
from implicit_core.operators import (
    AbstractOperator,
    BatchedOperator,
    BlockOperator,
    MaskedOperator,
    NormalOperator,
    SaddleOperator,
    ShiftedOperator,
    SparseOperator,
)


Matrix = lx.MatrixLinearOperator
MASK = np.array([True, False, True, True])


def normal(seed, shape, dtype):
    return jr.normal(jr.key(seed), shape, dtype)


def spd(seed, size, dtype):
    matrix = normal(seed, (size, size), dtype)
    return matrix @ matrix.conj().T + size * jnp.eye(size, dtype=dtype)


def wide(seed, dtype):
    # A function on a pytree: transposes and dense matrices have to be found by tracing it.
    matrix = normal(seed, (2, 4), dtype)
    structure = {"a": jax.ShapeDtypeStruct((1,), dtype), "b": jax.ShapeDtypeStruct((3,), dtype)}
    return lx.FunctionLinearOperator(lambda v: matrix @ jnp.concatenate([v["a"], v["b"]]), structure), matrix


def sparse(dtype):
    operator = SparseOperator(normal(0, (3,), dtype), jnp.array([0, 1, 0]), jnp.array([1, 0, 2]), (2, 3))
    return operator, operator.as_matrix()


def block(dtype):
    a, b, c = normal(0, (2, 2), dtype), normal(1, (2, 3), dtype), normal(2, (3, 2), dtype)
    operator = BlockOperator([[Matrix(a), Matrix(b)], [Matrix(c), None]])
    return operator, jnp.block([[a, b], [c, jnp.zeros((3, 3), dtype)]])


def saddle(dtype):
    C, matrix = wide(1, dtype)
    H = normal(0, (4, 4), dtype)
    H = H + H.T  # symmetric, also where complex
    unravel = jfu.ravel_pytree(jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), C.in_structure()))[1]
    hessian = lx.FunctionLinearOperator(
        lambda v: unravel(H @ jnp.concatenate([v["a"], v["b"]])), C.in_structure(), lx.symmetric_tag
    )
    return SaddleOperator(hessian, C, 0.5), jnp.block([[H, matrix.T], [matrix, -0.5 * jnp.eye(2, dtype=dtype)]])


def masked(dtype):
    matrix = spd(0, 4, dtype)
    keep = MASK[:, None] & MASK[None, :]
    expected = jnp.where(keep, matrix, jnp.diag((~MASK).astype(dtype)))
    return MaskedOperator(Matrix(matrix, lx.positive_semidefinite_tag), jnp.asarray(MASK)), expected


def shifted(dtype):
    matrix = normal(0, (3, 3), dtype)
    return ShiftedOperator(Matrix(matrix), 0.5), matrix + 0.5 * jnp.eye(3, dtype=dtype)


def normal_equations(dtype):
    operator, matrix = wide(0, dtype)
    return NormalOperator(operator, 0.5), matrix.conj().T @ matrix + 0.5 * jnp.eye(4, dtype=dtype)


def batched(dtype):
    matrices = normal(0, (3, 2, 2), dtype)
    expected = jax.scipy.linalg.block_diag(*matrices)
    return BatchedOperator(eqx.filter_vmap(Matrix)(matrices)), expected


def batched_tree(dtype):
    # Members with two leaves: the flattened order is not that of the members.
    operator = BatchedOperator(eqx.filter_vmap(lambda seed: wide(seed, dtype)[0])(jnp.arange(3)))
    matrices = [wide(seed, dtype)[1] for seed in range(3)]
    order = jnp.array([0, 4, 8, 1, 2, 3, 5, 6, 7, 9, 10, 11])
    return operator, jax.scipy.linalg.block_diag(*matrices)[:, order]


def batched_normal(dtype):
    operator, matrix = batched_tree(dtype)
    members = eqx.filter_vmap(lambda op: NormalOperator(op, 0.5))(operator.operator)
    return BatchedOperator(members), matrix.conj().T @ matrix + 0.5 * jnp.eye(12, dtype=dtype)


CASES = [sparse, block, saddle, masked, shifted, normal_equations, batched, batched_tree, batched_normal]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)


def ravel(tree):
    return jfu.ravel_pytree(tree)[0]


def ravel_columns(tree):
    return jax.vmap(ravel, in_axes=-1, out_axes=-1)(tree)


def random_like(key, structure, *extra):
    leaves, treedef = jtu.tree_flatten(structure)
    keys = jr.split(key, len(leaves))
    return treedef.unflatten(jr.normal(k, leaf.shape + extra, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True))


@eqx.filter_jit
def everything(operator, x, y, columns):
    return (
        ravel(operator.mv(x)),
        ravel_columns(operator.mm(columns)),
        ravel(operator.T.mv(y)),
        operator.as_matrix(),
        operator.T.as_matrix(),
        lx.conj(operator).as_matrix(),
        lx.diagonal(operator),
        *lx.tridiagonal(operator),
        ravel(lx.linearise(operator).mv(x)),
        lx.materialise(operator).as_matrix(),
        ravel(lx.conj(operator).T.mv(y)),
    )


@cases
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex128])
def test_against_dense(case, dtype, getkey):
    operator, matrix = case(dtype)
    matrix = np.asarray(matrix)
    x, y = random_like(getkey(), operator.in_structure()), random_like(getkey(), operator.out_structure())
    columns = random_like(getkey(), operator.in_structure(), 2)
    flat_columns = np.asarray(ravel_columns(columns))
    flat_x, flat_y = np.asarray(ravel(x)), np.asarray(ravel(y))
    expected = (
        matrix @ flat_x,
        matrix @ flat_columns,
        matrix.T @ flat_y,
        matrix,
        matrix.T,
        matrix.conj(),
        np.diagonal(matrix),
        np.diagonal(matrix),
        np.diagonal(matrix, -1),
        np.diagonal(matrix, 1),
        matrix @ flat_x,
        matrix,
        matrix.conj().T @ flat_y,
    )
    for ours, theirs in zip(everything(operator, x, y, columns), expected, strict=True):
        assert ours.dtype == dtype
        assert np.allclose(ours, theirs, rtol=1e-5, atol=2e-5)
    assert eqx.tree_equal(jax.eval_shape(operator.mv, x), operator.out_structure())


def test_every_dispatch_function_is_registered():
    # Whatever Lineax version: all that dispatches on an operator is registered, or its default is to raise.
    functions = [fn for name, fn in vars(lx).items() if hasattr(fn, "dispatch") and not name.startswith("_")]
    assert len(functions) >= 13
    for fn in functions:
        assert fn.dispatch(AbstractOperator) is not fn.dispatch(object), fn
