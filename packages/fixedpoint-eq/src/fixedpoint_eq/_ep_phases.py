import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optimistix as optx
from implicit_core.krylov import tree_norm as norm
from jaxtyping import Array, Bool, Float, Inexact

from ._diagnostics import is_holomorphic
from ._ep_field import AbstractVectorField
from ._misc import tree_sub
from ._solve import solve
from ._solver import AbstractSolver


Coordinates: TypeAlias = Literal["activity", "membrane"]
Settler: TypeAlias = Callable[[Callable[[Any], Any], Any], Any] | optx.AbstractFixedPointSolver

_MAX_STEPS = 1000


class Settle(eqx.Module):
    r"""Settle by damped steps, $u \leftarrow (1 - \tau) u + \tau f(u)$: what a physical network does.

    A solver of [`fixedpoint_eq.solve`][] finds the same equilibria in fewer steps, where these are stable, and may find
    others where they are not.

    **Arguments:**

    - `tau`: the step, in (0, 1]. Below one, because the nudged dynamics of AsymEP oscillate where the free ones do not.
    - `rtol`, `atol`: stop once $\lVert f(u) - u\rVert \le$ `atol + rtol` $\lVert f(u)\rVert$. `None` means
        $\epsilon^{3/4}$ of the precision. The error of a gradient is that of the phases over the nudge.
    - `max_steps`: stop there in any case.
    - `num_steps`: make exactly so many steps, whatever the tolerances.

    **Raises:**

    `ValueError` for a step outside of (0, 1], or negative numbers.

    !!! Example

        ```python
        ep.Settle(tau=0.5, rtol=1e-10)(lambda u: jnp.cos(u), jnp.array(0.0))  # 0.7390851
        ```
    """

    tau: float = eqx.field(default=0.6, static=True)
    rtol: float | None = eqx.field(default=None, static=True)
    atol: float = eqx.field(default=0.0, static=True)
    max_steps: int = eqx.field(default=_MAX_STEPS, static=True)
    num_steps: int | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        if not 0 < self.tau <= 1:
            raise ValueError(f"`tau` must be in (0, 1]; got {self.tau}")
        for name in ("rtol", "atol", "max_steps", "num_steps"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"`{name}` must be non-negative; got {value}")

    def __call__(self, fn: Callable[[Any], Any], u: Any) -> Any:
        """Return where the iteration of `fn` from `u` settles."""

        def step(u):
            new = fn(u)
            change = tree_sub(new, u)
            return jtu.tree_map(lambda a, d: a + self.tau * d, u, change), norm(change), norm(new)

        if self.num_steps is not None:
            return jax.lax.fori_loop(0, self.num_steps, lambda _, u: step(u)[0], u)

        dtype = norm(u).dtype
        rtol = float(jnp.finfo(dtype).eps) ** 0.75 if self.rtol is None else self.rtol

        def go_on(carry):
            _, count, change, size = carry
            unsettled = (change > self.atol + rtol * size) & jnp.isfinite(change)
            return (count == 0) | (unsettled & (count < self.max_steps))

        def body(carry):
            u, count, _, _ = carry
            u, change, size = step(u)
            return u, count + 1, change, size

        zero = jnp.zeros((), dtype)
        return jax.lax.while_loop(go_on, body, (u, jnp.zeros((), jnp.int32), zero, zero))[0]


def run(settler: Settler, fn: Callable[[Any], Any], u: Any) -> Any:
    """Settle `fn` from `u`."""
    if isinstance(settler, AbstractSolver):
        return solve(lambda u, _: fn(u), u, solver=settler, max_steps=_MAX_STEPS, throw=False).value
    if isinstance(settler, optx.AbstractFixedPointSolver):
        return optx.fixed_point(lambda u, _: fn(u), settler, u, max_steps=_MAX_STEPS, throw=False).value
    return settler(fn, u)


def residual(fn: Callable[[Any], Any], u: Any) -> Float[Array, ""]:
    """Return $|f(u) - u|$."""
    return norm(tree_sub(fn(u), u))


def as_dtype_of(tree: Any, beta: Array) -> Any:
    """Return `tree`, complex if `beta` is: strict promotion allows no product of the two."""
    if not jnp.iscomplexobj(beta):
        return tree

    def cast(leaf):
        return leaf.astype(np.result_type(leaf.dtype, np.complex64)) if eqx.is_inexact_array(leaf) else leaf

    return jtu.tree_map(cast, tree)


class Sample(eqx.Module):
    """The dynamics of one sample around its free equilibrium: all that an estimator may use."""

    field: AbstractVectorField
    params: Any
    x: Any
    y: Any
    u0: Any  # the free equilibrium; before it is known, where to start
    nudged: Settler
    coordinates: Coordinates = eqx.field(static=True)
    transposed: bool = eqx.field(default=False, static=True)

    def observe(self, u: Any) -> Any:
        """Return the state in the coordinates in which responses are read."""
        return self.field.activation(u) if self.coordinates == "activity" else u

    def observe_tangent(self, du: Any) -> Any:
        """Return the change of what is observed, at the free equilibrium, for a change of the potentials."""
        return jax.jvp(self.observe, (self.u0,), (du,))[1]

    def free_map(self, u: Any) -> Any:
        """Return the current into each unit, without a nudge."""
        return self.field.drive(self.params, self.field.activation(u), self.x)

    def force(self, u: Any) -> Any:
        r"""Return $\partial L/\partial u$."""
        r, pullback = jax.vjp(self.field.activation, u)
        return pullback(self.field.cost_gradient(self.params, r, self.y))[0]

    def map(self, beta: Inexact[Array, ""]) -> Callable[[Any], Any]:
        r"""Return the map whose fixed points are the equilibria with the nudge `beta`.

        With `transposed` it has the term $-2 A (v - v_0) = (J^\top - J)(v - v_0)$ of AsymEP, (4.6) of the specification,
        where $v$ is what is observed.
        """
        skew = self._skew() if self.transposed else None
        v0 = as_dtype_of(self.observe(self.u0), beta)
        parts = {name: as_dtype_of(getattr(self, name), beta) for name in ("params", "x", "y")}
        s = dataclasses.replace(self, **parts)

        def nudged(u):
            r = s.field.activation(u)
            current = s.field.drive(s.params, r, s.x)
            e = s.field.cost_gradient(s.params, r, s.y) if s.coordinates == "activity" else s.force(u)
            out = jtu.tree_map(lambda c, g: c + beta.astype(c.dtype) * g, current, e)
            if skew is not None:
                away = tree_sub(s.observe(u), v0)
                out = jtu.tree_map(jnp.add, out, _on_parts(skew, away))
            return out

        return nudged

    def _skew(self) -> Callable[[Any], Any]:
        # One VJP less one JVP at the free equilibrium. The leak, -u or -phi^{-1}(r), is diagonal and drops out.
        if self.coordinates == "activity":
            fn, at = lambda r: self.field.drive(self.params, r, self.x), self.field.activation(self.u0)
        else:
            fn, at = self.free_map, self.u0
        _, push = jax.linearize(fn, at)
        pull = jax.linear_transpose(push, at)
        return lambda v: tree_sub(pull(v)[0], push(v))

    def transpose(self) -> "Sample":
        """Return the dynamics whose Jacobian at the free equilibrium is the transpose."""
        return dataclasses.replace(self, transposed=True)

    def run(self, fn: Callable[[Any], Any], u: Any) -> Any:
        """Settle any map as the nudged phases are."""
        return run(self.nudged, fn, u)

    def settle(self, beta: Inexact[Array, ""], start: Any = None) -> tuple[Any, Float[Array, ""]]:
        """Return the potentials at the equilibrium with the nudge `beta`, and the residual there."""
        fn = self.map(beta)
        u = run(self.nudged, fn, as_dtype_of(self.u0 if start is None else start, beta))
        return u, residual(fn, u)

    def is_holomorphic(self, beta: Inexact[Array, ""], u: Any) -> Bool[Array, ""]:
        """Say whether the nudged dynamics are, at a complex state. If not, no nudge is small enough."""
        fn = self.map(beta)
        return is_holomorphic(lambda u, _: fn(u), u)


def free_phase(field, params, x, y, start: Any, free: Settler, nudged: Settler, coordinates: Coordinates) -> Sample:
    """Settle one sample without a nudge, from `start`."""
    sample = Sample(field, params, x, y, start, nudged, coordinates)
    return dataclasses.replace(sample, u0=run(free, sample.free_map, start))


def limit(u0: Any, tol: float | None) -> Float[Array, ""]:
    """Return the residual above which a phase counts as unsettled."""
    size = norm(u0)
    return (float(jnp.finfo(size.dtype).eps) ** 0.5 if tol is None else tol) * (1 + size)


def _on_parts(operator: Callable[[Any], Any], v: Any) -> Any:
    """Apply a real linear operator to the real and imaginary parts: half the work of its complex extension."""
    if not any(map(jnp.iscomplexobj, jtu.tree_leaves(v))):
        return operator(v)
    parts = [operator(jtu.tree_map(part, v)) for part in (jnp.real, jnp.imag)]
    return jtu.tree_map(jax.lax.complex, *parts)
