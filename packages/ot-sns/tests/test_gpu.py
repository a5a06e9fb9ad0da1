import jax
import jax.numpy as jnp
import numpy as np
import ot_sns
import pytest


pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("dtype", "tol"), [(jnp.float64, 1e-9), (jnp.float32, 2e-5)])
def test_gpu_gives_the_answer_of_the_cpu(dtype, tol):
    # Points in 20 dimensions: their distances go through a matrix product, which TensorFloat-32 would spoil.
    r = np.random.default_rng(0)
    x, y = r.normal(size=(200, 20)), r.normal(size=(240, 20))

    def value(x, y):
        geometry = ot_sns.rescale_cost(ot_sns.PointCloud(x, y))
        return ot_sns.solve(ot_sns.EntropicOT(geometry, epsilon=1e-2)).value

    values, gradients = [], []
    for platform in ("cpu", "gpu"):
        with jax.default_device(jax.devices(platform)[0]):
            v, g = jax.jit(jax.value_and_grad(value))(jnp.asarray(x, dtype), jnp.asarray(y, dtype))
        assert v.devices() == {jax.devices(platform)[0]}
        values.append(float(v))
        gradients.append(np.asarray(g, np.float64))
    assert abs(values[0] - values[1]) <= tol
    assert np.max(np.abs(gradients[0] - gradients[1])) <= 10 * tol
