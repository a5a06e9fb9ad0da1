import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import lineax as lx
import numpy as np
import pytest
from implicit_core.krylov import PCG
from implicit_core.operators import (
    AbstractOperator,
    BatchedOperator,
    BlockOperator,
    LowRankUpdate,
    MaskedOperator,
    NormalOperator,
    SaddleOperator,
    ShiftedOperator,
    SparseOperator,
    Woodbury,
)
from stationary_testkit import finite_difference_jvp, no_retrace, tree_allclose, vjp_matches_jvp


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


def low_rank(dtype):
    base, C = normal(3, (4, 4), dtype), normal(2, (2, 2), dtype)
    U, V = normal(0, (4, 2), dtype), normal(1, (4, 2), dtype)
    return LowRankUpdate(Matrix(base), U, C, V), base + U @ C @ V.T


CASES = [sparse, low_rank, block, saddle, masked, shifted, normal_equations, batched, batched_tree, batched_normal]
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
        lx.diagonal(operator),
        *lx.tridiagonal(operator),
        ravel(lx.conj(operator).T.mv(y)),
    )


@cases
def test_against_dense(case, getkey):
    # The real ones in the dtype that is not the default.
    dtype = jnp.float32 if case in (masked, batched_normal) else jnp.complex128
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
        np.diagonal(matrix),
        np.diagonal(matrix),
        np.diagonal(matrix, -1),
        np.diagonal(matrix, 1),
        matrix.conj().T @ flat_y,
    )
    for ours, theirs in zip(everything(operator, x, y, columns), expected, strict=True):
        assert ours.dtype == dtype
        assert np.allclose(ours, theirs, rtol=1e-5, atol=2e-5)
    assert eqx.tree_equal(jax.eval_shape(operator.mv, x), operator.out_structure())


def test_every_dispatch_function_is_registered():
    # Whatever the Lineax version: nothing that dispatches on an operator falls through to the default, which raises.
    functions = [fn for name, fn in vars(lx).items() if hasattr(fn, "dispatch") and not name.startswith("_")]
    assert len(functions) >= 13
    for fn in functions:
        assert fn.dispatch(AbstractOperator) is not fn.dispatch(object), fn


CHECKS = {
    lx.is_symmetric: lx.symmetric_tag,
    lx.is_diagonal: lx.diagonal_tag,
    lx.is_tridiagonal: lx.tridiagonal_tag,
    lx.has_unit_diagonal: lx.unit_diagonal_tag,
    lx.is_lower_triangular: lx.lower_triangular_tag,
    lx.is_upper_triangular: lx.upper_triangular_tag,
    lx.is_positive_semidefinite: lx.positive_semidefinite_tag,
    lx.is_negative_semidefinite: lx.negative_semidefinite_tag,
}
PSD, NSD = lx.positive_semidefinite_tag, lx.negative_semidefinite_tag


def affirmed(operator):
    assert all(isinstance(check(operator), bool) for check in CHECKS)
    return {tag for check, tag in CHECKS.items() if check(operator)}


def test_tags_are_those_of_the_dense_matrix():
    # Whatever is kept must hold for the matrix, so tag the parts with all that holds for them and look.
    matrix = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
    part = Matrix(matrix, frozenset(CHECKS.values()) - {lx.unit_diagonal_tag, NSD})
    minus = Matrix(-matrix, NSD)
    mask = jnp.array([True, False, True])
    every = {*CHECKS.values()} - {lx.unit_diagonal_tag, NSD}
    many = lambda op: eqx.filter_vmap(lambda factor: Matrix(factor * op.matrix, op.tags))(jnp.ones(2))
    for operator, expected in (
        (MaskedOperator(part, mask), every),
        (MaskedOperator(minus, mask), {lx.symmetric_tag}),
        (ShiftedOperator(part, 1.0), every),
        (ShiftedOperator(part, 0), every),
        (ShiftedOperator(part, -1.0), every - {PSD}),
        (ShiftedOperator(part, jnp.array(1.0)), every - {PSD}),
        (ShiftedOperator(part, jnp.array(1.0), tags=PSD), every),
        (ShiftedOperator(minus, -1.0), {lx.symmetric_tag, NSD}),
        (ShiftedOperator(minus, 1.0), {lx.symmetric_tag}),
        (NormalOperator(Matrix(matrix[:2])), {lx.symmetric_tag, PSD}),
        (BatchedOperator(many(part)), every),
        (BatchedOperator(many(minus)), {lx.symmetric_tag, NSD}),
        (LowRankUpdate(part, jnp.ones((3, 1))), {lx.symmetric_tag, PSD}),
        (LowRankUpdate(part, jnp.ones((3, 1)), jnp.ones((1, 1))), set()),
        (LowRankUpdate(part, jnp.ones((3, 1)), -jnp.ones((1, 1)), tags=lx.symmetric_tag), {lx.symmetric_tag}),
        (BlockOperator([[part, None], [None, part]], tags=(PSD, lx.diagonal_tag)), {*every} - TRIANGULAR),
        (SaddleOperator(part, Matrix(matrix[:2])), {lx.symmetric_tag}),
    ):
        assert affirmed(operator) == expected, operator
        assert affirmed(operator.T) == expected
        assert affirmed(lx.conj(operator)) == expected
        assert affirmed(lx.linearise(operator)) == expected
    hermitian = NormalOperator(Matrix(matrix.astype(jnp.complex128)))
    assert affirmed(hermitian) == {PSD}


TRIANGULAR = {lx.lower_triangular_tag, lx.upper_triangular_tag}


class _Function(eqx.Module):
    calls: list = eqx.field(static=True)
    weights: jax.Array

    def __call__(self, x, _):
        self.calls.append(None)
        return jnp.tanh(self.weights @ x)


@pytest.mark.parametrize("wrap", [lambda op: op, "batched"], ids=["single", "batched"])
def test_linearise_and_materialise_reach_the_parts(wrap, getkey):
    weights, x = jr.normal(getkey(), (2, 3, 3)), jr.normal(getkey(), (2, 3))
    calls = []

    def build(weights, x):
        return lx.JacobianLinearOperator(_Function(calls, weights), x)

    if wrap == "batched":
        jacobian = BatchedOperator(eqx.filter_vmap(build)(weights, x))
    else:
        jacobian = build(weights[0], x[0])
    operator = BlockOperator([[ShiftedOperator(jacobian, 1.0), None], [None, NormalOperator(jacobian)]])
    vector = random_like(getkey(), operator.in_structure())
    expected = operator.mv(vector)
    for change in (lx.linearise, lx.materialise):
        changed = change(operator)
        calls.clear()
        assert tree_allclose(changed.mv(vector), expected, rtol=1e-12)
        assert not calls


def leaves_of(operator):
    dynamic, static = eqx.partition(operator, eqx.is_inexact_array)
    return dynamic, lambda dynamic: eqx.combine(dynamic, static)


def parts(operator):
    # Differentiate in the leaves: products and the diagonal.
    dynamic, combine = leaves_of(operator)

    def fn(dynamic, x, y):
        operator = combine(dynamic)
        return operator.mv(x), operator.T.mv(y), lx.diagonal(operator)

    return jax.jit(fn), dynamic


@pytest.mark.parametrize("case", [low_rank, saddle, masked, shifted, normal_equations], ids=lambda case: case.__name__)
def test_derivatives_in_the_leaves(case, getkey):
    operator, _ = case(jnp.float64)
    fn, dynamic = parts(operator)
    primals = (dynamic, random_like(getkey(), operator.in_structure()), random_like(getkey(), operator.out_structure()))
    tangents = random_like(getkey(), primals)
    jvp = jax.jvp(fn, primals, tangents)[1]
    assert tree_allclose(jvp, finite_difference_jvp(fn, primals, tangents), rtol=1e-6, atol=1e-8)
    assert vjp_matches_jvp(fn, primals, key=getkey())


@pytest.mark.parametrize("case", [low_rank, block, saddle, masked, batched_tree], ids=lambda case: case.__name__)
def test_vmap(case, getkey):
    # A batch of operators, built under `vmap`, is the operators one by one; so is a batch of vectors.
    operator, _ = case(jnp.float64)
    dynamic, combine = leaves_of(operator)
    factors = jnp.array([1.0, 2.0])
    x = random_like(
        getkey(), jtu.tree_map(lambda s: jax.ShapeDtypeStruct((2, *s.shape), s.dtype), operator.in_structure())
    )

    @no_retrace
    def mv(factor, x):
        return combine(jtu.tree_map(lambda leaf: factor * leaf, dynamic)).mv(x)

    values = jax.jit(jax.vmap(mv))(factors, x)
    for k in range(2):
        one = jtu.tree_map(lambda leaf, k=k: leaf[k], x)
        assert tree_allclose(jtu.tree_map(lambda leaf, k=k: leaf[k], values), mv(factors[k], one), rtol=1e-12)


def test_masked_by_a_traced_mask_inside_a_saddle():
    # Inactive rows of the constraints become those of the identity: as if they were not there.
    H, C = spd(0, 3, jnp.float64), normal(1, (2, 3), jnp.float64)
    saddle = SaddleOperator(Matrix(H, PSD), Matrix(C))

    @jax.jit
    def solve(active, b):
        return lx.linear_solve(MaskedOperator(saddle, (jnp.array(True), active)), b, lx.LU()).value

    b = normal(2, (3,), jnp.float64)
    x, y = solve(jnp.array([False, True]), (b, jnp.zeros(2)))
    matrix = jnp.block([[H, C[1:].T], [C[1:], jnp.zeros((1, 1))]])
    expected = jnp.linalg.solve(matrix, jnp.concatenate([b, jnp.zeros(1)]))
    assert jnp.allclose(jnp.concatenate([x, y[1:]]), expected)
    assert y[0] == 0


def symmetric_cases():
    base, U = spd(0, 6, jnp.float64), normal(1, (6, 2), jnp.float64)
    tall = Matrix(normal(2, (8, 6), jnp.float64))
    positive = Matrix(base, PSD)
    return {
        "low_rank": LowRankUpdate(positive, U),
        "masked": MaskedOperator(positive, jnp.array([True, False, True, True, True, False])),
        "normal": NormalOperator(tall, 0.1),
        "batched": BatchedOperator(eqx.filter_vmap(lambda f: Matrix(f * base, PSD))(jnp.array([1.0, 2.0]))),
    }


@pytest.mark.parametrize("name", symmetric_cases())
def test_gradient_through_a_solve(name, getkey):
    operator = symmetric_cases()[name]
    solvers = [PCG(1e-13), lx.AutoLinearSolver(well_posed=True)] + [Woodbury()] * (name == "low_rank")
    dynamic, combine = leaves_of(operator)
    b = random_like(getkey(), operator.in_structure())

    def loss(dynamic, b, solver):
        return jnp.sum(ravel(lx.linear_solve(combine(dynamic), b, solver).value) ** 2)

    def exact(dynamic, b):
        return jnp.sum(jnp.linalg.solve(combine(dynamic).as_matrix(), ravel(b)) ** 2)

    expected = jax.jit(jax.grad(exact, (0, 1)))(dynamic, b)
    for solver in solvers:
        ours = eqx.filter_jit(jax.grad(loss, (0, 1)))(dynamic, b, solver)
        assert tree_allclose(symmetrise(name, ours), symmetrise(name, expected), rtol=1e-8, atol=1e-10)


def symmetrise(name, tree):
    # A solver may use a symmetric matrix as it likes, so only the symmetric part of its gradient is determined.
    def leaf(x):
        return x + jnp.swapaxes(x, -1, -2) if x.ndim >= 2 and x.shape[-1] == x.shape[-2] else x

    return tree if name == "normal" else jtu.tree_map(leaf, tree)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex128])
def test_woodbury(dtype, getkey):
    operator, matrix = low_rank(dtype)
    b = jr.normal(getkey(), (4,), dtype)
    rtol = 1e-3 if dtype == jnp.float32 else 1e-9

    @eqx.filter_jit
    def solve(operator, b):
        solver = Woodbury(lx.LU())
        state = solver.init(operator, {})
        turned = {
            "plain": (operator, state),
            "T": (operator.T, solver.transpose(state, {})[0]),
            "conj": (lx.conj(operator), solver.conj(state, {})[0]),
            "H": (lx.conj(operator).T, solver.conj(solver.transpose(state, {})[0], {})[0]),
        }
        return {name: lx.linear_solve(op, b, solver, state=state).value for name, (op, state) in turned.items()}

    exact = {"plain": matrix, "T": matrix.T, "conj": matrix.conj(), "H": matrix.conj().T}
    assert tree_allclose(
        solve(operator, b), {k: jnp.linalg.solve(m, b) for k, m in exact.items()}, rtol=rtol, atol=rtol
    )
    # A singular C, columns of zeros, very unequal columns.
    base = operator.base
    unequal = jnp.array([[1e8, 1]], dtype)
    for U, C in (
        (operator.U, jnp.zeros((2, 2), dtype)),
        (operator.U.at[:, 0].set(0), None),
        (operator.U * unequal, jnp.diag(1 / unequal[0])),
    ):
        update = LowRankUpdate(base, U, C, operator.V)
        value = lx.linear_solve(update, b, Woodbury(lx.LU())).value
        assert tree_allclose(value, jnp.linalg.solve(update.as_matrix(), b), rtol=10 * rtol, atol=rtol)


def test_woodbury_second_order_and_vmap(getkey):
    base, U, b = spd(0, 4, jnp.float64), jr.normal(getkey(), (4, 2)), jr.normal(getkey(), (3, 4))
    V = jr.normal(getkey(), (4, 2))

    def ours(U, b):
        return jnp.sum(
            jnp.sin(lx.linear_solve(LowRankUpdate(Matrix(base, PSD), U, V=V), b, Woodbury(lx.Cholesky())).value)
        )

    def exact(U, b):
        return jnp.sum(jnp.sin(jnp.linalg.solve(base + U @ V.T, b)))

    def hessian(fn):
        return jax.jit(jax.vmap(jax.hessian(fn), in_axes=(None, 0)))(U, b)

    assert tree_allclose(hessian(ours), hessian(exact), rtol=1e-7, atol=1e-9)


def test_woodbury_reports(getkey):
    b = jnp.arange(1.0, 5.0)
    u = jnp.ones((4, 1)) / 2
    identity = lx.IdentityLinearOperator(jax.ShapeDtypeStruct((4,), b.dtype))
    for factor in (1.0, 1.0 + 1e-15):
        singular = LowRankUpdate(identity, u, jnp.array([[-factor]]))
        solution = lx.linear_solve(singular, b, Woodbury(), throw=False)
        assert solution.result == lx.RESULTS.singular
        assert jnp.all(jnp.isfinite(solution.value))
    nearly = LowRankUpdate(identity, u, jnp.array([[-1.0 + 1e-6]]))
    assert jnp.allclose(nearly.mv(lx.linear_solve(nearly, b, Woodbury()).value), b, rtol=1e-8)
    # The base failing on the columns is passed on, even if the right-hand side is easy.
    hard = Matrix(spd(0, 4, jnp.float64), PSD)
    few = Woodbury(PCG(1e-12, max_steps=1))
    solution = lx.linear_solve(LowRankUpdate(hard, u), jnp.zeros(4), few, throw=False)
    assert solution.result == lx.RESULTS.max_steps_reached
    # More digits lost than there are.
    lost = LowRankUpdate(lx.DiagonalLinearOperator(jnp.full(4, 1e-9, jnp.float32)), jnp.ones((4, 1), jnp.float32))
    solution = lx.linear_solve(lost, jnp.arange(1, 5, dtype=jnp.float32), Woodbury(), throw=False)
    assert solution.result == lx.RESULTS.singular
    with pytest.raises(ValueError, match="square `LowRankUpdate`; got MatrixLinearOperator"):
        lx.linear_solve(hard, b, Woodbury())
    tagged = lx.TaggedLinearOperator(LowRankUpdate(hard, u), PSD)
    assert jnp.allclose(tagged.mv(lx.linear_solve(tagged, b, Woodbury()).value), b)


def test_errors():
    a = Matrix(jnp.ones((3, 3)))
    wide = Matrix(jnp.ones((2, 3)))
    u = jnp.ones((3, 1))
    for build, error, match in (
        (lambda: BlockOperator([]), ValueError, "rows of one length"),
        (lambda: BlockOperator([[a, a], [a]]), ValueError, "rows of one length"),
        (lambda: BlockOperator([[a, None], [None, None]]), ValueError, "row 1 of `blocks` has only `None`"),
        (lambda: BlockOperator([[a, None], [a, None]]), ValueError, "column 1 of `blocks` has only `None`"),
        (lambda: BlockOperator([[a, wide]]), ValueError, "row 0 of `blocks` must share a structure"),
        (lambda: SaddleOperator(a, wide), ValueError, "`H` must be tagged symmetric"),
        (lambda: SaddleOperator(wide, wide), ValueError, "`H` must map a space to itself"),
        (lambda: SaddleOperator(Matrix(a.matrix, PSD), wide.T), ValueError, "`C` must act on the space of `H`"),
        (lambda: SaddleOperator(Matrix(a.matrix, PSD), wide, -1.0), ValueError, "`delta` must be non-negative"),
        (lambda: LowRankUpdate(a, jnp.ones((2, 1))), ValueError, r"`U` must have shape \(3, 1\)"),
        (lambda: LowRankUpdate(a, u, jnp.ones((2, 2))), ValueError, r"`C` must have shape \(1, 1\)"),
        (lambda: LowRankUpdate(a, u, V=jnp.ones((3, 2))), ValueError, r"`V` must have shape \(3, 1\)"),
        (lambda: LowRankUpdate(wide, jnp.ones((2, 1))), ValueError, "`V` must be given"),
        (lambda: LowRankUpdate(BlockOperator([[a, a]]), u), ValueError, "arrays of one axis"),
        (lambda: MaskedOperator(wide, jnp.ones(3, bool)), ValueError, "`operator` must map a space to itself"),
        (lambda: MaskedOperator(a, (True,)), ValueError, "`mask` must have the tree"),
        (lambda: MaskedOperator(a, jnp.ones(2, bool)), ValueError, "`mask` must have the shapes"),
        (lambda: ShiftedOperator(wide, 1.0), ValueError, "`operator` must map a space to itself"),
        (lambda: NormalOperator(a, -1.0), ValueError, "`ridge` must be non-negative"),
        (
            lambda: BatchedOperator(lx.IdentityLinearOperator(jax.ShapeDtypeStruct((3,), float))),
            ValueError,
            "share a leading",
        ),
        (lambda: BatchedOperator(ShiftedOperator(a, 1.0)), ValueError, "share a leading"),
    ):
        with pytest.raises(error, match=match):
            build()
