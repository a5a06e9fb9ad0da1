"""The digits experiment: a network trained on classes of 100 down to 3 digits, against the optimum that theory gives."""

import contextlib
import dataclasses
import functools as ft
import math
import sys
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float

from ._gof import GOFReport, gof_report
from ._layerwise import Profile, layerwise
from ._monitor import Monitor
from ._optimality import Optimality, optimality
from ._taps import capture
from ._ufm_mse import solve_mse


COUNTS = (100, 80, 60, 50, 40, 30, 20, 10, 5, 3)
LAM = 1e-3
WIDTH = 128


class Network(eqx.Module):
    """Two ReLU layers, a linear feature layer, and a linear head without bias, of one layer or more."""

    layers: list[eqx.nn.Linear]
    head: list[eqx.nn.Linear]

    def __init__(self, depth: int, key: Any):
        *keys, last = jr.split(key, 3 + depth)
        sizes = (64, WIDTH, WIDTH, WIDTH)
        self.layers = [eqx.nn.Linear(i, o, key=k) for i, o, k in zip(sizes, sizes[1:], keys, strict=False)]
        hidden = [eqx.nn.Linear(WIDTH, WIDTH, use_bias=False, key=k) for k in keys[3:]]
        self.head = [*hidden, eqx.nn.Linear(WIDTH, len(COUNTS), use_bias=False, key=last)]

    def features(self, x: Float[Array, " 64"]) -> Float[Array, " 128"]:
        """Return what enters the head."""
        for layer in self.layers[:2]:
            x = jax.nn.relu(layer(x))
        return self.layers[2](x)

    def __call__(self, x: Float[Array, " 64"]) -> Float[Array, " 10"]:
        """Return the logits."""
        x = self.features(x)
        for layer in self.head:
            x = layer(x)
        return x

    def weights(self) -> list[Float[Array, "_ _"]]:
        """Return the weights of the head, first layer first."""
        return [layer.weight for layer in self.head]


@dataclasses.dataclass
class Experiment:
    """A finished run.

    **Attributes:**

    - `monitor`: its history; `loss` and `excess` (the loss over the optimum, minus one) are recorded with it.
    - `profile`: the layers at the end.
    - `gof`: the head at the end, against the optimum.
    - `optimality`: the loss at the end, against the optimum, and its parts.
    - `lam`: the strength of the regularisation.
    """

    monitor: Monitor
    profile: Profile
    gof: GOFReport
    optimality: Optimality
    lam: float

    @property
    def logit_error(self) -> float:
        """The largest difference of an own-class logit from its prediction."""
        return float(jnp.max(jnp.abs(self.gof.logits - self.gof.predicted_logits)))


def run(num_steps: int = 3000, seed: int = 0, every: int = 200, *, depth: int = 1, lam: float = LAM) -> Experiment:
    """Train full-batch by Adam, with L2 on the features and the head only, and measure on the way.

    The objective is (1/2N) |W_M ... W_1 H - Y|^2 + (lam/2) (|W_1|^2 + ... + |W_M|^2 + |H|^2), whose least value over all
    features and heads is known.
    """
    x, y = data()
    targets = jax.nn.one_hot(y, len(COUNTS), dtype=x.dtype)
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))

    def objective(model: Network) -> Array:
        h = out = jax.vmap(model.features)(x)
        for layer in model.head:
            out = jax.vmap(layer)(out)
        squares = jnp.sum(h**2) + sum(jnp.sum(w**2) for w in model.weights())
        return jnp.sum((out - targets) ** 2) / (2 * len(x)) + lam / 2 * squares

    @eqx.filter_jit
    def train(model: Network, state: Any) -> tuple[Network, Any, Array]:
        dynamic, static = eqx.partition(model, eqx.is_array)

        def step(carry, _):
            dynamic, state = carry
            gradient = jax.grad(lambda d: objective(eqx.combine(d, static)))(dynamic)
            updates, state = optimiser.update(gradient, state)
            return (eqx.apply_updates(dynamic, updates), state), None

        (dynamic, state), _ = jax.lax.scan(step, (dynamic, state), length=every)
        model = eqx.combine(dynamic, static)
        return model, state, objective(model)

    model = Network(depth, jr.key(seed))
    state = optimiser.init(eqx.filter(model, eqx.is_array))
    solution = solve_mse(COUNTS, depth, lam, lam, widths=WIDTH)
    optimum = float(solution.loss)
    monitor = Monitor(
        features_fn=_features(),
        num_classes=len(COUNTS),
        head_fn=lambda m: (ft.reduce(lambda above, w: w @ above, m.weights()), None),
        sinks=[lambda r: say(f"step {r.step}/{num_steps}: {100 * r.extra['excess']:.3g} % above the optimum")],
    )
    loss = objective(model)
    for done in range(0, num_steps + 1, every):
        if done:
            model, state, loss = train(model, state)
        monitor.measure(done, model, [(x, y)], loss=loss, excess=float(loss) / optimum - 1)
    last = monitor.history[-1]
    stats = last.stats["into the head"]
    gof = gof_report(stats, model.weights(), jnp.diagonal(solution.logits), lam_H=lam)
    found = optimality(stats, model.weights(), lam, lam)
    return Experiment(monitor, layerwise(last.stats), gof, found, lam)


def data() -> tuple[Float[Array, "n 64"], Array]:
    """Return the first digits of each class, centred, and their classes."""
    with demo_extra():
        from sklearn.datasets import load_digits

    digits: Any = load_digits()
    rows = np.concatenate([np.flatnonzero(digits.target == k)[:n] for k, n in enumerate(COUNTS)])
    x = digits.data[rows] / 16
    return jnp.asarray(x - x.mean(0), jnp.result_type(float)), jnp.asarray(digits.target[rows])


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def demo_extra() -> Iterator[None]:
    """Say which extra is missing."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f'This needs the extra `demo`: pip install "neuralcollapse[demo]". ({error})') from error


def _features() -> Any:
    where: dict[str, Any] = {f"into layer {i + 1}": (lambda m, i=i: m.layers[i]) for i in range(3)}
    where["into the head"] = lambda m: m.head[0]

    def features(model: Network, x: Any) -> dict[str, Any]:
        seen = jax.vmap(capture(model, where))(x)[1]
        return {name: seen[name] for name in where}

    return features


def draw(experiment: Experiment, path: str) -> None:
    """Save the picture of a run."""
    import matplotlib.pyplot as plt

    from . import plot

    figure, axes = plt.subplots(2, 3, figsize=(17, 8.5), layout="constrained")
    (top, right, phase), (low, last, bars) = axes
    monitor, gof = experiment.monitor, experiment.gof
    plot.phases(monitor, ("nc1_pinv", "nc1_quotient", "cdnv"), ax=top)
    top.set_title("collapse of the last features during training")
    steps, excess = monitor.curve("excess")
    right.plot(steps, 100 * np.maximum(excess, math.ulp(1.0)), marker=".")
    right.set(
        yscale="log", xlabel="training step", ylabel="% above the theoretical optimum", title="loss against the optimum"
    )
    right.grid(alpha=0.3)
    plot.depth_profile(experiment.profile, ("nc1_pinv", "nc1_quotient", "cdnv"), ax=low)
    low.set_title("depth profile at the end")
    plot.gof_bars(gof, COUNTS, ax=last)
    last.set_title(f"own logits: largest difference {experiment.logit_error:.1e}")
    found = experiment.optimality
    # As many samples as there are, all classes but the smallest of one size.
    majority = round((sum(COUNTS) - min(COUNTS)) / (len(COUNTS) - 1))
    plot.phase_diagram(found.solution.depth, len(COUNTS), majority, mark=(experiment.lam, min(COUNTS)), ax=phase)
    plot.optimality_bars(found, ax=bars)
    bars.set_title(f"{100 * float(found.excess):.3g} % above the optimum: by part", pad=24)
    figure.savefig(path, dpi=110)
    plt.close(figure)
