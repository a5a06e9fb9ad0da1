import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
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


P = jnp.array([1.3, 0.7, 0.4, 0.9])


def differences(f, p, step=1e-5):
    basis = np.eye(len(p)) * step
    return np.array([(f(p + e) - f(p - e)) / (2 * step) for e in basis])


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_gradients_are_those_of_finite_differences(kind):
    data = snapshots(weights=kind == "complex")

    @eqx.filter_jit
    def f(p):
        made = factor(Family(p, kind == "complex"), data)
        return jnp.stack([value(made) for value in ALL])

    gradients = jax.jit(jax.jacrev(f))(P)
    np.testing.assert_allclose(gradients, differences(f, P).T, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(f))(P), gradients, rtol=1e-9)


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_the_compression_and_the_triangle_have_their_own_derivatives(kind):
    data = snapshots()
    pick = lambda k: (k.A, k.R11, k.basis, k.cond)
    parts = eqx.filter_jit(lambda p: pick(factor(Family(p, kind == "complex"), data)))
    for exact, plus, minus in zip(
        jax.jit(jax.jacfwd(parts))(P), parts(P.at[1].add(1e-5)), parts(P.at[1].add(-1e-5)), strict=True
    ):
        np.testing.assert_allclose(exact[..., 1], (plus - minus) / 2e-5, rtol=1e-6, atol=1e-8)


def test_blocks_do_not_change_a_gradient():
    data = snapshots()
    of = lambda b: jax.jit(jax.grad(lambda p: loss.residual(factor(Family(p), data, block=b))))(P)
    whole, pieces = of(None), of(4)
    np.testing.assert_allclose(pieces, whole, rtol=1e-10)
    stream = lambda: iter([Snapshots(data.x[i : i + 12], data.y[i : i + 12]) for i in range(0, 60, 12)])
    np.testing.assert_allclose(
        jax.jit(jax.grad(lambda p: loss.residual(factor(Family(p), stream()))))(P), whole, rtol=1e-10
    )


def test_the_second_derivative_is_that_of_finite_differences():
    data = snapshots()
    for value in (loss.invariance_defect, loss.residual):
        gradient = eqx.filter_jit(jax.grad(lambda p, value=value: value(factor(Family(p), data))))
        hessian = jax.jit(jax.jacfwd(gradient))(P)
        np.testing.assert_allclose(hessian, differences(gradient, P), rtol=2e-5, atol=1e-7)


class Scaled(eqx.Module):
    """The span of 1, a, b, invariant under linear maps, with another function when `s` is not zero."""

    s: jax.Array

    def __call__(self, x):
        return jnp.stack([jnp.ones_like(x[0]), x[0], x[1] + self.s * x[0] ** 2])


def test_an_invariant_span_has_loss_zero_and_gradient_zero():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 2)))
    data = Snapshots(x, x @ jnp.array([[0.9, 0.2], [0.0, 0.5]]))
    for value in (loss.invariance_defect, loss.residual, loss.worst_defect):
        v, g = jax.jit(jax.value_and_grad(lambda s, value=value: value(factor(Scaled(s), data))))(jnp.zeros(()))
        assert v < 1e-28
        assert abs(g) < 1e-14
    exactly = Factor(Scaled(P[0]), jnp.diag(P[:3]), jnp.zeros((3, 3)), jnp.eye(3), jnp.eye(3), P[0], 9, "iid")
    for value in ALL:
        v, g = eqx.filter_jit(eqx.filter_value_and_grad(value))(exactly)
        assert abs(v) < 1e-14
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(g))


def test_the_surrogates_bound_what_they_stand_for():
    data = snapshots()
    made = factor(Family(P), data)
    residuals = edmd(made).residuals
    np.testing.assert_allclose(loss.residual(made), jnp.mean(residuals**2), rtol=1e-10)
    assert jnp.max(residuals) ** 2 <= loss.worst_defect(made) * (1 + 1e-12)
    kappa = np.linalg.cond(made.R11)
    assert np.log(kappa / 5) <= loss.log_frobenius_condition(made) <= np.log(kappa)
    assert 0 <= loss.log_condition(made) <= 2 * np.log(kappa)
    # A normal compression: the circle.
    grid = jnp.arange(32.0)[:, None] * (2 * jnp.pi / 32)
    circle = factor(Fourier([0, 1, 2]), Snapshots(grid, 2 * grid, kind="quadrature"))
    np.testing.assert_allclose(loss.invariance_defect(circle), 1 / 3, rtol=1e-12)


def test_directions_that_were_left_out_are_refused():
    data = snapshots()
    doubled = lambda x: jnp.concatenate([Family(P)(x), x[:1] * x[1:]])
    made = factor(doubled, data, rank_tol=1e-9)
    assert jnp.isfinite(loss.invariance_defect(made))
    with pytest.raises(ValueError, match="`log_condition` is infinite: `factor` kept 5 of 6"):
        loss.log_condition(made)


def test_dependent_functions_are_an_error_inside_of_jit_too():
    doubled = lambda p: lambda x: jnp.concatenate([Family(p)(x), p[:1] * x[:1] * x[1:]])
    f = eqx.filter_jit(jax.grad(lambda p: loss.invariance_defect(factor(doubled(p), snapshots()))))
    with pytest.raises(eqx.EquinoxRuntimeError, match="depend linearly on each other"):
        f(P)


def test_float32_and_batches():
    data = snapshots(jnp.float32)
    batch = jnp.stack([P, P + 0.1]).astype(jnp.float32)
    for value in (loss.residual, loss.conditioned_defect):
        got = jax.jit(jax.vmap(jax.grad(lambda p, value=value: value(factor(Family(p), data)))))(batch)
        assert got.dtype == jnp.float32
        exact = jax.jit(jax.grad(lambda p, value=value: value(factor(Family(p), snapshots()))))(P)
        np.testing.assert_allclose(got[0], exact, rtol=2e-3, atol=1e-4)


def test_gradients_through_the_residuals_of_edmd():
    data = snapshots()
    f = eqx.filter_jit(lambda p: edmd(factor(Family(p), data)).residuals.sum())
    gradient = jax.jit(jax.grad(f))(P)
    np.testing.assert_allclose(gradient, differences(f, P), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(f))(P), gradient, rtol=1e-9)


def test_an_eigenpair_of_two_by_two_matches_its_closed_form():
    # Eigenvalues p +- sqrt(q): derivatives 1 and 1/(2 sqrt(q)); the vector is (sqrt(q), 1)/sqrt(1 + q).
    family = lambda p: jnp.array([[p[0], p[1]], [1.0, p[0]]])
    p = jnp.array([0.3, 0.25])
    value = lambda p: eigenpair(family(p), 0.8)[0].real
    np.testing.assert_allclose(jax.jit(jax.grad(value))(p), [1, 1], rtol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.hessian(value))(p), [[0, 0], [0, -2]], rtol=1e-10, atol=1e-12)
    share = lambda p: jnp.abs(eigenpair(family(p), 0.8)[1][0]) ** 2
    np.testing.assert_allclose(jax.jit(jax.grad(share))(p), [0, 1 / 1.25**2], rtol=1e-12, atol=1e-14)
    length = lambda p: jnp.linalg.norm(eigenpair(family(p), 0.8)[1])
    np.testing.assert_allclose(jax.jit(jax.grad(length))(p), [0, 0], atol=1e-14)
    turning = lambda t: jnp.array([[jnp.cos(t), -jnp.sin(t)], [jnp.sin(t), jnp.cos(t)]])
    angle = lambda t: jnp.angle(eigenpair(turning(t), 0.5 + 0.5j)[0])
    np.testing.assert_allclose(jax.jacfwd(angle)(0.7), 1, rtol=1e-12)


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_forward_and_reverse_derivatives_of_pairs_agree_with_differences(getkey, kind):
    dtype = jnp.float64 if kind == "real" else jnp.complex128
    a, b = (jr.normal(getkey(), (6, 6), dtype) for _ in range(2))
    weight = jr.normal(getkey(), (6, 6))
    # The phase of a vector is free: a projector does not see it.
    seen = lambda t: jnp.sum(weight * jnp.abs(vectors(a + t * b)) ** 2)
    made = lambda m: Factor(jnp.sin, m, m[:2], jnp.eye(6), jnp.eye(6), jnp.ones(()), 9, "iid")
    vectors = lambda m: jnp.asarray(edmd(made(m)).coordinates)
    step = 1e-5
    expected = (seen(step) - seen(-step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(seen))(0.0), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(seen, (0.0,), (1.0,))[1], expected, rtol=1e-6)


def test_multiple_eigenvalues_are_refused_and_only_when_differentiated():
    jordan, double = jnp.array([[0.5, 1.0], [0.0, 0.5]]), jnp.diag(jnp.array([0.5, 0.5, 2.0]))
    for matrix in (jordan, double, jordan.at[1, 0].set(1e-18)):
        value = lambda m: eigenpair(m, 0.5)[0].real
        np.testing.assert_allclose(value(matrix), 0.5, atol=1e-7)
        with pytest.raises(eqx.EquinoxRuntimeError, match="cannot be told from another one"):
            jax.grad(value)(matrix)
    # The pair that is simple does not mind.
    gradient = jax.grad(lambda m: eigenpair(m, 2.0)[0].real)(double)
    np.testing.assert_allclose(gradient, np.diag([0.0, 0.0, 1.0]), atol=1e-14)
    with pytest.raises(ValueError, match="`matrix` must be square"):
        eigenpair(jnp.ones((2, 3)), 0.0)


def test_sensitivity_is_one_for_normal_and_infinite_for_defective():
    of = lambda m: sensitivity(Factor(jnp.sin, m, m, jnp.eye(3), jnp.eye(3), jnp.ones(()), 9, "iid"))
    np.testing.assert_allclose(of(jnp.diag(jnp.array([0.1, 0.5, 0.9]))).eigenvalues, 1, rtol=1e-12)
    sheared = of(jnp.array([[0.1, 3.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.9]]))
    # u = (1, 0), w = (1, -3/0.4) for the first: the length of w.
    np.testing.assert_allclose(sheared.eigenvalues, [np.hypot(1, 7.5), np.hypot(1, 7.5), 1], rtol=1e-12)
    assert jnp.all(sheared.systems >= 1)
    defective = of(jnp.array([[0.5, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.9]]))
    assert defective.eigenvalues[0] > 1e12
    assert defective.systems[0] > 1e12
    assert defective.eigenvalues[2] < 2
