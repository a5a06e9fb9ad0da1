"""K1, K2 and I5: conjugate gradients in float32, at large sizes, below the attainable residual, and for tiny cotangents."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from implicit_core import RESULTS, precond
from implicit_core.krylov import PCG

from .protocol import OURS, Case, Goal, Method, as_fast, at_most, relative


PSD = lx.positive_semidefinite_tag


def cases(quick: bool) -> Iterator[Case]:
    """Yield the cases of all three."""
    for size in (100_000,) if quick else (10_000, 100_000, 1_000_000, 10_000_000):
        yield _diagonal(size)
        yield _laplacian(size, shift=1.0, rtol=1e-6)
    for size in () if quick else (10_000, 100_000):
        yield _laplacian(size, shift=0.0, rtol=1e-4)
    for condition in (1e3,) if quick else (1e2, 1e3, 1e4):
        yield _attainable(condition)
    for power in (-22,) if quick else (-30, -22, -18, 0, 18, 30):
        yield _cotangent(10.0**power)


def _solvers(operator: Callable, product: Callable, rtol: float) -> list[Method]:
    """Return ours and the two peers; `operator` and `product` take what describes the matrix."""

    def ours(data, b):
        # The flag that is tied to the true residual; with `throw=True` Lineax adds two passes and a host callback.
        solution = lx.linear_solve(operator(data), b, PCG(rtol=rtol), throw=False)
        return solution.value, solution.stats["result"] == RESULTS.successful

    def throwing(data, b):
        return lx.linear_solve(operator(data), b, PCG(rtol=rtol)).value

    def jax_cg(data, b):
        return jax.scipy.sparse.linalg.cg(lambda v: product(data, v), b, tol=rtol)[0]

    def lineax_cg(data, b):
        return lx.linear_solve(operator(data), b, lx.CG(rtol=rtol, atol=rtol), throw=False).value

    return [
        Method(OURS, "implicit-core", ours),
        Method("ours, throw=True", "implicit-core", throwing),
        Method("jax.scipy cg", "jax", jax_cg),
        Method("lineax CG", "lineax", lineax_cg),
    ]


def _residual(product: Callable, b: np.ndarray) -> Callable:
    def error(out):
        x, note = (out[0], "says so" if out[1] else "says that it failed") if isinstance(out, tuple) else (out, "")
        return relative(product(x.astype(np.float64)), b.astype(np.float64)), note

    return error


def _big(problem: str, data, b: np.ndarray, methods: list[Method], product: Callable, rtol: float) -> Case:
    goal = Goal(
        f"relative residual ≤ {2 * rtol:.0e}, time ≤ 1.05 × jax.scipy",
        lambda rows: at_most(rows[OURS], 2 * rtol) and as_fast(rows, "jax.scipy cg", 1.05),
    )
    return Case(problem, (data, jnp.asarray(b)), methods, _residual(product, b), goal)


def _diagonal(size: int) -> Case:
    r = np.random.default_rng(0)
    diagonal, b = r.uniform(1, 3, size).astype(np.float32), r.standard_normal(size).astype(np.float32)
    # As a function: Lineax would see through a diagonal operator, and SciPy's is called with a function too.
    operator = lambda d: lx.FunctionLinearOperator(lambda v: d * v, jax.eval_shape(lambda: d), PSD)
    methods = _solvers(operator, lambda d, v: d * v, 1e-6)
    return _big(f"K1 diagonal n={size:.0e}", jnp.asarray(diagonal), b, methods, lambda x: diagonal * x, 1e-6)


def _laplacian(size: int, shift: float, rtol: float) -> Case:
    """The five-point Laplacian of a square grid with zero boundary values, plus a shift, which fixes the condition."""
    side = round(size**0.5)
    b = np.random.default_rng(0).standard_normal((side, side)).astype(np.float32)

    def product(module, shift, v):
        w = module.pad(v, 1)
        return (4 + shift) * v - w[2:, 1:-1] - w[:-2, 1:-1] - w[1:-1, 2:] - w[1:-1, :-2]

    apply = lambda shift, v: product(jnp, shift, v)
    structure = jax.ShapeDtypeStruct(b.shape, b.dtype)
    operator = lambda shift: lx.FunctionLinearOperator(lambda v: apply(shift, v), structure, PSD)
    name = f"K1 Laplacian{' + 1' if shift else ''} n={size:.0e}"
    exact = lambda x: product(np, shift, x)
    return _big(name, jnp.float32(shift), b, _solvers(operator, apply, rtol), exact, rtol)


def _spd(size: int, condition: float) -> tuple[np.ndarray, np.ndarray]:
    r = np.random.default_rng(0)
    q, _ = np.linalg.qr(r.standard_normal((size, size)))
    matrix = (q * np.geomspace(1, condition, size)) @ q.T
    return matrix.astype(np.float32), r.standard_normal(size).astype(np.float32)


def _attainable(condition: float) -> Case:
    """A tolerance below what float32 attains: what does each solver return, and does it say so?"""
    matrix, b = _spd(256, condition)

    def flagged(solver, result):
        def solve(a, b):
            solution = lx.linear_solve(lx.MatrixLinearOperator(a, PSD), b, solver, throw=False)
            return solution.value, result(solution)

        return solve

    def error(out):
        x, claimed = out
        residual = relative(matrix.astype(np.float64) @ x, b.astype(np.float64))
        said = {0: "reports failure", 1: "reports success", -1: "has no flag"}[int(claimed)]
        honest = "" if claimed < 0 else (", rightly" if bool(claimed) == (residual <= 1e-5) else ", wrongly")
        return residual, said + honest

    def jax_cg(a, b):
        return jax.scipy.sparse.linalg.cg(lambda v: a @ v, b, tol=1e-6)[0], jnp.array(-1)

    ours = flagged(PCG(rtol=1e-6), lambda s: (s.stats["result"] == RESULTS.successful).astype(int))
    success = lambda s: (s.result == lx.RESULTS.successful).astype(int)
    methods = [
        Method(OURS, "implicit-core", ours),
        Method("jax.scipy cg", "jax", jax_cg),
        Method("lineax CG", "lineax", flagged(lx.CG(1e-6, 1e-6), success)),
        Method("lineax CG, stabilise_every=None", "lineax", flagged(lx.CG(1e-6, 1e-6, stabilise_every=None), success)),
    ]

    def met(rows):
        peer = rows["jax.scipy cg"]["error"]
        ours = rows[OURS]
        return ours["note"].endswith("rightly") and (peer is None or at_most(ours, 2 * peer))

    goal = Goal("honest flag, relative residual ≤ 2 × jax.scipy's", met)
    return Case(f"K2 n=256 cond={condition:.0e}", (jnp.asarray(matrix), jnp.asarray(b)), methods, error, goal)


def _cotangent(scale: float) -> Case:
    """The gradient of `scale` times a loss, divided by `scale`: it must not depend on it."""
    matrix, b = _spd(100, 100.0)
    weights = np.random.default_rng(1).standard_normal(100).astype(np.float32)
    exact = np.linalg.solve(matrix.astype(np.float64), weights.astype(np.float64))

    def lineax_solve(make):
        def solve(a, b):
            operator = lx.MatrixLinearOperator(a, PSD)
            solver, options = make(operator)
            return lx.linear_solve(operator, b, solver, options=options, throw=False).value

        return solve

    def jax_cg(a, b):
        inverse = 1 / jnp.diagonal(a)
        return jax.scipy.sparse.linalg.cg(lambda v: a @ v, b, tol=1e-6, M=lambda v: inverse * v)[0]

    def gradient(solve):
        return lambda a, b, w: jax.grad(lambda b: jnp.sum(jnp.float32(scale) * w * solve(a, b)))(b)

    ours = lineax_solve(lambda op: (PCG(rtol=1e-6, precond=precond.jacobi(op)), None))
    theirs = lineax_solve(
        lambda op: (lx.CG(1e-6, 1e-6, stabilise_every=None), {"preconditioner": precond.jacobi(op)}),
    )
    methods = [
        Method(OURS, "implicit-core", gradient(ours)),
        Method("jax.scipy cg", "jax", gradient(jax_cg)),
        Method("lineax CG, stabilise_every=None", "lineax", gradient(theirs)),
    ]
    arguments = tuple(map(jnp.asarray, (matrix, b, weights)))
    goal = Goal("relative error ≤ 1e-5", lambda rows: at_most(rows[OURS], 1e-5))
    factor = float(np.float32(scale))
    error = lambda g: (relative(g.astype(np.float64) / factor, exact), "")
    return Case(f"I5 cotangent × {scale:.0e}", arguments, methods, error, goal)
