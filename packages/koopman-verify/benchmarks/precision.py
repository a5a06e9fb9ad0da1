"""KV-1: what rounding leaves of a residual whose true value is zero, by the joint QR and by the form that is squared.

The golden rotation on 17 Fourier modes under a change of basis with a given condition number, 400 random points: every
eigenvalue of the compression is one of the operator, every residual is zero, and the pseudospectral function is the distance
from the nearest eigenvalue. The squared form is that of KoopPseudoSpecQR (MATLAB) and pyresdmd, written here in NumPy.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import koopman_verify as kv
import numpy as np

from .environment import version
from .protocol import Row


ANGLE = np.pi * (np.sqrt(5) - 1)
CASES = ((np.float64, 1e0), (np.float64, 1e4), (np.float64, 1e8), (np.float32, 1e0), (np.float32, 1e4))


def rows(num: int = 400, distance: float = 1e-5) -> Iterator[Row]:
    """Yield two rows for each precision and condition number; `distance` is where the function is looked at too."""
    x = np.random.default_rng(0).uniform(0, 2 * np.pi, num)
    for real, cond in CASES:
        matrix = _change_of_basis(17, cond)
        # In float64, then rounded once: what is measured is the algebra, not the cosine of a float32 angle.
        lifted = [_modes(states) @ matrix for states in (x, x + ANGLE)]
        lifted = [values.astype(np.result_type(real, np.complex64)) for values in lifted]
        data = kv.Snapshots(*(np.concatenate([values.real, values.imag], axis=1) for values in lifted))
        exact = _modes(np.array([ANGLE]))[0].astype(lifted[0].dtype)
        near = (exact * (1 + distance)).astype(lifted[0].dtype)
        for method, name, values in (
            ("joint QR, stacked", "koopman-verify", _ours(data, exact, near)),
            ("squared form", "numpy", _squared(*(values / np.sqrt(real(num)) for values in lifted), exact, near)),
        ):
            eigenvalues, residuals, at, beside, negative = values
            gap = np.abs(np.asarray(eigenvalues)[:, None] - exact[None])
            yield {
                "problem": "rotation, truth zero",
                "method": method,
                "version": version(name),
                "dtype": np.dtype(real).name,
                "cond": cond,
                "error": float(gap.min(axis=0).max()),
                "residual": float(np.max(residuals)),
                "at_eigenvalue": float(np.max(at)),
                "least_beside": float(np.min(beside)),
                "distance_beside": float(np.min(np.abs(near[:, None] - exact[None]))),
                "negative": negative,
            }


def _modes(states: np.ndarray) -> np.ndarray:
    return np.exp(1j * states[:, None] * np.arange(-8, 9))


def _change_of_basis(n: int, cond: float) -> np.ndarray:
    rng = np.random.default_rng(1)
    unitary = lambda: np.linalg.qr(rng.normal(size=(n, n)) + 1j * rng.normal(size=(n, n)))[0]
    return unitary() @ np.diag(np.geomspace(1, 1 / cond, n)) @ unitary()


def _ours(data: kv.Snapshots, exact: np.ndarray, near: np.ndarray) -> tuple:
    factor = kv.factor(lambda s: jax.lax.complex(s[:17], s[17:]), data)
    pairs = kv.edmd(factor)
    h = [kv.pseudospectrum(factor, jnp.asarray(z)) for z in (exact, near)]
    return pairs.eigenvalues, pairs.residuals, *h, 0


def _squared(psi_x: np.ndarray, psi_y: np.ndarray, exact: np.ndarray, near: np.ndarray) -> tuple:
    """Gram matrices for the eigenpairs, (1) of the specification for residuals; QR, then squares, for the function."""
    star = lambda a: a.conj().T
    gram, cross, images = star(psi_x) @ psi_x, star(psi_x) @ psi_y, star(psi_y) @ psi_y
    values, v = np.linalg.eig(np.linalg.solve(gram, cross))
    form = lambda matrix: np.sum(v.conj() * (matrix @ v), axis=0)
    above = form(images) - values * form(star(cross)) - values.conj() * form(cross) + np.abs(values) ** 2 * form(gram)
    squares = above.real / form(gram).real
    q, r = np.linalg.qr(psi_x)
    columns = star(np.linalg.solve(star(r), star(psi_y)))
    a, ell = star(q) @ columns, star(columns) @ columns

    def function(z: np.ndarray) -> list[float]:
        identity = np.eye(len(a), dtype=a.dtype)
        square = [ell - w * star(a) - w.conj() * a + abs(w) ** 2 * identity for w in z]
        least = [np.linalg.eigvalsh((s + star(s)) / 2)[0] for s in square]
        return np.sqrt(np.maximum(least, 0))

    return values, np.sqrt(np.abs(squares)), function(exact), function(near), int((squares < 0).sum())
