# # Minority collapse
#
# A linear head of $M$ layers on features that are free to be anything, squared loss, L2 on everything: what is the least
# loss, and what do the features look like there? `ufm.solve_mse` answers in closed form, for any class sizes. And it says
# which classes are not worth their price: those of at most `n_crit` samples have all logits zero, their means are at the
# origin, and no training can change that.

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
from neuralcollapse import ufm


jax.config.update("jax_enable_x64", True)
counts = [200, 100, 50, 10]
depths = (1, 2, 3)
for depth in depths:
    solution = ufm.solve_mse(counts, depth, 2e-3, 2e-3)
    logits = np.asarray(solution.sigma) / np.sqrt(counts)
    print(f"depth {depth}: logits {logits.round(3)}, classes up to {float(solution.n_crit):.1f} samples collapse")

# What decides is $q = \theta_M\, n_{\mathrm{crit}} / n_k$, and a class collapses at $q \ge \theta_M$. At depth 1 it fades out;
# deeper, it is given up at once, at a logit of $(M-1)/M$. Dashed: beyond the threshold a fitted class is still a local
# minimum, up to the spinodal point, so a network that has once fitted a class can keep it: hysteresis.

q = jnp.linspace(1e-3, 1.0, 2000)
figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
for depth, colour in zip(depths, ("C0", "C1", "C2"), strict=True):
    everywhere = ufm.fitted_fraction(q, depth)
    local = ufm.fitted_fraction(q, depth, local=True)
    axis.plot(q, jnp.where(everywhere > 0, everywhere, jnp.nan), colour, label=f"depth {depth}")
    axis.plot(q, jnp.where((everywhere == 0) & (local > 0), local, jnp.nan), f"{colour}--")
    axis.axvline(ufm.threshold(depth), color=colour, lw=0.8, ls=":")
axis.set(xlabel=r"$q = \theta_M\, n_{\mathrm{crit}} / n_k$", ylabel="own logit of the class")
axis.set(title="Global minimum (solid), local minimum (dashed), threshold (dotted)", ylim=(0, 1.02), xlim=(0, 1))
figure.legend(loc="outside right center")

# Is it true? Direct optimisation from random factors, by L-BFGS, comes down to the oracle, and never below. Here every layer
# is twice as wide as there are classes; in narrower ones it may stop at a local minimum that has lost a class, where the
# oracle still holds.

for depth in depths:
    solution = ufm.solve_mse(counts, depth, 2e-3, 2e-3, widths=8)
    found = ufm.fit(solution, key=jr.key(0))
    print(
        f"depth {depth}: oracle {float(solution.loss):.12f}, above it by {float(found.loss - solution.loss):.0e} "
        f"after {int(found.stats['num_steps'])} steps"
    )

# The phase diagram: five classes of 200 samples and five of fewer. Colour is the own logit of a minority class; white, it has
# collapsed. The red line is `n_crit` again, and the dotted one the spinodal. All of it is one
# compiled call: class sizes may be traced, and need not be whole numbers.

strengths, ratios = np.geomspace(1e-5, 2e-2, 161), np.geomspace(1, 200, 161)


@jax.jit
def minority(depth_strength, ratio):
    sizes = jnp.concatenate([jnp.full(5, 200.0), jnp.full(5, 200.0 / ratio)])
    solutions = [ufm.solve_mse(sizes, depth, depth_strength, depth_strength) for depth in depths]
    return jnp.stack([jnp.stack([s.sigma[-1] / s.tau[-1], s.ratio[-1]]) for s in solutions])


grid = jax.jit(jax.vmap(jax.vmap(minority, (0, None)), (None, 0)))(jnp.asarray(strengths), jnp.asarray(ratios))
figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained", sharey=True)
for axis, depth, panel in zip(axes, depths, np.moveaxis(np.asarray(grid), 2, 0), strict=True):
    logit, ratio = panel[..., 0], panel[..., 1]
    axis.pcolormesh(strengths, ratios, np.where(logit > 0, logit, np.nan), cmap="viridis", vmin=0, vmax=1)
    axis.contour(strengths, ratios, ratio, [1.0], colors="red")
    axis.contour(strengths, ratios, ratio, [ufm.spinodal(depth) / ufm.threshold(depth)], colors="black", linestyles=":")
    axis.set(xscale="log", yscale="log", xlabel=r"regularisation $\lambda_W = \lambda_H$", title=f"depth {depth}")
axes[0].set_ylabel("majority size / minority size")
colours = plt.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), "viridis")
figure.colorbar(colours, ax=axes, label="own logit of a minority class (white: collapsed)")
