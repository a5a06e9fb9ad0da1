"""FPE-6: handwritten digits learned with independent feedback weights, by several estimators of one gradient.

The 1,797 images of 8 x 8 pixels that scikit-learn brings, a fifth of them for the test; a network 64-64-64-10 whose
backward weights are drawn independently (angle 90); stochastic gradient descent with momentum, and gradients clipped to
a norm, for every method alike, at the rate that suits it. Where samples do not settle they contribute nothing, and are counted.
"""

import argparse
import json
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from fixedpoint_eq import RESULTS, ep

from .environment import version
from .protocol import OURS


SIZES = (64, 64, 64, 10)
BATCH = 50
CLIP = 0.5
MOMENTUM = 0.9

# The estimator, the coefficient of Jacobian homeostasis, and the rate. That of recurrent backpropagation was chosen
# between 0.1 and 0.4 on the seed 100, and AsymEP takes it over untuned. Plain EP fails at it; its two were chosen from
# 0.05, 0.1 and 0.2, and the coefficient between 1 and 10, on the seeds 100 and 101.
METHODS = {
    "recurrent backpropagation": (ep.RBP(), 0.0, 0.4),
    "EP": (ep.Symmetric(0.2), 0.0, 0.1),
    "EP + homeostasis": (ep.Symmetric(0.2), 1.0, 0.05),
    "AsymEP": (ep.AsymEP(ep.Symmetric(0.2)), 0.0, 0.4),
    "holomorphic AsymEP (ours)": (ep.AsymEP(ep.Cauchy(0.2, 4)), 0.0, 0.4),
}


def data(seed):
    """Return images in [0, 1] and labels, for training and for the test, split at random."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    x, y = (images[order] / 16).astype(np.float32), labels[order].astype(np.int32)
    cut = len(x) // 5
    return tuple(map(jnp.asarray, (x[cut:], y[cut:], x[:cut], y[:cut])))


@eqx.filter_jit
def train(estimator, strength, splits, key, epochs, rate, gain, steps):
    """Train one network; return the accuracy on the test and how well the samples settled, for each epoch."""
    x, y, test_x, test_y = splits
    field = ep.mlp(SIZES, num_outputs=10)
    settle = ep.Settle(tau=0.6, rtol=1e-5, max_steps=steps)
    init_key, key = jr.split(key)
    params = field.init(key=init_key, angle=90.0, gain=gain, dtype=jnp.float32)
    batches = len(x) // BATCH

    def update(carry, batch):
        params, velocity, rate = carry
        index, key = batch
        grads, info = ep.gradient(
            field, params, x[index], y[index], estimator, free=settle, tol=1e-3, on_failure="zero", throw=False
        )
        size = jnp.sqrt(sum(jnp.sum(g**2) for g in jtu.tree_leaves(grads)))
        grads = jtu.tree_map(lambda g: jnp.minimum(1, CLIP / size) * g, grads)
        if strength > 0:
            # Not clipped with the rest, whose direction its noise would take.
            r0 = jax.vmap(field.activation)(info.state)
            extra = jax.grad(lambda p: ep.homeostatic_loss(field, p, r0, key=key))(params)
            grads = jtu.tree_map(lambda g, h: g + strength * h, grads, extra)
        velocity = jtu.tree_map(lambda v, g: MOMENTUM * v - rate * g, velocity, grads)
        params = jtu.tree_map(jnp.add, params, velocity)
        failed = jnp.mean(info.result != RESULTS.successful)
        return (params, velocity, rate), (info.residual_free, failed)

    def accuracy(params):
        def predict(x):
            u = settle(lambda u: field.drive(params, field.activation(u), x), field.initial(x))
            return jnp.argmax(field.readout(params, field.activation(u)))

        return jnp.mean(jax.vmap(predict)(test_x) == test_y)

    def epoch(carry, inputs):
        key, rate = inputs
        order_key, *keys = jr.split(key, batches + 1)
        index = jr.permutation(order_key, len(x))[: batches * BATCH].reshape(batches, BATCH)
        (params, velocity, _), (res, failed) = jax.lax.scan(update, (*carry, rate), (index, jnp.stack(keys)))
        return (params, velocity), (accuracy(params), jnp.median(res), jnp.max(res), jnp.mean(failed))

    # A cosine to zero: what is left at the end is not the noise of the last batches.
    rates = rate * (1 + jnp.cos(jnp.pi * jnp.arange(epochs, dtype=jnp.float32) / epochs)) / 2
    velocity = jtu.tree_map(jnp.zeros_like, params)
    _, out = jax.lax.scan(epoch, (params, velocity), (jr.split(key, epochs), rates))
    return out


def rows(methods, seeds, epochs=20, rate=None, gain=0.5, steps=150):
    """Yield a row for each method: accuracies over the seeds, residuals and failures of the last epoch."""
    for name in methods:
        estimator, strength, own_rate = METHODS[name]
        step = jnp.float32(own_rate if rate is None else rate)
        start = time.process_time()
        # One after the other: a batch of them would wait for the slowest at every step.
        runs = [train(estimator, strength, data(s), jr.key(s), epochs, step, gain, steps) for s in seeds]
        curves, median, worst, failed = (np.stack([np.asarray(run[i]) for run in runs]) for i in range(4))
        final = 100 * curves[:, -1]
        yield {
            "problem": "FPE-6 ep-digits-90",
            "method": name,
            "distribution": OURS,
            "version": version(OURS),
            "error": 1 - float(np.mean(final)) / 100,
            "rate": float(step),
            "accuracy": float(np.mean(final)),
            "deviation": float(np.std(final)),
            "accuracies": [round(float(a), 2) for a in final],
            "curve": [round(float(a), 4) for a in np.mean(curves, 0)],
            "residual_median": float(np.median(median[:, -1])),
            "residual_max": float(np.max(worst[:, -1])),
            "flagged": float(np.mean(failed[:, -1])),
            "seconds": time.process_time() - start,
        }


def main():
    """Parse the options, train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rate", type=float, help="of all methods, in place of their own")
    parser.add_argument("--gain", type=float, default=0.5, help="of the first weights")
    parser.add_argument("--steps", type=int, default=150, help="of a phase, at most")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    found = []
    print(
        "| method | accuracy | by seed | free residual, median and worst | flagged | CPU s |\n|---|---|---|---|---|---|"
    )
    for r in rows(options.methods.split(","), seeds, options.epochs, options.rate, options.gain, options.steps):
        print(
            f"| {r['method']} | {r['accuracy']:.1f} +- {r['deviation']:.1f} | {r['accuracies']} | "
            f"{r['residual_median']:.0e}, {r['residual_max']:.0e} | {100 * r['flagged']:.2f} % | {r['seconds']:.0f} |",
            flush=True,
        )
        found.append(r)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
