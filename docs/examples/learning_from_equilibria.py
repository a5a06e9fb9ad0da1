# # Digits, learned without a backward pass
#
# A network of 64 hidden units and 10 outputs whose feedback weights have nothing to do with its forward ones. Every error
# signal is the answer of its equilibrium to four small nudges of the outputs, two of them imaginary.

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import optax
from fixedpoint_eq import RESULTS, ep, plot, problems


x, y, test_x, test_y = map(jnp.asarray, problems.digits())
field = ep.mlp((64, 64, 10), num_outputs=10)
epochs, batch = 10, 50
steps = epochs * (len(x) // batch)


def train(estimator, rate):
    params = field.init(key=jr.key(0), dtype=jnp.float32)
    optimiser = optax.chain(
        optax.clip_by_global_norm(0.5), optax.sgd(optax.cosine_decay_schedule(rate, steps), momentum=0.9)
    )

    @jax.jit
    def epoch(params, state, key):
        def step(carry, rows):
            params, state = carry
            grads, info = ep.gradient(field, params, x[rows], y[rows], estimator, on_failure="zero", throw=False)
            updates, state = optimiser.update(grads, state)
            return (optax.apply_updates(params, updates), state), info.result == RESULTS.successful

        rows = jr.permutation(key, len(x))[: len(x) // batch * batch].reshape(-1, batch)
        (params, state), good = jax.lax.scan(step, (params, state), rows)
        return params, state, jnp.mean(good)

    state, curve, good = optimiser.init(params), [], 0.0
    for k in range(epochs):
        params, state, good = epoch(params, state, jr.key(k))
        logits, _ = jax.jit(lambda params: ep.predict(field, params, test_x, throw=False))(params)
        curve.append(100 * float(jnp.mean(jnp.argmax(logits, axis=1) == test_y)))
    print(f"{curve[-1]:.1f} % of the test; {100 * float(good):.1f} % of the last epoch's samples settled")
    return params, curve


# A sample whose phases do not settle, or whose nudge is too large, is flagged and contributes nothing: a gradient from
# equilibria is never silently that of something else. Both methods begin with the same weights; plain EP has the rate that
# suits it, a quarter of the other.

estimators = {"holomorphic AsymEP": (ep.AsymEP(ep.Cauchy(0.2, 4)), 0.4), "EP": (ep.Symmetric(0.2), 0.1)}
trained = {name: train(*choice) for name, choice in estimators.items()}

figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
plot.curves({name: curve for name, (_, curve) in trained.items()}, ax=axes[0])
infos = {
    name: ep.gradient(
        field, trained[name][0], x[:200], y[:200], estimator, alignment=True, on_failure="zero", throw=False
    )[1]
    for name, (estimator, _) in estimators.items()
}
plot.alignment(infos, ax=axes[1])

# And what it sees: test images with the prediction above each.

logits, _ = ep.predict(field, trained["holomorphic AsymEP"][0], test_x[:10])
figure, axes = plt.subplots(1, 10, figsize=(11, 1.5), layout="constrained")
for axis, image, guess in zip(axes, test_x[:10], jnp.argmax(logits, axis=1), strict=True):
    axis.imshow(image.reshape(8, 8), cmap="magma")
    axis.set_title(str(int(guess)))
    axis.set_axis_off()
