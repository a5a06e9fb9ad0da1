import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from implicit_core import precond as builders
from implicit_core.krylov import PCG
from implicit_core.operators import BatchedOperator, SaddleOperator, ShiftedOperator, SparseOperator
from implicit_core.precond import jacobi, saddle
from stationary_testkit import tree_allclose


PSD = lx.positive_semidefinite_tag
Matrix = lx.MatrixLinearOperator
# Under `jit`, as they are used; eagerly each of their operations would be compiled by itself.
block_jacobi = eqx.filter_jit(builders.block_jacobi)
deflation = eqx.filter_jit(builders.deflation)
nystrom = eqx.filter_jit(builders.nystrom)


def with_spectrum(key, values, dtype=jnp.float64):
    basis, _ = jnp.linalg.qr(jr.normal(key, (values.size, values.size), dtype))
    basis = basis.astype(dtype)
    return Matrix((basis * values.astype(dtype)[None, :]) @ basis.conj().T, PSD), basis


@eqx.filter_jit
def steps(operator, b, precond=None, rtol=1e-8):
    solution = lx.linear_solve(operator, b, PCG(rtol, precond=precond, mode="soft", max_steps=2000))
    return solution.stats["num_steps"].astype(float), solution.stats["certificate"].true_relres


@eqx.filter_jit
def _dense(operator):
    return operator.as_matrix()


def check_preconditioner(precond, structure):
    """Check what every preconditioner promises: tagged, Hermitian, semidefinite, of the structure, finite."""
    assert lx.is_positive_semidefinite(precond)
    assert eqx.tree_equal(precond.in_structure(), structure)
    assert eqx.tree_equal(precond.out_structure(), structure)
    matrix = np.asarray(_dense(precond))
    assert np.all(np.isfinite(matrix))
    eps = np.finfo(matrix.dtype).eps
    tol = 1e3 * eps * np.abs(matrix).max()
    assert np.allclose(matrix, matrix.conj().T, atol=tol)
    if np.iscomplexobj(matrix):
        assert np.allclose(_dense(precond.T), matrix.T, atol=tol)
    else:
        assert precond.T is precond or isinstance(precond, lx.TaggedLinearOperator)
    assert np.linalg.eigvalsh(matrix)[0] >= -tol
    return matrix


# Jacobi.


def test_jacobi_mends_scales(getkey):
    n = 204
    coupling = jr.uniform(getkey(), (n, n), minval=-1.0) / n
    scale = 10 ** jnp.linspace(-3, 3, n)
    matrix = scale[:, None] * (jnp.eye(n) + coupling + coupling.T) * scale[None, :]
    operator, b = Matrix(matrix, PSD), jr.normal(getkey(), (n,))
    assert steps(operator, b)[0] > 500
    count, relres = steps(operator, b, jacobi(operator))
    assert count <= 12
    assert relres < 1e-7


def test_jacobi_diagonal():
    # Magnitudes; a zero counts as the largest entry; extreme entries stay finite.
    diagonal = jnp.array([2.0, -4.0, 0.0, 1e-300])
    rows = jnp.arange(4)
    matrix = check_preconditioner(
        jacobi(SparseOperator(diagonal, rows, rows, (4, 4))), jax.eval_shape(lambda: diagonal)
    )
    assert np.allclose(np.diagonal(matrix), [0.5, 0.25, 0.25, 1e300])
    tree = {"a": jnp.array([2.0], jnp.float32), "b": jnp.array([[4.0, 1e-45]], jnp.float32)}
    precond = jacobi(lx.DiagonalLinearOperator(tree))
    matrix = check_preconditioner(precond, jax.eval_shape(lambda: tree))
    assert np.allclose(np.diagonal(matrix), [0.5, 0.25, 0.25])
    assert np.allclose(jacobi(Matrix(jnp.zeros((2, 2)))).as_matrix(), np.eye(2))


# Block Jacobi.


def blocks_of(key, dtype=jnp.float64):
    half = jr.normal(key, (5, 3, 3), dtype)
    return half @ jnp.conj(jnp.swapaxes(half, 1, 2)) + jnp.eye(3, dtype=dtype)[None]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex128])
def test_block_jacobi_is_exact_on_blocks(dtype, getkey):
    blocks = blocks_of(getkey(), dtype)
    dense = jax.scipy.linalg.block_diag(*blocks)
    precond = block_jacobi(blocks)
    matrix = check_preconditioner(precond, jax.ShapeDtypeStruct((15,), dtype))
    assert np.allclose(matrix @ dense, np.eye(15), atol=1e-3 if dtype == jnp.float32 else 1e-10)
    if dtype == jnp.complex128:
        assert steps(Matrix(dense, PSD), jr.normal(getkey(), (15,), dtype), precond)[0] == 1


def test_block_jacobi_on_structures(getkey):
    # Members with two leaves: the flattened order of the whole is not that of the members.
    blocks = blocks_of(getkey())
    structure = {"a": jax.ShapeDtypeStruct((1,), float), "b": jax.ShapeDtypeStruct((2,), float)}

    def member(matrix):
        def mv(v):
            out = matrix @ jnp.concatenate([v["a"], v["b"]])
            return {"a": out[:1], "b": out[1:]}

        return lx.FunctionLinearOperator(mv, structure, PSD)

    batched = BatchedOperator(eqx.filter_vmap(member)(blocks))
    matrix = check_preconditioner(block_jacobi(batched), batched.in_structure())
    assert np.allclose(matrix @ batched.as_matrix(), np.eye(15), atol=1e-10)


def test_block_jacobi_of_bad_blocks():
    # Badly scaled; indefinite; singular; zero.
    scale = jnp.diag(jnp.array([1e6, 1e-6]))
    graded = scale @ jnp.array([[1.0, 0.5], [0.5, 1.0]]) @ scale
    blocks = jnp.stack([graded, jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.ones((2, 2)), jnp.zeros((2, 2))])
    matrix = check_preconditioner(block_jacobi(blocks), jax.ShapeDtypeStruct((8,), float))
    assert np.allclose(matrix[:2, :2] @ graded, np.eye(2), atol=1e-3)
    magnitude = np.array([[2.0, 1.0], [1.0, 2.0]])  # eigenvalues 3 and |-1|
    assert np.allclose(matrix[2:4, 2:4], np.linalg.inv(magnitude))
    assert np.allclose(matrix[4:6, 4:6] @ np.ones(2), 0.5)
    assert np.allclose(matrix[6:, 6:], np.eye(2))
    ones = jnp.array([4.0, -2.0]).reshape(2, 1, 1)
    assert np.allclose(block_jacobi(ones).as_matrix(), jacobi(lx.DiagonalLinearOperator(ones[:, 0, 0])).as_matrix())


# Nystrom.


def test_nystrom_counts(getkey):
    # The figures of the specification: 169 and 53, from another random matrix.
    mu, i = 1e-2, jnp.arange(1000.0)
    kernel, _ = with_spectrum(getkey(), 1e4 / (1 + i) ** 2)
    operator, b = ShiftedOperator(kernel, mu), jr.normal(getkey(), (1000,))
    for rank, expected in ((50, 169), (200, 53)):
        count, relres = steps(operator, b, nystrom(kernel, rank, key=getkey(), shift=mu))
        assert abs(count - expected) <= 0.1 * expected
        assert relres < 1e-7
    outliers, _ = with_spectrum(getkey(), jnp.where(i < 5, 1e4, 1 + i / 1000))
    count, _ = steps(ShiftedOperator(outliers, mu), b, nystrom(outliers, 50, key=getkey(), shift=mu))
    assert abs(count - 11) <= 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex128])
def test_nystrom_of_full_rank_is_the_inverse(dtype, getkey):
    # Up to the factor that makes the least eigenvalue one.
    values = jnp.array([4.0, 3.0, 2.0, 1.0])
    kernel, _ = with_spectrum(getkey(), values, dtype)
    for mu in (0.0, 0.5):
        precond = nystrom(kernel, 4, key=getkey(), shift=jnp.array(mu))
        matrix = check_preconditioner(precond, jax.ShapeDtypeStruct((4,), dtype))
        product = matrix @ np.asarray(kernel.matrix + mu * jnp.eye(4, dtype=dtype)) / (1 + mu)
        assert np.allclose(product, np.eye(4), atol=1e-5 if dtype == jnp.float32 else 1e-12)


def test_nystrom_of_deficient_operators(getkey):
    structure = jax.ShapeDtypeStruct((6,), float)
    kernel, _ = with_spectrum(getkey(), jnp.array([5.0, 3.0, 0.0, 0.0, 0.0, 0.0]))
    for factor in (1.0, 0.0, -1.0):
        for mu in (0.0, 0.1):
            op = Matrix(factor * kernel.matrix, PSD)
            check_preconditioner(nystrom(op, 4, key=getkey(), shift=jnp.array(mu)), structure)


# Deflation.


OUTLIERS = jnp.array([1e-3, 1e-2, 1e2, 1e3])


def with_outliers(key, outliers):
    return with_spectrum(key, jnp.concatenate([outliers, jnp.linspace(1, 2, 200)]))


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_deflating_outliers_leaves_the_rest(unit, getkey):
    key, b = getkey(), jr.normal(getkey(), (204,))
    operator, basis = with_outliers(key, OUTLIERS)
    operator = Matrix(unit * operator.matrix, PSD)
    rest, _ = with_outliers(key, jnp.full(4, 1.5))
    alone, _ = steps(rest, b)
    vectors = basis[:, :4].T
    assert steps(operator, b)[0] > 2 * alone
    assert steps(operator, b, deflation(operator, vectors))[0] <= alone + 1
    # Rough vectors are nearly as good, and so is any basis of their span.
    noise = jr.normal(getkey(), vectors.shape) / 204**0.5
    mixed = jr.normal(getkey(), (4, 4)) @ (vectors + 1e-2 * noise)
    count, relres = steps(operator, b, deflation(operator, mixed))
    assert count <= alone + 1
    assert relres < 1e-7
    assert steps(operator, b, deflation(operator, vectors + 0.1 * noise))[0] <= alone + 6


def test_deflation_with_a_base(getkey):
    # Outliers in the metric of the base.
    core, basis = with_outliers(getkey(), OUTLIERS)
    scale, b = 10 ** jr.uniform(getkey(), (204,), minval=-2.0, maxval=2.0), jr.normal(getkey(), (204,))
    operator = Matrix(scale[:, None] * core.matrix * scale[None, :], PSD)
    base = lx.TaggedLinearOperator(lx.DiagonalLinearOperator(scale**-2), PSD)
    alone, _ = steps(operator, b, base)
    both, relres = steps(operator, b, deflation(operator, basis[:, :4].T / scale[None, :], base))
    assert relres < 1e-7
    assert both <= 0.6 * alone


def test_deflation_is_exact_on_its_vectors(getkey):
    # M A w = tau w on the span for any vectors whatever, of any structure.
    matrix = with_spectrum(getkey(), jnp.linspace(1, 9, 5), jnp.complex128)[0].matrix
    structure = (jax.ShapeDtypeStruct((2,), matrix.dtype), jax.ShapeDtypeStruct((3, 1), matrix.dtype))

    def mv(v):
        out = matrix @ jnp.concatenate([v[0], v[1][:, 0]])
        return out[:2], out[2:, None]

    operator = lx.FunctionLinearOperator(mv, structure, PSD)
    W = (jr.normal(getkey(), (2, 2), matrix.dtype), jr.normal(getkey(), (2, 3, 1), matrix.dtype))
    precond = deflation(operator, W, lx.TaggedLinearOperator(lx.IdentityLinearOperator(structure), PSD))
    check_preconditioner(precond, structure)
    images = jax.jit(jax.vmap((precond @ operator).mv))(W)
    ratios = jnp.concatenate([(a / b).ravel() for a, b in zip(images, W, strict=True)])
    assert jnp.allclose(ratios, ratios[0])
    assert 1 < ratios[0].real < 9


def test_deflation_by_poor_vectors(getkey):
    # Zero, repeated, dependent, of any size: as if given once and properly, or not at all.
    dtype, tol = jnp.float32, 1e-4
    operator, _ = with_spectrum(getkey(), jnp.linspace(1, 5, 6), dtype)
    structure = jax.ShapeDtypeStruct((6,), dtype)
    w = jr.normal(getkey(), (2, 6), dtype)
    once = check_preconditioner(deflation(operator, w), structure)
    poor = jnp.concatenate([jnp.zeros((3, 6), dtype), 1e15 * w, 1e-15 * w, w[:1] + w[1:], w[:1]])
    assert np.allclose(check_preconditioner(deflation(operator, poor), structure), once, atol=tol)
    assert np.allclose(deflation(operator, jnp.zeros((9, 6), dtype)).as_matrix(), np.eye(6))
    # More vectors than unknowns: the inverse, but for the unit.
    many = check_preconditioner(deflation(operator, jr.normal(getkey(), (9, 6), dtype)), structure)
    product = many @ np.asarray(operator.matrix)
    assert np.allclose(product, product[0, 0] * np.eye(6), atol=tol)
    assert 1 <= product[0, 0] < 6
    # In extreme units.
    for unit in (1e-25, 1e25):
        scaled = check_preconditioner(deflation(Matrix(unit * operator.matrix, PSD), w), structure)
        assert np.allclose(scaled, once, atol=tol)
    check_preconditioner(deflation(Matrix(0 * operator.matrix, PSD), w), structure)


def test_deflation_of_gauge_vectors(getkey):
    # A Laplacian: constants are its null vectors. Given alone, or beside others, they are projected out.
    n = 60
    laplacian = 2 * jnp.eye(n) - jnp.roll(jnp.eye(n), 1, 0) - jnp.roll(jnp.eye(n), -1, 0)
    operator, b = Matrix(laplacian, PSD), jr.normal(getkey(), (n,))
    b = b - jnp.mean(b)
    slow = jnp.cos(2 * jnp.pi * jnp.arange(float(n)) / n)
    plain, _ = steps(operator, b)
    structure = jax.ShapeDtypeStruct((n,), float)
    base = lx.TaggedLinearOperator(lx.DiagonalLinearOperator(jnp.linspace(1, 2, n)), PSD)
    for other in (jnp.zeros(n), slow):
        precond = deflation(operator, jnp.stack([jnp.ones(n), other]))
        matrix = check_preconditioner(precond, structure)
        assert np.allclose(matrix @ np.ones(n), 0, atol=1e-12)
        count, relres = steps(operator, b, precond)
        assert count <= plain + 1
        assert relres < 1e-7
        # So the solution has none of it, even if the preconditioner for the rest would put some in.
        based = deflation(operator, jnp.stack([jnp.ones(n), other]), base)
        assert np.allclose(check_preconditioner(based, structure) @ np.ones(n), 0, atol=1e-12)


def test_deflation_of_indefinite_operators(getkey):
    values = jnp.array([-100.0, -2.0, 1.0, 2.0, 3.0])
    basis, _ = jnp.linalg.qr(jr.normal(getkey(), (5, 5)))
    operator = lx.MatrixLinearOperator((basis * values[None, :]) @ basis.T, lx.symmetric_tag)
    matrix = check_preconditioner(deflation(operator, basis[:, :2].T), jax.ShapeDtypeStruct((5,), float))
    spectrum = jnp.sort(jnp.linalg.eigvals(matrix @ operator.matrix).real)
    assert jnp.allclose(spectrum[2:], jnp.array([1.0, 2.0, 3.0]))
    assert jnp.allclose(spectrum[0], spectrum[1])
    assert -3 <= spectrum[0] <= -1
    # Next to no curvature along the vector, which is not a null vector: it counts as not given.
    swap = lx.MatrixLinearOperator(jnp.array([[1e-12, 1.0], [1.0, 0.0]]), lx.symmetric_tag)
    assert np.allclose(deflation(swap, jnp.array([[1.0, 0.0]])).as_matrix(), np.eye(2))


# Saddle, and what holds for all.


def test_saddle(getkey):
    blocks = blocks_of(getkey())
    H, C = blocks[0], jr.normal(getkey(), (2, 3))
    schur = C @ jnp.linalg.solve(H, C.T)
    operator = SaddleOperator(Matrix(H, PSD), Matrix(C))
    precond = saddle(block_jacobi(H[None]), block_jacobi(schur[None]))
    matrix = check_preconditioner(precond, operator.in_structure())
    spectrum = np.sort(np.linalg.eigvals(matrix @ operator.as_matrix()).real)
    golden = 5**0.5 / 2
    assert np.allclose(spectrum, [0.5 - golden] * 2 + [1.0] + [0.5 + golden] * 2)


def test_under_jit_vmap_and_grad(getkey):
    # Built inside, for a batch of operators; the derivative of the solution is that without.
    blocks, b = blocks_of(getkey())[:2], jr.normal(getkey(), (2, 3))
    w = jr.normal(getkey(), (2, 3))

    def loss(matrix, b, build):
        operator = Matrix(matrix, PSD)
        return jnp.sum(lx.linear_solve(operator, b, PCG(1e-12, precond=build(operator, matrix))).value ** 2)

    def run(build):
        return jax.jit(jax.vmap(jax.grad(lambda m, b: loss(m, b, build))))(blocks, b)

    expected = run(lambda *_: None)

    def everything(op, m):
        inner = jacobi(op) @ op @ block_jacobi(m[None]) @ op @ nystrom(op, 2, key=jr.key(0), shift=0.1)
        probe = jax.lax.stop_gradient(inner.mv(jnp.ones(3)))
        return deflation(op, jnp.concatenate([w, probe[None]])[:2], jacobi(op))

    assert tree_allclose(run(everything), expected, rtol=1e-9)


def test_errors():
    a, wide = Matrix(jnp.eye(3), PSD), Matrix(jnp.ones((2, 3)))
    untagged, small = Matrix(jnp.eye(3)), Matrix(jnp.eye(2), PSD)
    key = jr.key(0)
    for build, error, match in (
        (lambda: jacobi(wide), ValueError, "`op` must map a space to itself"),
        (lambda: block_jacobi(jnp.ones((2, 3, 2))), ValueError, "`blocks` must have shape"),
        (lambda: nystrom(a, 4, key=key), ValueError, "`rank` must be between 1 and 3; got 4"),
        (lambda: nystrom(a, 0, key=key), ValueError, "`rank` must be"),
        (lambda: nystrom(a, 1, key=key, shift=-1.0), ValueError, "`shift` must be non-negative"),
        (lambda: deflation(a, jnp.ones((1, 2))), ValueError, "`W` must have the structure of `op`"),
        (lambda: deflation(a, jnp.ones(3)), ValueError, "`W` must have the structure of `op`"),
        (lambda: deflation(a, jnp.ones((0, 3))), ValueError, "`W` must have the structure of `op`"),
        (lambda: deflation(a, jnp.ones((1, 3)), untagged), ValueError, "`base` must be tagged"),
        (lambda: deflation(a, jnp.ones((1, 3)), small), ValueError, "`base` must have the structure"),
        (lambda: saddle(a, untagged), ValueError, "`S_inv` must be tagged"),
        (lambda: saddle(untagged, a), ValueError, "`H_inv` must be tagged"),
    ):
        with pytest.raises(error, match=match):
            build()
