"""Every derivative against finite differences, and reverse mode against forward mode.

Two compiled programs do all of it: forward mode, and reverse mode with a derivative of the reverse mode.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import ot_sns
import pytest
from implicit_core.implicit import ImplicitAdjoint
from stationary_testkit import no_retrace


STEP = 1e-5
NAMES = ("cost", "a", "b", "epsilon", "x", "y")


def outputs(theta: dict[str, Any]) -> dict[str, Any]:
    """Everything that is differentiable, as a function of everything that it depends on."""
    cloud = ot_sns.PointCloud(theta["x"], theta["y"])
    geometry = ot_sns.DenseCost(theta["cost"] + cloud.cost_matrix())
    problem = ot_sns.EntropicOT(geometry, theta["a"], theta["b"], epsilon=theta["epsilon"])
    # Derivatives know nothing of the solver, and Sinkhorn compiles in a third of the time.
    solution = ot_sns.solve(problem, ot_sns.Sinkhorn(tol=1e-13))
    return {
        "f": solution.f,
        "g": solution.g,
        "plan": solution.matrix(),
        "value": solution.value,
        "transport_cost": solution.transport_cost(),
    }


@pytest.fixture(scope="module")
def forward():
    return no_retrace(lambda theta, tangent: jax.jvp(outputs, (theta,), (tangent,)))


@pytest.fixture(scope="module")
def reverse():
    def gradients(theta, cotangent, tangent):
        def pull(theta):
            return jax.vjp(outputs, theta)[1](cotangent)[0]

        return jax.jvp(pull, (theta,), (tangent,))

    return no_retrace(gradients)


@pytest.fixture(scope="module")
def theta(small):
    cost, a, b, epsilon = small
    r = np.random.default_rng(1)
    x, y = jnp.asarray(0.3 * r.normal(size=(6, 2))), jnp.asarray(0.3 * r.normal(size=(8, 2)))
    return strong(dict(cost=cost, a=a, b=b, epsilon=epsilon, x=x, y=y))


def strong(tree):
    """No weak types, each of which would be compiled for anew."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


def like(tree, key):
    leaves, treedef = jax.tree.flatten(tree)
    keys = jr.split(key, len(leaves))
    normal = [jr.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    return strong(jax.tree.unflatten(treedef, normal))


def direction(theta, name, key):
    """A random change of one argument; weights keep their sum, or there would be no plan."""
    full = like(theta, key)
    zero = jax.tree.map(jnp.zeros_like, theta)
    change = full[name]
    if name in ("a", "b"):
        change = jnp.where(theta[name] > 0, change, 0)
        change -= jnp.sum(change) * theta[name] / jnp.sum(theta[name])
        change *= jnp.min(jnp.where(theta[name] > 0, theta[name], 1))
    return strong({**zero, name: change})


def moved(theta, tangent, step):
    return strong(jax.tree.map(lambda t, d: t + step * d, theta, tangent))


def central(fn, theta, tangent):
    above, below = fn(moved(theta, tangent, STEP)), fn(moved(theta, tangent, -STEP))
    return jax.tree.map(lambda u, v: (u - v) / (2 * STEP), above, below)


def dot(x, y):
    return sum(float(jnp.vdot(u, v)) for u, v in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))


def assert_close(actual, expected, rtol=1e-6):
    scale = np.max(np.abs(expected))
    assert scale > 0
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * scale)


@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_against_differences(name, forward, theta, getkey):
    for _ in range(3):
        tangent = direction(theta, name, getkey())
        _, analytic = forward(theta, tangent)
        numeric = central(lambda t, tangent=tangent: forward(t, tangent)[0], theta, tangent)
        for output in analytic:
            assert_close(analytic[output], numeric[output])


@pytest.mark.parametrize("output", ["f", "g", "plan", "value", "transport_cost"])
def test_reverse_mode_against_differences(output, forward, reverse, theta, getkey):
    # One pass backwards gives all six arguments; each is checked along its own directions.
    out, _ = forward(theta, theta)
    cotangent = jax.tree.map(jnp.zeros_like, out)
    cotangent[output] = jr.normal(getkey(), out[output].shape, jnp.float64)
    gradients, _ = reverse(theta, cotangent, theta)
    for name in NAMES:
        for _ in range(2):
            tangent = direction(theta, name, getkey())
            numeric = central(lambda t, tangent=tangent: forward(t, tangent)[0], theta, tangent)
            scale = np.linalg.norm(cotangent[output]) * np.linalg.norm(numeric[output])
            assert abs(dot(gradients[name], tangent[name]) - dot(cotangent[output], numeric[output])) <= 1e-6 * scale


def test_reverse_mode_is_the_transpose_of_forward_mode(forward, reverse, theta, getkey):
    # In every direction, also those that change the masses, in which differences cannot follow.
    for _ in range(5):
        tangent = like(theta, getkey())
        _, pushed = forward(theta, tangent)
        cotangent = like(pushed, getkey())
        gradients, _ = reverse(theta, cotangent, theta)
        scale = np.sqrt(dot(cotangent, cotangent) * dot(pushed, pushed))
        assert abs(dot(gradients, tangent) - dot(cotangent, pushed)) <= 1e-8 * scale


@pytest.mark.parametrize("name", NAMES)
def test_second_derivative_of_the_value(name, forward, reverse, theta, getkey):
    out, _ = forward(theta, theta)
    cotangent = {**jax.tree.map(jnp.zeros_like, out), "value": jnp.ones((), jnp.float64)}
    tangent = direction(theta, name, getkey())
    _, analytic = reverse(theta, cotangent, tangent)
    numeric = central(lambda t: reverse(t, cotangent, tangent)[0], theta, tangent)
    for other in NAMES:
        assert_close(analytic[other], numeric[other])


def test_second_derivative_of_potentials_and_plan(forward, reverse, theta, getkey):
    out, _ = forward(theta, theta)
    cotangent, tangent = like(out, getkey()), direction(theta, "cost", getkey())
    _, analytic = reverse(theta, cotangent, tangent)
    numeric = central(lambda t: reverse(t, cotangent, tangent)[0], theta, tangent)
    for other in NAMES:
        assert_close(analytic[other], numeric[other])


def test_envelope_theorem(forward, reverse, theta):
    # Danskin: no linear system is needed for the value.
    out, _ = forward(theta, theta)
    cotangent = {**jax.tree.map(jnp.zeros_like, out), "value": jnp.ones((), jnp.float64)}
    gradients, _ = reverse(theta, cotangent, theta)
    plan, f, g, epsilon = (np.asarray(x) for x in (out["plan"], out["f"], out["g"], theta["epsilon"]))
    offsets = np.asarray(theta["x"])[:, None] - np.asarray(theta["y"])[None]
    cost = np.asarray(theta["cost"]) + np.sum(offsets**2, axis=-1)
    np.testing.assert_allclose(gradients["cost"], plan, rtol=1e-12)
    np.testing.assert_allclose(gradients["a"], f, atol=1e-13)
    np.testing.assert_allclose(gradients["b"], g, atol=1e-13)
    expected = -plan.sum() - np.sum(plan * (cost - f[:, None] - g[None])) / epsilon
    assert float(gradients["epsilon"]) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(gradients["x"], 2 * np.einsum("ij,ijd->id", plan, offsets), atol=1e-13)
    np.testing.assert_allclose(gradients["y"], -2 * np.einsum("ij,ijd->jd", plan, offsets), atol=1e-13)


def test_atoms_without_mass(forward, reverse, theta, getkey):
    # Derivatives are those of the problem without the atoms, and zero for what belongs to them: never NaN.
    a, b = theta["a"].at[2].set(0), theta["b"].at[0].set(0)
    theta = {**theta, "a": a / jnp.sum(a), "b": b / jnp.sum(b)}
    out, _ = forward(theta, theta)
    assert float(out["f"][2]) == -np.inf
    assert float(out["g"][0]) == -np.inf
    assert np.all(np.asarray(out["plan"])[2] == 0)
    assert np.all(np.asarray(out["plan"])[:, 0] == 0)
    cotangent = like(out, getkey())
    gradients, second = reverse(theta, cotangent, direction(theta, "cost", getkey()))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((gradients, second)))
    for gradient in (gradients, second):
        assert float(gradient["a"][2]) == 0
        assert float(gradient["b"][0]) == 0
        assert np.all(np.asarray(gradient["cost"])[2] == 0)
        assert np.all(np.asarray(gradient["cost"])[:, 0] == 0)
        assert np.all(np.asarray(gradient["x"])[2] == 0)
        assert np.all(np.asarray(gradient["y"])[0] == 0)
    for name in NAMES:
        tangent = direction(theta, name, getkey())
        _, pushed = forward(theta, tangent)
        numeric = central(lambda t, tangent=tangent: forward(t, tangent)[0], theta, tangent)
        # inf - inf where there is no mass: the derivative there is zero.
        numeric = jax.tree.map(lambda x: jnp.where(jnp.isnan(x), 0, x), numeric)
        for output in pushed:
            assert_close(pushed[output], numeric[output])
        scale = np.sqrt(dot(cotangent, cotangent) * dot(pushed, pushed))
        assert abs(dot(gradients[name], tangent[name]) - dot(cotangent, pushed)) <= 1e-8 * scale


SUCCESS: Any = ot_sns.RESULTS.successful


class Scaling(ot_sns.AbstractSolver):
    """A solver of a user's own: Sinkhorn in a few lines."""

    tol: float | None = None

    def run(self, problem, f, max_steps):
        del f
        kernel = jnp.exp(-problem.cost / problem.epsilon)

        def step(_, u):
            return problem.a / (kernel @ (problem.b / (u @ kernel)))

        u = jax.lax.fori_loop(0, max_steps, step, jnp.ones_like(problem.a))
        stats = dict(num_steps=jnp.asarray(max_steps), tol=jnp.asarray(1e-12))
        return ot_sns.Outcome(problem.epsilon * jnp.log(u), SUCCESS, stats)


class OnTheCircle(ot_sns.AbstractGeometry):
    """A geometry of a user's own: the squared distance between angles."""

    source: jax.Array
    target: jax.Array

    def cost_matrix(self):
        return 2 - 2 * jnp.cos(self.source[:, None] - self.target[None, :])

    @property
    def shape(self):
        return self.source.size, self.target.size

    @property
    def dtype(self):
        return self.source.dtype


@pytest.mark.parametrize(
    "adjoint",
    [
        None,
        pytest.param("optimistix", id="optimistix"),
        pytest.param("lineax", id="lineax"),
    ],
)
def test_adjoints_and_classes_of_ones_own(adjoint, transport, small):
    import lineax as lx
    import optimistix as optx

    adjoint = {
        "optimistix": optx.ImplicitAdjoint(),
        "lineax": ImplicitAdjoint(lx.CG(rtol=1e-12, atol=1e-12)),
    }.get(adjoint)
    _, a, b, _ = small
    r = np.random.default_rng(2)
    source, target = jnp.asarray(r.uniform(0, 6, 6)), jnp.asarray(r.uniform(0, 6, 8))
    weights = jnp.asarray(r.normal(size=6))

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(source):
        problem = ot_sns.EntropicOT(OnTheCircle(source, target), a, b, epsilon=0.5)
        solution = ot_sns.solve(problem, Scaling(), adjoint=adjoint, max_steps=400)
        return jnp.sum(weights * solution.f), solution

    (_, solution), gradient = loss(source)
    assert solution.result == ot_sns.RESULTS.successful

    def cost(source):
        return 2 - 2 * jnp.cos(source[:, None] - target[None, :])

    def value(source):
        return float(jnp.sum(weights * transport(cost(source), a, b, jnp.array(0.5)).f))

    tangent = jnp.asarray(r.normal(size=6))
    numeric = (value(source + STEP * tangent) - value(source - STEP * tangent)) / (2 * STEP)
    assert float(gradient @ tangent) == pytest.approx(numeric, rel=1e-6)
    np.testing.assert_allclose(solution.f, transport(cost(source), a, b, jnp.array(0.5)).f, atol=1e-11)
