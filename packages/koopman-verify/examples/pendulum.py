# # The continuous spectrum of a pendulum
#
# A frictionless pendulum swings at every frequency below its small-amplitude one, or turns over: its Koopman operator has
# continuous spectrum all around the unit circle, and eigenvalues of a matrix cannot show it. A measure-preserving compression
# keeps them on the circle, and a rational kernel of order $m$ smooths them to the spectral *density* of an observable,
# with an error of order $\epsilon^m$.

import jax
import jax.numpy as jnp
import koopman_verify as kv
import matplotlib.pyplot as plt
import numpy as np


jax.config.update("jax_enable_x64", True)
system = kv.problems.pendulum(dt=0.5)
factor = kv.factor(system.dictionary, system.snapshots)
print(f"{factor.size} functions, {factor.num_snapshots} nodes, isometry defect {float(factor.isometry_defect):.2f}")

pairs = kv.edmd(factor)
off = np.abs(1 - np.abs(pairs.eigenvalues))
print(f"EDMD: {np.sum(off > 0.1)} of {len(pairs)} eigenvalues are more than 0.1 off the circle,")
print(f"the least residual among them is {float(jnp.min(pairs.residuals[off > 0.1])):.3f}")

# The measure-preserving compression keeps every eigenvalue on the circle. As functions, take what one observable becomes: $g$,
# $Kg$, $K^2g$, ..., on orbits from a grid. The moments $\langle K^ng,g\rangle$ are then exact up to the length of the orbits.


def observable(state):
    angle, momentum = state[..., 0], state[..., 1]
    return (1 + jnp.cos(angle)) * momentum * jnp.exp(-(momentum**2) / 2)


nodes, weights = system.snapshots.x, system.snapshots.weights
_, orbit = jax.jit(lambda x: jax.lax.scan(lambda s, _: (jax.vmap(system.map_fn)(s), s), x, None, length=41))(nodes)
series = observable(orbit).T  # [nodes, 41]

theta = jnp.linspace(-jnp.pi, jnp.pi, 801)
figure, axes = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
for num in (10, 20, 40):
    data = kv.Snapshots(series[:, :num], series[:, 1 : num + 1], weights, kind="quadrature")
    delays = kv.factor(lambda s: s, data, rank_tol=1e-10)
    mp = kv.mpedmd(delays)
    g = jnp.eye(num)[0]
    density = kv.spectral_measure(mp, g, theta, epsilon=0.2, order=4)
    kv.plot.measure(theta, density, label=f"{num} delays", ax=axes[1])
    gap = float(jnp.max(kv.resolution(mp, theta)))
    print(
        f"{num} delays: |lambda| = 1 up to {float(jnp.max(jnp.abs(jnp.abs(mp.eigenvalues) - 1))):.0e}, largest gap {gap:.2f}"
    )
axes[1].set_title("Density of the spectral measure, order 4, ε = 0.2", fontsize="medium")

# A kernel of width $\epsilon$ needs several eigenvalues within it: where `resolution` is above $\epsilon/2$ (the lines of 10 and
# 20 delays), what is seen are the atoms of the matrix, not the measure.
#
# How long may such a model be believed? A forecast carries the norm of all that has left the span, which for an operator of
# norm one is a bound on the error in the mean square.

delayed = jnp.eye(40)[0]
prediction = kv.forecast(delays, delayed, 60, norm_bound=1.0)
size = float(jnp.sqrt(jnp.sum(weights * series[:, 0] ** 2)))
print(f"error bound after 30 / 45 / 60 steps, relative: {np.asarray(prediction.error)[[30, 45, 60]] / size}")

kv.plot.eigenvalues(pairs, ax=axes[0])
axes[0].set_title("EDMD: every eigenvalue off the circle is false", fontsize="medium")
kv.plot.forecast(prediction, size, ax=axes[2])
axes[2].set_title("Forecast of the observable, relative", fontsize="medium")
