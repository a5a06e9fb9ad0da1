"""B5: the closed form of the deep linear model against direct optimisation (the class sizes and strengths of E2)."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import numpy as np
import optax
from neuralcollapse import ufm

from .peer import torch
from .protocol import Case, Goal, Method, Prepared, Row, compiled, error_of, warmed


COUNTS = (200, 100, 50, 50)
LAM = 5e-4
DIM = 64
SCALE = 0.1  # standard deviation of the first factors
OURS = "ours, solve_mse"
ADAM_STEPS = 5_000


def cases(quick: bool) -> Iterator[Case]:
    """Depth 1, 3 and 6."""
    for depth in (1,) if quick else (1, 3, 6):
        yield Case(
            f"B5 ufm-oracle, depth {depth}",
            [
                Method(OURS, lambda depth=depth: _oracle(depth)),
                Method("ours, solve_mse inside jit", lambda depth=depth: _oracle_in_jit(depth)),
                Method("ours, ufm.fit: optimistix LBFGS on class means", lambda depth=depth: _fit(depth), "optimistix"),
                Method("SciPy L-BFGS-B, gradient by JAX", lambda depth=depth: _scipy(depth), "scipy"),
                *(_slow() if depth == 1 else []),
            ],
            _measure,
            [
                Goal(OURS, "the least loss of direct optimisation to 1e-8, relative", error_of(OURS), most=1e-8),
                Goal(
                    OURS,
                    "at least 100 times faster than the fastest direct optimisation that gets there",
                    _fastest,
                    100,
                ),
            ],
            _finish,
            x64=True,
        )


def _slow() -> list[Method]:
    """Return what takes too long at the greater depths."""
    return [
        Method("torch LBFGS, strong Wolfe", lambda: _torch(1), "torch"),
        Method("optax Adam, 5,000 steps", lambda: _adam(1), "optax"),
    ]


def objective(features: np.ndarray, weights: list[np.ndarray]) -> float:
    """Evaluate the objective on all samples, in NumPy."""
    z = features
    for w in weights:
        z = z @ w.T
    squares = (features**2).sum() + sum((w**2).sum() for w in weights)
    return float(((z - _targets()) ** 2).sum() / (2 * len(features)) + LAM / 2 * squares)


def _targets() -> np.ndarray:
    return np.repeat(np.eye(len(COUNTS)), COUNTS, axis=0)


def _start(depth: int) -> list[np.ndarray]:
    r = np.random.default_rng(0)
    shapes = [(sum(COUNTS), DIM), *[(DIM, DIM)] * (depth - 1), (len(COUNTS), DIM)]
    return [SCALE * r.normal(size=shape) for shape in shapes]


def _loss(point: list[Any]) -> Any:
    features, *weights = point
    z = features
    for w in weights:
        z = z @ w.T
    squares = (features**2).sum() + sum((w**2).sum() for w in weights)
    return ((z - _targets()) ** 2).sum() / (2 * sum(COUNTS)) + LAM / 2 * squares


def _oracle(depth: int) -> Prepared:
    counts = jnp.asarray(COUNTS, float)
    # The minimiser is constructed once: its objective, by NumPy, must be the loss that the formula gives.
    built = ufm.solve_mse(counts, depth, LAM, LAM, widths=DIM).construct(jax.random.key(0))
    point = _expanded(built)

    def call() -> Any:
        return jax.block_until_ready(ufm.solve_mse(counts, depth, LAM, LAM, widths=DIM).loss), point, None

    return warmed(call)


def _oracle_in_jit(depth: int) -> Prepared:
    solve = lambda counts, lam: ufm.solve_mse(counts, depth, lam, lam, widths=DIM).loss
    prepared = compiled(solve, jnp.asarray(COUNTS, float), jnp.asarray(LAM))
    return prepared._replace(call=lambda: (prepared.call(), None, None))


def _fit(depth: int) -> Prepared:
    solution = ufm.solve_mse(jnp.asarray(COUNTS, float), depth, LAM, LAM, widths=DIM)

    def call() -> Any:
        found = ufm.fit(solution, key=jax.random.key(0), scale=SCALE, max_steps=20_000)
        return None, _expanded(found.value), found.stats["num_steps"]

    return warmed(call)


def _scipy(depth: int) -> Prepared:
    from scipy.optimize import minimize

    flat, unravel = jfu.ravel_pytree([jnp.asarray(a) for a in _start(depth)])
    gradient = jax.jit(jax.value_and_grad(lambda v: _loss(unravel(v))))

    def both(v: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = gradient(v)
        return float(value), np.asarray(slope)

    def call() -> Any:
        options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-9}
        found = minimize(both, np.asarray(flat), jac=True, method="L-BFGS-B", options=options)
        return None, [np.asarray(a) for a in unravel(found.x)], found.nit

    return warmed(call)


def _torch(depth: int) -> Prepared:
    def call() -> Any:
        point = [torch().tensor(a, requires_grad=True) for a in _start(depth)]
        targets = torch().tensor(_targets())
        solver = torch().optim.LBFGS(
            point,
            max_iter=20_000,
            max_eval=40_000,
            tolerance_grad=1e-9,
            tolerance_change=1e-14,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Any:
            solver.zero_grad()
            features, *weights = point
            z = features
            for w in weights:
                z = z @ w.T
            squares = (features**2).sum() + sum((w**2).sum() for w in weights)
            value = ((z - targets) ** 2).sum() / (2 * sum(COUNTS)) + LAM / 2 * squares
            value.backward()
            return value

        solver.step(closure)
        return None, [a.detach().numpy() for a in point], solver.state_dict()["state"][0]["n_iter"]

    return Prepared(call)


def _adam(depth: int) -> Prepared:
    solver = optax.adam(optax.cosine_decay_schedule(3e-2, ADAM_STEPS))

    def descend(point: list[Any]) -> list[Any]:
        def step(_, carry):
            point, state = carry
            updates, state = solver.update(jax.grad(_loss)(point), state)
            return optax.apply_updates(point, updates), state

        return jax.lax.fori_loop(0, ADAM_STEPS, step, (point, solver.init(point)))[0]

    prepared = compiled(descend, [jnp.asarray(a) for a in _start(depth)])
    return prepared._replace(call=lambda: (None, prepared.call(), ADAM_STEPS))


def _expanded(found: Any) -> list[np.ndarray]:
    """Give every sample the features of its class."""
    return [np.repeat(np.asarray(found.features), COUNTS, axis=0), *(np.asarray(w) for w in found.weights)]


def _measure(value: Any) -> dict[str, Any]:
    said, point, steps = value
    reached = None if point is None else objective(point[0], list(point[1:]))
    out: dict[str, Any] = {"loss": reached if said is None else float(said), "reached": reached}
    return out | {"iterations": None if steps is None else int(steps)}


def _finish(rows: list[Row]) -> None:
    """Compare with the least objective that any direct optimisation reached, as NumPy evaluates it."""
    direct = [row["reached"] for row in _direct(rows)]
    if not direct:
        return
    for row in rows:
        if row.get("loss") is not None:
            row["error"] = abs(row["loss"] - min(direct)) / min(direct)
    ours = rows[0]
    ours["note"] = f"its minimiser, by NumPy, is off by {abs(ours['reached'] / ours['loss'] - 1):.1e}"


def _direct(rows: list[Row]) -> list[Row]:
    return [row for row in rows if not row["method"].startswith("ours, solve") and row.get("reached") is not None]


def _fastest(rows: list[Row]) -> float | None:
    return min((row["ratio"] for row in _direct(rows) if row["error"] <= 1e-8), default=None)
