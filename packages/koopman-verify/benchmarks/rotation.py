"""KV-2: the rotation by a third of a turn on random hat functions, whose spectrum is the three roots of one.

Every method gets the same values of the functions at 3000 equispaced points. Pollution is the largest distance of a returned
point from the nearest root.
"""

import warnings
from collections.abc import Iterator

import jax.random as jr
import koopman_verify as kv
import numpy as np

from .environment import version
from .peers import eigenvalues_of, fits
from .protocol import Row, in_turn


def rows(sizes: tuple[int, ...] = (10, 20, 40, 80), num: int = 3000, repeats: int = 1) -> Iterator[Row]:
    """Yield the row of the verified spectrum, and one for each library's eigenvalues, for every number of functions."""
    roots = np.exp(2j * np.pi * np.arange(3) / 3)
    to_roots = lambda z: np.abs(np.asarray(z)[:, None] - roots[None]).min(axis=1)
    x = 2 * np.pi * np.arange(num)[:, None] / num
    y = (x + 2 * np.pi / 3) % (2 * np.pi)
    for size in sizes:
        hats = kv.Hats.random(size, key=jr.key(size))
        data = kv.Snapshots(x, y, kind="quadrature")
        base = {"problem": f"a third of a turn, N = {size}", "N": size}

        def verified(hats: kv.Hats = hats, data: kv.Snapshots = data) -> kv.Spectrum:
            return kv.verified_spectrum(kv.factor(hats, data), kv.polar_grid(480, half=False))

        spectrum, seconds = in_turn({"ours": verified}, repeats)
        points = np.asarray(spectrum["ours"].points)
        yield base | {
            "method": "koopman-verify, verified_spectrum",
            "version": version("koopman-verify"),
            "num": len(points),
            "pollution": float(to_roots(points).max()),
            "missed": float(np.abs(points[:, None] - roots[None]).min(axis=0).max()),
            "E": float(spectrum["ours"].error),
            "cpu_seconds": seconds["ours"],
        }
        factor = kv.factor(hats, data)
        lifted = [np.asarray(kv.evaluate(hats, s)) if hasattr(kv, "evaluate") else _values(hats, s) for s in (x, y)]
        pairs = kv.edmd(factor)
        false = to_roots(pairs.eigenvalues) > 0.1
        yield _eigenvalues(base, "koopman-verify, edmd", "koopman-verify", pairs.eigenvalues, to_roots, roots) | {
            "least_residual_of_false": float(np.asarray(pairs.residuals)[false].min()) if false.any() else None
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the peers' own
            for method, (distribution, fit) in fits(size).items():
                if distribution != "koopman-verify":
                    values = eigenvalues_of(distribution, fit(*lifted))
                    yield _eigenvalues(base, method, distribution, values, to_roots, roots)
