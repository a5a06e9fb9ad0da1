import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from neuralcollapse import ClassStats
from stationary_testkit import no_retrace, tree_allclose


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_pass_equals_two(samples, reference, collect, dtype):
    x, y = samples(dtype=dtype)
    stats, ref = collect(x, y, 4), reference(x, y, 4)
    tol = 20 * np.finfo(dtype).eps
    np.testing.assert_array_equal(stats.counts, ref.n)
    np.testing.assert_allclose(stats.means(), ref.means, rtol=tol, atol=tol)
    np.testing.assert_allclose(stats.within_cov(), ref.within, rtol=tol, atol=tol)
    np.testing.assert_allclose(stats.class_variances(), ref.variances, rtol=tol)
    np.testing.assert_allclose(stats.within_trace(), np.trace(ref.within), rtol=tol)
    np.testing.assert_allclose(stats.proportions(), ref.p, rtol=tol)
    assert stats.means().dtype == stats.within_cov().dtype == dtype


# O13, and the same after merges. Class counts above the batch size take the path by touched rows.
@pytest.mark.parametrize("num_classes", [4, 40])
@pytest.mark.parametrize(("mean", "std"), [(1.0, 1e-6), (10.0, 1e-5), (10.0, 1e-2), (0.0, 1.0)])
def test_float32_in_deep_collapse(samples, reference, collect, num_classes, mean, std):
    counts = tuple(np.random.default_rng(1).integers(3, 30, num_classes).tolist())
    x, y = samples(counts, 6, mean=mean, std=std, dtype=np.float32)
    ref = reference(x, y, num_classes)
    whole = collect(x, y, num_classes)
    parts = [collect(x[i::5], y[i::5], num_classes) for i in range(5)]
    for stats in (whole, parts[0].merge(parts[1]).merge(parts[2].merge(parts[3].merge(parts[4])))):
        assert abs(float(stats.within_trace()) / np.trace(ref.within) - 1) < 1e-6
        assert np.linalg.norm(np.asarray(stats.within_cov()) - ref.within) < 1e-6 * np.linalg.norm(ref.within)
        np.testing.assert_allclose(stats.class_variances(), ref.variances, rtol=2e-6)
        between = ref.centred("balanced")
        assert np.linalg.norm(np.asarray(stats.centred()) - between) < 1e-6 * np.linalg.norm(between)
    # The textbook formula has no digit left: the test would not see that otherwise.
    if std < 1e-4:
        naive = np.sum(np.mean(x * x, 0, dtype=np.float32) - ref.p @ (ref.means.astype(np.float32) ** 2))
        assert abs(naive / np.trace(ref.within) - 1) > 0.1


@given(seed=st.integers(0, 2**16), pieces=st.lists(st.integers(0, 2), min_size=20, max_size=20))
def test_merge_is_associative_and_commutative(samples, reference, collect, seed, pieces):
    x, y = samples(seed=seed, mean=5.0)
    part = np.array(pieces)
    a, b, c = (collect(x[part == i], y[part == i], 4) for i in range(3))
    left, right, swapped = a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(b).merge(a)
    ref = reference(x, y, 4)
    for stats in (left, right, swapped):
        np.testing.assert_array_equal(stats.counts, ref.n)
        np.testing.assert_allclose(stats.means(), ref.means, rtol=1e-12)
        np.testing.assert_allclose(stats.within_cov(), ref.within, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(stats.class_variances(), ref.variances, rtol=1e-10)


@given(seed=st.integers(0, 2**16))
def test_order_does_not_matter(samples, collect, seed):
    x, y = samples(seed=seed)
    order = np.random.default_rng(seed).permutation(len(x))
    one, other = collect(x, y, 4), collect(x[order], y[order], 4)
    np.testing.assert_allclose(one.means(), other.means(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(one.within_cov(), other.within_cov(), rtol=1e-10, atol=1e-12)


@given(seed=st.integers(0, 2**16))
def test_rotating_features_rotates_the_statistics(samples, collect, seed):
    x, y = samples(seed=seed)
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))[0]
    one, turned = collect(x, y, 4), collect(x @ q, y, 4)
    np.testing.assert_allclose(turned.means(), one.means() @ q, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(turned.within_cov(), q.T @ one.within_cov() @ q, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(turned.class_variances(), one.class_variances(), rtol=1e-11)


def test_empty_statistics_are_neutral(samples, collect):
    x, y = samples()
    stats = collect(x, y, 4)
    for merged in (stats.merge(ClassStats.init(4, 6)), ClassStats.init(4, 6).merge(stats)):
        assert tree_allclose(merged, stats, rtol=0, atol=0)


def test_jit_scan_and_vmap_agree_with_a_loop(samples, collect):
    x, y = samples((6, 6, 6, 6))
    xs, ys = x.reshape(4, 6, 6), y.reshape(4, 6)
    looped = collect(x, y, 4, batch=6)
    update = no_retrace(lambda s, x, y: s.update(x, y))
    stats = ClassStats.init(4, 6)
    for i in range(4):
        stats = update(stats, xs[i], ys[i])
    assert tree_allclose(stats, looped, rtol=1e-12)
    scanned, _ = jax.lax.scan(lambda s, b: (s.update(*b), None), ClassStats.init(4, 6), (xs, ys))
    assert tree_allclose(scanned, looped, rtol=1e-12)
    mapped = jax.vmap(lambda x, y: ClassStats.init(4, 6).update(x, y))(xs, ys)
    summed = jax.vmap(lambda s: s.psum("i"), axis_name="i")(mapped)
    for i in range(4):
        one = jax.tree.map(lambda a, i=i: a[i], summed)
        np.testing.assert_allclose(one.means(), looped.means(), rtol=1e-12)
        np.testing.assert_allclose(one.within_cov(), looped.within_cov(), rtol=1e-11, atol=1e-13)


def test_state_can_be_donated(samples):
    x, y = samples()
    # A buffer that could not be used again would be a warning, so an error.
    update = jax.jit(lambda s, x, y: s.update(x, y), donate_argnums=0)
    stats = ClassStats.init(4, 6)
    for _ in range(2):
        stats = update(stats, jnp.asarray(x), jnp.asarray(y))
    assert stats.total == 2 * len(x)


@pytest.mark.parametrize("num_classes", [4, 40])
def test_padding_leaves_no_trace(samples, num_classes):
    x, y = samples()
    padded = jnp.concatenate([jnp.full((3, 6), jnp.nan), jnp.asarray(x), jnp.full((4, 6), jnp.inf)])
    labels = jnp.concatenate([jnp.array([-1, -1, -1]), jnp.asarray(y, int), jnp.array([0, 1, 99, -7])])
    mask = jnp.arange(len(padded)) < 3 + len(x)
    start = ClassStats.init(num_classes, 6)
    plain, with_padding = start.update(x, y), start.update(padded, labels, mask)
    assert tree_allclose(with_padding, plain, rtol=1e-13, atol=1e-14)


def test_the_last_class_is_not_taken_for_padding():
    stats = ClassStats.init(3, 2).update(jnp.ones((2, 2)), jnp.array([-1, 2]))
    np.testing.assert_array_equal(stats.counts, [0, 0, 1])


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_less_precise_features_are_promoted_first(samples, reference, kind):
    x, y = samples(mean=3.0, std=2.0)
    rough = jnp.asarray(x).astype(kind)
    stats, ref = ClassStats.init(4, 6).update(rough, y), reference(np.asarray(rough, np.float64), y, 4)
    np.testing.assert_allclose(stats.within_cov(), ref.within, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("within", ["diag", "trace"])
def test_smaller_kinds_keep_what_they_say(samples, reference, collect, within):
    x, y = samples()
    ref = reference(x, y, 4)
    parts = [collect(x[i::2], y[i::2], 4, within=within) for i in range(2)]
    for stats in (collect(x, y, 4, within=within), parts[0].merge(parts[1])):
        np.testing.assert_allclose(stats.within_trace(), np.trace(ref.within), rtol=1e-12)
        np.testing.assert_allclose(stats.class_variances(), ref.variances, rtol=1e-12)
        if within == "diag":
            np.testing.assert_allclose(stats.within_diagonal(), np.diag(ref.within), rtol=1e-12)
        with pytest.raises(ValueError, match=f"keep only the {within} of the within-class covariance"):
            stats.within_cov()


@pytest.mark.parametrize("rank", [2, 4, 6])
@pytest.mark.parametrize("batch", [3, 20])
def test_sketch_is_within_its_bound(samples, reference, collect, rank, batch):
    x, y = samples((30, 20, 10, 8), std=0.5)
    x = x * np.array([4, 2, 1, 0.5, 0.1, 0.05])
    ref = reference(x, y, 4)
    parts = [collect(x[i::3], y[i::3], 4, batch, within="low-rank", rank=rank) for i in range(3)]
    for stats in (collect(x, y, 4, batch, within="low-rank", rank=rank), parts[0].merge(parts[1]).merge(parts[2])):
        error = np.linalg.norm(stats.within_cov() - ref.within, 2)
        assert error <= stats.within_error() + 1e-12
        # Frequent Directions promises no more than the tail over what is left of the rank.
        squares = np.linalg.eigvalsh(ref.within)[::-1]
        best = min(squares[k:].sum() / (rank + 1 - k) for k in range(rank + 1))
        assert stats.within_error() <= best * (1 + 1e-9) + 1e-12
        np.testing.assert_allclose(np.trace(stats.within_cov()), np.trace(ref.within), rtol=1e-12)
        if rank == 6:
            assert error < 1e-12


def test_the_means_of_untouched_classes_are_not_copied():
    k, d = 100_000, 16
    stats, x, y = ClassStats.init(k, d, dtype="float64"), jnp.ones((8, d)), jnp.zeros(8, int)
    update = jax.jit(lambda s, x, y: s.update(x, y), donate_argnums=0).lower(stats, x, y).compile()
    analysis = update.memory_analysis()
    assert analysis is not None
    # One number a class at most, where the means have sixteen.
    assert analysis.temp_size_in_bytes < 1.1 * 8 * k


def test_drop_empty_keeps_what_there_is(samples, collect, reference):
    x, y = samples()
    sparse = np.array([1, 3, 4, 7], np.int32)[y]
    stats, kept = collect(x, sparse, 9).drop_empty()
    np.testing.assert_array_equal(kept, [1, 3, 4, 7])
    ref = reference(x, y, 4)
    np.testing.assert_allclose(stats.means(), ref.means, rtol=1e-12)
    np.testing.assert_allclose(stats.within_cov(), ref.within, rtol=1e-11, atol=1e-13)


def test_one_sample_per_class_has_no_variance():
    stats = ClassStats.init(3, 2).update(jnp.eye(3, 2), jnp.arange(3))
    assert stats.within_trace() == 0
    np.testing.assert_array_equal(stats.class_variances(), jnp.zeros(3))
