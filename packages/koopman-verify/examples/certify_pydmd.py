# # Certify what another library found
#
# PyDMD, deeptime and kooplearn return eigenvalues without saying which of them mean anything. The verdict needs only the
# eigenpairs and data that the fit has not seen, so it can be given on top of any of them. Here PyDMD sees a rotation of the
# circle by $2\pi/3$ through 40 hat functions at random nodes. The truth is known: the spectrum is the three cube roots of 1.

import jax
import jax.numpy as jnp
import jax.random as jr
import koopman_verify as kv
import matplotlib.pyplot as plt
import numpy as np
from pydmd import DMD


jax.config.update("jax_enable_x64", True)
dictionary = kv.Hats.random(40, key=jr.key(0))
turn = lambda x: jnp.mod(x + 2 * jnp.pi / 3, 2 * jnp.pi)
x, fresh = 2 * jnp.pi * jnp.arange(3000)[:, None] / 3000, 2 * jnp.pi * jr.uniform(jr.key(1), (4000, 1))
fit, held_out = kv.Snapshots(x, turn(x), kind="quadrature"), kv.Snapshots(fresh, turn(fresh))

lifted, moved = (np.asarray(jax.vmap(dictionary)(z)) for z in (fit.x, fit.y))
dmd = DMD(svd_rank=-1).fit(lifted.T, moved.T)
roots = np.exp(2j * np.pi * np.arange(3) / 3)
found = np.array(dmd.eigs, complex, ndmin=1)
off = np.abs(found[:, None] - roots).min(axis=1)
print(
    f"PyDMD: {len(found)} eigenvalues, {np.sum(off > 0.1)} more than 0.1 from the spectrum, the worst {off.max():.2f}"
)

# An adapter takes the eigenfunctions; `snapshots` lets it recognise a hold-out set that was used in the fit.

pairs = kv.interop.from_pydmd(dmd, dictionary, snapshots=fit).sorted()
certificate = kv.certify(pairs, held_out, tol=0.15)
print(kv.certify(pairs[:6], held_out, tol=0.15))
certified = certificate.status == "certified"
off = np.abs(np.asarray(pairs.eigenvalues)[:, None] - roots).min(axis=1)
print(f"certified: {certified.sum()}; farthest from the spectrum among them: {off[certified].max():.3f}")
assert off[certified].max() <= 0.15  # what the certificate promises, as a rotation is a normal operator

# The spectrum itself, from the same data, as the nodes are those of a quadrature rule: exactly three points.

spectrum = kv.verified_spectrum(kv.factor(dictionary, fit), kv.polar_grid(241), measure_preserving=True)
print(
    f"verified spectrum: angles / (2 pi / 3) = {np.angle(spectrum.points) / (2 * np.pi / 3)}, E = {float(spectrum.error):.3f}"
)

figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
kv.plot.eigenvalues(pairs, certificate, ax=axes[0])
axes[0].plot(np.real(roots), np.imag(roots), "r+", ms=14, label="spectrum")
axes[0].legend(loc="lower left")
axes[0].set_title("PyDMD's eigenvalues, judged", fontsize="medium")
kv.plot.residuals(pairs, certificate, ax=axes[1])
