"""Equilibrium propagation against the identities of section 1 of the specification, and closed forms."""

import functools as ft

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from fixedpoint_eq import RESULTS, Anderson, diagnostics, ep
from fixedpoint_eq._ep_phases import Sample
from jaxtyping import TypeCheckError
from stationary_testkit import converges_at_order, implicit_jacobian, tree_allclose


TIGHT = ep.Settle(tau=1.0, rtol=1e-15, max_steps=150)


def ravel(tree):
    return jfu.ravel_pytree(tree)[0]


@eqx.filter_jit
def run(field, params, x, y, estimator, **kwargs):
    return ep.gradient(field, params, x, y, estimator, **kwargs)


def relative(a, b):
    a, b = ravel(a), ravel(b)
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


class Linear(ep.AbstractVectorField):
    """`F0 = W u + b + x`, whose equilibria have closed forms."""

    loss: ep.AbstractLoss = ep.MSE()

    def initial(self, x):
        return jnp.zeros_like(x)

    def drive(self, params, r, x):
        return params["W"] @ r + r + params["b"] + x

    def activation(self, u):
        return u

    def readout(self, params, r):
        del params
        return r


class Spiral(ep.AbstractVectorField):
    """Two units with the Jacobian `[[-1, -w], [w, -1]]`; `w` is the input."""

    loss: ep.AbstractLoss = ep.MSE()

    def initial(self, x):
        return jnp.zeros(2, x.dtype)

    def drive(self, params, r, x):
        return x * jnp.stack([-r[1], r[0]]) + params

    def activation(self, u):
        return u

    def readout(self, params, r):
        del params
        return r


class Case:
    """A net of thirty units without symmetry, one sample of it, and its linear algebra written out."""

    def __init__(self):
        # One layer: few operations, so that the many programs of this file compile fast.
        connections = (ep.Dense(None, 0, bias=True), ep.Dense(0, 0))
        self.field = ep.Network(input_shape=(6,), shapes=((30,),), connections=connections, num_outputs=5)
        self.params = self.field.init(key=jr.key(0), gain=0.8)
        self.x, self.y = jr.normal(jr.key(1), (3, 6)), jnp.array([0, 2, 4])
        self.u0 = jax.jit(jax.vmap(self.settle))(self.x)
        matrices = jax.jit(jax.vmap(self.algebra))(self.u0, self.x, self.y)
        self.J, self.g, self.slopes = matrices
        self.q = -np.linalg.solve(self.J, self.g[..., None])[..., 0]
        self.delta = -np.linalg.solve(np.swapaxes(self.J, 1, 2), self.g[..., None])[..., 0]
        self.grads = jax.jit(self.true_gradient)(self.params)

    def settle(self, x):
        step = lambda _, u: self.field.drive(self.params, self.field.activation(u), x)
        return jax.lax.fori_loop(0, 300, step, self.field.initial(x))

    def algebra(self, u, x, y):
        """Return `J = W - D^{-1}`, `dL/dr` and the diagonal of `D`, in activities."""
        flat, unravel = jfu.ravel_pytree(self.field.activation(u))
        W = jax.jacfwd(lambda r: ravel(self.field.drive(self.params, unravel(r), x)))(flat)
        slopes = ravel(jtu.tree_map(lambda r: 4 * r * (1 - r), unravel(flat)))
        g = jax.grad(lambda r: self.field.cost(self.params, unravel(r), y))(flat)
        return W - jnp.diag(1 / slopes), g, slopes

    def true_gradient(self, params):
        """The dense implicit gradient: of thirty states in all parameters, by the testkit."""
        flat, unravel = jfu.ravel_pytree(params)

        def one(u, x, y):
            F = lambda u, p: jtu.tree_map(jnp.subtract, self.field.drive(unravel(p), self.field.activation(u), x), u)
            cost = lambda u, p: self.field.cost(unravel(p), self.field.activation(u), y)
            by_u, by_p = jax.grad(cost, (0, 1))(u, flat)
            return ravel(by_u) @ implicit_jacobian(F, u, flat) + by_p

        return unravel(jnp.mean(jax.vmap(one)(self.u0, self.x, self.y), 0))

    def run(self, estimator, **kwargs):
        # Nudges are arrays, so that one program serves them all.
        estimator = jtu.tree_map(lambda leaf: jnp.array(leaf) if isinstance(leaf, float) else leaf, estimator)
        return run(self.field, self.params, self.x, self.y, estimator, **{"free": TIGHT, "throw": False, **kwargs})


@pytest.fixture(scope="module")
def case():
    return Case()


def responses(info):
    return jax.vmap(ravel)(info.response)


def cosine(info):
    assert info.alignment is not None
    return info.alignment[1]


def test_exact_response_has_the_bias_of_the_asymmetry(case):
    grads, info = case.run(ep.ExactResponse(lx.LU()))
    q, transpose = responses(info), np.swapaxes(case.J, 1, 2)
    A = (case.J - transpose) / 2
    apply = lambda M, v: np.einsum("bij,bj->bi", M, v)
    solve = lambda M, v: np.linalg.solve(M, v[..., None])[..., 0]
    assert np.all(info.result == RESULTS.successful)
    # Identities 2, 3 and 4.
    assert relative(q, case.q) < 1e-12
    assert relative(q, solve(case.J, apply(transpose, case.delta))) < 1e-12
    assert relative(q, case.delta - 2 * solve(case.J, apply(A, case.delta))) < 1e-12
    assert relative(q, case.delta) > 0.1
    assert relative(grads, case.grads) > 0.1


def test_rbp_and_asymep_have_the_true_gradient(case):
    # Identities 1 and 7.
    for estimator in (ep.RBP(lx.LU()), ep.AsymEP(ep.ExactResponse(lx.LU()))):
        grads, info = case.run(estimator)
        assert relative(responses(info), case.delta) < 1e-12
        assert relative(grads, case.grads) < 1e-12
        assert np.all(info.residual_nudged < 1e-12)


def test_default_linear_solver_is_matrix_free_and_reports_its_residual(case):
    grads, info = case.run(ep.RBP())
    assert relative(grads, case.grads) < 1e-10
    assert np.all(info.residual_nudged < 1e-10)


def test_membrane_coordinates(case):
    _, info = case.run(ep.ExactResponse(lx.LU()), coordinates="membrane")
    J, g = case.J * case.slopes[:, None, :], case.slopes * case.g
    assert relative(responses(info), -np.linalg.solve(J, g[..., None])[..., 0]) < 1e-12
    # AsymEP is exact in these too: the true error is the same in both.
    grads, _ = case.run(ep.AsymEP(ep.ExactResponse(lx.LU())), coordinates="membrane")
    assert relative(grads, case.grads) < 1e-12


@pytest.mark.parametrize(
    ("make", "order"),
    [
        (ep.OneSided, 1),
        (ep.Symmetric, 2),
        (lambda beta: ep.Cauchy(beta, 3), 3),
        (lambda beta: ep.Cauchy(beta, 6), 6),
    ],
)
def test_orders_of_cauchy(case, make, order):
    betas = (0.1, 0.05)
    errors = [relative(responses(case.run(make(beta))[1]), case.q) for beta in betas]
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.25
    assert converges_at_order(errors, order, steps=betas)


def test_holomorphic_asymep_is_exact_at_a_finite_nudge(case):
    # FPE-5: no symmetry, a finite nudge, and eight digits of the true gradient.
    grads, info = case.run(ep.AsymEP(ep.Cauchy(0.025, 6)))
    assert np.all(info.result == RESULTS.successful)
    assert relative(grads, case.grads) < 1e-8
    assert relative(responses(info), case.delta) < 1e-8
    plain, info = case.run(ep.Cauchy(0.025, 6))
    assert np.all(info.result == RESULTS.successful)
    assert relative(plain, case.grads) > 0.1


def test_alignment(case):
    _, info = case.run(ep.ExactResponse(lx.LU()), alignment=True)
    cosines = np.sum(case.q * case.delta, 1) / np.linalg.norm(case.q, axis=1) / np.linalg.norm(case.delta, axis=1)
    assert np.allclose(cosine(info), cosines, atol=1e-8)
    assert np.all(cosine(info) < 0.97)
    assert np.allclose(info.alignment[0][0], cosines, atol=1e-8)


def test_dyadic_is_exact_whatever_the_nudge(case):
    grads, info = case.run(ep.Dyadic(0.5))
    assert np.all(info.result == RESULTS.successful)
    assert relative(grads, case.grads) < 1e-12


def test_oscillating_needs_no_free_phase(case):
    _, info = case.run(ep.Oscillating(0.05, 6, 1))
    assert np.all(info.result == RESULTS.successful)
    # The mean-value property, and Cauchy's formula.
    assert relative(info.state, case.u0) < 1e-8
    assert relative(responses(info), case.q) < 1e-6
    assert info.nudge_ratio is not None
    assert np.all(info.nudge_ratio < 0.5)


def test_conjugate_nudges_are_settled_once(case):
    sample = Sample(
        case.field, case.params, case.x[0], case.y[0], jtu.tree_map(lambda u: u[0], case.u0), TIGHT, "activity"
    )
    beta, n = 0.2, 5
    circle = beta * np.exp(2j * np.pi * np.arange(n) / n)
    half = eqx.filter_jit(lambda s: ep.Cauchy(beta, n).response(s))(sample)
    u, _ = eqx.filter_jit(lambda s: jax.vmap(s.settle)(jnp.asarray(circle)))(sample)
    r = np.asarray(jax.vmap(lambda u: ravel(case.field.activation(u)))(u))
    assert np.allclose(r[1:], np.conj(r[:0:-1]), atol=1e-14)
    whole = np.mean(r / circle[:, None], 0)
    assert np.allclose(whole.imag, 0, atol=1e-13)
    assert np.allclose(ravel(half.value), whole.real, atol=1e-13)
    # The states average to the free one but for the fifth Taylor coefficient, which measures the nudge.
    mean = np.linalg.norm(np.mean(r, 0) - np.asarray(ravel(case.field.activation(sample.u0))))
    assert half.nudge_ratio is not None
    assert np.isclose(half.nudge_ratio, (mean / beta / np.linalg.norm(whole)) ** (1 / 4), rtol=1e-6)


def test_float32(case):
    cast = lambda tree: jtu.tree_map(lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a, tree)
    params, x = cast((case.params, case.x))
    grads, info = run(case.field, params, x, case.y, ep.AsymEP(ep.Cauchy(0.1, 6)))
    assert all(leaf.dtype == jnp.float32 for leaf in jtu.tree_leaves((grads, info.response)))
    assert np.all(info.result == RESULTS.successful)
    assert relative(grads, cast(case.grads)) < 2e-4


def test_batch_is_the_mean_of_its_samples(case):
    whole, _ = case.run(ep.Dyadic(0.5))
    one = lambda x, y: run(case.field, case.params, x, y, ep.Dyadic(jnp.array(0.5)), free=TIGHT)[0]
    parts = [one(case.x[i : i + 1], case.y[i : i + 1]) for i in range(3)]
    assert tree_allclose(whole, jtu.tree_map(lambda *leaves: sum(leaves) / 3, *parts), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("free", "estimator"),
    [
        (Anderson(rtol=1e-12, atol=1e-12, memory=2), ep.AsymEP(ep.Cauchy(0.05, 4))),
        (optx.FixedPointIteration(rtol=1e-12, atol=1e-12), ep.AsymEP(ep.Symmetric(2e-3))),
        (lambda fn, u: jax.lax.fori_loop(0, 150, lambda _, u: fn(u), u), ep.AsymEP(ep.Symmetric(2e-3))),
    ],
)
def test_any_solver_settles_the_phases(case, free, estimator):
    grads, info = case.run(estimator, free=free)
    assert np.all(info.result == RESULTS.successful)
    assert relative(grads, case.grads) < 1e-5


def test_warm_start(case):
    _, info = case.run(ep.RBP(lx.LU()))
    again, after = case.run(ep.RBP(lx.LU()), initial=info.state, free=ep.Settle(num_steps=1))
    assert np.all(after.residual_free < 1e-12)
    assert relative(again, case.grads) < 1e-12


def scalar(beta, n, settle, y=3.0):
    # a = -1 and b = 0.5: u_beta = (beta y - b) / (a + beta), so the radius is one.
    params = {"W": -jnp.ones((1, 1)), "b": jnp.array([0.5])}
    x, y = jnp.zeros((1, 1)), jnp.full((1, 1), y)
    return run(Linear(), params, x, y, ep.Cauchy(jnp.array(beta), n), free=settle, throw=False)


def affine(fn, u):
    """The fixed point of an affine map, stable or not."""
    zero = fn(jnp.zeros_like(u))
    return zero / (1 - (fn(jnp.ones_like(u)) - zero))


def test_scalar_closed_form_within_the_radius():
    # c_m = b - y for all m: the N-point rule gives c_1 / (1 - beta^N), and the ratio of the nudge is exact.
    _, info = scalar(0.5, 4, ep.Settle(rtol=1e-15))
    assert np.allclose(info.response, -2.5 / (1 - 0.5**4), rtol=1e-12)
    assert info.nudge_ratio is not None
    assert np.allclose(info.nudge_ratio, 0.5, rtol=1e-10)
    assert np.all(info.result == RESULTS.successful)


def test_nudge_beyond_the_radius_is_flagged():
    _, info = scalar(2.0, 4, ep.Settle(max_steps=200))
    assert np.all(info.result != RESULTS.successful)
    grads, info = scalar(1e300, 4, ep.Settle(max_steps=200))
    assert np.all(info.result == RESULTS.nonfinite)
    assert np.all(ravel(grads) == 0)
    # A solver that finds unstable equilibria too leaves no residual: only the mean over the circle tells.
    _, info = scalar(2.0, 4, affine)
    assert np.all(info.residual_nudged < 1e-12)
    assert info.nudge_ratio is not None
    assert np.allclose(info.nudge_ratio, 2.0, rtol=1e-10)
    assert np.all(info.result == RESULTS.nudge_too_large)


@pytest.mark.parametrize(("tail", "n", "radius"), [(1.0, 4, 1.0), (0.1, 6, 0.1 ** (1 / 3))])
def test_nudge_radius_of_the_closed_form(tail, n, radius):
    # q_N = c_1 / (1 - (beta/|a|)^N), so the tail is (beta/|a|)^(N/2). Three samples, of which one has no equilibrium.
    params = {"W": -jnp.full((1, 1), 2.0), "b": jnp.array([0.5])}
    x, y = jnp.array([[0.0], [1.0], [jnp.nan]]), jnp.full((3, 1), 3.0)
    found = eqx.filter_jit(diagnostics.nudge_radius)(
        Linear(), params, x, y, ep.Cauchy(20.0, n), tail=tail, free=affine, num_bisections=14
    )
    assert np.allclose(found.beta, [2 * radius, 2 * radius, 0.0], rtol=1e-3)
    assert np.allclose(found.tail[:2], tail, rtol=1e-2)
    assert np.all(found.residual[:2] < 1e-12)


def test_nudge_radius_heeds_what_settles(case):
    # Settling by steps is unstable beyond the radius, and slow before it.
    params, x, y = {"W": -jnp.ones((1, 1)), "b": jnp.array([0.5])}, jnp.zeros((1, 1)), jnp.ones((1, 1))
    look = eqx.filter_jit(diagnostics.nudge_radius)
    found = look(Linear(), params, x, y, ep.Cauchy(20.0, 2), tail=1e3, free=ep.Settle(max_steps=100, rtol=1e-9))
    assert 0.1 < found.beta[0] < 1
    # No nudge is small enough where the dynamics are not holomorphic; nor where the free phase does not settle.
    field = Linear(ep.HolomorphicLoss(lambda p, y: jnp.sum(jnp.abs(p - y) ** 2)))
    assert look(field, params, x, y, ep.Cauchy(0.5, 4)).beta[0] == 0
    short = ep.Settle(max_steps=2)
    assert look(Linear(), params, x, y, ep.Cauchy(0.5, 2), free=short, nudged=affine).beta[0] == 0
    # What is found is a nudge that `gradient` takes, and the upper end if that serves.
    estimator = lambda beta: ep.AsymEP(ep.Cauchy(jnp.array(beta), 6))
    found, small = (
        look(case.field, case.params, case.x, case.y, estimator(beta), tail=0.01, free=TIGHT) for beta in (0.4, 0.01)
    )
    assert np.all((found.beta > 0.01) & (found.beta <= 0.4) & (found.tail <= 0.01))
    assert np.allclose(small.beta, 0.01)
    _, info = case.run(estimator(float(jnp.min(found.beta))))
    assert np.all(info.result == RESULTS.successful)
    assert relative(responses(info), case.delta) < 1e-3


def test_rotation_where_plain_ep_ascends():
    w = np.array([0.5, 1.0, 2.0])
    params, y = jnp.array([0.3, -0.2]), jnp.array([[1.0, 0.5]] * 3)

    def cosines(estimator):
        info = run(Spiral(), params, jnp.asarray(w), y, estimator, free=ep.Settle(tau=0.2, rtol=1e-14))[1]
        # delta = -J^{-T} g, up to the factor of 1 + w^2.
        g = np.asarray(info.prediction - y)
        delta = np.stack([g[:, 0] + w * g[:, 1], g[:, 1] - w * g[:, 0]], 1)
        return np.sum(delta * info.response, 1) / np.linalg.norm(delta, axis=1) / np.linalg.norm(info.response, axis=1)

    plain = cosines(ep.ExactResponse(lx.LU()))
    assert np.allclose(plain, (1 - w**2) / (1 + w**2), atol=1e-10)
    assert plain[2] < -0.5
    assert np.allclose(cosines(ep.AsymEP(ep.Cauchy(0.05, 6))), 1, atol=1e-8)


def test_symmetric_weights_make_plain_ep_exact_in_activities():
    field = ep.mlp((4, 6, 5))
    params = field.init(key=jr.key(2), angle=0.0)
    x, y = jr.normal(jr.key(3), (2, 4)), jnp.array([1, 4])
    plain, true = (run(field, params, x, y, e(lx.LU()), free=TIGHT)[0] for e in (ep.ExactResponse, ep.RBP))
    assert tree_allclose(plain, true, rtol=1e-11, atol=1e-14)


def test_dynamics_that_are_not_holomorphic_are_flagged():
    # For real states the two losses are the same.
    params, x, y = {"W": -jnp.ones((1, 1)), "b": jnp.array([0.5])}, jnp.zeros((1, 1)), jnp.ones((1, 1))
    for loss, code in (
        (lambda p, y: jnp.sum((p - y) ** 2), RESULTS.successful),
        (lambda p, y: jnp.sum(jnp.abs(p - y) ** 2), RESULTS.nudge_too_large),
    ):
        field = Linear(ep.HolomorphicLoss(loss))
        _, info = run(field, params, x, y, ep.Cauchy(0.05, 4), throw=False)
        assert np.all(info.result == code)


def test_unsettled_free_phase_is_flagged(case):
    short = ep.Settle(max_steps=2)
    grads, info = case.run(ep.AsymEP(ep.Symmetric(0.1)), free=short, on_failure="zero")
    assert np.all(info.result == RESULTS.free_phase_unsettled)
    assert np.all(info.residual_free > 1e-3)
    assert np.all(ravel(grads) == 0)
    _, info = case.run(ep.Symmetric(0.1), nudged=short)
    assert np.all(info.result == RESULTS.nudged_phase_unsettled)


def test_failures_raise_unless_told_not_to(case):
    with pytest.raises(eqx.EquinoxRuntimeError, match="free phase of equilibrium propagation did not settle"):
        case.run(ep.Dyadic(0.1), free=ep.Settle(max_steps=2), throw=True)


def test_one_bad_sample_does_not_spoil_the_gradient(case):
    x = case.x.at[1, 0].set(jnp.nan)
    grads, info = run(case.field, case.params, x, case.y, ep.Symmetric(jnp.array(0.1)), free=TIGHT, throw=False)
    assert [bool(ok) for ok in info.result == RESULTS.successful] == [True, False, True]
    assert bool((info.result == RESULTS.nonfinite)[1])
    assert np.all(np.isfinite(ravel(grads)))


def test_leaves_without_a_gradient():
    params = {"W": jnp.zeros((2, 2)) - jnp.eye(2), "b": jnp.ones(2), "step": jnp.array(3), "name": "linear"}
    grads, _ = ep.gradient(Linear(), params, jnp.zeros((1, 2)), jnp.zeros((1, 2)), ep.RBP(lx.LU()))
    assert grads["step"] is None
    assert grads["name"] is None
    # u = b, and L = |b|^2 / 2.
    assert np.allclose(grads["b"], 1, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ep.Cauchy(-0.1, 4), "`beta`"),
        (lambda: ep.Symmetric(0.0), "`beta`"),
        (lambda: ep.OneSided(float("nan")), "`beta`"),
        (lambda: ep.Cauchy(0.1, 0), "`num_points`"),
        (lambda: ep.Oscillating(0.1, 2), "`num_points`"),
        (lambda: ep.Oscillating(0.1, 4, 0), "`periods`"),
        (lambda: ep.Settle(tau=0.0), "`tau`"),
        (lambda: ep.Settle(rtol=-1.0), "`rtol`"),
    ],
)
def test_bad_choices(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_arguments(case):
    with pytest.raises(TypeError, match="`inner`"):
        ep.AsymEP(ep.RBP())
    look = ft.partial(diagnostics.nudge_radius, case.field, case.params, case.x, case.y)
    with pytest.raises(TypeError, match="`Cauchy`, or `AsymEP` around one; got `Symmetric`"):
        look(ep.AsymEP(ep.Symmetric(0.1)))
    with pytest.raises(ValueError, match="even number of points; got 3"):
        look(ep.Cauchy(0.1, 3))
    with pytest.raises(ValueError, match="`tail`"):
        look(tail=0.0)
    with pytest.raises(ValueError, match="`num_bisections`"):
        look(num_bisections=0)
    with pytest.raises(ValueError, match="batch axis"):
        ep.gradient(case.field, case.params, case.x, case.y[:2], ep.RBP())
    # By us, or by the run-time checker of the tests.
    with pytest.raises((ValueError, TypeCheckError), match="coordinates"):
        ep.gradient(case.field, case.params, case.x, case.y, ep.RBP(), coordinates="rates")  # pyright: ignore[reportArgumentType]


def test_predictions_are_those_of_the_free_phase():
    field = ep.mlp((4, 6, 5), num_outputs=3)
    params = field.init(key=jr.key(4))
    x, y = jr.normal(jr.key(5), (3, 4)), jnp.array([0, 1, 2])
    prediction, result = ep.predict(field, params, x, free=TIGHT)
    _, info = run(field, params, x, y, ep.RBP(lx.LU()), free=TIGHT)
    assert tree_allclose(prediction, info.prediction, rtol=1e-12, atol=1e-12)
    assert jnp.all(result == RESULTS.successful)
    again, _ = ep.predict(field, params, x, free=ep.Settle(num_steps=0), initial=info.state)
    assert tree_allclose(again, prediction, rtol=1e-12, atol=1e-12)
    _, result = ep.predict(field, params, x, free=ep.Settle(num_steps=1), throw=False)
    assert jnp.all(result == RESULTS.free_phase_unsettled)
    with pytest.raises(RuntimeError, match="did not settle"):
        ep.predict(field, params, x, free=ep.Settle(num_steps=1))
