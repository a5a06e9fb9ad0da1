import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from koopman_verify import Factor, Fourier, Snapshots, edmd, eigenpair, factor, loss, sensitivity


ALL = [
    loss.invariance_defect,
    loss.residual,
    loss.worst_defect,
    loss.log_condition,
    loss.log_frobenius_condition,
    loss.conditioned_defect,
]


class Family(eqx.Module):
    """Five functions of the plane, real or complex, that move with their parameters."""

    p: jax.Array
    complex: bool = eqx.field(static=True, default=False)

    def __call__(self, x):
        p, (a, b) = self.p, x
        real = [jnp.cos(p[0] * a), jnp.sin(a + p[1] * b), a * b, p[2] * a + b**2, jnp.exp(p[3] * b)]
        if not self.complex:
            return jnp.stack(real)
        phase = jnp.stack([a, p[0] * a, 0.3 * a, p[1] * a, 2 * a])
        return jax.lax.complex(jnp.stack(real) * jnp.cos(phase), jnp.stack(real) * jnp.sin(phase))


def snapshots(dtype=jnp.float64, num=60, weights=False):
    x = np.random.default_rng(0).uniform(-1, 1, (num, 2))
    y = np.stack([np.sin(2 * x[:, 0] + x[:, 1]), 0.8 * x[:, 1] - x[:, 0] ** 2], axis=1)
    w = np.random.default_rng(1).uniform(0.5, 2, num) / num if weights else None
    return Snapshots(jnp.asarray(x, dtype), jnp.asarray(y, dtype), w)


P = np.array([1.3, 0.7, 0.4, 0.9])


def differences(f, p, step=1e-5):
    at = lambda p: np.asarray(f(jnp.asarray(p)))
    return np.array([(at(p + e) - at(p - e)) / (2 * step) for e in np.eye(len(p)) * step])


def values(p, kind, weights):
    made = factor(Family(p, kind == "complex"), snapshots(weights=weights))
    return jnp.stack([value(made) for value in ALL]), (made.A, made.R11, made.basis, made.cond)


@pytest.fixture(scope="module")
def gradients():
    """The derivatives of all losses of the real family, as one program for several tests."""
    return jax.jit(jax.jacrev(lambda p: values(p, "real", False)[0]))


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_gradients_are_those_of_finite_differences(kind, gradients):
    f = lambda p: values(p, kind, kind == "complex")
    run = jax.jit(f)
    reverse = (gradients if kind == "real" else jax.jit(jax.jacrev(lambda p: f(p)[0])))(P)
    np.testing.assert_allclose(reverse, differences(lambda p: run(p)[0], P).T, rtol=1e-6, atol=1e-8)
    forward, of_parts = jax.jit(jax.jacfwd(f))(P)
    np.testing.assert_allclose(forward, reverse, rtol=1e-9)
    # The compression and the triangle have derivatives of their own.
    plus, minus = (run(jnp.asarray(P + np.eye(4)[1] * step))[1] for step in (1e-5, -1e-5))
    for exact, p, m in zip(of_parts, plus, minus, strict=True):
        np.testing.assert_allclose(
            np.asarray(exact)[..., 1], (np.asarray(p) - np.asarray(m)) / 2e-5, rtol=1e-6, atol=1e-8
        )


def test_blocks_do_not_change_a_gradient(gradients):
    data = snapshots()
    x, y = np.asarray(data.x), np.asarray(data.y)
    stream = lambda: iter([Snapshots(x[i : i + 12], y[i : i + 12]) for i in range(0, 60, 12)])
    both = lambda f: loss.invariance_defect(f) + loss.log_frobenius_condition(f)
    whole = np.asarray(gradients(P))[[ALL.index(loss.invariance_defect), ALL.index(loss.log_frobenius_condition)]]
    pieces = jax.jit(jax.grad(lambda p: both(factor(Family(p), data, block=4))))(P)
    streamed = jax.jit(jax.grad(lambda p: both(factor(Family(p), stream()))))(P)
    np.testing.assert_allclose(pieces, whole.sum(0), rtol=1e-10)
    np.testing.assert_allclose(streamed, whole.sum(0), rtol=1e-10)


def test_the_second_derivative_is_that_of_finite_differences(gradients):
    chosen = [loss.invariance_defect, loss.residual]

    def both(p):
        made = factor(Family(p), snapshots())
        return jnp.stack([value(made) for value in chosen])

    hessian = jax.jit(jax.jacfwd(jax.jacrev(both)))(P)
    rows = [ALL.index(value) for value in chosen]
    expected = np.moveaxis(differences(gradients, P)[:, rows], 0, -1)
    np.testing.assert_allclose(hessian, expected, rtol=2e-5, atol=1e-7)


class Scaled(eqx.Module):
    """The span of 1, a, b, invariant under linear maps, with another function when `s` is not zero."""

    s: jax.Array

    def __call__(self, x):
        return jnp.stack([jnp.ones_like(x[0]), x[0], x[1] + self.s * x[0] ** 2])


def test_an_invariant_span_has_loss_zero_and_gradient_zero():
    x = np.random.default_rng(0).normal(size=(40, 2))
    data = Snapshots(x, x @ np.array([[0.9, 0.2], [0.0, 0.5]]))

    def three(s):
        made = factor(Scaled(s), data)
        v = jnp.stack([value(made) for value in (loss.invariance_defect, loss.residual, loss.worst_defect)])
        return v, v

    g, v = jax.jit(jax.jacrev(three, has_aux=True))(jnp.zeros(()))
    assert np.max(np.asarray(v)) < 1e-28
    assert np.max(np.abs(g)) < 1e-14
    eye, p = jnp.asarray(np.eye(3)), jnp.asarray(P)
    exactly = Factor(Scaled(p[0]), jnp.asarray(np.diag(P[:3])), 0 * eye, eye, eye, p[0], 9, "iid")
    for v, g in eqx.filter_jit(lambda k: [eqx.filter_value_and_grad(value)(k) for value in ALL])(exactly):
        assert abs(float(v)) < 1e-14
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(g))


def test_the_surrogates_bound_what_they_stand_for():
    data = snapshots()
    made = factor(Family(jnp.asarray(P)), data)
    residuals = np.asarray(edmd(made).residuals)
    np.testing.assert_allclose(loss.residual(made), np.mean(residuals**2), rtol=1e-10)
    assert np.max(residuals) ** 2 <= loss.worst_defect(made) * (1 + 1e-12)
    kappa = np.linalg.cond(made.R11)
    assert np.log(kappa / 5) <= loss.log_frobenius_condition(made) <= np.log(kappa)
    assert 0 <= loss.log_condition(made) <= 2 * np.log(kappa)
    # A normal compression: the circle.
    grid = np.arange(32.0)[:, None] * (2 * np.pi / 32)
    circle = factor(Fourier([0, 1, 2]), Snapshots(grid, 2 * grid, kind="quadrature"))
    np.testing.assert_allclose(loss.invariance_defect(circle), 1 / 3, rtol=1e-12)


def test_directions_that_were_left_out_are_refused():
    data = snapshots()
    doubled = lambda x: jnp.concatenate([Family(jnp.asarray(P))(x), x[:1] * x[1:]])
    made = factor(doubled, data, rank_tol=1e-9)
    assert jnp.isfinite(loss.invariance_defect(made))
    with pytest.raises(ValueError, match="`log_condition` is infinite: `factor` kept 5 of 6"):
        loss.log_condition(made)


def test_dependent_functions_are_an_error_inside_of_jit_too():
    doubled = lambda p: lambda x: jnp.concatenate([Family(p)(x), p[:1] * x[:1] * x[1:]])
    f = eqx.filter_jit(jax.grad(lambda p: loss.invariance_defect(factor(doubled(p), snapshots()))))
    with pytest.raises(eqx.EquinoxRuntimeError, match="depend linearly on each other"):
        f(P)


def test_float32_and_batches(gradients):
    data, chosen = snapshots(jnp.float32), [loss.residual, loss.conditioned_defect]
    both = lambda f: jnp.stack([value(f) for value in chosen])
    gradient = jax.jacrev(lambda p: both(factor(Family(p), data)))
    got = jax.jit(jax.vmap(gradient))(np.stack([P + 0.1, P]).astype(np.float32))
    assert got.dtype == jnp.float32
    exact = np.asarray(gradients(P))[[ALL.index(value) for value in chosen]]
    np.testing.assert_allclose(np.asarray(got)[1], exact, rtol=2e-3, atol=1e-4)


def test_gradients_through_the_residuals_of_edmd():
    f = lambda p: edmd(factor(Family(p), snapshots())).residuals.sum()
    both = jax.jit(jax.value_and_grad(f))
    np.testing.assert_allclose(both(P)[1], differences(lambda p: both(p)[0], P), rtol=1e-6)


def test_an_eigenpair_of_two_by_two_matches_its_closed_form():
    # Eigenvalues p +- sqrt(q): derivatives 1 and 1/(2 sqrt(q)); the vector is (sqrt(q), 1)/sqrt(1 + q).
    family = lambda p: jnp.array([[p[0], p[1]], [1.0, p[0]]])
    p = jnp.array([0.3, 0.25])
    turning = lambda t: jnp.array([[jnp.cos(t), -jnp.sin(t)], [jnp.sin(t), jnp.cos(t)]])
    value = lambda p: eigenpair(family(p), 0.8)[0].real

    def seen(p):
        u = eigenpair(family(p), 0.8)[1]
        return jnp.stack([jnp.abs(u[0]) ** 2, jnp.linalg.norm(u)])

    @jax.jit
    def derivatives(p, t):
        angle = jax.jacfwd(lambda t: jnp.angle(eigenpair(turning(t), 0.5 + 0.5j)[0]))(t)
        return jax.grad(value)(p), jax.hessian(value)(p), *jax.jacrev(seen)(p), angle

    slope, curvature, share, length, angle = derivatives(p, 0.7)
    np.testing.assert_allclose(slope, [1, 1], rtol=1e-12)
    np.testing.assert_allclose(curvature, [[0, 0], [0, -2]], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(share, [0, 1 / 1.25**2], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(length, [0, 0], atol=1e-14)
    np.testing.assert_allclose(angle, 1, rtol=1e-12)


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_forward_and_reverse_derivatives_of_pairs_agree_with_differences(normal, kind):
    dtype = jnp.float64 if kind == "real" else jnp.complex128
    a, b = (normal((6, 6), dtype) for _ in range(2))
    weight = normal((6, 6))
    # The phase of a vector is free: a projector does not see it.
    seen = jax.jit(lambda t: jnp.sum(weight * jnp.abs(vectors(a + t * b)) ** 2))
    made = lambda m: Factor(jnp.sin, m, m[:2], jnp.eye(6), jnp.eye(6), jnp.ones(()), 9, "iid")
    vectors = lambda m: jnp.asarray(edmd(made(m)).coordinates)
    step = 1e-5
    expected = (seen(step) - seen(-step)) / (2 * step)
    both = jax.jit(lambda t: (jax.grad(seen)(t), jax.jvp(seen, (t,), (1.0,))[1]))
    np.testing.assert_allclose(both(0.0), [expected, expected], rtol=1e-6)


def test_multiple_eigenvalues_are_refused_and_only_when_differentiated():
    jordan, double = np.array([[0.5, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 2.0]]), np.diag([0.5, 0.5, 2.0])
    nearly = jordan.copy()
    nearly[1, 0] = 1e-18
    value = eqx.filter_jit(lambda m, near: eigenpair(m, near)[0].real)
    gradient = eqx.filter_jit(jax.grad(value))
    half, two = jnp.asarray(0.5), jnp.asarray(2.0)
    for matrix in map(jnp.asarray, (jordan, double, nearly)):
        np.testing.assert_allclose(value(matrix, half), 0.5, atol=1e-7)
        with pytest.raises(eqx.EquinoxRuntimeError, match="cannot be told from another one"):
            jax.block_until_ready(gradient(matrix, half))
    # The pair that is simple does not mind.
    np.testing.assert_allclose(gradient(jnp.asarray(double), two), np.diag([0.0, 0.0, 1.0]), atol=1e-14)
    with pytest.raises(ValueError, match="`matrix` must be square"):
        eigenpair(jnp.ones((2, 3)), 0.0)


def test_sensitivity_is_one_for_normal_and_infinite_for_defective():
    eye, one = jnp.asarray(np.eye(3)), jnp.asarray(1.0)
    of = lambda m: sensitivity(Factor(jnp.sin, jnp.asarray(m), jnp.asarray(m), eye, eye, one, 9, "iid"))
    np.testing.assert_allclose(of(np.diag([0.1, 0.5, 0.9])).eigenvalues, 1, rtol=1e-12)
    sheared = of(np.array([[0.1, 3.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.9]]))
    # u = (1, 0), w = (1, -3/0.4) for the first: the length of w.
    np.testing.assert_allclose(sheared.eigenvalues, [np.hypot(1, 7.5), np.hypot(1, 7.5), 1], rtol=1e-12)
    assert jnp.all(sheared.systems >= 1)
    defective = of(np.array([[0.5, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.9]]))
    assert defective.eigenvalues[0] > 1e12
    assert defective.systems[0] > 1e12
    assert defective.eigenvalues[2] < 2
