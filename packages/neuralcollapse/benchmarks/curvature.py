"""B7: the largest eigenvalue and the trace of a Hessian, against PyHessian, at equal numbers of products."""

import contextlib
import functools as ft
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import numpy as np
import optax
from neuralcollapse import sharpness

from .peer import torch
from .protocol import Case, Goal, Method, Prepared, Row, error_of, program_of


class Network(NamedTuple):
    """Weights of a network 64-16-10 with tanh (1,210 parameters), and its images and labels; float32 values."""

    params: list[np.ndarray]
    x: np.ndarray
    y: np.ndarray


PRODUCTS = {"lambda_max": (16, 64), "trace": (30, 90)}
_BATCH = 512
_TIMED = 3  # draws in one timing


def cases(quick: bool) -> Iterator[Case]:
    """At initialisation and after training, in both precisions."""
    keys = 3 if quick else 20
    states = [("trained", 500)] if quick else [("trained", 500), ("initial", 0)]
    for state, steps in states:
        network = train(steps)
        values = exact(network)
        for what, dtype in ((w, d) for w in PRODUCTS for d in ("float32", "float64")):
            truth = values[-1] if what == "lambda_max" else values.sum()
            yield _case(f"B7 {what}, {state} network, {dtype}", what, network, dtype, float(truth), keys)


@ft.cache
def train(steps: int) -> Network:
    """Train on 512 of scikit-learn's digits, full batch, Adam 1e-2, in float32."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = (digits.data[:_BATCH] / 16).astype(np.float32)
    y = digits.target[:_BATCH].astype(np.int64)
    r = np.random.default_rng(0)
    shapes = ((16, 64), (16,), (10, 16), (10,))
    params = [(r.normal(size=s) / np.sqrt(s[-1]) * (len(s) == 2)).astype(np.float32) for s in shapes]
    solver = optax.adam(1e-2)
    slope = jax.grad(_loss)

    @jax.jit
    def descend(params):
        def step(_, carry):
            params, state = carry
            updates, state = solver.update(slope(params, x, y), state)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, steps, step, (params, solver.init(params)))[0]

    return Network([np.asarray(p) for p in descend([jnp.asarray(p) for p in params])], x, y)


def exact(network: Network) -> np.ndarray:
    """Return the eigenvalues of the dense Hessian, in double precision, at the same float32 weights."""
    with jax.enable_x64(True):
        flat, unravel = jfu.ravel_pytree([jnp.asarray(p, float) for p in network.params])
        x = jnp.asarray(network.x, float)
        dense = jax.jit(jax.hessian(lambda v: _loss(unravel(v), x, network.y)))(flat)
        return np.linalg.eigvalsh(np.asarray(dense))


def _loss(params: list[Any], x: Any, y: Any) -> Any:
    first, a, second, b = params
    logits = jnp.tanh(x @ first.T + a[None]) @ second.T + b[None]
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def _case(problem: str, what: str, network: Network, dtype: str, truth: float, keys: int) -> Case:
    few, many = PRODUCTS[what]
    methods = []
    for number in (many, few):
        methods.append(Method(f"ours, {number} products", _ours(what, network, dtype, number, keys)))
        if what == "trace":
            hutchinson = _ours(what, network, dtype, number, keys, method="hutchinson")
            methods.append(Method(f"ours, Hutchinson, {number} products", hutchinson))
        methods.append(
            Method(f"PyHessian, {number} products", _theirs(what, network, dtype, number, keys), "pyhessian")
        )
    methods.append(Method("PyHessian, defaults", _theirs(what, network, dtype, None, keys), "pyhessian"))

    def measure(value: Any) -> dict[str, Any]:
        found, products = value
        errors = np.abs(np.asarray(found, float) - truth) / abs(truth)
        return {
            "error": float(errors.mean()),
            "worst": float(errors.max()),
            "iterations": float(products),
            "keys": keys,
        }

    goals = [
        Goal(f"ours, {n} products", f"mean error at least 10 times below PyHessian's with {n} products", _gain(n), 10)
        for n in (few, many)
    ]
    return Case(problem, methods, measure, goals, x64=dtype == "float64")


def _gain(number: int) -> Callable[[list[Row]], float | None]:
    def gain(rows: list[Row]) -> float | None:
        ours, peer = (error_of(f"{who}, {number} products")(rows) for who in ("ours", "PyHessian"))
        return None if ours is None or peer is None else peer / ours

    return gain


def _ours(what: str, network: Network, dtype: str, number: int, keys: int, **options: Any) -> Callable[[], Prepared]:
    def estimate(params, x, y, key):
        loss = lambda params: _loss(params, x, y)
        if what == "trace":
            return sharpness.trace(loss, params, key=key, num_matvecs=number, **options).value
        return sharpness.lambda_max(loss, params, key=key, num_steps=number).value

    def prepare() -> Prepared:
        params, x = [jnp.asarray(p, dtype) for p in network.params], jnp.asarray(network.x, dtype)
        seeds = [jax.random.key(i) for i in range(keys)]
        program, seconds, memory = program_of(jax.jit(estimate), params, x, network.y, seeds[0])
        several = lambda seeds: [float(program(params, x, network.y, key)) for key in seeds]
        draws = seeds[:_TIMED]
        return Prepared(lambda: (several(seeds), number), seconds, memory, lambda: several(draws), len(draws))

    return prepare


def _theirs(what: str, network: Network, dtype: str, number: int | None, keys: int) -> Callable[[], Prepared]:
    # Its rules for stopping never hold below minus infinity.
    options = {} if number is None else {"maxIter": number, "tol": -math.inf}

    def prepare() -> Prepared:
        from pyhessian import hessian

        kind = getattr(torch(), dtype)
        model = torch().nn.Sequential(torch().nn.Linear(64, 16), torch().nn.Tanh(), torch().nn.Linear(16, 10))
        model = model.to(kind)
        for parameter, value in zip(model.parameters(), network.params, strict=True):
            parameter.data = torch().tensor(value).to(kind)
        batch = torch().tensor(network.x).to(kind), torch().tensor(network.y)

        def once(seed: int) -> float:
            torch().manual_seed(seed)
            model.zero_grad()  # it adds to the gradients that it finds
            found = hessian(model, torch().nn.CrossEntropyLoss(), data=batch, cuda=False)
            return found.eigenvalues(**options)[0][0] if what == "lambda_max" else np.mean(found.trace(**options))

        def several(number: int) -> Any:
            with _default_dtype(kind), _counted() as count:
                values = [once(seed) for seed in range(number)]
            return values, len(count) / number

        draws = min(_TIMED, keys)
        return Prepared(lambda: several(keys), timing=lambda: several(draws), parts=draws)

    return prepare


@contextlib.contextmanager
def _default_dtype(kind: Any) -> Iterator[None]:
    # It draws vectors in the default precision, which must be that of the network.
    before = torch().get_default_dtype()
    torch().set_default_dtype(kind)
    try:
        yield
    finally:
        torch().set_default_dtype(before)


@contextlib.contextmanager
def _counted() -> Iterator[list[None]]:
    """Count its products."""
    module = sys.modules["pyhessian.hessian"]
    product, made = module.hessian_vector_product, []

    def counting(*arguments: Any) -> Any:
        made.append(None)
        return product(*arguments)

    module.hessian_vector_product = counting
    try:
        yield made
    finally:
        module.hessian_vector_product = product
