"""KV-6: two maps of the disc that no snapshots tell apart, and what that does to a black box."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import koopman_verify as kv
import numpy as np
from koopman_verify import adversary
from koopman_verify._flagship import black_box

from .environment import version
from .protocol import Row


def rows(
    numbers: tuple[int, ...] = (12, 50), oscillations: tuple[int, ...] = (2, 4), games: int = 100
) -> Iterator[Row]:
    """Yield rows of the construction by number of snapshots, of the game by its length, and of the coin."""
    base = {"version": version("koopman-verify")}
    for num in numbers:
        data, start = _twisted(num), time.process_time()
        answer = adversary.determined(data)
        yield base | {
            "problem": "two maps through the same snapshots",
            "method": f"{num} snapshots of a twist",
            "mismatch": answer.mismatch,
            "twists": int(answer.involution.num_twists),
            "defect": _defect(answer.involution),
            "lipschitz": answer.lower,
            "status": answer.status,
            "cpu_seconds": time.process_time() - start,
        }
    for wanted in oscillations:
        start = time.process_time()
        game = adversary.play(black_box, max_oscillations=wanted, budget=80, growth=1.3, max_budget=3000)
        yield base | {
            "problem": "a black box that is led on",
            "method": f"{wanted} oscillations asked for",
            "oscillations": game.num_oscillations,
            "runs": len(game.budgets),
            "queries": int(game.num_queries.sum()),
            "mismatch": game.mismatch,
            "status": game.verdict,
            "cpu_seconds": time.process_time() - start,
        }
    start = time.process_time()
    coin = adversary.coin(_drawing, jr.key(0), games)
    yield base | {
        "problem": "a fair coin picks the map",
        "method": f"{coin.num_games} games",
        "games": coin.num_games,
        "rate": coin.rate,
        "identical": coin.num_identical,
        "status": coin.verdict,
        "cpu_seconds": time.process_time() - start,
    }


def _twisted(num: int) -> kv.Snapshots:
    angle, radius = jr.uniform(jr.key(0), (2, num))
    x = jnp.sqrt(0.9 * radius)[:, None] * jnp.stack([jnp.cos(2 * jnp.pi * angle), jnp.sin(2 * jnp.pi * angle)], axis=1)
    return kv.Snapshots(x, jax.vmap(adversary.Twist(lambda r: 1.7 * r**2))(x))


def _defect(involution: Any) -> float:
    """Return the largest distance of F(F(p)) from p at 200 points."""
    points = 0.9 * jr.uniform(jr.key(2), (200, 2), minval=-0.7, maxval=0.7)
    return float(jnp.max(jnp.abs(jax.vmap(lambda p: involution(involution(p)))(points) - points)))


def _drawing(query_map: Callable, budget: int, key: Any) -> np.ndarray:
    return black_box(query_map, budget, np.random.default_rng(int(jr.randint(key, (), 0, 2**31 - 1))))
