"""KV-8: dictionaries trained to be invariant, of the size of the table of arXiv:2606.29083's repository.

Run `python -m benchmarks.learned pendulum` (or `duffing`); the figures go to standard output as JSON. Trajectories, not
pairs, are split: 70 % train, 30 % decide when to stop, and as many new ones again are looked at once, at the end. All
residuals but those named `train` are of functions and eigenvalues from the training data on those new snapshots.
"""

import argparse
import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import koopman_verify as kv
import numpy as np
import optax
from scipy.integrate import solve_ivp


# Printed by the notebooks of the paper's repository, single runs on a GPU: loss, condition number, forecast error.
PUBLISHED = {
    "pendulum": {"untrained": (0.535, 862, 1.04e-3), "fixed": (0.662, 10.8, 0.531), "trained": (0.0441, 409, 2.73e-4)},
    "duffing": {
        "untrained": (0.433, 1249, 4.58e-4),
        "fixed": (0.112, 8.6e5, 4.30e-3),
        "trained": (0.0222, 669, 3.71e-4),
    },
}
SIZES = {"pendulum": (60, 140, 126, 0.2), "duffing": (100, 1500, 40, 0.05)}


def trajectories(system: str, num: int, steps: int, dt: float, seed: int) -> np.ndarray:
    """Return the flow of random initial states at the sampling times, `[num, steps + 1, 2]`."""
    rng = np.random.default_rng(seed)
    if system == "pendulum":
        radius, angle = rng.uniform(0.3, 2.3, num), rng.uniform(0, 2 * np.pi, num)
        start = np.stack([radius * np.cos(angle), radius * np.sin(angle)])
        force = lambda q, _: -9.81 * np.sin(q)
    else:
        start = rng.uniform(-3, 3, (2, num))
        force = lambda q, p: -0.3 * p + q - q**3

    def field(_: float, flat: np.ndarray) -> np.ndarray:
        q, p = flat.reshape(2, num)
        return np.concatenate([p, force(q, p)])

    times = dt * np.arange(steps + 1)
    flow = solve_ivp(field, (0, times[-1]), start.ravel(), "DOP853", times, rtol=1e-9, atol=1e-11)
    return flow.y.reshape(2, num, steps + 1).transpose(1, 2, 0)


def snapshots(paths: np.ndarray) -> kv.Snapshots:
    """Pair the states in float64: untrained networks depend on each other in float32 (condition numbers above 1e6)."""
    return kv.Snapshots.from_trajectory(jnp.asarray(paths))


def measure(dictionary: Callable, train: kv.Snapshots, fresh: kv.Snapshots) -> dict[str, float]:
    """Fit on `train` and score on both."""
    made = kv.factor(dictionary, train)
    pairs = kv.edmd(made)
    psi = [np.asarray(jax.vmap(dictionary)(z)) for z in (fresh.x, fresh.y)]
    v, z = np.asarray(pairs.coefficients), np.asarray(pairs.eigenvalues)
    ratio = np.sum(np.abs(psi[1] @ v - psi[0] @ v * z) ** 2, 0) / np.sum(np.abs(psi[0] @ v) ** 2, 0)
    matrix = np.asarray(made.basis) @ np.asarray(made.A) @ np.asarray(made.R11)
    kappa = np.linalg.svd(np.asarray(made.R11), compute_uv=False)
    return {
        "mean_square_residual": float(ratio.mean()),
        "train_mean_square_residual": float(kv.loss.residual(made)),
        "invariance_defect": float(kv.loss.invariance_defect(kv.factor(dictionary, fresh))),
        "worst_residual": float(np.sqrt(ratio.max())),
        "median_residual": float(np.sqrt(np.median(ratio))),
        "kappa": float(kappa[0] / kappa[-1]),
        "forecast": float(np.sum((psi[1] - psi[0] @ matrix) ** 2) / np.sum(psi[1] ** 2)),
    }


def rows(system: str, options: argparse.Namespace) -> list[dict]:
    """Train one dictionary and return what it was before and after, beside the published figures."""
    size, num, steps, dt = SIZES[system]
    paths, new = (trajectories(system, num, steps, dt, seed) for seed in (options.seed, options.seed + 1000))
    cut = int(0.7 * num)
    train, test, fresh = snapshots(paths[:cut]), snapshots(paths[cut:]), snapshots(new)
    dictionary = kv.LearnedDictionary(
        2, size, width=options.width, depth=2, separate=options.separate, constant=False, centre=0.0,
        scale=np.std(paths, axis=(0, 1)), key=jax.random.key(options.seed),
    )  # fmt: skip
    start = time.process_time()
    threshold = lambda made: kv.loss.conditioned_defect(made, weight=options.weight, threshold=options.threshold)
    training = kv.train_dictionary(
        dictionary, train, test, loss=threshold, optimiser=optax.adam(optax.cosine_decay_schedule(options.rate, options.decay)),
        batch_size=options.batch, max_epochs=options.epochs, patience=options.patience,
        key=jax.random.key(options.seed + 1), progress=options.progress,
    )  # fmt: skip
    cpu = time.process_time() - start
    common = {"problem": system, "N": size, "M": train.num_snapshots, "seed": options.seed}
    made = [
        {**common, "method": "koopman-verify, untrained", **measure(dictionary, train, fresh)},
        {
            **common, "method": "koopman-verify, trained", **measure(training.dictionary, train, fresh),
            "epochs": len(training.batch_losses), "best_epoch": training.best_epoch,
            "cpu_seconds": cpu,
        },
    ]  # fmt: skip
    for name, (loss, kappa, forecast) in PUBLISHED[system].items():
        method = f"published by the paper's repository, {name}"
        made.append(
            {"problem": system, "method": method, "mean_square_residual": loss, "kappa": kappa, "forecast": forecast}
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=sorted(SIZES))
    for name, default in (
        ("seed", 0),
        ("width", 64),
        ("batch", 2400),
        ("epochs", 500),
        ("patience", 50),
        ("decay", 2500),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("rate", 3e-3), ("weight", 0.1), ("threshold", 30.0)):
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--separate", action="store_true")
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    for row in rows(options.system, options):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
