# # Watching a network collapse
#
# A `Monitor` on an ordinary Equinox training loop: handwritten digits, four ReLU layers, squared loss, AdamW. It says where
# the features of each layer are on the way to collapse, from one pass over the data (a second one, for what needs
# the final means).

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import neuralcollapse as nc
import numpy as np
import optax
from neuralcollapse import metrics, plot
from sklearn.datasets import load_digits


x, y = (np.asarray(a) for a in load_digits(return_X_y=True))
x, y = jnp.asarray(x / 16, jnp.float32), jnp.asarray(y, jnp.int32)
batches = [(x[start : start + 600], y[start : start + 600]) for start in range(0, len(x), 600)]
model = eqx.nn.MLP(64, 10, 64, 4, key=jr.key(0))
optimiser = optax.adamw(optax.cosine_decay_schedule(2e-3, 1200), weight_decay=0.1)
state = optimiser.init(eqx.filter(model, eqx.is_array))


@eqx.filter_jit
def train_step(model, state):
    def loss_fn(model):
        return jnp.mean(jnp.sum((jax.vmap(model)(x) - jax.nn.one_hot(y, 10)) ** 2, axis=1))

    loss, gradient = eqx.filter_value_and_grad(loss_fn)(model)
    updates, state = optimiser.update(gradient, state, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), state, loss


# The monitor: where the classifier is, which further layers to tap (by what enters them), how often to measure, and where the
# records go. A sink is any function of a record; this one prints.

layers = {f"hidden {depth}": (lambda m, depth=depth: m.layers[depth]) for depth in (1, 2, 3)}
show = nc.sinks.progress(1200, metrics=("nc1_quotient", "etf_distance"), file=sys.stdout)
monitor = nc.Monitor.equinox(
    lambda m: m.layers[-1],
    num_classes=10,
    layers=layers,
    every=50,
    sinks=[lambda record: show(record) if record.step == 1200 else None],
)
for step in range(1201):
    trained, state, loss = train_step(model, state)
    monitor.measure(step, model, batches, loss=loss)
    model = trained

# The curves. NC1: features gather around the mean of their class. NC2: the means become a simplex, all of one length and at equal
# angles. NC3: the classifier turns parallel to them. NC4: it decides as the nearest mean does. The right picture is NC1 of
# each layer: deeper layers collapse further.

figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
plot.phases(monitor, ax=axes[0]).set_title("The last features, over training")
for layer in (*layers, "penultimate"):
    axes[1].plot(*monitor.curve("nc1_quotient", layer), marker=".", label=layer)
axes[1].set(yscale="log", xlabel="training step", title="Each layer, over training")
axes[1].set_ylabel(r"NC1  $\mathrm{tr}\,S_W / \mathrm{tr}\,S_B$")
axes[1].grid(alpha=0.3)
axes[1].legend(fontsize="small")

# A record keeps the statistics that it was made from, so every other metric can still be had. The profile in depth at the first
# and at the last measurement, and its slope: the factor by which a layer reduces the variability within classes.

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
for axis, record in zip(axes, (monitor.history[0], monitor.history[-1]), strict=True):
    profile = metrics.layerwise(record.stats)
    factor = np.exp(profile.slope("nc1_quotient"))
    plot.depth_profile(profile, ax=axis).set_title(f"Step {record.step}: NC1 times {factor:.2f} a layer")
