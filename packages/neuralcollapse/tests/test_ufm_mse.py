"""Global minima of deep linear unconstrained-features models: oracles O1 to O6 of the specification."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from neuralcollapse import ufm
from stationary_testkit import finite_difference_jvp, no_retrace, vjp_matches_jvp


BALANCED, STEPPED, STEEP = [10, 10, 10, 10], [12, 8, 4, 2], [20, 6, 3, 1]


@pytest.mark.parametrize(
    ("bias", "depth", "widths"),
    [
        *[("none", 1, 6), ("none", 2, 2), ("none", 3, (5, 3, 3)), ("none", 4, 6), ("none", 5, 2)],
        *[("free", 1, 2), ("free", 3, 6), ("free", 6, (6, 5, 4, 3, 4, 5))],
        *[(0.3, 1, 6), (0.3, 2, 2)],
    ],
)
def test_constructed_minimiser_attains_the_value(bias, depth, widths, getkey):
    @jax.jit
    def errors(counts, lam_W, lam_H, key):
        oracle = ufm.solve_mse(counts, depth, lam_W, lam_H, bias, widths)
        point = oracle.construct(key)
        value, gradient = jax.value_and_grad(oracle.objective)(point)
        geometry = [
            point.features @ point.features.T - oracle.gram_means,
            point.end_to_end @ point.end_to_end.T - oracle.gram_classifier,
            point.weights[-1] @ point.weights[-1].T - oracle.gram_last,
            point.logits - oracle.logits,
        ]
        peaks = [[jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)] for tree in (gradient, geometry)]
        return value - oracle.loss, *(jnp.max(jnp.stack(each)) for each in peaks)

    for counts in (BALANCED,) if isinstance(bias, float) else (BALANCED, STEPPED, STEEP):
        for lam_W, lam_H in ((1e-3, 2e-3), (2e-2, 1e-2)):
            value, gradient, geometry = errors(jnp.array(counts, float), jnp.array(lam_W), jnp.array(lam_H), getkey())
            assert abs(value) <= 1e-12
            assert gradient <= 1e-10
            assert geometry <= 1e-10


def test_objective_is_the_textbook_one(getkey):
    # Over all samples, not over class means, and with every norm written out.
    oracle = ufm.solve_mse(STEPPED, 2, [1e-3, 3e-3], 2e-3, "free", [5, 3])
    point = oracle.construct(getkey())
    labels = np.repeat(np.arange(4), STEPPED)
    h, (w1, w2) = point.features[labels], point.weights
    assert point.bias is not None
    logits = np.asarray(h @ w1.T @ w2.T) + np.asarray(point.bias)
    error = logits - np.eye(4)[labels]
    value = jnp.sum(error**2) / 52 + (1e-3 * jnp.sum(w1**2) + 3e-3 * jnp.sum(w2**2) + 2e-3 * jnp.sum(h**2)) / 2
    np.testing.assert_allclose(value, oracle.loss, atol=1e-14)
    # A free bias leaves no mean residual.
    np.testing.assert_allclose(error.mean(0), 0, atol=1e-14)


def test_balancedness_at_the_minimum(getkey):
    lam = [1e-3, 4e-3, 2e-3]
    oracle = ufm.solve_mse(STEPPED, 3, lam, 5e-3)
    point = oracle.construct(getkey())
    n = np.array(STEPPED)
    layers = [(5e-3, point.features.T @ jnp.diag(n.astype(float)) @ point.features)]
    layers += [(s, w @ w.T) for s, w in zip(lam, point.weights, strict=True)]
    for (s, below), w, t in zip(layers, point.weights, lam, strict=False):
        np.testing.assert_allclose(t * w.T @ w, s * below, atol=1e-10)


@pytest.mark.parametrize(("depth", "counts", "bias"), [(1, STEPPED, "none"), (2, STEPPED, "free"), (2, BALANCED, 0.3)])
def test_direct_optimisation_reaches_the_oracle_and_never_passes_it(depth, counts, bias):
    oracle = ufm.solve_mse(counts, depth, 1e-3, 2e-3, bias, 5)
    run = eqx.filter_jit(lambda key: ufm.fit(oracle, key=key))
    for seed in range(3):
        found = run(jr.key(seed))
        assert found.loss >= oracle.loss - 1e-9
        assert found.loss <= oracle.loss + 1e-8
        point = found.value
        for got, expected in (
            (point.features @ point.features.T, oracle.gram_means),
            (point.end_to_end @ point.end_to_end.T, oracle.gram_classifier),
            (point.logits, oracle.logits),
        ):
            np.testing.assert_allclose(got, expected, atol=1e-6 * float(jnp.max(jnp.abs(expected))))


def test_published_optima():
    # Spec E2, and float32 gradient descent over 30,000 steps in the authors' own setting.
    for depth, value in ((1, 0.01894213562), (3, 0.01221840037), (6, 0.013220353373)):
        oracle = ufm.solve_mse([200, 100, 50, 50], depth, 5e-4, 5e-4)
        np.testing.assert_allclose(oracle.loss, value, atol=5e-12)
    np.testing.assert_allclose(
        ufm.solve_mse([200, 100, 50, 50], 1, 5e-4, 5e-4).sigma, [13.94213562, 9.8, 6.87106781, 6.87106781], atol=1e-8
    )


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_scalar_problem_against_a_grid(depth):
    theta, top = ufm.threshold(depth), ufm.spinodal(depth)
    q = np.array([1e-6, 0.1, 0.3, 0.5, 0.9, 0.999, 1.001, 1.1, 3.0]) * theta
    got = ufm.fitted_fraction(jnp.asarray(q), depth)
    x = np.exp(np.linspace(-10, 10, 1_000_001))
    for each, fraction in zip(q, got, strict=True):
        value = 1 / (x**depth + 1) + each * x
        best = x[value.argmin()] if value.min() < 1 else 0.0
        np.testing.assert_allclose(fraction, best**depth / (best**depth + 1), atol=1e-4)
    jump = ufm.fitted_fraction(jnp.array([theta * (1 - 1e-9), theta * (1 + 1e-9)]), depth)
    np.testing.assert_allclose(jump, [(depth - 1) / depth, 0], atol=1e-4)
    local = ufm.fitted_fraction(jnp.array([0.999 * top, 1.001 * top]), depth, local=True)
    assert local[0] > 0
    assert local[1] == 0


def test_thresholds_and_the_metastable_window():
    np.testing.assert_allclose([ufm.threshold(m) for m in (1, 2, 3, 6)], [1, 0.5, 0.52913, 0.63727], atol=5e-6)
    np.testing.assert_allclose([ufm.spinodal(m) for m in (1, 2, 3, 6)], [1, 0.6495, 0.8399, 1.5425], atol=1e-4)
    # b/n = 0.575 at depth 2: the largest root of the authors' code is 0.846, the global minimum zero.
    fraction = ufm.fitted_fraction(jnp.array(0.575), 2, local=True)
    np.testing.assert_allclose(jnp.sqrt(fraction / (1 - fraction)), 0.846, atol=1e-3)
    assert ufm.fitted_fraction(jnp.array(0.575), 2) == 0


def test_minority_collapse_at_n_crit():
    oracle = ufm.solve_mse([200, 100, 50, 50], 2, 6e-4, 5e-4)
    n_crit = float(oracle.n_crit)
    for size, dead in ((0.95 * n_crit, True), (1.05 * n_crit, False)):
        # The total stays the same, so the threshold does.
        counts = [400 - 100 - 50 - size, 100.0, 50.0, size]
        again = ufm.solve_mse(counts, 2, 6e-4, 5e-4)
        assert bool(again.collapsed[3]) == dead
        assert bool(again.metastable[3]) == dead
        assert (again.logits[3, 3] == 0) == dead
    np.testing.assert_allclose(ufm.solve_mse(STEPPED, 1, 1e-3, 2e-3).n_crit, 26**2 * 2e-6, rtol=1e-12)


def test_geometry_of_depth_one():
    # Larger classes: longer classifiers, shorter means; own logit 1 - N sqrt(lam_W lam_H / n).
    lam_W, lam_H, n = 1e-3, 2e-3, np.array(STEPPED)
    oracle = ufm.solve_mse(STEPPED, 1, lam_W, lam_H)
    np.testing.assert_allclose(jnp.diag(oracle.logits), 1 - 26 * np.sqrt(lam_W * lam_H / n), rtol=1e-12)
    np.testing.assert_allclose(jnp.diag(oracle.gram_classifier), np.sqrt(n * lam_H / lam_W) - 26 * lam_H, rtol=1e-12)
    ratio = jnp.diag(oracle.gram_classifier) / jnp.diag(oracle.gram_means)
    np.testing.assert_allclose(ratio, n * lam_H / lam_W, rtol=1e-12)


def test_tirer_normalisation():
    # Theorem 2.1 of arXiv:2210.16658: rho = (1-c) sqrt(lam_W/lam_H), W Hbar = (1-c) I.
    lam_W, lam_H, size = 0.3, 0.4, 10
    oracle = ufm.solve_mse([size] * 4, 1, *ufm.from_tirer(lam_W, lam_H, 4, size))
    c = np.sqrt(lam_W * lam_H)
    np.testing.assert_allclose(oracle.logits, (1 - c) * np.eye(4), atol=1e-12)
    np.testing.assert_allclose(oracle.gram_means, (1 - c) * np.sqrt(lam_W / lam_H) * np.eye(4), atol=1e-12)


def test_balanced_bias_gives_a_simplex_frame_and_a_regularised_one_lies_between():
    free = ufm.solve_mse(BALANCED, 2, 1e-3, 1e-3, "free")
    centred = np.eye(4) - 0.25
    np.testing.assert_allclose(free.gram_means, free.gram_means[0, 0] / 0.75 * centred, atol=1e-12)
    np.testing.assert_allclose(free.bias, 0.25, atol=1e-12)
    none = ufm.solve_mse(BALANCED, 2, 1e-3, 1e-3)
    weak, strong = (ufm.solve_mse(BALANCED, 2, 1e-3, 1e-3, strength) for strength in (1e-6, 1e6))
    np.testing.assert_allclose(weak.loss, free.loss, atol=1e-6)
    np.testing.assert_allclose(strong.loss, none.loss, atol=1e-6)
    # Depth 1, closed form in the specification.
    lam_b, lam = 0.3, 2e-3
    one = ufm.solve_mse(BALANCED, 1, lam, lam, lam_b)
    top = max(0.0, np.sqrt(10) - 40 * lam * (1 + lam_b) / lam_b)
    np.testing.assert_allclose(one.bias, (1 - top / np.sqrt(10)) / (4 * (1 + lam_b)), atol=1e-12)


@pytest.mark.parametrize("bias", ["none", "free"])
def test_targets_agree_with_counts(bias, getkey):
    one_hot = jnp.eye(4)[np.repeat(np.arange(4), STEPPED)]
    by_counts = ufm.solve_mse(STEPPED, 2, 1e-3, 2e-3, bias)
    by_targets = ufm.solve_mse_targets(one_hot, 2, 1e-3, 2e-3, bias)
    np.testing.assert_allclose(by_targets.loss, by_counts.loss, rtol=1e-12)
    np.testing.assert_allclose(by_targets.sigma, jnp.sort(by_counts.sigma)[::-1], atol=1e-12)
    smooth = ufm.solve_mse_targets(0.9 * one_hot + 0.025, 2, 1e-3, 2e-3, bias, 3)
    point = smooth.construct(getkey())
    value, gradient = jax.value_and_grad(smooth.objective)(point)
    np.testing.assert_allclose(value, smooth.loss, atol=1e-14)
    assert max(jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradient)) < 1e-10
    assert jnp.isfinite(jax.grad(lambda y: ufm.solve_mse_targets(y, 2, 1e-3, 2e-3).loss)(one_hot)).all()
    with pytest.raises(Exception, match="singular vectors"):
        jax.grad(lambda y: jnp.sum(ufm.solve_mse_targets(y, 2, 1e-3, 2e-3).gram_classifier))(one_hot)


def _everything(bias, depth, counts, lam_W, lam_H):
    s = ufm.solve_mse(counts, depth, lam_W, lam_H, bias)
    # The sum: single singular values have no derivative where they coincide, symmetric functions of them do.
    sigma = s.sigma if bias == "none" else jnp.sum(s.sigma)
    return sigma, s.loss, s.gram_means, s.gram_classifier, s.gram_last, s.logits, s.bias, s.n_crit


@pytest.mark.parametrize(("bias", "depth"), [("none", 2), ("free", 1)])
def test_implicit_derivatives(bias, depth, getkey):
    fn = jax.jit(ft.partial(_everything, bias, depth))
    tangents = jnp.array([1.0, 2.0, -1.0, 0.5]), jnp.array(1e-3), jnp.array(-1e-3)
    for counts in (BALANCED, STEPPED):
        primals = jnp.array(counts, float), jnp.array(1e-3), jnp.array(2e-3)
        _, exact = jax.jvp(fn, primals, tangents)
        approximate = finite_difference_jvp(fn, primals, tangents)
        for got, expected in zip(exact, approximate, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert vjp_matches_jvp(fn, primals, key=getkey())


def test_derivatives_of_a_collapsed_class_are_zero():
    def own_logits(lam_H):
        return jnp.diag(ufm.solve_mse([200, 100, 50, 1], 2, 2e-3, lam_H).logits)

    value, slope = jax.jvp(own_logits, (jnp.array(2e-3),), (jnp.ones(()),))
    assert value[3] == 0
    assert slope[3] == 0
    assert (slope[:3] < 0).all()
    # Second derivatives are exact without bias.
    first = jax.jit(jax.grad(lambda lam: ufm.solve_mse(STEPPED, 2, 1e-3, lam).loss))
    lam, step = jnp.array(2e-3), 1e-6
    np.testing.assert_allclose(
        jax.jit(jax.jacfwd(first))(lam), (first(lam + step) - first(lam - step)) / (2 * step), rtol=1e-5
    )


def test_a_second_derivative_through_singular_vectors_raises():
    def loss(n):
        return jnp.sum(ufm.solve_mse(n, 2, 1e-3, 2e-3, "free").gram_classifier ** 2)

    n = jnp.array(STEPPED, float)
    with pytest.raises(Exception, match="Second derivatives"):
        jax.jvp(lambda n: jax.jvp(loss, (n,), (n,))[1], (n,), (n,))


def test_transformations():
    run = no_retrace(jax.jit(lambda n, lam: ufm.solve_mse(n, 3, lam, 1e-3).sigma))
    counts = jnp.array([STEPPED, STEEP, BALANCED], float)
    lams = jnp.array([1e-3, 2e-3, 3e-3])
    alone = jnp.stack([run(n, lam) for n, lam in zip(counts, lams, strict=True)])
    plain = jnp.stack([ufm.solve_mse(n, 3, lam, 1e-3).sigma for n, lam in zip(counts, lams, strict=True)])
    np.testing.assert_allclose(alone, plain, rtol=1e-14)
    batched = jax.vmap(lambda n, lam: ufm.solve_mse(n, 3, lam, 1e-3).sigma)(counts, lams)
    np.testing.assert_allclose(batched, alone, rtol=1e-14)
    # A solution is a pytree: it leaves jit whole.
    whole = jax.jit(lambda n: ufm.solve_mse(n, 3, 1e-3, 1e-3, "free"))(counts[0])
    expected = ufm.solve_mse(counts[0], 3, 1e-3, 1e-3, "free").logits
    np.testing.assert_allclose(whole.logits, expected, rtol=1e-12)


@pytest.mark.parametrize("bias", ["none", "free"])
@pytest.mark.parametrize("depth", [1, 3])
def test_float32(depth, bias, getkey):
    single = ufm.solve_mse(jnp.array(STEPPED, jnp.float32), depth, 1e-3, 2e-3, bias)
    double = ufm.solve_mse(STEPPED, depth, 1e-3, 2e-3, bias)
    for got, expected in zip(jax.tree.leaves(single), jax.tree.leaves(double), strict=True):
        assert got.dtype in (jnp.float32, bool)
        # The mode without a target has the ratio infinity, or rounding's idea of it.
        known = np.asarray(expected) < 1e20
        np.testing.assert_allclose(np.asarray(got)[known], np.asarray(expected)[known], rtol=3e-6, atol=3e-6)
    np.testing.assert_allclose(single.gram_classifier, double.gram_classifier, rtol=1e-5, atol=3e-5)
    point = single.construct(getkey())
    np.testing.assert_allclose(single.objective(point), single.loss, rtol=1e-5)
    tiny = ufm.solve_mse(jnp.array(STEPPED, jnp.float32), depth, 1e-18, 1e-18)
    np.testing.assert_allclose(jnp.diag(tiny.logits), 1, atol=1e-5)


def test_many_classes_cost_nothing_square():
    # 30,000 classes: the modes of a bias-free model are the classes themselves.
    counts = jnp.arange(1, 30_001, dtype=jnp.float32)
    oracle = ufm.solve_mse(counts, 2, 1e-9, 1e-7)
    assert bool(oracle.collapsed[0])
    assert not bool(oracle.collapsed[-1])
    assert abs(int(oracle.collapsed.sum()) - int(oracle.n_crit)) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([3, 0, 2], 1, 1e-3, 1e-3), "`counts` must be positive.*empty class"),
        (([3, float("nan"), 2], 1, 1e-3, 1e-3), "`counts` must be positive"),
        (([3], 1, 1e-3, 1e-3), "at least two class sizes"),
        (([3, 2], 0, 1e-3, 1e-3), "`depth` must be a whole number"),
        (([3, 2], 1, 0.0, 1e-3), "`lam_W` must be positive"),
        (([3, 2], 1, 1e-3, 0.0), "`lam_H` must be positive"),
        (([3, 2], 1, 1e-3, -1.0), "`lam_H` must be positive"),
        (([3, 2], 2, [1e-3] * 3, 1e-3), "one strength for each of 2 weights"),
        (([3, 2], 1, 1e-3, 1e-3, 0.5), "classes of equal size"),
        (([3, 3], 1, 1e-3, 1e-3, -0.5), "`bias` must be positive"),
        (([3, 2], 2, 1e-3, 1e-3, "none", [3]), "`widths` must be one positive dimension"),
        (([3, 2], 2, 1e-3, 1e-3, "none", 0), "`widths` must be one positive dimension"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ufm.solve_mse(*arguments)


def test_bad_values_under_jit_raise():
    run = eqx.filter_jit(lambda n, lam: ufm.solve_mse(n, 2, lam, 1e-3).loss)
    with pytest.raises(RuntimeError, match="empty class"):
        run(jnp.array([3.0, 0.0]), jnp.array(1e-3))
    with pytest.raises(RuntimeError, match="`lam_W` must be positive"):
        run(jnp.array([3.0, 2.0]), jnp.array(0.0))
    with pytest.raises(ValueError, match="`targets` must be finite"):
        ufm.solve_mse_targets(jnp.array([[1.0, jnp.nan]]), 1, 1e-3, 1e-3)
    with pytest.raises(TypeError, match="float32 or float64"):
        ufm.solve_mse(jnp.ones(3, jnp.float16), 1, 1e-3, 1e-3)
