"""Each metric against its definition in NumPy, at frames, under rotations, and in float32."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from neuralcollapse import ClassStats, Convention, metrics
from stationary_testkit import no_retrace


CONVENTIONS = {
    "papyan": ("balanced", "balanced"),
    "fsoft": ("weighted", "balanced"),
    "weighted": ("weighted", "weighted"),
}


@pytest.fixture(scope="module")
def case(samples, reference, collect):
    x, y = samples()
    r = np.random.default_rng(3)
    return collect(x, y, 4), reference(x, y, 4), r.normal(size=(4, 6)), r.normal(size=4)


def cosine_table(m):
    unit = m / np.linalg.norm(m, axis=1, keepdims=True)
    return (unit @ unit.T)[~np.eye(len(m), dtype=bool)]


def normalised(g):
    return g / np.linalg.norm(g)


def etf(k):
    return (np.eye(k) - 1 / k) / math.sqrt(k - 1)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_report_is_the_definitions(case, name):
    stats, ref, w, b = case
    m, between = ref.centred(CONVENTIONS[name][0]), ref.between(*CONVENTIONS[name])
    out = metrics.report(stats, weight=w, bias=b, convention=name)
    mean = ref.means[0] - m[0]
    norms, cos = np.linalg.norm(m, axis=1), cosine_table(m)
    distances = ((ref.means[:, None] - ref.means[None]) ** 2).sum(-1)
    upper = np.triu_indices(4, 1)
    pairs = ((ref.variances[:, None] + ref.variances[None]) / 2)[upper] / distances[upper]
    expected = {
        "nc1_pinv": np.trace(ref.within @ np.linalg.pinv(between, rcond=1e-10)) / 4,
        "nc1_quotient": np.trace(ref.within) / np.trace(between),
        "cdnv": pairs.mean(),
        "cdnv_max": pairs.max(),
        "equinorm": norms.std() / norms.mean(),
        "equiangular": cos.std(),
        "max_equiangle": np.abs(cos + 1 / 3).mean(),
        "etf_distance": np.linalg.norm(normalised(m @ m.T) - etf(4)),
        "of_distance": np.linalg.norm(normalised(ref.means @ ref.means.T) - np.eye(4) / 2),
        "within_trace": np.trace(ref.within),
        "between_trace": np.trace(between),
        "rank": 3,
        "weight_equinorm": np.linalg.norm(w, axis=1).std() / np.linalg.norm(w, axis=1).mean(),
        "weight_equiangular": cosine_table(w).std(),
        "weight_max_equiangle": np.abs(cosine_table(w) + 1 / 3).mean(),
        "weight_etf_distance": np.linalg.norm(normalised(w @ w.T) - etf(4)),
        "weight_of_distance": np.linalg.norm(normalised(w @ w.T) - np.eye(4) / 2),
        "self_duality": np.linalg.norm(normalised(w) - normalised(m)) ** 2,
        "duality_etf": np.linalg.norm(normalised(w @ m.T) - etf(4)),
        "duality_of": np.linalg.norm(normalised(w @ ref.means.T) - np.eye(4) / 2),
        "uniform_duality": (w * m).sum(1).var(),
        "bias_alignment": np.linalg.norm(w @ mean + b),
        "mean_errors": np.mean((ref.means @ w.T + b).argmax(1) != np.arange(4)),
        "etf_floor": 0.0,
    }
    got = out.to_dict()
    assert set(got) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-11, atol=1e-13, err_msg=key)
    # One by one they are the same numbers.
    for key in ("nc1_pinv", "nc1_quotient"):
        np.testing.assert_allclose(getattr(metrics, key)(stats, convention=name), expected[key], rtol=1e-11)
    for key in ("self_duality", "duality_etf", "uniform_duality"):
        np.testing.assert_allclose(getattr(metrics, key)(stats, w, convention=name), expected[key], rtol=1e-11)
    np.testing.assert_allclose(metrics.bias_alignment(stats, w, b, convention=name), expected["bias_alignment"])
    np.testing.assert_allclose(metrics.duality_of(stats, w), expected["duality_of"])


def test_options(case):
    stats, ref, w, _ = case
    m = ref.centred("balanced")
    np.testing.assert_allclose(metrics.nc1_pinv(stats, scale="none"), 4 * metrics.nc1_pinv(stats))
    norms = np.linalg.norm(m, axis=1)
    np.testing.assert_allclose(metrics.equinorm(jnp.asarray(m), ddof=1), norms.std(ddof=1) / norms.mean())
    np.testing.assert_allclose(metrics.self_duality(stats, w, squared=False) ** 2, metrics.self_duality(stats, w))
    aligned = (w * m).sum(1) / np.linalg.norm(w, axis=1) / norms
    np.testing.assert_allclose(metrics.uniform_duality(stats, w, cosine=True), aligned.var())
    squares = ((ref.means[:, None] - ref.means[None]) ** 2).sum(-1)[np.triu_indices(4, 1)]
    tops = ((ref.variances[:, None] + ref.variances[None]) / 2)[np.triu_indices(4, 1)]
    moments = metrics.cdnv(stats, exponent=2)
    np.testing.assert_allclose(moments.mean, (tops / squares**2).mean())
    np.testing.assert_allclose(moments.variance, (tops / squares**2).var())
    np.testing.assert_allclose(
        metrics.class_variability(stats), ref.variances / np.trace(ref.between("balanced", "balanced"))
    )
    ood = np.arange(6.0)
    cos = ref.means @ ood / np.linalg.norm(ref.means, axis=1) / np.linalg.norm(ood)
    np.testing.assert_allclose(metrics.ood_orthogonality(stats, ood), np.abs(cos).mean())
    balanced = Convention(within="balanced")
    expected = ref.variances.mean() / np.trace(ref.between("balanced", "balanced"))
    np.testing.assert_allclose(metrics.nc1_quotient(stats, convention=balanced), expected)


# O12: the three covariances add up, and only in this convention.
def test_total_covariance(samples, case):
    stats, ref, _, _ = case
    x, _ = samples()
    total = np.cov(x.T, bias=True)
    np.testing.assert_allclose(stats.within_cov() + ref.between("weighted", "weighted"), total, rtol=1e-11, atol=1e-13)
    assert np.abs(ref.within + ref.between("balanced", "balanced") - total).max() > 1e-2
    fisher = metrics.nc1_fisher(stats)
    np.testing.assert_allclose(fisher, np.trace(ref.within @ np.linalg.inv(total)), rtol=1e-10)
    assert 0 <= fisher <= 6


@pytest.mark.parametrize("kernel", ["distance", "log", "riesz"])
def test_uniformity(case, kernel):
    _, ref, _, _ = case
    m = ref.centred("balanced")
    unit = m / np.linalg.norm(m, axis=1, keepdims=True)
    r = np.linalg.norm(unit[:, None] - unit[None], axis=-1)[np.triu_indices(4, 1)]
    value = {"distance": r, "log": -np.log(r), "riesz": r**-4.0}[kernel]
    mean, variance = metrics.gnc2(jnp.asarray(m), kernel)
    np.testing.assert_allclose(mean, value.mean())
    np.testing.assert_allclose(variance, value.var(), rtol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("k", [2, 5, 12])
def test_a_simplex_frame_is_full_collapse(frame, k, dtype):
    m = frame(k, dtype)
    labels = jnp.repeat(jnp.arange(k), 3)
    # The offset is of a power of two, so that adding it is exact to the last digit but two.
    stats = ClassStats.init(k, k, dtype=dtype).update(m[labels] + 4, labels)
    bias = -jnp.sum(4 * m, axis=1)
    tol = 40 * float(jnp.finfo(dtype).eps)
    out = metrics.report(stats, 3 * m, bias).to_dict()
    zero = (
        "nc1_pinv nc1_quotient cdnv cdnv_max equinorm equiangular max_equiangle etf_distance weight_equinorm "
        "weight_equiangular weight_max_equiangle weight_etf_distance self_duality duality_etf mean_errors bias_alignment"
    )
    for name in zero.split():
        assert abs(out[name]) < tol, name
    assert out["rank"] == k - 1
    # The simplex is no orthogonal frame: the two must not be mixed up.
    assert out["weight_of_distance"] > 0.05
    assert metrics.of_distance(jnp.eye(k, dtype=dtype)) < tol
    lengths = jnp.arange(1, k + 1).astype(dtype)
    assert metrics.gof_distance(jnp.sqrt(lengths)[:, None] * jnp.eye(k, dtype=dtype), 7 * lengths) < tol


def test_more_classes_than_a_simplex_frame_can_have():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(9, 3)))
    labels = jnp.repeat(jnp.arange(9), 2)
    out = metrics.report(ClassStats.init(9, 3).update(x[labels], labels))
    floor = metrics.etf_floor(9, 3)
    assert out.etf_floor == floor == pytest.approx(math.sqrt(2 - 2 * math.sqrt(3 / 8)))
    assert out.rank == 3
    assert out.etf_distance >= floor
    assert np.isfinite(out.to_dict()["nc1_pinv"])
    # A tight frame, sum zero, attains the bound: a projection of the simplex.
    angles = 2 * jnp.pi * jnp.arange(9.0) / 9
    circle = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    assert metrics.etf_distance(circle) == pytest.approx(metrics.etf_floor(9, 2), abs=1e-12)


@given(seed=st.integers(0, 2**16))
def test_rotations_shifts_and_order_of_classes_change_nothing(samples, collect, seed):
    r = np.random.default_rng(seed)
    x, y = samples((5, 5, 5, 5), seed=seed)
    q, order, w = np.linalg.qr(r.normal(size=(6, 6)))[0], r.permutation(4), r.normal(size=(4, 6))
    one = metrics.report(collect(x, y, 4), w).to_dict()
    other = metrics.report(
        collect(x @ q + r.normal(size=6), order[y].astype(np.int32), 4), (w @ q)[np.argsort(order)]
    ).to_dict()
    moved = {"of_distance", "duality_of", "bias_alignment", "mean_errors"}  # these see the origin
    for name in set(one) - moved:
        assert other[name] == pytest.approx(one[name], rel=1e-9, abs=1e-11), name


# The squares of the singular values would have lost the smallest directions here.
def test_pinv_in_float32_with_unequal_directions(reference):
    r = np.random.default_rng(0)
    means = r.normal(size=(8, 20)) @ np.diag(np.logspace(0, -4, 20))
    labels = np.repeat(np.arange(8), 25).astype(np.int32)
    x = (means[labels] + 1e-7 * r.normal(size=(200, 20))).astype(np.float32)
    stats, ref = ClassStats.init(8, 20, dtype="float32").update(x, labels), reference(x, labels, 8)
    expected = np.trace(ref.within @ np.linalg.pinv(ref.between("balanced", "balanced"), rcond=1e-13)) / 8
    assert float(metrics.nc1_pinv(stats)) == pytest.approx(expected, rel=1e-3)
    between = np.asarray(stats.centred())
    squared = np.linalg.pinv((between.T @ between / 8).astype(np.float32))
    assert abs(np.trace(np.asarray(stats.within_cov()) @ squared) / 8 / expected - 1) > 0.5


def test_deep_collapse_in_float32(samples, reference, collect):
    x, y = samples((40, 30, 20, 10), mean=1.0, std=1e-6, dtype=np.float32)
    out, ref = metrics.report(collect(x, y, 4)), reference(x, y, 4)
    between = ref.between("balanced", "balanced")
    assert float(out.nc1_quotient) == pytest.approx(np.trace(ref.within) / np.trace(between), rel=1e-5)
    assert out.to_dict()["nc1_pinv"] == pytest.approx(
        np.trace(ref.within @ np.linalg.pinv(between, rcond=1e-10)) / 4, rel=1e-5
    )


def test_tiles_agree_with_the_whole_table(monkeypatch, case):
    from neuralcollapse import _pairs

    stats, ref, w, _ = case
    m = jnp.asarray(ref.centred("balanced"))
    whole = (
        metrics.equiangular(m),
        metrics.etf_distance(m),
        *metrics.cdnv(stats),
        *metrics.gnc2(m),
        metrics.duality_etf(stats, w),
    )
    monkeypatch.setattr(_pairs, "_TILE", 3)
    tiled = (
        metrics.equiangular(m),
        metrics.etf_distance(m),
        *metrics.cdnv(stats),
        *metrics.gnc2(m),
        metrics.duality_etf(stats, w),
    )
    np.testing.assert_allclose(tiled, whole, rtol=1e-12)


def test_jit_vmap_and_gradient(case, samples):
    stats, _, w, b = case
    compiled = no_retrace(lambda s, w, b: metrics.report(s, w, b))
    outside = metrics.report(stats, w, b)
    compiled(stats, jnp.asarray(w), jnp.asarray(b))
    inside = compiled(stats, jnp.asarray(w), jnp.asarray(b))
    for name, value in outside.to_arrays().items():
        np.testing.assert_allclose(getattr(inside, name), value, rtol=1e-12)
    x, y = samples()
    x, y = jnp.asarray(x), jnp.asarray(y)

    def loss(x):
        return metrics.nc1_quotient(ClassStats.init(4, 6).update(x, y))

    direction = jnp.asarray(np.random.default_rng(0).normal(size=x.shape))
    slope = jnp.vdot(jax.grad(loss)(x), direction)
    difference = (loss(x + 1e-5 * direction) - loss(x - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-7)


# O12, second half.
@pytest.mark.parametrize("with_bias", [True, False])
def test_squared_loss_decomposes(samples, case, with_bias):
    stats, _, w, b = case
    x, y = samples()
    b = b if with_bias else np.zeros(4)
    loss = ((x @ w.T + b - np.eye(4)[y]) ** 2).sum() / (2 * len(x)) + 0.05 * ((w**2).sum() + (b**2).sum())
    parts = metrics.mse_decomposition(stats, w, b if with_bias else None, lam=0.1)
    assert parts.total == pytest.approx(loss, rel=1e-13)
    rows = np.hstack([x, np.ones((len(x), int(with_bias)))])
    best = np.linalg.solve(rows.T @ rows / len(x) + 0.1 * np.eye(rows.shape[1]), rows.T @ np.eye(4)[y] / len(x)).T
    at_best = metrics.mse_decomposition(stats, best[:, :6], best[:, 6] if with_bias else None, lam=0.1)
    assert at_best.perp == pytest.approx(0, abs=1e-24)
    np.testing.assert_allclose(at_best[:2], parts[:2], rtol=1e-12)


# The optimum of arXiv:2301.00437 at depth one: own-class logits 1 - N sqrt(lam_W lam_H / n_k).
def test_general_orthogonal_frame():
    counts, lam_w, lam_h, d = np.array([12, 8, 4, 2]), 0.08, 0.04, 6
    n = counts.sum()
    q = np.maximum(0, 1 - n * np.sqrt(lam_w * lam_h / counts))
    assert q[-1] == 0
    frame = np.linalg.qr(np.random.default_rng(0).normal(size=(d, 4)))[0].T
    means = np.sqrt(q * (1 - q) / (n * lam_h))[:, None] * frame
    w = np.sqrt(counts * lam_h / lam_w)[:, None] * means
    labels = np.repeat(np.arange(4), counts).astype(np.int32)
    stats = ClassStats.init(4, d).update(means[labels], labels)
    out = metrics.gof_report(stats, [w], q, lam_H=lam_h)
    for name in ["nc2_w", "nc2_h", "nc3_wh", "nc3_dual", "error_w", "error_h", "error_wh", "error_dual"]:
        assert getattr(out, name) < 1e-12, name
    np.testing.assert_array_equal(out.collapsed, [False, False, False, True])
    np.testing.assert_allclose(out.logits, q, atol=1e-13)
    # The same head in two factors is the same head; one of twice the scale is right in shape only.
    half = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 4)))[0]
    assert metrics.gof_report(stats, [half @ w, half.T], q, lam_H=lam_h).error_w < 1e-12
    double = metrics.gof_report(stats, [2 * w], q, lam_H=lam_h)
    assert double.nc2_w < 1e-12
    assert double.error_w == pytest.approx(3)


def test_layers(samples, collect):
    x, y = samples()
    means = np.stack([x[y == k].mean(0) for k in range(4)])
    closer = {f"layer {i}": collect(means[y] + 0.5**i * (x - means[y]), y, 4) for i in range(4)}
    w = np.random.default_rng(0).normal(size=(4, 6))
    profile = metrics.layerwise(closer, weights={"layer 3": w})
    assert list(profile.reports) == list(closer)
    assert profile.slope() == pytest.approx(math.log(0.25))
    assert profile.slope("nc1_pinv") == pytest.approx(math.log(0.25))
    np.testing.assert_array_equal(np.isnan(profile.curve("self_duality")), [True, True, True, False])
    values = np.linalg.svd(means - means.mean(0), compute_uv=False)
    np.testing.assert_allclose(profile.spectra["layer 0"].values, values, atol=1e-12)


def test_spectra_and_angles(samples, collect):
    flat = metrics.spectrum(jnp.diag(jnp.array([2.0, 2.0, 2.0, 0.0])))
    assert flat.stable_rank == pytest.approx(3)
    assert flat.effective_rank == pytest.approx(3)
    x, y = samples()
    stats = collect(x, y, 4)
    span = np.linalg.svd(stats.centred())[2]
    np.testing.assert_allclose(metrics.principal_angles(stats, 2 * span[:3]), 0, atol=1e-14)
    np.testing.assert_allclose(metrics.principal_angles(stats, span[3:]), np.pi / 2, atol=1e-14)
    turned = math.cos(0.3) * span[0] + math.sin(0.3) * span[4]
    np.testing.assert_allclose(metrics.principal_angles(stats, np.stack([5 * turned, span[1]])), [0, 0.3], atol=1e-7)
