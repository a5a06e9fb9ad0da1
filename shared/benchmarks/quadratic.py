"""I3: the gradient of the solution of a quadratic programme, whose solver is jaxopt's OSQP for every method."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jaxopt
import numpy as np
from implicit_core import implicit

from .protocol import OURS, Case, Goal, Method, at_most, relative


SIZE, EQUALITIES, INEQUALITIES = 20, 5, 30


class _Programme(NamedTuple):
    # minimise x'Qx/2 + c'x where Ax = b and Gx <= h
    q: np.ndarray
    c: np.ndarray
    a: np.ndarray
    b: np.ndarray
    g: np.ndarray
    h: np.ndarray


def cases(quick: bool) -> Iterator[Case]:
    """Yield each condition number in both precisions."""
    for x64 in (True,) if quick else (True, False):
        for condition in (1e3,) if quick else (1e1, 1e2, 1e3, 1e4, 1e5):
            yield _case(condition, x64)


def _draw(condition: float) -> tuple[_Programme, np.ndarray, np.ndarray, np.ndarray]:
    """Draw a programme from a solution, its multipliers and 14 active inequalities: all are known exactly."""
    r = np.random.default_rng(0)
    basis, _ = np.linalg.qr(r.standard_normal((SIZE, SIZE)))
    q = (basis * np.geomspace(1, condition, SIZE)) @ basis.T
    a, g = r.standard_normal((EQUALITIES, SIZE)), r.standard_normal((INEQUALITIES, SIZE))
    x, nu = r.standard_normal(SIZE), r.standard_normal(EQUALITIES)
    active = np.arange(INEQUALITIES) < 14
    multipliers = np.where(active, r.uniform(0.5, 1.5, INEQUALITIES), 0)
    slack = np.where(active, 0, r.uniform(0.5, 1.5, INEQUALITIES))
    programme = _Programme(q, -q @ x - a.T @ nu - g.T @ multipliers, a, a @ x, g, g @ x + slack)
    weights = r.standard_normal(SIZE)
    rows = np.vstack([a, g[active]])
    matrix = np.block([[q, rows.T], [rows, np.zeros((len(rows), len(rows)))]])
    exact = -np.linalg.solve(matrix, np.concatenate([weights, np.zeros(len(rows))]))[:SIZE]
    return programme, weights, x, exact


def _case(condition: float, x64: bool) -> Case:
    programme, weights, x_star, exact = _draw(condition)
    tol = 1e-9 if x64 else 1e-5
    osqp = partial(jaxopt.OSQP, tol=tol, maxiter=10_000, check_primal_dual_infeasability=False)
    tight = partial(jaxopt.linear_solve.solve_normal_cg, tol=1e-14 if x64 else 1e-6, maxiter=100_000)

    def by_jaxopt(programme, **options):
        q, c, a, b, g, h = programme
        return osqp(**options).run(None, (q, c), (a, b), (g, h)).params.primal

    def objective(x, p):
        return 0.5 * x @ p.q @ x + p.c @ x

    @implicit.kkt(objective, lambda x, p: p.a @ x - p.b, lambda x, p: p.g @ x - p.h)
    def ours(p):
        found = osqp().run(None, (p.q, p.c), (p.a, p.b), (p.g, p.h)).params
        return implicit.KKTPoint(found.primal, found.dual_eq, found.dual_ineq)

    def gradient(solve):
        def fn(programme, weights):
            def loss(c):
                x = solve(programme._replace(c=c))
                return weights @ x, x

            return jax.grad(loss, has_aux=True)(programme.c)

        return fn

    def error(out):
        return relative(out[0], exact), f"x to {relative(out[1], x_star):.0e}"

    methods = [
        Method(OURS, "implicit-core", gradient(lambda p: ours(p).x)),
        Method("jaxopt OSQP, default", "jaxopt", gradient(by_jaxopt)),
        Method("jaxopt OSQP, tight normal CG", "jaxopt", gradient(partial(by_jaxopt, implicit_diff_solve=tight))),
    ]
    bound, dtype = (1e-9, np.float64) if x64 else (1e-3, np.float32)
    goal = Goal(f"relative error ≤ {bound:.0e}", lambda rows: at_most(rows[OURS], bound))
    arguments = jax.tree_util.tree_map(lambda leaf: leaf.astype(dtype), (programme, weights))
    return Case(f"I3 QP cond={condition:.0e} {np.dtype(dtype).name}", arguments, methods, error, goal, x64=x64)
