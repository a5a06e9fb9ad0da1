# # Eighty of a hundred eigenvalues are false
#
# The undamped Duffing oscillator $\ddot x = x - x^3$ preserves area, so that the whole spectrum of its Koopman operator lies on
# the unit circle. Extended DMD on 5000 snapshots with 100 radial functions puts most eigenvalues inside of it, and says
# nothing about which. Here every eigenvalue comes with a residual, and a second data set turns the residual into a
# certificate: an upper bound that holds for all of them together with probability 0.99.

import jax
import jax.numpy as jnp
import jax.random as jr
import koopman_verify as kv
import matplotlib.pyplot as plt
import numpy as np


jax.config.update("jax_enable_x64", True)
fit, held_out, other = (kv.problems.duffing_snapshots(1000, 5, key=jr.key(seed)) for seed in range(3))
dictionary = kv.RBF.from_kmeans(other.x, 100, key=jr.key(3))
factor = kv.factor(dictionary, fit)
print(f"{factor.num_snapshots} snapshots, {factor.size} functions, condition {float(factor.cond):.0f}")

# A pair is certified if its bound is at most `tol`, refuted if the data show that its residual is larger.

pairs = kv.edmd(factor).sorted()
certificate = kv.certify(pairs, held_out, tol=0.2)
print(kv.certify(pairs[:8], held_out, tol=0.2))
false = np.abs(1 - np.abs(pairs.eigenvalues)) > 0.1
print(f"{false.sum()} of {len(pairs)} eigenvalues are more than 0.1 off the circle;")
print(f"certified among them: {(false & (certificate.status == 'certified')).sum()}")

# What then *is* the spectrum? `verified_spectrum` looks for it on a grid, not among the eigenvalues, and says how far each
# point that it returns can be from the truth. On the data of the fit that is an estimate, which more snapshots make exact.

grid = kv.polar_grid(181)
spectrum = kv.verified_spectrum(factor, grid, measure_preserving=True)
print(f"{len(spectrum.points)} points, E = {float(spectrum.error):.3f} ({spectrum.kind})")

figure, axes = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
kv.plot.eigenvalues(pairs, certificate, ax=axes[0])
axes[0].set_title("EDMD: certified (dots), not certified (crosses)", fontsize="medium")
x, y = jnp.meshgrid(jnp.linspace(-1.3, 1.3, 53), jnp.linspace(-1.3, 1.3, 53))
z = jax.lax.complex(x, y)
kv.plot.pseudospectrum(z, kv.pseudospectrum(factor, z), ax=axes[1])
axes[1].set_title("Pseudospectrum", fontsize="medium")
kv.plot.spectrum(spectrum, ax=axes[2])
