"""On a GPU float32 products are TensorFloat-32 by default, of three digits: these must not be."""

import jax.numpy as jnp
import numpy as np
import pytest
from neuralcollapse import ClassStats, metrics


pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("num_classes", [10, 400])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 1e-6)])
def test_statistics_keep_float32(num_classes, mean, std):
    r = np.random.default_rng(0)
    y = np.arange(1200) % num_classes
    x = (mean + r.normal(size=(num_classes, 256))[y] + std * r.normal(size=(1200, 256))).astype(np.float32)
    stats = ClassStats.init(num_classes, 256, dtype="float32")
    for i in range(0, 1200, 300):
        stats = stats.update(jnp.asarray(x[i : i + 300]), jnp.asarray(y[i : i + 300]))
    wide = x.astype(float)
    means = np.stack([wide[y == k].mean(0) for k in range(num_classes)])
    residual = wide - means[y]
    within = residual.T @ residual / 1200
    assert np.linalg.norm(np.asarray(stats.within_cov()) - within) < 1e-5 * np.linalg.norm(within)
    between = means - means.mean(0)
    quotient = np.trace(within) / ((between**2).sum() / num_classes)
    out = metrics.report(stats).to_dict()
    assert out["nc1_quotient"] == pytest.approx(quotient, rel=1e-5)
    gram = between @ between.T
    target = (np.eye(num_classes) - 1 / num_classes) / np.sqrt(num_classes - 1)
    assert out["etf_distance"] == pytest.approx(np.linalg.norm(gram / np.linalg.norm(gram) - target), rel=1e-5)
