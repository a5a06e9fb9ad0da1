# # Two systems that no data can tell apart
#
# Twelve snapshots of a map of the disc that preserves area. Two such maps fit all of them to rounding: a twist, whose Koopman
# spectrum is the whole unit circle, and an involution, whose spectrum is $\{1, -1\}$. The two sets are $\sqrt 2$ apart, so
# whatever an algorithm answers, it is wrong by at least $\sqrt 2/2$ on one of the two. More snapshots do not help: the
# construction below takes any finite number.

import jax
import jax.numpy as jnp
import jax.random as jr
import koopman_verify as kv
import matplotlib.pyplot as plt
import numpy as np
from koopman_verify import adversary


jax.config.update("jax_enable_x64", True)
twist = adversary.Twist(lambda r: 1.7 * r**2)
angle, radius = jr.uniform(jr.key(0), (2, 12))
x = jnp.sqrt(0.9 * radius)[:, None] * jnp.stack([jnp.cos(2 * jnp.pi * angle), jnp.sin(2 * jnp.pi * angle)], axis=1)
y = jax.vmap(twist)(x)

involution = adversary.involution_through(x, y, key=jr.key(1))
print(f"twist: {twist.spectrum}; involution: {involution.spectrum}")
print(f"largest difference on the snapshots: {float(jnp.max(jnp.abs(jax.vmap(involution)(x) - y))):.0e}")
test = 0.9 * jr.uniform(jr.key(2), (200, 2), minval=-0.7, maxval=0.7)
twice = jax.vmap(lambda p: involution(involution(p)))(test)
print(f"F(F(p)) - p: {float(jnp.max(jnp.abs(twice - test))):.0e}, made of {involution.num_twists} local twists")
print(f"|det DF - 1|, median: {float(jnp.median(jnp.abs(jnp.linalg.det(jax.vmap(jax.jacfwd(involution))(test)) - 1))):.0e}")

# What separates them is how fast they may vary. The answer of the library is therefore "undetermined", until a modulus of
# continuity is known.

snapshots = kv.Snapshots(x, y)
print(adversary.determined(snapshots))
print(kv.sci.table())

# A black box that sees only values can be led on for ever. This one is honest: EDMD with residuals on points of its choice. It
# converges on every map that stays put, and the adversary changes the map, never an answer.


def black_box(query_map, budget):
    radii = np.sqrt((np.arange(budget) + 0.5) / budget)
    turn = np.pi * (3 - np.sqrt(5)) * np.arange(budget)
    points = radii[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    images = np.asarray(query_map(points))
    angles = np.arctan2(images[:, 1], images[:, 0]) - np.arctan2(points[:, 1], points[:, 0])
    # On functions of the radius times e^{i theta}, a map that keeps radii multiplies by e^{i angle}.
    return np.concatenate([np.exp(1j * angles), np.exp(2j * angles)])


game = adversary.play(black_box, max_oscillations=2, budget=40)
print(game.verdict)

figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
ring = np.exp(2j * np.pi * np.linspace(0, 1, 200))
for axis, map_fn, name in ((axes[0], twist, "twist"), (axes[1], involution, "involution")):
    for radius in np.linspace(0.1, 0.95, 9):
        line = radius * np.stack([np.cos(np.linspace(0, 0.5 * np.pi, 400)), np.sin(np.linspace(0, 0.5 * np.pi, 400))], axis=1)
        image = np.asarray(jax.vmap(map_fn)(jnp.asarray(line)))
        axis.plot(image[:, 0], image[:, 1], lw=0.8, color=plt.cm.viridis(radius))
    axis.plot(ring.real, ring.imag, "k", lw=0.8)
    axis.plot(*np.asarray(y).T, "r.", ms=5)
    axis.set(aspect="equal", title=f"images of quarter circles: {name}", xticks=[], yticks=[])
runs = np.arange(len(game.targets))
axes[2].plot(runs, game.to_circle, "o-", label="distance to the circle")
axes[2].plot(runs, game.to_two_points, "s-", label="distance to {1, -1}")
axes[2].axhline(game.tolerance, color="k", lw=0.8, ls=":")
axes[2].set(xlabel="run of the black box", title=f"{game.num_oscillations} oscillations")
axes[2].legend()
