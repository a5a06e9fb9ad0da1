"""FPE-10: a complex field of 1e5 unknowns, with the implicit gradient in its coefficients and its source."""

from collections.abc import Callable, Iterator

import fixedpoint_eq as fpe
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from implicit_core.krylov import FGMRES

from .protocol import OURS, Case, Goal, Method, Row, compiled, named


_TOL = 1e-6
_GMRES_TOL = 1e-5  # Lineax's GMRES, split into parts in float32, breaks down at 1e-6 on some sizes
_SPLIT = "optimistix FixedPointIteration, GMRES, split into parts"
_SIDE = 316  # 99,856 unknowns


def cases(quick: bool) -> Iterator[Case]:
    """Yield the one case, on a small field if `quick`."""
    side = 32 if quick else _SIDE
    arrays = _arrays(side)
    exact = _exact(*arrays)

    def error(value):
        # The worst of the three: of the coefficients a and c, and of the source b.
        return max(float(np.linalg.norm(v - e) / np.linalg.norm(e)) for v, e in zip(value, exact, strict=True))

    goal = Goal("error at most 1e-4; less time and temporary memory than optimistix split into parts", _met)
    yield Case(f"FPE-10 complex field, {side} x {side}", _methods(arrays), error, goal)


def _met(rows: list[Row]) -> bool:
    split = named(rows, _SPLIT)
    less = (split[key] is None or rows[0][key] < split[key] for key in ("seconds", "temp_bytes"))
    return rows[0]["error"] <= 1e-4 and all(less)


def _smooth(z, xp=jnp):
    """Average over a point and its four neighbours, on a torus: of norm one, and symmetric."""
    return (z + sum(xp.roll(z, shift, axis) for shift in (1, -1) for axis in (0, 1))) / 5


def _field(z, args, xp=jnp):
    """Return a S z + b + c z², a contraction, with a factor near 0.8, where |z| stays below 2."""
    a, b, c = args
    return a * _smooth(z, xp) + b + c * z * z


def _arrays(side: int) -> tuple[np.ndarray, ...]:
    r = np.random.default_rng(0)
    b = 0.4 * (r.standard_normal((side, side)) + 1j * r.standard_normal((side, side)))
    for _ in range(5):
        b = _smooth(b, np)
    target = r.standard_normal((side, side)) + 1j * r.standard_normal((side, side))
    a, c = np.asarray(0.7 * np.exp(0.4j)), np.asarray(0.1 * np.exp(-1j))
    return tuple(v.astype(np.complex64) for v in (a, b, c, target))


def _solution(a, b, c, target) -> tuple[np.ndarray, np.ndarray]:
    """Return the solution, and the derivative of the mean |z - target|² there, in double precision."""
    a, b, c, target = (v.astype(np.complex128) for v in (a, b, c, target))
    z = np.zeros_like(b)
    for _ in range(300):
        z = _field(z, (a, b, c), np)
    return z, 2 * np.conj(z - target) / z.size


def _exact(a, b, c, target) -> tuple[np.ndarray, ...]:
    """Return JAX's gradients of the mean |z - target|², the conjugates of the steepest ascent, in double precision."""
    z, cotangent = _solution(a, b, c, target)
    dual = np.zeros_like(z)
    for _ in range(300):
        dual = a * _smooth(dual, np) + 2 * c * z * dual + cotangent
    return np.sum(dual * _smooth(z, np)), dual, np.sum(dual * z * z)


def _loss(z, target):
    return jnp.mean(jnp.real(z - target) ** 2 + jnp.imag(z - target) ** 2)


def _methods(arrays) -> list[Method]:
    def method(name: str, distribution: str, solve: Callable) -> Method:
        def gradient(a, b, c, target):
            def loss(args):
                z, steps = solve(args)
                return _loss(z, target), steps

            return jax.grad(loss, has_aux=True)((a, b, c))

        return Method(name, distribution, lambda: compiled(gradient, *arrays))

    def ours(solver, adjoint):
        def solve(args):
            solution = fpe.solve(_field, jnp.zeros_like(args[1]), args, solver, adjoint, throw=False)
            return solution.value, solution.stats["num_steps"]

        return solve

    # Both stop at an absolute residual: the wanted relative one times the size of the solution, or of the cotangent.
    solution, cotangent = (float(np.linalg.norm(v)) for v in _solution(*arrays))
    gmres = optx.ImplicitAdjoint(lx.GMRES(rtol=0.0, atol=_GMRES_TOL * cotangent, norm=optx.two_norm))
    picard = optx.FixedPointIteration(rtol=0.0, atol=_TOL * solution, norm=optx.two_norm)

    def whole(args):
        solution = optx.fixed_point(
            _field, picard, jnp.zeros_like(args[1]), args, adjoint=gmres, max_steps=400, throw=False
        )
        return solution.value, solution.stats["num_steps"]

    def split(args):
        def fn(parts, args):
            z = _field(jax.lax.complex(*parts), args)
            return jnp.real(z), jnp.imag(z)

        zero = jnp.zeros_like(args[1]).real
        solution = optx.fixed_point(fn, picard, (zero, zero), args, adjoint=gmres, max_steps=400, throw=False)
        return jax.lax.complex(*solution.value), solution.stats["num_steps"]

    anderson = fpe.Anderson(_TOL, 0.0)
    return [
        method("ours, default", OURS, ours(anderson, fpe.Implicit())),
        method("ours, holomorphic=True", OURS, ours(anderson, fpe.Implicit(holomorphic=True))),
        method("ours, FGMRES(restart=12)", OURS, ours(anderson, fpe.Implicit(FGMRES(restart=12)))),
        method("ours, the same Anderson for the adjoint", OURS, ours(anderson, fpe.ImplicitFP(anderson))),
        method(_SPLIT, "optimistix", split),
        method("optimistix FixedPointIteration, GMRES, complex", "optimistix", whole),
    ]
