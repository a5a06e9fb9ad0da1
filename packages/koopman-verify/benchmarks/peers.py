"""KV-9: the same lifted data for every library: what each returns, how much of it is false, what it costs, and who says so.

Run `python -m benchmarks.peers` where `benchmarks/requirements.txt` is installed; a peer that is missing is left out, and
said to be. *False* is an eigenvalue further than 0.1 from the spectrum, which is known. No peer has a verdict on its own
eigenvalues; the verdicts are those of `koopman_verify.certify` on fresh snapshots. pykoopman needs a Python of its own:
`pykoopman_apart.py` says which.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import koopman_verify as kv
import numpy as np
from koopman_verify import interop

from .duffing import flow
from .protocol import Row, in_turn


TOLERANCE = 0.1
PEERS = ("pydmd", "deeptime", "kooplearn")


class Waves(kv.AbstractDictionary):
    """The real Fourier functions of degree at most three on a circle."""

    def __call__(self, x: Any) -> Any:
        k = jnp.arange(1.0, 4.0)
        return jnp.concatenate([jnp.ones(1), jnp.cos(k * x), jnp.sin(k * x)])

    def supremum(self) -> Any:
        return jnp.ones(7)

    def lipschitz(self) -> Any:
        return jnp.array([0.0, 1, 2, 3, 1, 2, 3])


def duffing_problem() -> tuple[Any, kv.Snapshots, kv.Snapshots]:
    """Undamped Duffing, 1000 trajectories of five steps and 100 bumps; one state of each of 4000 fresh trajectories."""
    rng = np.random.default_rng(0)

    def orbits(num: int) -> np.ndarray:
        out = [rng.uniform(-2, 2, (num, 2))]
        for _ in range(5):
            out.append(flow(out[-1], 0.0))
        return np.stack(out)

    path, fresh, centres = orbits(1000), orbits(4000), orbits(1000)[2][:100]
    step, row = rng.integers(0, 5, 4000), np.arange(4000)
    data = kv.Snapshots(path[:-1].reshape(-1, 2), path[1:].reshape(-1, 2))
    return kv.RBF(centres, "exponential", 1.0), data, kv.Snapshots(fresh[step, row], fresh[step + 1, row])


def rotation_problem() -> tuple[Any, kv.Snapshots, kv.Snapshots]:
    """A rotation by one radian and functions that it maps into their span: every residual is zero."""
    x, fresh = (jr.uniform(key, (num, 1), maxval=2 * np.pi) for key, num in ((jr.key(1), 500), (jr.key(2), 1000)))
    return Waves(), kv.Snapshots(x, x + 1), kv.Snapshots(fresh, fresh + 1)


def fits(size: int) -> dict[str, tuple[str, Callable[[Any, Any], Any]]]:
    """Return for each method the distribution that it comes from and its fit of lifted data; absent peers are left out."""
    identity = lambda z: z

    def ours(a: Any, b: Any) -> kv.Eigenpairs:
        return kv.edmd(kv.factor(identity, kv.Snapshots(a, b)))

    def kooplearn(alpha: float | None, reduced: bool) -> Callable[[Any, Any], Any]:
        # Pairs, not a trajectory: a lag as long as the data.
        options = dict(n_components=size, alpha=alpha, reduced_rank=reduced, eigen_solver="dense")
        ridge = importlib.import_module("kooplearn.linear_model").Ridge
        return lambda a, b: ridge(lag_time=len(a), **options).fit(np.concatenate([a, b]))

    def pydmd(a: Any, b: Any) -> Any:
        return importlib.import_module("pydmd").DMD(svd_rank=-1, exact=True).fit(a.T, b.T)

    def deeptime(a: Any, b: Any) -> Any:
        return importlib.import_module("deeptime.decomposition").EDMD(identity).fit((a, b))

    table = {
        "koopman-verify": ("koopman-verify", ours),
        "NumPy: Gram matrices and eig": ("numpy", lambda a, b: np.linalg.eig(np.linalg.solve(a.T @ a, a.T @ b))),
        "PyDMD DMD(svd_rank=-1, exact)": ("pydmd", pydmd),
        "deeptime EDMD": ("deeptime", deeptime),
    }
    if version("kooplearn"):
        for alpha, reduced in ((None, False), (1e-6, False), (1e-6, True), (None, True)):
            table[f"kooplearn Ridge(alpha={alpha}, reduced_rank={reduced})"] = ("kooplearn", kooplearn(alpha, reduced))
    return {name: entry for name, entry in table.items() if version(entry[0])}


def adapted(distribution: str, fit: Any, dictionary: Any, snapshots: kv.Snapshots | None = None) -> kv.Eigenpairs:
    """Return a library's eigenpairs as candidates of the dictionary."""
    if distribution == "koopman-verify":
        return interop.from_eigenvectors(fit.eigenvalues, fit.coefficients, dictionary, snapshots=snapshots)
    if distribution == "numpy":
        return interop.from_eigenvectors(*fit, dictionary, snapshots=snapshots)
    return getattr(interop, f"from_{distribution}")(fit, dictionary, snapshots=snapshots)


def with_residuals(distribution: str, fit: Callable, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Fit, then add residuals by hand as users do: three Gram matrices and (1) of arXiv:2111.14889, in NumPy."""
    model = fit(a, b)
    if distribution == "pydmd":
        z, v = model.eigs, np.linalg.pinv(model.modes).T
    elif distribution == "deeptime":
        z, v = np.linalg.eig(model.fetch_model().operator)
    else:
        z, v = model if distribution == "numpy" else model.eig(eval_right_on=np.eye(a.shape[1]))
    form = lambda matrix: np.sum(v.conj() * (matrix @ v), axis=0)
    gram, cross, images = form(a.T @ a), form(a.T @ b), form(b.T @ b)
    return np.sqrt(np.abs(images.real - 2 * (z.conj() * cross).real + np.abs(z) ** 2 * gram.real) / gram.real)


def version(distribution: str) -> str:
    """Return the version of a distribution, empty if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(checkout)" if distribution == "koopman-verify" else ""


def run(name: str, problem: Any, distance: Callable[[Any], Any], repeats: int) -> Iterator[Row]:
    """Fit with every method in turn, `repeats` times, and judge what each returns."""
    dictionary, data, held = problem
    lift = jax.jit(jax.vmap(dictionary))
    a, b = np.asarray(lift(data.x)), np.asarray(lift(data.y))
    table = fits(a.shape[1])
    plain = {key: lambda fit=fit: fit(a, b) for key, (_, fit) in table.items()}
    by_hand = {
        f"{key}, residuals by hand": lambda d=d, fit=fit: with_residuals(d, fit, a, b)
        for key, (d, fit) in table.items()
        if d != "koopman-verify"
    }
    results, seconds = in_turn(plain | by_hand, repeats)
    peers = [key for key, (distribution, _) in table.items() if distribution in PEERS]
    fastest = min((seconds[key] for key in peers), default=None)
    judged = _Judge(name, dictionary, data, held, distance, np.asarray(results["koopman-verify"].eigenvalues))
    for key, (distribution, _) in table.items():
        pairs = adapted(distribution, results[key], dictionary, data)
        yield judged(key, distribution, version(distribution), pairs) | {
            "cpu_seconds": seconds[key],
            "cpu_with_residuals": seconds.get(f"{key}, residuals by hand", seconds[key]),
            "ratio": seconds[key] / fastest if fastest else None,
        }
    yield from pykoopman(judged, a, b, repeats)


class _Judge(NamedTuple):
    name: str
    dictionary: Any
    data: kv.Snapshots
    held: kv.Snapshots
    distance: Callable[[Any], Any]
    ours: np.ndarray

    def __call__(self, method: str, distribution: str, version: str, pairs: kv.Eigenpairs) -> Row:
        """Say how many of the eigenvalues are false, and what certificates on fresh snapshots make of them."""
        certificate = kv.certify(pairs, self.held, tol=TOLERANCE)
        values, status = np.asarray(pairs.eigenvalues), np.asarray(certificate.status)
        false = np.asarray(self.distance(values)) > TOLERANCE
        gaps = abs(values[:, None] - self.ours[None])
        count = lambda what: int((status == what).sum())
        return {
            "problem": self.name,
            "method": method,
            "version": version,
            "num": len(values),
            "false": int(false.sum()),
            "says_so": count("refuted") if distribution == "koopman-verify" else 0,
            "certified": count("certified"),
            "refuted": count("refuted"),
            "uncertifiable": count("uncertifiable"),
            "false_certified": int((false & (status == "certified")).sum()),
            "least_lower_of_false": float(np.min(certificate.lower[false])) if false.any() else None,
            "error": float(max(gaps.min(axis=0).max(), gaps.min(axis=1).max())),
        }


def pykoopman(judged: _Judge, a: np.ndarray, b: np.ndarray, repeats: int) -> Iterator[Row]:
    """Yield the row of pykoopman, if the variable `PYKOOPMAN_PYTHON` names a Python that has it."""
    python = os.environ.get("PYKOOPMAN_PYTHON")
    if not python:
        return
    script = pathlib.Path(__file__).with_name("pykoopman_apart.py")
    with tempfile.TemporaryDirectory() as folder:
        source, target = (pathlib.Path(folder) / name for name in ("lifted.npz", "fit.npz"))
        np.savez(source, a=a, b=b)
        subprocess.run([python, script, source, target, str(repeats)], check=True, capture_output=True)
        fit = np.load(target)
        values = fit["values"]
        gaps = abs(values[:, None] - judged.ours[None])
        yield {
            "problem": judged.name,
            "method": "pykoopman Koopman(Identity, EDMD), apart",
            "version": str(fit["version"]),
            "num": len(values),
            "false": int((np.asarray(judged.distance(values)) > TOLERANCE).sum()),
            "says_so": 0,
            "error": float(max(gaps.min(axis=0).max(), gaps.min(axis=1).max())),
            "cpu_seconds": float(fit["seconds"]),
        }


def rows(repeats: int = 7, problems: tuple[str, ...] = ("rotation", "duffing")) -> Iterator[Row]:
    """Yield one row for each problem and method."""
    for peer in PEERS:
        if not version(peer):
            print(f"peers: {peer} is not installed and left out", file=sys.stderr)
    exact = np.exp(1j * np.arange(-3, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        if "rotation" in problems:
            nearest = lambda z: abs(z[:, None] - exact[None]).min(axis=1)
            yield from run("rotation, M = 500, N = 7", rotation_problem(), nearest, repeats)
        if "duffing" in problems:
            yield from run("Duffing, M = 5000, N = 100", duffing_problem(), lambda z: abs(1 - abs(z)), repeats)


def main() -> None:
    """Print one JSON row per problem and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    for row in rows(parser.parse_args().repeats):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
