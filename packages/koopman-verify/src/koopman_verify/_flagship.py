"""The demonstration behind the console script: a mechanical system, its EDMD eigenvalues, and what is true of them."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from . import plot, problems
from ._adversary.game import Play, play
from ._certificates.certificate import Certificate
from ._certificates.certify import certify
from ._dictionaries.radial import RBF
from ._factor.factor import Factor, factor
from ._factor.snapshots import Snapshots
from ._spectra.edmd import Eigenpairs, edmd
from ._spectra.pseudospectrum import pseudospectrum
from ._spectra.spectrum import Spectrum, polar_grid, verified_spectrum


TOL = 0.2


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What one run computed."""

    problem: str
    factor: Factor
    pairs: Eigenpairs
    certificate: Certificate
    spectrum: Spectrum
    game: Play

    @property
    def off(self) -> np.ndarray:
        """How far each eigenvalue is from the unit circle, on which all of the spectrum lies."""
        return np.abs(1 - np.abs(np.asarray(self.pairs.eigenvalues)))

    @property
    def certified(self) -> np.ndarray:
        """Which pairs the hold-out data certify."""
        return np.asarray(self.certificate.status) == "certified"


def run(problem: str, num: int, seed: int, say: Any) -> Experiment:
    """Run the demonstration: `num` functions, fifty snapshots for each."""
    keys = jr.split(jr.key(seed), 5)
    say("data")
    fit, held_out, other = (_draw(problem, 50 * num, key) for key in keys[:3])
    say("factorisation")
    found = factor(RBF.from_kmeans(other.x, num, key=keys[3]), fit)
    pairs = edmd(found).sorted()
    say("certificates")
    certificate = certify(pairs, held_out, tol=TOL)
    say("spectrum")
    spectrum = verified_spectrum(found, polar_grid(181), measure_preserving=True, throw=False)
    say("adversary")
    game = play(black_box, max_oscillations=2, budget=80, growth=1.3, key=keys[4])
    return Experiment(problem, found, pairs, certificate, spectrum, game)


@eqx.filter_jit
def _move(map_fn: Any, x: jax.Array) -> jax.Array:
    return jax.vmap(map_fn)(x)


def _draw(problem: str, num: int, key: jax.Array) -> Snapshots:
    """Draw independent pairs, from uniform states on a level set of the energy, which the map keeps."""
    # Of uniform states in a box those of low energy: an invariant set, and the measure on it is invariant too.
    box, momentum, energy, top, system = {
        "duffing": (1.7, 1.3, lambda q, p: p**2 / 2 - q**2 / 2 + q**4 / 4, 0.5, problems.duffing(0.0)),
        "pendulum": (np.pi, 2.0, lambda q, p: p**2 / 2 - np.cos(q), 0.9, problems.pendulum(0.5)),
    }[problem]
    draws = np.asarray(jr.uniform(key, (8 * num, 2), minval=-1.0, maxval=1.0)) * np.array([box, momentum])
    x = jnp.asarray(draws[energy(draws[:, 0], draws[:, 1]) < top][:num])
    return Snapshots(x, _move(system.map_fn, x))


def black_box(query_map: Any, budget: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Fit angular modes in rings by least squares, and keep those of small residual: an honest algorithm."""
    rng = np.random.default_rng(budget) if rng is None else rng
    before = 0.999 * np.sqrt(rng.random(budget)) * np.exp(2j * np.pi * rng.random(budget))
    images = query_map(np.stack([np.real(before), np.imag(before)], axis=1))
    after = images[:, 0] + 1j * images[:, 1]
    rings = [np.minimum((6 * np.abs(w) ** 2).astype(int), 5) for w in (before, after)]
    found = [1.0 + 0j]
    for ring in range(6):
        for k in range(-7, 8):
            g, moved = (
                np.where(r == ring, (w / np.abs(w)) ** k, 0) for r, w in zip(rings, (before, after), strict=True)
            )
            value = np.vdot(g, moved) / max(np.real(np.vdot(g, g)), 1.0)
            if np.linalg.norm(moved - value * g) <= 0.35 * np.linalg.norm(g):
                found.append(value)
    return np.asarray(found)


def draw(experiment: Experiment, path: str) -> None:
    """Save the picture."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(16, 9), layout="constrained")
    plot.eigenvalues(experiment.pairs, experiment.certificate, ax=axes[0, 0])
    axes[0, 0].set_title("EDMD's eigenvalues: certified (dots) or not (crosses)", fontsize="medium")
    plot.residuals(experiment.pairs, experiment.certificate, ax=axes[0, 1])
    axes[0, 1].axhline(TOL, color="k", lw=0.8, ls=":")
    axes[0, 1].set_title("Residuals, and what fresh data say of them", fontsize="medium")
    x, y = np.meshgrid(np.linspace(-1.3, 1.3, 53), np.linspace(-1.3, 1.3, 53))
    z = jnp.asarray(x + 1j * y)
    plot.pseudospectrum(z, pseudospectrum(experiment.factor, z), ax=axes[0, 2])
    axes[0, 2].set_title("Pseudospectrum", fontsize="medium")
    plot.spectrum(experiment.spectrum, ax=axes[1, 0])
    involution = experiment.game.map
    plot.disc_map(involution, experiment.game.answers[:80], ax=axes[1, 1])
    axes[1, 1].set_title("A map that fits every answer given so far (red)", fontsize="medium")
    plot.game(experiment.game, ax=axes[1, 2])
    axes[1, 2].set_title("A black box, led on: the data decide nothing without a modulus", fontsize="medium")
    figure.savefig(path, dpi=110)
    plt.close(figure)
