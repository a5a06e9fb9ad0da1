"""Are certificates true? Many fits, each certified on fresh snapshots, against residuals known to three digits or more.

Run `python benchmarks/coverage.py` (some minutes); `--seeds 80` for a look. A *false* family is one in which the bound of
any supported pair is below its true residual. Each row also says what Student's interval would have done on the same
snapshots, and what the residual of the fit claims.
"""

import argparse
import json
import math
import os
import sys
import time
from typing import Any


os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_ENABLE_X64", "1")
# A fit that fails gives a residual that is not a number, and is refused, instead of ending the study.
os.environ.setdefault("EQX_ON_ERROR", "off")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import koopman_verify as kv
import numpy as np
from jaxtyping import Array
from koopman_verify import _pointwise, _statistics


jax.config.update("jax_cpu_enable_async_dispatch", False)

SIZE = 20  # functions in the dictionary
RATIOS = (1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
HOLDOUTS = (200, 1000)


class Peaks(kv.AbstractDictionary):
    """Peaks exp(-r/w) of random place and width on a circle of length one."""

    centres: Array
    widths: Array

    def __call__(self, x: Array) -> Array:
        distance = jnp.abs((x - self.centres + 0.5) % 1 - 0.5)
        return jnp.exp(-distance / self.widths)

    def supremum(self) -> Array:
        return jnp.ones_like(self.widths)

    def lipschitz(self) -> Array:
        return 1 / self.widths


class Bumps(eqx.Module):
    """The profile exp(-2 r) about random centres in the plane."""

    centres: Array

    def __call__(self, x: Array) -> Array:
        return jnp.exp(-2 * jnp.sqrt(jnp.sum((x[None] - self.centres) ** 2, axis=1)))


def duffing(x: Array) -> Array:
    """Carry states of the undamped Duffing oscillator on by 0.3, with ten steps of the classical Runge-Kutta rule."""
    field = lambda z: jnp.stack([z[:, 1], z[:, 0] - z[:, 0] ** 3], axis=1)

    def step(_: Any, z: Array) -> Array:
        h = 0.03
        a = field(z)
        b = field(z + h / 2 * a)
        c = field(z + h / 2 * b)
        d = field(z + h * c)
        return z + h / 6 * (a + 2 * b + 2 * c + d)

    return jax.lax.fori_loop(0, 10, step, x)


def problems(reference: int) -> dict[str, tuple[Any, Any, Any, kv.Factor]]:
    """Return for each problem: the dictionary, the map, a sampler of states, and the factor that stands for the truth."""
    keys = jr.split(jr.key(2024), 4)
    peaks = Peaks(jr.uniform(keys[0], (SIZE,)), jr.uniform(keys[1], (SIZE,), minval=0.1, maxval=0.4))
    turn = lambda x: (x + (math.sqrt(5) - 1) / 2) % 1
    nodes = (jnp.arange(200_000.0)[:, None] + 0.5) / 200_000
    circle = lambda key, num: jr.uniform(key, (num, 1))
    square = lambda key, num: jr.uniform(key, (num, 2), minval=-2.0, maxval=2.0)
    bumps = Bumps(square(keys[2], SIZE))
    many = square(keys[3], reference)
    truth = lambda dictionary, x, flow: kv.factor(dictionary, kv.Snapshots(x, flow(x)), block=4000)
    return {
        "rotation, peaks": (peaks, turn, circle, truth(peaks, nodes, turn)),
        "Duffing, bumps": (bumps, duffing, square, truth(bumps, many, duffing)),
    }


def run(name: str, problem: Any, ratio: float, holdout: int, seeds: int, level: float) -> dict[str, Any]:
    """Fit, certify and compare with the truth, for every seed."""
    dictionary, flow, sample, reference = problem
    num = math.ceil(ratio * SIZE)

    def once(key: Array) -> tuple[Array, ...]:
        first, second = jr.split(key)
        x, fresh = sample(first, num), sample(second, holdout)
        pairs = kv.edmd(kv.factor(dictionary, kv.Snapshots(x, flow(x))))
        held = kv.Snapshots(fresh, flow(fresh))
        certificate = kv.certify(pairs, held, level=level)
        true = reference.residual(pairs.eigenvalues, reference.R11 @ pairs.coefficients)
        values = _pointwise.pointwise(pairs, held)
        moments = _statistics.moments(values.n, values.d)
        student = jnp.sqrt(_statistics.plain(moments, (1 - level) / (2 * SIZE))[1])
        return (
            certificate.upper,
            certificate.lower,
            certificate.supported,
            certificate.rigorous,
            true,
            student,
            pairs.residuals + pairs.rounding,
        )

    # One seed at a time: batches of small decompositions have been seen to lock up on a machine of two cores.
    one = eqx.filter_jit(once)
    keys = jr.split(jr.key(int(1000 * ratio) + holdout), seeds)
    start = time.process_time()
    parts = [jax.device_get(one(key)) for key in keys]
    upper, lower, supported, rigorous, true, student, training = (
        np.stack([part[i] for part in parts]) for i in range(7)
    )
    families = lambda bad: int(np.any(bad, axis=1).sum())
    ratios = (upper / true)[supported]
    quantile = lambda a, q: float(np.quantile(a[np.isfinite(a)], q)) if np.isfinite(a).any() else None
    return {
        "problem": name,
        "M/N": ratio,
        "M": num,
        "holdout": holdout,
        "seeds": seeds,
        "level": level,
        "false": families(supported & (upper < true)),
        "false_lower": families(supported & (lower > true)),
        "false_if_never_refused": families(upper < true),
        "refused": float(1 - supported.mean()),
        "rigorous": float((rigorous & supported).mean()),
        "bound/true": quantile(ratios, 0.5),
        "bound/true 95%": quantile(ratios, 0.95),
        "student_false": families(student < true),
        "student/true": quantile(student / true, 0.5),
        "training_false": families(training < true),
        "training_pairs_false": float((training < true).mean()),
        "training/true": quantile(training / true, 0.5),
        "cpu_s": time.process_time() - start,
    }


def main() -> int:
    """Print one JSON row per problem, ratio and size of the hold-out set, and the totals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="for each problem and size, shared by all ratios")
    parser.add_argument("--level", type=float, default=0.99)
    parser.add_argument("--reference", type=int, default=1_000_000, help="snapshots that stand for the truth (Duffing)")
    arguments = parser.parse_args()
    rows = []
    for name, problem in problems(arguments.reference).items():
        for ratio in RATIOS:
            for holdout in HOLDOUTS:
                seeds = max(1, arguments.seeds // len(RATIOS))
                rows.append(run(name, problem, ratio, holdout, seeds, arguments.level))
                print(json.dumps(rows[-1]), flush=True)
    total = lambda name: sum(row[name] for row in rows)
    print(
        f"{total('seeds')} families: {total('false')} false, {total('false_lower')} with a false lower bound; Student's "
        f"interval {total('student_false')}, residual of the fit {total('training_false')}",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
