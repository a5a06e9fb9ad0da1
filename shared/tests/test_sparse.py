import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from implicit_core.krylov import PCG
from implicit_core.operators import SparseOperator
from stationary_testkit import finite_difference_jvp, no_retrace, tree_allclose, vjp_matches_jvp


def random_operator(key, shape=(7, 5), nnz=20, dtype=jnp.float64, **kwargs):
    # Random positions repeat; the last slots are padding.
    value_key, row_key, col_key = jr.split(key, 3)
    values = jr.normal(value_key, (nnz,), dtype).at[-3:].set(0)
    rows, cols = jr.randint(row_key, (nnz,), 0, shape[0]), jr.randint(col_key, (nnz,), 0, shape[1])
    return SparseOperator(values, rows, cols, shape, **kwargs)


def dense(operator):
    out = np.zeros(operator.shape, operator.values.dtype)
    np.add.at(out, (np.asarray(operator.rows), np.asarray(operator.cols)), np.asarray(operator.values))
    return jnp.asarray(out)


@eqx.filter_jit
def everything(operator, x, y, columns):
    conjugate = lx.conj(operator).as_matrix()
    return (
        operator.mv(x),
        operator.mm(columns),
        operator.T.mv(y),
        operator.as_matrix(),
        operator.T.as_matrix(),
        operator.diagonal(),
        conjugate,
    )


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(jnp.float32, (7, 5)), (jnp.float64, (7, 5)), (jnp.complex128, (5, 7)), (jnp.float64, (6, 6))],
)
def test_against_dense(dtype, shape, getkey):
    operator = random_operator(getkey(), shape, dtype=dtype)
    matrix = np.asarray(dense(operator))
    x, y = jr.normal(getkey(), shape[1:], dtype), jr.normal(getkey(), shape[:1], dtype)
    columns = jr.normal(getkey(), (shape[1], 4), dtype)
    expected = (
        matrix @ np.asarray(x),
        matrix @ np.asarray(columns),
        matrix.T @ np.asarray(y),
        matrix,
        matrix.T,
        np.diagonal(matrix),
        matrix.conj(),
    )
    for ours, theirs in zip(everything(operator, x, y, columns), expected, strict=True):
        assert ours.dtype == dtype
        assert np.allclose(ours, theirs, atol=1e-5)
    assert operator.in_structure() == jax.ShapeDtypeStruct(shape[1:], dtype)
    assert operator.out_structure() == jax.ShapeDtypeStruct(shape[:1], dtype)


def test_derivatives(getkey):
    operator = random_operator(getkey())
    x = jr.normal(getkey(), (5,))

    @jax.jit
    def fn(values, x):
        varied = eqx.tree_at(lambda op: op.values, operator, values)
        return varied.mv(x), varied.T.mv(varied.mv(x)), varied.mm(x[:, None]), varied.as_matrix(), varied.diagonal()

    primals = operator.values, x
    tangents = jr.normal(getkey(), (20,)), jr.normal(getkey(), (5,))
    jvp = jax.jvp(fn, primals, tangents)[1]
    assert tree_allclose(jvp, finite_difference_jvp(fn, primals, tangents), rtol=1e-7, atol=1e-8)
    assert vjp_matches_jvp(fn, primals, key=getkey())


def test_vmap_and_traced_pattern(getkey):
    operators = [random_operator(getkey()) for _ in range(3)]
    batched = jax.tree_util.tree_map(lambda *leaves: jnp.stack(leaves), *operators)
    x = jr.normal(getkey(), (3, 5))
    values = eqx.filter_vmap(lambda op, v: op.mv(v))(batched, x)

    @no_retrace
    def build(values, rows, cols, v):
        return SparseOperator(values, rows, cols, (7, 5)).mv(v)

    for k, operator in enumerate(operators):
        assert jnp.allclose(values[k], operator.mv(x[k]))
        assert jnp.allclose(build(operator.values, operator.rows, operator.cols, x[k]), operator.mv(x[k]))


def test_sorted_promises_survive(getkey):
    operator = random_operator(getkey())
    order = jnp.argsort(operator.rows)
    ordered = SparseOperator(
        operator.values[order], operator.rows[order], operator.cols[order], operator.shape, rows_sorted=True
    )
    x, y = jr.normal(getkey(), (5,)), jr.normal(getkey(), (7,))
    assert jnp.allclose(ordered.mv(x), operator.mv(x))
    assert jnp.allclose(ordered.T.mv(y), operator.T.mv(y))
    assert ordered.transpose().cols_sorted
    assert not ordered.transpose().rows_sorted


def test_indices_outside(getkey):
    # Beyond the shape: nothing, in every method. Negative: from the end, in every method.
    inside = SparseOperator(jnp.array([1.0, 2.0]), jnp.array([0, 2]), jnp.array([1, 2]), (3, 3))
    outside = SparseOperator(
        jnp.array([1.0, 2.0, 5.0, 7.0]), jnp.array([0, -1, 3, 0]), jnp.array([1, -1, 0, 9]), (3, 3)
    )
    x = jr.normal(getkey(), (3,))
    for a, b in ((inside, outside), (inside.transpose(), outside.transpose())):
        assert jnp.allclose(a.mv(x), b.mv(x))
        assert jnp.allclose(a.mm(x[:, None]), b.mm(x[:, None]))
        assert jnp.allclose(a.as_matrix(), b.as_matrix())
        assert jnp.allclose(a.diagonal(), b.diagonal())


def test_lineax_dispatch(getkey):
    square = random_operator(getkey(), (6, 6))
    assert lx.linearise(square) is square
    assert lx.materialise(square) is square
    assert jnp.allclose(lx.diagonal(square), jnp.diagonal(dense(square)))
    bands = lx.tridiagonal(square)
    for band, offset in zip(bands, (0, -1, 1), strict=True):
        assert jnp.allclose(band, jnp.diagonal(dense(square), offset=offset))
    checks = {
        "is_symmetric": lx.symmetric_tag,
        "is_diagonal": lx.diagonal_tag,
        "is_tridiagonal": lx.tridiagonal_tag,
        "has_unit_diagonal": lx.unit_diagonal_tag,
        "is_lower_triangular": lx.lower_triangular_tag,
        "is_upper_triangular": lx.upper_triangular_tag,
        "is_positive_semidefinite": lx.positive_semidefinite_tag,
        "is_negative_semidefinite": lx.negative_semidefinite_tag,
    }
    reference = lx.MatrixLinearOperator(dense(square))
    for tag in checks.values():
        for promised in (tag, frozenset({tag}), ()):
            tagged = SparseOperator(square.values, square.rows, square.cols, (6, 6), tags=promised)
            like = lx.MatrixLinearOperator(reference.matrix, promised)
            for name in checks:
                check = getattr(lx, name)
                assert check(tagged) == check(like)
                assert check(tagged.T) == check(like.T)
                assert isinstance(check(tagged), bool)
    complex_values = square.values.astype(jnp.complex128)
    hermitian = SparseOperator(complex_values, square.rows, square.cols, (6, 6), tags=lx.positive_semidefinite_tag)
    assert not lx.is_symmetric(hermitian)
    assert lx.is_diagonal(SparseOperator(jnp.ones(1), jnp.zeros(1, int), jnp.zeros(1, int), (1, 1)))


def test_algebra_and_solves(getkey):
    a, b = random_operator(getkey(), (6, 6)), random_operator(getkey(), (6, 6))
    x = jr.normal(getkey(), (6,))
    for ours, theirs in (
        (a + b, dense(a) + dense(b)),
        (a @ b, dense(a) @ dense(b)),
        (-a, -dense(a)),
        (2.0 * a, 2 * dense(a)),
        (a / 3.0, dense(a) / 3),
        (lx.TaggedLinearOperator(a, lx.symmetric_tag), dense(a)),
    ):
        assert jnp.allclose(ours.mv(x), theirs @ x)
        assert jnp.allclose(lx.materialise(ours).as_matrix(), theirs)


@pytest.mark.parametrize("solver", [PCG(1e-12), lx.LU(), lx.Cholesky(), lx.QR()], ids=lambda s: type(s).__name__)
def test_gradient_through_a_solve(solver, getkey):
    # A graph Laplacian with weights, shifted: what sparse operators are for.
    rows, cols = jnp.array([0, 1, 2, 3, 0]), jnp.array([1, 2, 3, 4, 4])
    weights, b = jnp.exp(jr.normal(getkey(), (5,))), jr.normal(getkey(), (5,))

    def build(weights):
        values = jnp.concatenate([-weights, -weights, weights, weights, jnp.ones(5)])
        i = jnp.concatenate([rows, cols, rows, cols, jnp.arange(5)])
        j = jnp.concatenate([cols, rows, rows, cols, jnp.arange(5)])
        return SparseOperator(values, i, j, (5, 5), tags=lx.positive_semidefinite_tag)

    def loss(weights, b):
        return jnp.sum(lx.linear_solve(build(weights), b, solver).value ** 2)

    def exact(weights, b):
        return jnp.sum(jnp.linalg.solve(build(weights).as_matrix(), b) ** 2)

    ours = jax.jit(jax.grad(loss, (0, 1)))(weights, b)
    assert tree_allclose(ours, jax.grad(exact, (0, 1))(weights, b), rtol=1e-8, atol=1e-10)


def test_errors():
    values, index = jnp.ones(3), jnp.arange(3)
    with pytest.raises(TypeError, match="`values` must be of floating point"):
        SparseOperator(index, index, index, (3, 3))
    with pytest.raises(TypeError, match="`cols` must be integers"):
        SparseOperator(values, index, values, (3, 3))
    with pytest.raises(ValueError, match="one shape"):
        SparseOperator(values, index, jnp.arange(2), (3, 3))
    with pytest.raises(ValueError, match="one shape"):
        SparseOperator(jnp.ones((3, 1)), jnp.zeros((3, 1), int), jnp.zeros((3, 1), int), (3, 3))
    with pytest.raises(ValueError, match="two positive integers"):
        SparseOperator(values, index, index, (3, 0))
