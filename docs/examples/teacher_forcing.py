# # Learning a chaotic simulator
#
# A hundred time units of the Lorenz system with 5 % noise, and a recurrent network of three states and fifty hidden units
# that is to become that system. A plain fit through long pieces of an orbit fails: the gradients of chaotic orbits grow
# without bound. Generalised teacher forcing (Hess et al., arXiv 2306.04406) draws the state towards the data before every
# step, by just so much that they do not.

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from koopman_verify import gtf


recording = gtf.lorenz63(jr.key(0), 10_000, noise=0.05).standardised()
fresh = gtf.lorenz63(jr.key(7), 10_000).values
truth = (fresh - recording.mean) / recording.scale  # an orbit that is not in the data, without noise
untrained = gtf.ShallowPLRNN(3, 50, key=jr.key(1))

num_steps = 4000
training = gtf.train(
    untrained,
    recording.values,
    key=jr.key(2),
    num_steps=num_steps,
    length=100,
    optim=gtf.exponential_radam(num_steps, 5e-3, 5e-5),
    forcing=gtf.AnnealedForcing(gamma=0.98),
)
model = training.value
print(f"loss {float(training.loss[0]):.3f} -> {float(jnp.mean(training.loss[-100:])):.4f}, noise alone 0.0025")
print(f"forcing {float(training.alpha[0]):.2f} -> {float(training.alpha[-1]):.2f}")

# A simulator of chaos is not scored by its predictions, which must fail after a while, but by what it does in the long run:
# where orbits spend their time ($D_\text{stsp}$), their spectra ($D_H$), and how fast they part ($\lambda_{\max}$). A second
# orbit of the true system says how small the first two can be with so much data.

second = (gtf.lorenz63(jr.key(8), 10_000).values - recording.mean) / recording.scale
flow = gtf.FlowMap(gtf.lorenz63_field, recording.dt)
rows = {
    "untrained": (untrained.orbit(truth[0], 10_999)[1000:], untrained, truth[0]),
    "trained": (model.orbit(truth[0], 10_999)[1000:], model, truth[0]),
    "true system": (second, flow, fresh[0]),
}
print(f"{'':12} {'D_stsp':>7} {'D_H':>6} {'lambda_max':>11}")
for name, (orbit, step, start) in rows.items():
    divergence = gtf.state_space_divergence(truth, orbit, bins=15)
    distance = gtf.hellinger_spectrum(truth, orbit)
    exponent = gtf.lyapunov_exponent(step, start, 40_000, burn_in=1000, dt=recording.dt)
    print(f"{name:12} {float(divergence):7.2f} {float(distance):6.3f} {float(exponent):11.2f}")

# Two numbers are proved from the weights alone: how far one step can part two states, and a ball that no orbit leaves. A
# certificate for the Koopman spectrum of this simulator starts from them.

print(f"|F(x) - F(y)| <= {float(model.lipschitz()):.2f} |x - y|")
print(f"orbits stay in the ball of radius {float(model.invariant_radius()):.1f}")

# Why it works: the derivative of the state after $T$ steps with respect to the first one. Free, it grows like
# $e^{\lambda_{\max}T\Delta t}$. At $\alpha^*$ from the norms of the Jacobians along the orbit (an estimate, which training
# used), or from the parameters (a bound, for all data), it dies out.


def sensitivity(alpha):
    derivative = jax.jacfwd(lambda z0: gtf.forced_orbit(model, truth[:2000], alpha, z0=z0))(truth[0])
    return jnp.linalg.norm(derivative, 2, axis=(1, 2))


strengths = {
    "free": jnp.array(0.0),
    "estimated": gtf.alpha_star(model, truth, "product"),
    "proved": gtf.alpha_star(model, truth, "parameters"),
}
figure, axes = plt.subplots(1, 3, figsize=(12, 3.9), layout="constrained")
learned = np.asarray(recording.restore(rows["trained"][0]))
axes[0].plot(fresh[:, 0], fresh[:, 2], lw=0.4, color="#64748b", label="Lorenz system")
axes[0].plot(learned[:, 0], learned[:, 2], lw=0.4, color="#7c3aed", alpha=0.7, label="learned, running free")
axes[0].set(title="The attractor", xlabel="$x$", ylabel="$z$", ylim=(-6, 50))
for line in axes[0].legend(loc="lower left", fontsize="small", ncols=2).get_lines():
    line.set_linewidth(2)
free = np.asarray(recording.restore(model.orbit(truth[0], 1499)))
time = recording.dt * np.arange(1500)
axes[1].plot(time, fresh[:1500, 0], color="#64748b")
axes[1].plot(time, free[:, 0], "--", color="#7c3aed")
axes[1].set(title="From one state", xlabel="time", ylabel="$x$")
for (name, alpha), style in zip(strengths.items(), ("-", "--", ":"), strict=True):
    growth = np.asarray(jax.jit(sensitivity)(alpha))
    axes[2].loglog(
        np.arange(1, 2000), np.maximum(growth, 1e-30), style, label=f"{name}: $\\alpha = {float(alpha):.2f}$"
    )
axes[2].set(
    title="Growth of the gradient", xlabel="step $T$", ylabel=r"$\|\partial z_T/\partial z_0\|$", ylim=(1e-9, 1e9)
)
axes[2].legend(fontsize="small")
axes[2].grid(alpha=0.3)
