"""KV-2: the rotation by a third of a turn on random hat functions, whose spectrum is the three roots of one.

Every method gets the same values of the functions at 3000 equispaced points. Pollution is the largest distance of a returned
point from the nearest root.
"""

import warnings
from collections.abc import Iterator

import jax
import jax.random as jr
import koopman_verify as kv
import numpy as np

from .environment import version
from .peers import adapted, fits
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
        lifted = [np.asarray(jax.vmap(hats)(states)) for states in (data.x, data.y)]
        pairs = kv.edmd(factor)
        false = to_roots(pairs.eigenvalues) > 0.1

        def eigenvalues(method: str, distribution: str, values: np.ndarray, base: Row = base) -> Row:
            off = to_roots(values)
            found = {"num": len(values), "false": int((off > 0.1).sum()), "pollution": float(off.max())}
            return base | {"method": method, "version": version(distribution)} | found

        least = float(np.asarray(pairs.residuals)[false].min()) if false.any() else None
        yield eigenvalues("koopman-verify, edmd", "koopman-verify", np.asarray(pairs.eigenvalues)) | {
            "least_residual_of_false": least
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the peers' own
            for method, (distribution, fit) in fits(size).items():
                if distribution != "koopman-verify":
                    values = np.asarray(adapted(distribution, fit(*lifted), hats).eigenvalues)
                    yield eigenvalues(method, distribution, values)
