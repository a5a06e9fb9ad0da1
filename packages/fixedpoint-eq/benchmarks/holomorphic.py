"""FPE-5: the error of gradients by equilibrium propagation, in a network without symmetry, over nudges and points."""

import time
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
from fixedpoint_eq import RESULTS, ep

from .environment import version
from .protocol import OURS, Row


BETAS = (0.1, 0.05, 0.025)
POINTS = (1, 2, 4, 6)
# All in float64. The residuals of the phases, over the nudge, are the floor of the errors.
SETTLE = ep.Settle(tau=1.0, rtol=1e-15, max_steps=400)


def problem():
    """Return a net of thirty units with independent feedback, and three samples."""
    field = ep.mlp((6, 12, 10, 8), num_outputs=5)
    return field, field.init(key=jr.key(0), gain=0.8), jr.normal(jr.key(1), (3, 6)), jnp.array([0, 2, 4])


def dense_gradient(field, params, x, y):
    """Return the gradient by a dense Jacobian of the equilibrium: nothing of the package but the network."""
    flat, unravel = jfu.ravel_pytree(params)

    def one(x, y):
        def F(u, p):
            state = unravel_u(u)
            return jfu.ravel_pytree(field.drive(unravel(p), field.activation(state), x))[0] - u

        def cost(u, p):
            return field.cost(unravel(p), field.activation(unravel_u(u)), y)

        zeros, unravel_u = jfu.ravel_pytree(field.initial(x))
        u = jax.lax.fori_loop(0, 400, lambda _, u: u + F(u, flat), zeros)
        by_u, by_p = jax.jacfwd(F, (0, 1))(u, flat)
        g_u, g_p = jax.grad(cost, (0, 1))(u, flat)
        return g_p - g_u @ jnp.linalg.solve(by_u, by_p)

    return jnp.mean(jax.vmap(one)(x, y), 0)


def rows(quick: bool = False) -> Iterator[Row]:
    """Yield, for each estimator, nudge and number of points, the relative error and the worst cosine of a sample."""
    with jax.enable_x64(True):
        field, params, x, y = problem()
        truth = jax.jit(dense_gradient, static_argnums=0)(field, params, x, y)

        @eqx.filter_jit
        def run(estimator):
            return ep.gradient(field, params, x, y, estimator, free=SETTLE, throw=False, alignment=True)

        def row(method, estimator, beta=None, points=None):
            start = time.process_time()
            jax.block_until_ready(run(estimator)[0])
            first = time.process_time() - start
            start = time.process_time()
            grads, info = run(estimator)
            error = jnp.linalg.norm(jfu.ravel_pytree(grads)[0] - truth) / jnp.linalg.norm(truth)
            seconds = time.process_time() - start
            return {
                "problem": "FPE-5 holo-exact",
                "method": method,
                "distribution": OURS,
                "version": version(OURS),
                "nudge": beta,
                "points": points,
                "error": float(error),
                "cosine": float(jnp.min(info.alignment[1])),
                "residual": float(jnp.max(jnp.maximum(info.residual_free, info.residual_nudged))),
                "nudge_ratio": None if info.nudge_ratio is None else float(jnp.max(info.nudge_ratio)),
                "flagged": int(np.sum(info.result != RESULTS.successful)),
                "seconds": seconds,
                "compile_seconds": max(first - seconds, 0.0),
            }

        found = [] if quick else [row("recurrent backpropagation", ep.RBP(lx.LU()))]
        found += [] if quick else [row("exact response", ep.ExactResponse(lx.LU()))]
        for points in POINTS[-1:] if quick else POINTS:
            for beta in BETAS[-1:] if quick else BETAS:
                # The nudge is an array, so that the three are one program.
                inner = ep.Cauchy(jnp.array(beta), points)
                found.append(row("holomorphic EP", inner, beta, points))
                found.append(row("holomorphic AsymEP (ours)", ep.AsymEP(inner), beta, points))
    last = found[-1]
    yield from found[:-1]
    yield last | {"goal": "relative error at most 1e-8 with N = 6, β = 0.025", "met": last["error"] <= 1e-8}
