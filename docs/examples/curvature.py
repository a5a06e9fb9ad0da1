# # Curvature at a minimum
#
# How flat is the minimum that a network has found, and would SGD stay there? A small network is fitted exactly, so that the
# Hessian of its 161 parameters can be written down and every estimate compared with the truth. The estimates need only
# Hessian-vector products.

from typing import Literal

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import optimistix as optx
from neuralcollapse import sharpness


jax.config.update("jax_enable_x64", True)
x = jr.normal(jr.key(0), (24, 8))
y = jnp.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] / 2
arrays, static = eqx.partition(eqx.nn.MLP(8, "scalar", 16, 1, jnp.tanh, key=jr.key(1)), eqx.is_array)
start, unravel = jfu.ravel_pytree(arrays)


def outputs(w):
    return jax.vmap(eqx.combine(unravel(w), static))(x)


def loss(w):
    return jnp.mean((outputs(w) - y) ** 2) / 2


solver = optx.LevenbergMarquardt(rtol=1e-12, atol=1e-12)
w = optx.least_squares(lambda w, _: outputs(w) - y, solver, start, max_steps=2000).value
exact = np.linalg.eigvalsh(jax.hessian(loss)(w))[::-1]
print(f"{w.size} parameters, loss {float(loss(w)):.0e}; largest eigenvalue {exact[0]:.6f}, trace {exact.sum():.6f}")

# Each answer says how far it can be off: eigenvalues have a bound, traces a standard error, which is zero where
# the method knows that it is exact.

top = sharpness.lambda_max(loss, w, key=jr.key(2), num_steps=12)
print(f"lambda_max {float(top.value):.6f}: an eigenvalue is within {float(top.residual):.0e} of it")
total = sharpness.trace(loss, w, key=jr.key(3), num_matvecs=60)
print(f"trace {float(total.value):.4f}, standard error {float(total.standard_error):.0e}, {total.num_matvecs} products")
spectrum = sharpness.density(loss, w, key=jr.key(4), num_probes=16, num_steps=24)

# Left: the largest eigenvalue by Lanczos' method, its true error beside the bound that comes with it. Middle: Hutch++
# beside random probes alone, with 95 % intervals: 24 samples give the Hessian a rank of 24, so that from three times as many
# products on Hutch++ is exact. Right: the spectral density by stochastic Lanczos quadrature beside all true eigenvalues.

figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
steps = (2, 4, 7, 10, 14)
tops = [sharpness.lambda_max(loss, w, key=jr.key(2), num_steps=k) for k in steps]
axes[0].semilogy(steps, [float(t.residual) for t in tops], "o--", label="bound")
axes[0].semilogy(steps, [max(abs(float(t.value) - exact[0]), 1e-17) for t in tops], "o-", label="true error")
axes[0].set(xlabel="Hessian-vector products", ylabel="error", title="Largest eigenvalue")
axes[0].legend()
budgets = (12, 36, 72)
methods: tuple[tuple[Literal["hutchinson", "hutch++"], int, str], ...] = (
    ("hutchinson", -1, "C1"),
    ("hutch++", 1, "C0"),
)
for method, shift, colour in methods:
    estimates = [sharpness.trace(loss, w, key=jr.key(5), num_matvecs=k, method=method) for k in budgets]
    low, high = np.array([[float(v) for v in e.interval()] for e in estimates]).T
    middle = np.array([float(e.value) for e in estimates])
    bars = [middle - low, high - middle]
    axes[1].errorbar(np.add(budgets, shift), middle, bars, fmt="o", capsize=3, color=colour, label=method)
axes[1].axhline(exact.sum(), color="black", lw=0.8, label="exact")
axes[1].set(xlabel="Hessian-vector products", ylabel="trace", title="Trace")
axes[1].legend()
grid = jnp.linspace(-0.1 * exact[0], 1.1 * exact[0], 600)
width = 0.02 * exact[0]
axes[2].semilogy(grid, spectrum.evaluate(grid, width), label=f"{spectrum.num_matvecs} products")
bumps = np.exp(-((np.asarray(grid)[:, None] - exact) ** 2) / (2 * width**2)) / (width * np.sqrt(2 * np.pi))
axes[2].semilogy(grid, bumps.mean(1), "--", label="all eigenvalues")
axes[2].set(xlabel="eigenvalue", ylabel="density", title="Spectral density", ylim=(1e-6, None))
axes[2].legend()

# At an exact fit the largest step at which SGD is stable in mean square is an eigenvalue, too: `sgd_eta_max` finds it for any
# batch size from the gradients of the outputs. Gradient descent only needs $\eta \le 2/\lambda_{\max}$; with batches of one,
# $\eta \le 2/\operatorname{tr} H$ is necessary, not sufficient. On the right is the test: SGD on the network itself with
# batches of one, started close to the minimum, 400 runs at a step below and 400 at a step above the limit.

gradients = jax.jacobian(outputs)(w)
sizes = (1, 4, 16, 64)
limits = [float(sharpness.sgd_eta_max(gradients, size).eta) for size in sizes]
print(
    f"batches of one: stable up to {limits[0]:.4f}; 2 / trace is {2 / exact.sum():.4f}, 2 / lambda_max {2 / exact[0]:.4f}"
)


@jax.jit
def excursion(eta, key):
    def step(w, row):
        gradient = jax.grad(lambda w: (eqx.combine(unravel(w), static)(x[row]) - y[row]) ** 2 / 2)(w)
        w = w - eta * gradient
        return w, loss(w)

    first, second = jr.split(key)
    return jax.lax.scan(step, w + 1e-6 * jr.normal(first, w.shape), jr.randint(second, (200,), 0, len(x)))[1]


figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
axes[0].loglog(sizes, limits, "o-", label="SGD, exact")
axes[0].axhline(2 / exact[0], color="C2", ls="--", label=r"$2/\lambda_{\max}$: gradient descent")
axes[0].axhline(2 / exact.sum(), color="C3", ls=":", label=r"$2/\mathrm{tr}\,H$: bound for batches of one")
axes[0].set(xlabel="batch size", ylabel=r"largest stable step $\eta$", title="Limits of stability")
axes[0].legend(loc="center right")
for factor in (0.7, 1.4):
    runs = jax.vmap(excursion, (None, 0))(factor * limits[0], jr.split(jr.key(6), 400))
    axes[1].semilogy(jnp.mean(runs, axis=0), label=f"{factor} times the limit")
axes[1].set(xlabel="SGD step", ylabel="mean loss of 400 runs", title="SGD with batches of one")
axes[1].legend()
