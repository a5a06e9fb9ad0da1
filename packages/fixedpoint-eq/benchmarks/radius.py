"""FPE-9: the spectral radii of Jacobians that are not symmetric."""

from collections.abc import Callable, Iterator

import jax
import jax.random as jr
import numpy as np
from fixedpoint_eq import diagnostics

from . import deq, peers
from .protocol import OURS, Case, Goal, Method, Prepared, compiled


_COUNT = 8  # rows, each with a Jacobian of its own
_PROBLEMS = {"Gaussian W, norm 0.95": (False, 0.95), "symmetric W, norm 0.99": (True, 0.99)}


def cases(quick: bool) -> Iterator[Case]:
    """Yield both kinds of `W`, at the equilibria of three draws."""
    for name, (symmetric, norm) in _PROBLEMS.items():
        draws = [deq.draw(256, _COUNT, norm, symmetric=symmetric, seed=seed) for seed in range(1 if quick else 3)]
        exact = np.stack([deq.radii(problem, _COUNT) for problem in draws])
        error = lambda value, exact=exact: float(np.max(np.abs(value - exact) / exact))
        goal = Goal("worst error at most 1 % with 20 products", lambda rows: rows[0]["error"] <= 0.01)
        yield Case(f"FPE-9 sradius, {name}", _methods(draws), error, goal)


def _methods(draws: list[deq.Deq]) -> list[Method]:
    W, x = (np.stack([getattr(problem, name) for problem in draws]) for name in ("W", "x"))
    z = np.stack([problem.solution for problem in draws]).astype(np.float32)
    key = jr.key_data(jr.key(1))

    def ours(products: int) -> Callable[[], Prepared]:
        def run(W, x, z, key):
            one = lambda W, x, z: diagnostics.spectral_radius(
                deq.layer, z, (W, x), num_steps=products, batch_axis=0, key=jr.wrap_key_data(key)
            )
            return jax.lax.map(lambda arrays: one(*arrays).radius, (W, x, z)), products

        return lambda: compiled(run, W, x, z, key)

    def power(products: int) -> Callable[[], Prepared]:
        def prepare():
            from torchdeq.loss import power_method

            torch = peers.torch()
            arrays = [[torch.tensor(v) for v in arrays] for arrays in zip(W, x, z, strict=True)]

            def call():
                torch.manual_seed(1)
                found = []
                for W, x, z in arrays:
                    z.requires_grad_()
                    f = torch.tanh(z @ W.T + x)
                    found.append(power_method(f, z, n_iters=products)[1].numpy())
                return np.stack(found), products

            return Prepared(call)

        return prepare

    budgets = {OURS: (20, 60, 120), "torchdeq": (20, 60, 100, 200)}
    return [
        *(Method(f"ours, Arnoldi, {k} products", OURS, ours(k)) for k in budgets[OURS]),
        *(Method(f"torchdeq power method, {k} products", "torchdeq", power(k)) for k in budgets["torchdeq"]),
    ]
