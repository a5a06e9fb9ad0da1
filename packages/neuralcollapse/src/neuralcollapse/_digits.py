"""The digits experiment: a network trained on classes of 100 down to 3 digits, against the optimum that theory gives."""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from ._gof import GOFReport, gof_report
from ._layerwise import Profile, layerwise
from ._monitor import Monitor


COUNTS = (100, 80, 60, 50, 40, 30, 20, 10, 5, 3)
LAM = 1e-3
WIDTH = 128


class Network(eqx.Module):
    """Two ReLU layers, a linear feature layer, and a linear head without bias."""

    layers: list[eqx.nn.Linear]

    def __init__(self, key: Any):
        sizes = (64, WIDTH, WIDTH, WIDTH, len(COUNTS))
        keys = jr.split(key, 4)
        self.layers = [
            eqx.nn.Linear(i, o, use_bias=o == WIDTH, key=k) for i, o, k in zip(sizes, sizes[1:], keys, strict=False)
        ]

    def __call__(self, x: Float[Array, " 64"]) -> Float[Array, " 10"]:
        """Return the logits."""
        return self.layers[3](self.features(x))

    def features(self, x: Float[Array, " 64"]) -> Float[Array, " 128"]:
        """Return what enters the head."""
        for layer in self.layers[:2]:
            x = jax.nn.relu(layer(x))
        return self.layers[2](x)


@dataclasses.dataclass
class Experiment:
    """A finished run.

    **Attributes:**

    - `monitor`: its history; `loss` and `excess` (the loss over the optimum, minus one) are recorded with it.
    - `profile`: the layers at the end.
    - `gof`: the head at the end, against the optimum.
    - `optimum`: the least loss that any features can have.
    - `loss`: the loss at the end.
    """

    monitor: Monitor
    profile: Profile
    gof: GOFReport
    optimum: float
    loss: float

    @property
    def logit_error(self) -> float:
        """The largest difference of an own-class logit from its prediction."""
        return float(jnp.max(jnp.abs(self.gof.logits - self.gof.predicted_logits)))


def run(num_steps: int = 3000, seed: int = 0, every: int = 200) -> Experiment:
    """Train full-batch by Adam, with L2 on the features and the head only, and measure on the way.

    The objective is (1/2N) |W H - Y|^2 + (lam/2) (|W|^2 + |H|^2), whose least value over all features and heads is known.
    """
    with demo_extra():
        import optax

    x, y = data()
    targets = jax.nn.one_hot(y, len(COUNTS), dtype=x.dtype)
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))

    def objective(model: Network) -> Array:
        h = jax.vmap(model.features)(x)
        residual = h @ model.layers[3].weight.T - targets
        return jnp.sum(residual**2) / (2 * len(x)) + LAM / 2 * (jnp.sum(h**2) + jnp.sum(model.layers[3].weight ** 2))

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

    model = Network(jr.key(seed))
    state = optimiser.init(eqx.filter(model, eqx.is_array))
    logits, optimum = prediction()
    layers = {f"into layer {i + 1}": (lambda m, i=i: m.layers[i]) for i in range(3)}
    monitor = Monitor(
        features_fn=_features(layers),
        num_classes=len(COUNTS),
        head_fn=lambda m: (m.layers[3].weight, None),
        sinks=[lambda r: say(f"step {r.step}/{num_steps}: {100 * r.extra['excess']:.3g} % above the optimum")],
    )
    loss = objective(model)
    for done in range(0, num_steps + 1, every):
        if done:
            model, state, loss = train(model, state)
        monitor.measure(done, model, [(x, y)], loss=loss, excess=float(loss) / optimum - 1)
    last = monitor.history[-1]
    stats = last.stats["into the head"]
    gof = gof_report(stats, [model.layers[3].weight], logits, lam_H=LAM)
    return Experiment(monitor, layerwise(last.stats), gof, optimum, float(loss))


def prediction() -> tuple[Float[np.ndarray, " 10"], float]:
    """Return the own-class logits and the loss of the optimum at depth one: singular values max(0, sqrt n - N sqrt(lam lam))."""
    n, total = np.array(COUNTS, float), sum(COUNTS)
    sigma = np.maximum(0, np.sqrt(n) - total * LAM)
    loss = np.sum((sigma - np.sqrt(n)) ** 2) / (2 * total) + LAM * np.sum(sigma)
    return sigma / np.sqrt(n), float(loss)


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


def _features(layers: dict[str, Any]) -> Any:
    from ._taps import capture

    where = {**layers, "into the head": lambda m: m.layers[3]}

    def features(model: Network, x: Any) -> dict[str, Any]:
        seen = jax.vmap(capture(model, where))(x)[1]
        return {name: seen[name] for name in where}

    return features


def draw(experiment: Experiment, path: str) -> None:
    """Save the picture of a run."""
    import matplotlib.pyplot as plt

    from . import plot

    figure, ((top, right), (low, last)) = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    monitor, gof = experiment.monitor, experiment.gof
    plot.phases(monitor, ("nc1_pinv", "nc1_quotient", "etf_distance", "self_duality"), ax=top)
    top.set_title("collapse of the last features during training")
    steps, excess = monitor.curve("excess")
    right.plot(steps, 100 * np.maximum(excess, math.ulp(1.0)), marker=".")
    right.set(
        yscale="log", xlabel="training step", ylabel="% above the theoretical optimum", title="loss against the optimum"
    )
    right.grid(alpha=0.3)
    plot.depth_profile(experiment.profile, ax=low)
    low.set_title("depth profile at the end")
    plot.gof_bars(gof, COUNTS, ax=last)
    last.set_title(f"own logits: largest difference {experiment.logit_error:.1e}")
    figure.savefig(path, dpi=110)
    plt.close(figure)
