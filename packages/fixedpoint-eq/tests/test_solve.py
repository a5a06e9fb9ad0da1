"""The driver: batches, statuses, statistics, transformations, certificates."""

import equinox as eqx
import fixedpoint_eq as fpe
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from fixedpoint_eq import RESULTS
from stationary_testkit import no_retrace, tree_allclose


SOLVER = fpe.Anderson(1e-10, 1e-12)


def layer(z, args):
    W, x = args
    return jnp.tanh(z @ W.T + x)


def problem(key, n=5, batch=4, norm=0.9):
    k1, k2 = jr.split(key)
    W = jr.normal(k1, (n, n))
    return norm * W / jnp.linalg.norm(W, 2), 0.5 * jr.normal(k2, (batch, n))


def test_batch_axis_is_vmap_is_a_loop(getkey):
    W, x = problem(getkey())

    @eqx.filter_jit
    def batched(W, x):
        def loss(W, x):
            solution = fpe.solve(layer, jnp.zeros_like(x), (W, x), SOLVER, batch_axis=0)
            return jnp.sum(solution.value**3), solution

        return eqx.filter_grad(loss, has_aux=True)(W, x)

    @eqx.filter_jit
    def alone(W, x):
        def loss(W, x):
            solution = fpe.solve(layer, jnp.zeros_like(x), (W, x), SOLVER)
            return jnp.sum(solution.value**3), solution

        return eqx.filter_grad(loss, has_aux=True)(W, x)

    gradient, solution = batched(W, x)
    loop = [alone(W, row) for row in x]
    mapped_gradient, mapped = eqx.filter_vmap(alone, in_axes=(None, 0))(W, x)
    assert tree_allclose(gradient, sum(g for g, _ in loop), rtol=1e-10)
    assert tree_allclose(gradient, jnp.sum(mapped_gradient, 0), rtol=1e-10)
    for i, (_, one) in enumerate(loop):
        for other in (solution, mapped):
            assert tree_allclose(other.value[i], one.value, rtol=1e-12)
            assert other.stats["num_steps"][i] == one.stats["num_steps"]
            assert tree_allclose(other.stats["residual"][i], one.stats["residual"], rtol=1e-3, atol=1e-14)
            assert bool((other.result == RESULTS.successful)[i])
            assert bool(one.result == RESULTS.successful)
    assert len(np.unique(solution.stats["num_steps"])) > 1


def test_the_rest_of_the_batch_does_not_matter(getkey):
    # One sample whose map becomes NaN on the way, one that diverges, one that is slow.
    def fn(z, scale):
        z = jnp.where((scale[:, None] == -1) & (jnp.abs(z) > 2), jnp.nan, z)
        return jnp.where(scale[:, None] < 0, 1.5 * z + 1, scale[:, None] * z + 1)

    run = eqx.filter_jit(
        lambda scale: fpe.solve(fn, jnp.zeros((4, 2)), scale, fpe.Picard(1e-8, 1e-8), batch_axis=0, throw=False)
    )
    scale = jnp.array([0.5, -1.0, -2.0, 0.99])
    mixed, calm = run(scale), run(jnp.full(4, 0.5))
    assert jnp.array_equal(mixed.value[0], calm.value[0])
    assert jnp.all(jnp.isfinite(mixed.value))
    assert mixed.stats["num_steps"][0] == calm.stats["num_steps"][0] < mixed.stats["num_steps"][2]
    expected = [
        RESULTS.successful,
        RESULTS.nonfinite,
        RESULTS.nonlinear_divergence,
        RESULTS.nonlinear_max_steps_reached,
    ]
    for i, member in enumerate(expected):
        assert bool((mixed.result == member)[i]), i
    assert int(mixed.stats["num_steps"][3]) == 200


def test_every_batch_axis(getkey):
    W, x = problem(getkey(), n=3)
    first = fpe.solve(layer, jnp.zeros_like(x), (W, x), SOLVER, batch_axis=0)
    last = fpe.solve(lambda z, args: layer(z.T, args).T, jnp.zeros_like(x).T, (W, x), SOLVER, batch_axis=-1)
    assert tree_allclose(first.value, last.value.T, rtol=1e-12)
    assert tree_allclose(first.stats, last.stats, rtol=1e-3, atol=1e-14)


def test_best_iterate_is_returned():
    # Picard runs into a cycle of period two, whose residual is larger than that of the first guess.
    fn = lambda z, _: jnp.where(jnp.abs(z) < 0.1, 2 * z + 0.05, -z)
    solution = fpe.solve(fn, jnp.array([0.0]), None, fpe.Picard(), throw=False, keep_trace=True)
    assert bool(solution.result == RESULTS.stagnation)
    assert tree_allclose(solution.stats["residual"], jnp.nanmin(solution.stats["trace"]))
    assert tree_allclose(solution.stats["residual"], jnp.linalg.norm(fn(solution.value, None) - solution.value))
    assert int(solution.stats["num_steps"]) == jnp.sum(jnp.isfinite(solution.stats["trace"])) < 200


def test_warm_start(getkey):
    W, x = problem(getkey(), norm=0.95)
    cold = fpe.solve(layer, jnp.zeros_like(x), (W, x), SOLVER, batch_axis=0)
    warm = fpe.solve(layer, cold, (W, x * 1.0001), SOLVER, batch_axis=0)
    assert jnp.all(warm.stats["num_steps"] < cold.stats["num_steps"])
    assert jnp.all(fpe.solve(layer, cold, (W, x), SOLVER, batch_axis=0).stats["num_steps"] == 1)


def test_certificate_bounds_the_error(getkey):
    W, x = problem(getkey(), norm=0.95)
    exact = fpe.solve(layer, jnp.zeros_like(x), (W, x), fpe.Anderson(1e-14, 1e-14), batch_axis=0).value
    for max_steps in (3, 30):
        solution = fpe.solve(
            layer,
            jnp.zeros_like(x),
            (W, x),
            fpe.Picard(),
            batch_axis=0,
            max_steps=max_steps,
            throw=False,
            contraction=0.95,
        )
        assert solution.certificate is not None
        assert solution.certificate.kind == "proved"
        error = jnp.linalg.norm(solution.value - exact, axis=1)
        assert jnp.all(error <= solution.certificate.value + 1e-12)
        assert jnp.all(solution.certificate.value <= solution.stats["residual"] / 0.05 * (1 + 1e-12))
    nothing = fpe.solve(layer, x, (W, x), fpe.Picard(), batch_axis=0, contraction=1.0).certificate
    assert nothing is not None
    assert jnp.all(jnp.isinf(nothing.value))


def test_picard_keeps_its_prediction():
    gamma, tol = 0.8, 1e-9
    solution = fpe.solve(lambda z, b: gamma * z + b, jnp.array(0.0), jnp.array(1.0), fpe.Picard(0.0, tol))
    # |f(z_k) - z_k| = gamma^k.
    assert int(solution.stats["num_steps"]) == 1 + np.ceil(np.log(tol) / np.log(gamma))


def test_does_not_retrace(getkey):
    W, x = problem(getkey())
    run = no_retrace(lambda W, x: fpe.solve(layer, jnp.zeros_like(x), (W, x), batch_axis=0).value)
    run(W, x)
    run(0.5 * W, x)


def test_float32_and_pytrees(getkey):
    W, x = (a.astype(jnp.float32) for a in problem(getkey()))
    fn = lambda z, args: {"a": layer(z["a"], args), "b": 0.5 * jnp.sum(z["a"]) - 0.25 * z["b"]}
    z0 = {"a": jnp.zeros(5, jnp.float32), "b": jnp.zeros((), jnp.float32)}
    solution = fpe.solve(fn, z0, (W, x[0]), fpe.Anderson(1e-5, 1e-6))
    assert solution.value["a"].dtype == jnp.float32
    flat = fpe.solve(layer, z0["a"], (W, x[0]), fpe.Anderson(1e-6, 1e-6)).value
    assert tree_allclose(solution.value["b"], 0.4 * jnp.sum(flat), rtol=1e-4)


@pytest.mark.parametrize("on_failure", ["keep", "zero", "nan"])
def test_gradient_of_a_sample_that_failed(on_failure):
    fn = lambda z, a: a[:, None] * z + 1.0
    a = jnp.array([0.5, 0.999])

    def loss(a, max_steps):
        solution = fpe.solve(
            fn,
            jnp.zeros((2, 1)),
            a,
            fpe.Picard(1e-8, 1e-8),
            batch_axis=0,
            throw=False,
            on_failure=on_failure,
            max_steps=max_steps,
        )
        return jnp.sum(solution.value), solution

    gradient, solution = eqx.filter_grad(loss, has_aux=True)(a, 40)
    assert bool((solution.result == RESULTS.successful)[0])
    assert not bool((solution.result == RESULTS.successful)[1])
    assert tree_allclose(gradient[0], jnp.array(4.0), rtol=1e-6)
    # Of what was found: d/da of f at z, through (1 - a).
    kept = solution.value[1, 0] / (1 - a[1])
    expected = {"keep": kept, "zero": jnp.array(0.0), "nan": jnp.array(jnp.nan)}[on_failure]
    assert jnp.allclose(gradient[1], expected, equal_nan=True)


def test_vmap_of_a_batch(getkey):
    W, x = problem(getkey(), n=3, batch=2)
    weights = jnp.stack([W, 0.3 * W])

    def loss(W):
        solution = fpe.solve(layer, jnp.zeros_like(x), (W, x), SOLVER, batch_axis=0)
        return jnp.sum(solution.value**2), solution.stats["num_steps"]

    both = eqx.filter_jit(eqx.filter_vmap(eqx.filter_value_and_grad(loss, has_aux=True)))(weights)
    for i in range(2):
        one = eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=True))(weights[i])
        assert tree_allclose(jax.tree.map(lambda leaf, i=i: leaf[i], both), one, rtol=1e-10)


@pytest.mark.parametrize("adjoint", [fpe.Implicit(), fpe.ImplicitFP(fpe.Anderson(1e-11, 1e-12))], ids=["lu", "fp"])
def test_failed_samples_leave_shared_gradients_alone(adjoint, getkey):
    """A sample with a NaN in its input, one whose map becomes a NaN, and one of which the loss is."""
    W, x = problem(getkey(), n=3, batch=5)
    x = x.at[1, 0].set(jnp.nan).at[3].set(jnp.array([4.0, 0.0, 0.0]))

    def fn(z, args):
        W, x = args
        late = (x[:, :1] == 4.0) & (z[:, :1] > 0.5)
        return jnp.where(late, jnp.log(-jnp.abs(z)), layer(z, (W, x)))

    def loss(both, weights):
        W, x = both
        solution = fpe.solve(
            fn, jnp.zeros_like(x), (W, x), SOLVER, adjoint, batch_axis=0, throw=False, on_failure="zero"
        )
        fine = solution.result == RESULTS.successful
        # Of a sample that failed the cotangent is a NaN.
        losses = jnp.where(fine, 1.0, jnp.nan) * jnp.sum(solution.value**3, axis=1)
        return jnp.sum(weights * jnp.where(fine, losses, 0.0)), solution

    slope = eqx.filter_jit(eqx.filter_grad(loss, has_aux=True))
    (by_W, by_x), solution = slope((W, x), jnp.ones(5))
    # The same without the two: good ones in their place, which do not count.
    good, bad = jnp.array([0, 2, 4]), jnp.array([1, 3])
    (good_W, good_x), calm = slope((W, x.at[bad].set(x[0])), jnp.array([1.0, 0.0, 1.0, 0.0, 1.0]))
    assert [bool(ok) for ok in solution.result == RESULTS.successful] == [True, False, True, False, True]
    assert all(bool((solution.result == RESULTS.nonfinite)[i]) for i in (1, 3))
    assert jnp.array_equal(solution.stats["num_steps"][good], calm.stats["num_steps"][good])
    assert tree_allclose(solution.value[good], calm.value[good], rtol=1e-12)
    assert tree_allclose(by_W, good_W, rtol=1e-9)
    assert tree_allclose(by_x[good], good_x[good], rtol=1e-9)
    assert jnp.all(by_x[bad] == 0)
    # One by one, under vmap.
    mapped = eqx.filter_jit(eqx.filter_vmap(lambda row: slope((W, row[None]), jnp.ones(1))))(x)
    assert tree_allclose(by_W, jnp.sum(mapped[0][0], 0), rtol=1e-9)
    assert tree_allclose(by_x, mapped[0][1][:, 0], rtol=1e-9, atol=1e-14)
    assert jnp.array_equal(solution.stats["num_steps"], mapped[1].stats["num_steps"][:, 0])
    assert jnp.all((solution.result == RESULTS.nonfinite) == (mapped[1].result == RESULTS.nonfinite)[:, 0])


@pytest.mark.parametrize("adjoint", [fpe.Implicit(), fpe.ImplicitFP(max_steps=60)], ids=["lu", "fp"])
def test_a_linear_system_without_solution_is_zero_if_so_wished(adjoint):
    # The second sample is at a fixed point with a Jacobian of one.
    fn = lambda z, a: jnp.stack([0.5 * z[0] + a, a + z[1] - 1.0])

    def loss(a, on_failure):
        solution = fpe.solve(
            fn, jnp.ones((2, 1)), a, fpe.Picard(), adjoint, batch_axis=0, throw=False, on_failure=on_failure
        )
        return jnp.sum(solution.value)

    slope = eqx.filter_jit(eqx.filter_grad(loss))
    assert tree_allclose(slope(jnp.array([1.0]), "zero"), jnp.array([2.0]), rtol=1e-6)
    with pytest.raises(eqx.EquinoxRuntimeError):
        jax.block_until_ready(slope(jnp.array([1.0]), "keep"))
