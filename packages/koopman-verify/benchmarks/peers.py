"""The same lifted data for every library: what each returns, how much of it is false, what that costs, and who says so.

Run `python benchmarks/peers.py` where `benchmarks/requirements.txt` is installed; a peer that is missing is left out, and said
to be. Each row: {problem, method, version, num, false, certified, refuted, uncertifiable, false_certified, worst_bound, error,
cpu_s, ratio}. *False* is an eigenvalue further than 0.1 from the spectrum, which is known. No peer has a verdict on its own
eigenvalues; the verdicts are those of `koopman_verify.certify` on fresh snapshots.
"""

import os


for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import argparse
import importlib
import importlib.metadata
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import koopman_verify as kv
import numpy as np
from coverage import Bumps, duffing
from koopman_verify import interop


TOLERANCE = 0.1


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
    first, second, third, fourth = jr.split(jr.key(0), 4)
    square = lambda key, num: jr.uniform(key, (num, 2), minval=-2.0, maxval=2.0)

    def orbit(x: Any) -> list[Any]:
        out = [x]
        for _ in range(5):
            out.append(duffing(out[-1]))
        return out

    path = orbit(square(first, 1000))
    x, y = jnp.concatenate(path[:-1]), jnp.concatenate(path[1:])
    fresh = jnp.stack(orbit(square(second, 4000)))
    step, row = jr.randint(third, (4000,), 0, 5), jnp.arange(4000)
    held = kv.Snapshots(fresh[step, row], fresh[step + 1, row])
    return Bumps(jr.choice(fourth, orbit(square(fourth, 1000))[2], (100,), replace=False)), kv.Snapshots(x, y), held


def rotation_problem() -> tuple[Any, kv.Snapshots, kv.Snapshots]:
    """A rotation by one radian and functions that it maps into their span: every residual is zero."""
    x, fresh = (jr.uniform(key, (num, 1), maxval=2 * np.pi) for key, num in ((jr.key(1), 500), (jr.key(2), 1000)))
    return Waves(), kv.Snapshots(x, x + 1), kv.Snapshots(fresh, fresh + 1)


def methods(size: int) -> dict[str, tuple[str, Callable[[Any, Any], Any], Callable[..., kv.Eigenpairs]]]:
    """Return for each method: the distribution it comes from, the fit of lifted data, and the adapter."""
    identity = lambda z: z
    numpy = lambda a, b: np.linalg.eig(np.linalg.solve(a.T @ a, a.T @ b))
    of_numpy = lambda fit, dictionary, **kw: interop.from_eigenvectors(*fit, dictionary, **kw)

    def ours(a: Any, b: Any) -> kv.Eigenpairs:
        pairs = kv.edmd(kv.factor(identity, kv.Snapshots(a, b)))
        return jax.block_until_ready(pairs)

    def kooplearn(alpha: float | None, reduced: bool) -> Callable[[Any, Any], Any]:
        # Pairs, not a trajectory: a lag as long as the data.
        options = dict(n_components=size, alpha=alpha, reduced_rank=reduced, eigen_solver="dense")
        ridge = importlib.import_module("kooplearn.linear_model").Ridge
        return lambda a, b: ridge(lag_time=len(a), **options).fit(np.concatenate([a, b]))

    def pydmd(a: Any, b: Any) -> Any:
        return importlib.import_module("pydmd").DMD(svd_rank=-1, exact=True).fit(a.T, b.T)

    def deeptime(a: Any, b: Any) -> Any:
        return importlib.import_module("deeptime.decomposition").EDMD(identity).fit((a, b))

    of_ours = lambda fit, dictionary, **kw: interop.from_eigenvectors(
        fit.eigenvalues, fit.coefficients, dictionary, **kw
    )
    table = {
        "koopman-verify": ("koopman-verify", ours, of_ours),
        "NumPy: Gram matrices and eig": ("numpy", numpy, of_numpy),
        "PyDMD DMD(svd_rank=-1, exact)": ("pydmd", pydmd, interop.from_pydmd),
        "deeptime EDMD": ("deeptime", deeptime, interop.from_deeptime),
    }
    if _version("kooplearn"):
        for alpha, reduced in ((None, False), (1e-6, False), (1e-6, True), (None, True)):
            name = f"kooplearn Ridge(alpha={alpha}, reduced_rank={reduced})"
            table[name] = ("kooplearn", kooplearn(alpha, reduced), interop.from_kooplearn)
    return {name: entry for name, entry in table.items() if _version(entry[0])}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def run(name: str, problem: Any, spectrum_distance: Callable[[Any], Any], repeats: int) -> list[dict[str, Any]]:
    """Fit with every method in turn, `repeats` times, and judge what each returns."""
    dictionary, data, held = problem
    lift = jax.jit(jax.vmap(dictionary))
    a, b = np.asarray(lift(data.x)), np.asarray(lift(data.y))
    table = methods(a.shape[1])
    fits, times = {key: entry[1](a, b) for key, entry in table.items()}, {key: [] for key in table}
    for _ in range(repeats):
        for key, entry in table.items():
            start = time.process_time()
            fits[key] = entry[1](a, b)
            times[key].append(time.process_time() - start)
    seconds = {key: statistics.median(t) for key, t in times.items()}
    # The bare NumPy row is no library; the ratio is to the fastest that is.
    fastest = min((s for key, s in seconds.items() if table[key][0] not in ("numpy", "koopman-verify")), default=None)
    reference, rows = np.asarray(fits["koopman-verify"].eigenvalues), []
    for key, (distribution, _, adapt) in table.items():
        pairs = adapt(fits[key], dictionary, snapshots=data)
        certificate = kv.certify(pairs, held, tol=TOLERANCE)
        values, status = np.asarray(pairs.eigenvalues), certificate.status
        false = np.asarray(spectrum_distance(values)) > TOLERANCE
        gaps = abs(values[:, None] - reference[None])
        count = lambda what: int((status == what).sum())  # noqa: B023
        rows.append(
            {
                "problem": name,
                "method": key,
                "version": _version(distribution),
                "num": len(values),
                "false": int(false.sum()),
                "certified": count("certified"),
                "refuted": count("refuted"),
                "uncertifiable": count("uncertifiable"),
                "false_certified": int((false & (status == "certified")).sum()),
                "least_lower_of_false": float(np.min(certificate.lower[false])) if false.any() else None,
                "worst_bound": float(np.max(certificate.upper)),
                "error": float(max(gaps.min(axis=0).max(), gaps.min(axis=1).max())),
                "cpu_s": seconds[key],
                "ratio": seconds[key] / fastest if fastest else None,
            }
        )
    return rows


def main() -> int:
    """Print one JSON row per problem and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    for peer in ("pydmd", "deeptime", "kooplearn"):
        if not _version(peer):
            print(f"peers: {peer} is not installed and left out", file=sys.stderr)
    warnings.simplefilter("ignore")  # the peers' own
    exact = np.exp(1j * np.arange(-3, 4))
    rows = run("rotation", rotation_problem(), lambda z: abs(z[:, None] - exact[None]).min(axis=1), 1)
    rows += run("Duffing, M = 5000, N = 100", duffing_problem(), lambda z: abs(1 - abs(z)), arguments.repeats)
    for row in rows:
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
