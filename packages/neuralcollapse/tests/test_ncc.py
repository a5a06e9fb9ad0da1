import jax.numpy as jnp
import numpy as np
import pytest
from neuralcollapse import ClassStats, NCCStats, metrics


@pytest.fixture(scope="module")
def case(samples, collect):
    x, y = samples((20, 12, 9, 7), std=1.0)
    r = np.random.default_rng(5)
    return x, y, collect(x, y, 4), r.normal(size=(4, 6)), 3 * r.normal(size=4)


def shares(x, y, means, w, b):
    nearest = ((x[:, None] - means[None]) ** 2).sum(-1).argmin(1)
    chosen = (x @ w.T + b).argmax(1)
    return np.mean(nearest != chosen), np.mean(nearest == y), np.mean(chosen == y)


def test_agreement_is_counted_with_the_bias(case):
    x, y, stats, w, b = case
    expected = shares(x, y, np.asarray(stats.means()), w, b)
    halves = [NCCStats.init(stats, w, b).update(x[i::2], y[i::2]) for i in range(2)]
    for ncc in (
        NCCStats.init(stats, w, b).update(x, y),
        halves[0].merge(halves[1]),
        NCCStats.init(stats.means(), w, b).update(x, y),
    ):
        np.testing.assert_allclose((ncc.mismatch(), ncc.ncc_accuracy(), ncc.accuracy()), expected, rtol=1e-14)
    # The bias decides here; a metric that ignored it would give another number.
    assert NCCStats.init(stats, w).update(x, y).mismatch() != expected[0]
    out = metrics.report(stats, w, b, ncc=NCCStats.init(stats, w, b).update(x, y)).to_dict()
    np.testing.assert_allclose([out[n] for n in ("ncc_mismatch", "ncc_accuracy", "accuracy")], expected, rtol=1e-14)


def test_padding_is_not_counted(case):
    x, y, stats, w, b = case
    padded = np.concatenate([x, np.full((3, 6), np.nan)])
    labels, mask = np.concatenate([y, np.array([-1, 0, 77], y.dtype)]), np.arange(len(x) + 3) < len(x)
    np.testing.assert_array_equal(
        NCCStats.init(stats, w, b).update(padded, labels, mask).counts, NCCStats.init(stats, w, b).update(x, y).counts
    )


def test_nearest_centre_in_deep_collapse_in_float32():
    # Means that differ by 1e-3 around 100, and deviations of 1e-4. The uncentred expansion is off by 1e-2 there.
    r = np.random.default_rng(0)
    means = 100 + 1e-3 * np.eye(4, 6)
    y = r.integers(0, 4, 200).astype(np.int32)
    x = (means[y] + 1e-4 * r.normal(size=(200, 6))).astype(np.float32)
    stats = ClassStats.init(4, 6, dtype="float32").update(x, y)
    ncc = NCCStats.init(stats, jnp.eye(4, 6, dtype=jnp.float32)).update(x, y)
    assert ncc.ncc_accuracy() == 1
    centres = np.asarray(stats.means())
    squares = np.sum(x * x, 1)[:, None] + np.sum(centres**2, 1)[None] - 2 * x @ centres.T
    assert np.mean(squares.argmin(1) == y) < 0.9
