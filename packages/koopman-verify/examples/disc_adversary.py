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
print(
    f"|det DF - 1|, median: {float(jnp.median(jnp.abs(jnp.linalg.det(jax.vmap(jax.jacfwd(involution))(test)) - 1))):.0e}"
)

# What separates them is how fast they may vary. The answer of the library is therefore "undetermined", until a modulus of
# continuity is known.

snapshots = kv.Snapshots(x, y)
print(adversary.determined(snapshots).verdict)
print(kv.sci.table())

# A black box that sees only values can be led on for ever. This one is honest: least squares on angular modes in six rings, of
# which it keeps what has a small residual. It converges on every map that stays put. The adversary changes the map, and never
# takes back an answer.


def black_box(query_map, budget):
    rng = np.random.default_rng(budget)
    before = 0.999 * np.sqrt(rng.random(budget)) * np.exp(2j * np.pi * rng.random(budget))
    images = query_map(np.stack([before.real, before.imag], axis=1))
    after = images[:, 0] + 1j * images[:, 1]
    rings = [np.minimum((6 * np.abs(w) ** 2).astype(int), 5) for w in (before, after)]
    found = [1.0 + 0j]
    for ring in range(6):
        for k in range(-7, 8):
            g, moved = (
                np.where(r == ring, (w / np.abs(w)) ** k, 0) for r, w in zip(rings, (before, after), strict=True)
            )
            value = np.vdot(g, moved) / max(np.vdot(g, g).real, 1.0)
            if np.linalg.norm(moved - value * g) <= 0.35 * np.linalg.norm(g):
                found.append(value)
    return np.asarray(found)


game = adversary.play(black_box, max_oscillations=2, budget=80, growth=1.3)
print(game.verdict)

figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
for axis, map_fn, name in ((axes[0], twist, "a twist"), (axes[1], involution, "an involution")):
    kv.plot.disc_map(map_fn, y, ax=axis)
    axis.set_title(f"{name}: images of quarter circles; red: the data", fontsize="medium")
kv.plot.game(game, ax=axes[2])
