import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from implicit_core import implicit
from implicit_core.krylov import FGMRES, tree_norm as norm
from jaxtyping import Array, Float, Real, ScalarLike

from ._ep_phases import Sample, as_dtype_of, residual
from ._misc import tree_sub


class Response(eqx.Module):
    """What an estimator found for one sample."""

    value: Any  # the response per unit of nudge, of the structure of the state, real
    residual: Float[Array, ""]  # the largest of the nudged phases, or of the linear solve
    nudge_ratio: Float[Array, ""] | None = None  # an estimate of the nudge over the radius of holomorphy
    u0: Any = None  # the free equilibrium, where there was no free phase


class AbstractEstimator(eqx.Module):
    """How the error signal of each unit is obtained from perturbed equilibria: one of `fixedpoint_eq.ep`."""

    @abc.abstractmethod
    def response(self, sample: Sample) -> Response:
        """Return the response of the equilibrium of one sample to a nudge of the cost."""


def _check_beta(beta: Any) -> None:
    if isinstance(beta, int | float) and not (np.isfinite(beta) and beta > 0):
        raise ValueError(f"`beta` must be a positive number; got {beta}")


class Cauchy(AbstractEstimator):
    r"""Holomorphic equilibrium propagation: Cauchy's formula on `num_points` nudges around a circle.

    $q = \frac{1}{N|\beta|}\sum_k r_{\beta_k} e^{-2\pi i k/N}$ with $\beta_k = |\beta| e^{2\pi i k/N}$, whose error is
    $O(|\beta|^N)$ as long as $\beta \mapsto r_\beta$ has no singularity within the circle. The states of conjugate
    nudges are conjugates, so two real and $N/2 - 1$ complex equilibria are settled for an even $N$.

    **Arguments:**

    - `beta`: the radius of the circle, positive.
    - `num_points`: $N$. One and two are [`fixedpoint_eq.ep.OneSided`][] and [`fixedpoint_eq.ep.Symmetric`][].

    **Raises:**

    `ValueError` for a `beta` that is not positive, or no points.

    !!! Example

        ```python
        grads, info = ep.gradient(field, params, x, y, ep.Cauchy(0.1, 6))
        ```

    ??? cite "Reference"

        Laborieux and Zenke, "Holomorphic Equilibrium Propagation Computes Exact Gradients Through Finite Size
        Oscillations", arXiv:2209.00530.
    """

    beta: Real[ScalarLike, ""]
    num_points: int = eqx.field(default=4, static=True)

    def __check_init__(self):
        _check_beta(self.beta)
        if self.num_points < 1:
            raise ValueError(f"`num_points` must be at least one; got {self.num_points}")

    def response(self, sample: Sample) -> Response:
        """Return the response of the equilibrium of one sample."""
        n = self.num_points
        dtype = norm(sample.u0).dtype
        beta = jnp.asarray(self.beta, dtype)
        v0 = sample.observe(sample.u0)

        def total(betas, phases):
            """Sum, over some points, the displacements and these times the conjugate phases."""
            u, res = jax.vmap(sample.settle)(betas)
            start = as_dtype_of(v0, betas)
            away = jtu.tree_map(lambda v, v0: v - v0[None], jax.vmap(sample.observe)(u), start)
            # Displacements, because the phases add to zero: less is lost to rounding, and N = 1 is right as well.
            turned = jtu.tree_map(lambda d: jnp.tensordot(jnp.conj(phases).astype(d.dtype), d, 1).real, away)
            return u, (jtu.tree_map(lambda d: jnp.sum(d, 0).real, away), turned), jnp.max(res)

        # Those on the real axis, with real arithmetic.
        real = np.array([1.0, -1.0][: 1 + (n % 2 == 0)], dtype)
        _, sums, res = total(beta * real, jnp.asarray(real))
        holomorphic = jnp.array(True)
        if n > 2:
            upper = np.exp(2j * np.pi * np.arange(1, (n + 1) // 2) / n).astype(np.result_type(dtype, np.complex64))
            betas = beta.astype(upper.dtype) * upper
            u, more, other = total(betas, jnp.asarray(upper))
            sums = jtu.tree_map(lambda a, b: a + 2 * b, sums, more)
            res = jnp.maximum(res, other)
            holomorphic = sample.is_holomorphic(betas[0], jtu.tree_map(lambda leaf: leaf[0], u))
        drift, turned = sums
        value = jtu.tree_map(lambda d: d / (n * beta).astype(d.dtype), turned)
        if n == 1:
            return Response(value, res)
        # What the phases leave is no sign of a large nudge.
        drift = jnp.maximum(norm(drift) / n - 10 * res, 0)
        return Response(value, res, _nudge_ratio(drift, beta * norm(value), n, holomorphic))


class OneSided(AbstractEstimator):
    r"""Classical equilibrium propagation: $(r_\beta - r_0)/\beta$, with an error $O(\beta)$.

    Alone of all estimators it cannot tell whether `beta` is too large.

    **Arguments:**

    - `beta`: the nudge, positive.

    **Raises:**

    `ValueError` for a `beta` that is not positive.

    !!! Example

        ```python
        grads, info = ep.gradient(field, params, x, y, ep.OneSided(1e-3))
        ```

    ??? cite "Reference"

        Scellier and Bengio, "Equilibrium Propagation", arXiv:1602.05179.
    """

    beta: Real[ScalarLike, ""]

    def __check_init__(self):
        _check_beta(self.beta)

    def response(self, sample: Sample) -> Response:
        """Return the response of the equilibrium of one sample."""
        return Cauchy(self.beta, 1).response(sample)


class Symmetric(AbstractEstimator):
    r"""Equilibrium propagation with both signs: $(r_\beta - r_{-\beta})/(2\beta)$, with an error $O(\beta^2)$.

    **Arguments:**

    - `beta`: the nudge, positive.

    **Raises:**

    `ValueError` for a `beta` that is not positive.

    !!! Example

        ```python
        grads, info = ep.gradient(field, params, x, y, ep.Symmetric(1e-2))
        ```
    """

    beta: Real[ScalarLike, ""]

    def __check_init__(self):
        _check_beta(self.beta)

    def response(self, sample: Sample) -> Response:
        """Return the response of the equilibrium of one sample."""
        return Cauchy(self.beta, 2).response(sample)


class Oscillating(AbstractEstimator):
    r"""Holomorphic equilibrium propagation online: the nudge walks around the circle and the state follows it.

    There is no free phase. By the mean-value property the free equilibrium is the mean of the states over whole
    periods, and the response is the mean of $\operatorname{Re}(r/\beta(t))$.

    **Arguments:**

    - `beta`: the radius of the circle, positive.
    - `num_points`: points on it, at least three. Each is settled from the one before, by `nudged` of
        [`fixedpoint_eq.ep.gradient`][], for instance `Settle(num_steps=60)`.
    - `periods`: how many periods are averaged.
    - `warmup`: how many go before them.

    **Raises:**

    `ValueError` for a `beta` that is not positive, or too few points or periods.

    !!! Example

        ```python
        ep.gradient(field, params, x, y, ep.Oscillating(0.5, 4, 5), nudged=ep.Settle(num_steps=60))
        ```
    """

    beta: Real[ScalarLike, ""]
    num_points: int = eqx.field(default=4, static=True)
    periods: int = eqx.field(default=5, static=True)
    warmup: int = eqx.field(default=1, static=True)

    def __check_init__(self):
        _check_beta(self.beta)
        if self.num_points < 3:
            raise ValueError(f"`num_points` must be at least three; got {self.num_points}")
        if self.periods < 1 or self.warmup < 0:
            raise ValueError(f"`periods` must be positive, `warmup` non-negative; got {self.periods}, {self.warmup}")

    def response(self, sample: Sample) -> Response:
        """Return the mean response while the nudge walks around the circle."""
        n = self.num_points
        dtype = norm(sample.u0).dtype
        circle = np.exp(2j * np.pi * np.arange(n) / n).astype(np.result_type(dtype, np.complex64))
        betas = jnp.asarray(self.beta, dtype).astype(circle.dtype) * circle

        def point(u, beta):
            u, res = sample.settle(beta, u)
            turned = jtu.tree_map(lambda v: (v / beta.astype(v.dtype)).real, sample.observe(u))
            return u, (res, jtu.tree_map(jnp.real, u), turned)

        # Not `tile` of the finished points: the walk goes on from where it is.
        walk = jnp.tile(betas, self.warmup + self.periods)
        last, out = jax.lax.scan(point, as_dtype_of(sample.u0, betas), walk)
        kept = jtu.tree_map(lambda leaf: leaf[self.warmup * n :], out)
        u, value = jtu.tree_map(lambda leaf: jnp.mean(leaf, 0), kept[1:])
        # Judged at the mean itself: the free phase that there was not.
        drift = residual(sample.free_map, u)
        first = jnp.asarray(self.beta, dtype) * norm(value)
        ratio = _nudge_ratio(drift, first, n, sample.is_holomorphic(walk[-1], last))
        return Response(value, jnp.max(kept[0]), ratio, u)


class ExactResponse(AbstractEstimator):
    r"""The derivative of the equilibrium in the nudge, $q = -J^{-1} \partial L/\partial r$, by an implicit JVP.

    Not a physical process: the limit of all estimators above for a vanishing nudge.

    **Arguments:**

    - `linear_solver`: any Lineax solver; `None` means [`implicit_core.krylov.FGMRES`][], whose attained residual is in
        the [`fixedpoint_eq.ep.EPInfo`][].

    !!! Example

        ```python
        grads, info = ep.gradient(field, params, x, y, ep.ExactResponse())
        ```
    """

    linear_solver: lx.AbstractLinearSolver | None = None

    def response(self, sample: Sample) -> Response:
        """Return the derivative of the equilibrium of one sample."""
        beta = jnp.zeros((), norm(sample.u0).dtype)

        @implicit.fixed_point(lambda u, beta: sample.map(beta)(u), linear_solver=_or_default(self.linear_solver))
        def equilibrium(beta):
            del beta
            return sample.u0

        one = jnp.ones_like(beta)
        _, du = jax.jvp(equilibrium, (beta,), (one,))
        _, image = jax.jvp(lambda u, beta: sample.map(beta)(u), (sample.u0, beta), (du, one))
        res = norm(tree_sub(image, du))
        return Response(sample.observe_tangent(du), res)


class RBP(AbstractEstimator):
    r"""Recurrent backpropagation: the error $\delta = -J^{-\top} \partial L/\partial r$, by an implicit VJP.

    The true gradient, and no equilibrium propagation: the reference for all others.

    **Arguments:**

    - `linear_solver`: as in [`fixedpoint_eq.ep.ExactResponse`][].

    !!! Example

        ```python
        grads, info = ep.gradient(field, params, x, y, ep.RBP())
        ```

    ??? cite "Reference"

        Almeida, "A learning rule for asynchronous perceptrons with feedback in a combinatorial environment" (1987);
        Pineda, Phys. Rev. Lett. 59 (1987).
    """

    linear_solver: lx.AbstractLinearSolver | None = None

    def response(self, sample: Sample) -> Response:
        """Return the error of each unit of one sample."""

        def shifted(u, current):
            return jtu.tree_map(jnp.add, sample.free_map(u), current)

        @implicit.fixed_point(shifted, linear_solver=_or_default(self.linear_solver))
        def equilibrium(current):
            del current
            return sample.u0

        # The gradient in a current that is added to that of each unit is the error of the unit.
        force = sample.force(sample.u0)
        _, pullback = jax.vjp(equilibrium, jtu.tree_map(jnp.zeros_like, sample.u0))
        (delta,) = pullback(force)
        _, pullback = jax.vjp(sample.free_map, sample.u0)
        res = norm(jtu.tree_map(lambda a, f, d: a + f - d, pullback(delta)[0], force, delta))
        return Response(delta, res)


class Dyadic(AbstractEstimator):
    r"""Equilibrium propagation on pairs: $\dot m = F(m)$, $\dot d = J(m)^\top d + \beta\,\partial L/\partial u$.

    From a free equilibrium, $d/\beta$ settles at the true error whatever the nudge. It is recurrent backpropagation by
    the relaxation `nudged` of [`fixedpoint_eq.ep.gradient`][].

    **Arguments:**

    - `beta`: the nudge, positive.

    **Raises:**

    `ValueError` for a `beta` that is not positive.

    !!! Example

        ```python
        grads, info = ep.gradient(field, params, x, y, ep.Dyadic(0.1))
        ```

    ??? cite "Reference"

        Scurria et al., "Equilibrium Propagation for Non-Conservative Systems", arXiv:2602.03670.
    """

    beta: Real[ScalarLike, ""]

    def __check_init__(self):
        _check_beta(self.beta)

    def response(self, sample: Sample) -> Response:
        """Return the error of each unit of one sample."""
        beta = jnp.asarray(self.beta, norm(sample.u0).dtype)

        def pair(state):
            m, d = state
            new, pullback = jax.vjp(sample.free_map, m)
            pulled = pullback(d)[0]
            return new, jtu.tree_map(lambda a, f: a + beta.astype(a.dtype) * f, pulled, sample.force(m))

        m, d = sample.run(pair, (sample.u0, jtu.tree_map(jnp.zeros_like, sample.u0)))
        return Response(jtu.tree_map(lambda a: a / beta.astype(a.dtype), d), residual(pair, (m, d)))


class AsymEP(AbstractEstimator):
    r"""Equilibrium propagation with exact gradients in networks without symmetric weights.

    The nudged field has the further term $-2A(r - r_0)$, where $A$ is the antisymmetric part of the Jacobian at the free
    equilibrium $r_0$. That leaves $r_0$ where it is and transposes the Jacobian there, so the response is the true error
    and not a biased one. The term is a VJP less a JVP; no matrix is made.

    With `inner=Cauchy(beta, N)` it is *holomorphic AsymEP*: the augmented field is holomorphic too, hence the gradient
    is the true one up to $O(|\beta|^N)$ at a finite nudge.

    **Arguments:**

    - `inner`: how the response is estimated: [`fixedpoint_eq.ep.OneSided`][], [`fixedpoint_eq.ep.Symmetric`][],
        [`fixedpoint_eq.ep.Cauchy`][], [`fixedpoint_eq.ep.Oscillating`][] or [`fixedpoint_eq.ep.ExactResponse`][].

    **Raises:**

    `TypeError` for another estimator: the others give the true error by themselves.

    !!! Example

        ```python
        grads, info = ep.gradient(field, params, x, y, ep.AsymEP(ep.Cauchy(0.1, 6)))
        ```

    ??? cite "Reference"

        Scurria et al., "Equilibrium Propagation for Non-Conservative Systems", arXiv:2602.03670. That with Cauchy's
        formula is ours.
    """

    inner: AbstractEstimator = Symmetric(0.1)

    def __check_init__(self):
        if not isinstance(self.inner, OneSided | Symmetric | Cauchy | Oscillating | ExactResponse):
            raise TypeError(
                "`inner` must be `OneSided`, `Symmetric`, `Cauchy`, `Oscillating` or `ExactResponse`; got "
                f"`{type(self.inner).__name__}`"
            )

    def response(self, sample: Sample) -> Response:
        """Return the error of each unit of one sample."""
        out = self.inner.response(sample.transpose())
        # The free equilibrium is known already, and the true one.
        return Response(out.value, out.residual, out.nudge_ratio)


def _or_default(linear_solver: lx.AbstractLinearSolver | None) -> lx.AbstractLinearSolver:
    return FGMRES(mode="soft") if linear_solver is None else linear_solver


def _nudge_ratio(drift: Array, first: Array, num_points: int, holomorphic: Array) -> Array:
    """Estimate the nudge over the radius of convergence of the states, as a power series in the nudge.

    Their mean over the circle is off by the term of order `num_points`, and `first` is that of order one: for geometric
    coefficients the estimate is exact, even outside of the radius. Of dynamics that are not holomorphic that is zero.
    """
    ratio = drift / jnp.where(first > 0, first, 1)
    ratio = jnp.where(((first > 0) | (drift == 0)) & holomorphic, ratio, jnp.inf)
    return ratio ** (1 / (num_points - 1))
