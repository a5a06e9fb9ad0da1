# # A layer that stays easy to solve
#
# A deep equilibrium layer in an Equinox model, trained on digits like any other layer. It begins with weights that are too
# large: its map is no contraction, equilibria are slow to find, and for some samples no solver finds one. Every sample has a
# status, so one can watch; a penalty on the Jacobian brings the map back to where equilibria are near.

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import optax
from fixedpoint_eq import RESULTS, Anderson, layers, plot, problems


x, y, test_x, test_y = map(jnp.asarray, problems.digits())


class Cell(eqx.Module):
    W: eqx.nn.Linear
    U: eqx.nn.Linear

    def __init__(self, *, key):
        a, b = jr.split(key)
        W = eqx.nn.Linear(48, 48, key=a)
        self.W = eqx.tree_at(lambda layer: layer.weight, W, 2.5 * W.weight)
        self.U = eqx.nn.Linear(64, 48, key=b)

    def __call__(self, z, x):
        return jnp.tanh(self.W(z) + self.U(x))


class Model(eqx.Module):
    deq: layers.DEQ
    head: eqx.nn.Linear

    def __init__(self, *, key):
        a, b = jr.split(key)
        self.deq = layers.DEQ(Cell(key=a), jnp.zeros(48), Anderson(rtol=1e-4))
        self.head = eqx.nn.Linear(48, 10, key=b)

    def __call__(self, x):
        # A batch, in which every sample has its own status. By default one that fails raises; here it has no gradient.
        solution = self.deq.solve(x, batch_axis=0, throw=False, on_failure="zero")
        return jax.vmap(self.head)(solution.value), solution


def train(strength, epochs=12, batch=50):
    model = Model(key=jr.key(0))
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, epochs * (len(x) // batch)))
    state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))

    def loss(model, x, y, key):
        logits, solution = model(x)
        penalty = jax.vmap(lambda z, x: layers.jacobian_regulariser(model.deq.f, z, x, key=key))(solution.value, x)
        task = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.mean(task) + strength * jnp.mean(penalty), (
            solution.stats["num_steps"],
            solution.result != RESULTS.successful,
        )

    @eqx.filter_jit
    def step(model, state, rows, key):
        (_, seen), grads = eqx.filter_value_and_grad(loss, has_aux=True)(model, x[rows], y[rows], key)
        updates, state = optimiser.update(grads, state)
        return eqx.apply_updates(model, updates), state, seen

    steps, lost = [], []
    for k in range(epochs):
        order = jr.permutation(jr.key(k), len(x))[: len(x) // batch * batch].reshape(-1, batch)
        seen = []
        for i, rows in enumerate(order):
            model, state, found = step(model, state, rows, jr.fold_in(jr.key(k), i))
            seen.append(found)
        counts, failed = map(jnp.concatenate, zip(*seen, strict=True))
        steps.append(float(jnp.mean(counts)))
        lost.append(100 * float(jnp.mean(failed)))
    logits, _ = eqx.filter_jit(model)(test_x)
    right = 100 * float(jnp.mean(jnp.argmax(logits, axis=1) == test_y))
    print(
        f"strength {strength}: {right:.1f} % of the test, {lost[-1]:.1f} % of the last epoch's samples without equilibrium"
    )
    return steps, lost


# The gradient goes through the equilibrium, not through the steps: `Implicit`, the default adjoint, solves one linear
# system for each sample, whatever the solver did and however long it took.

histories = {f"regulariser x {strength:g}": train(strength) for strength in (0.0, 0.1)}
figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
plot.curves({name: steps for name, (steps, _) in histories.items()}, ylabel="mean steps to an equilibrium", ax=axes[0])
plot.curves({name: lost for name, (_, lost) in histories.items()}, ylabel="samples without one, %", ax=axes[1])
