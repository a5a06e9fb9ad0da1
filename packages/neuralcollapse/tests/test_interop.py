import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neuralcollapse import ClassStats, interop, metrics


class Tensor:
    """What the bridge asks of a PyTorch tensor, on NumPy: with history it refuses to be exported, as PyTorch's do."""

    def __init__(self, array, history=True):
        self.array, self.history = array, history

    def detach(self):
        return Tensor(self.array, history=False)

    def contiguous(self):
        return Tensor(np.ascontiguousarray(self.array), self.history)

    def __dlpack__(self, **kwargs):
        if self.history:
            raise BufferError("Can't export tensors that require gradient")
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_tensors_come_over_with_history_and_strides():
    array = np.arange(12.0).reshape(4, 3)
    got = interop.from_torch(Tensor(array[::2, ::2]))
    assert isinstance(got, jax.Array)
    np.testing.assert_array_equal(got, [[0, 2], [6, 8]])
    assert interop.from_torch(Tensor(np.arange(3))).dtype == jnp.int64
    array[:] = 0
    np.testing.assert_array_equal(got, [[0, 2], [6, 8]])
    with pytest.raises(TypeError, match="`tensor` must be a PyTorch tensor, got ndarray"):
        interop.from_torch(array)


def test_metric_class_has_the_manners_of_clu(samples, collect):
    x, y = samples()
    metric: type = interop.clu_metric(4, 6, value="nc1_pinv")
    whole = float(metrics.nc1_pinv(collect(x, y, 4)))
    merged = metric.empty()
    step = jax.jit(lambda m, x, y, mask: m.merge(metric.from_model_output(features=x, labels=y, mask=mask, loss=0.0)))
    for i in range(0, 20, 5):
        merged = step(merged, x[i : i + 5], y[i : i + 5], jnp.ones(5, bool))
    assert float(merged.compute()) == pytest.approx(whole, rel=1e-12)
    split = jax.vmap(lambda x, y: metric.from_model_output(features=x, labels=y))(x.reshape(4, 5, 6), y.reshape(4, 5))
    assert float(split.reduce().compute()) == pytest.approx(whole, rel=1e-12)
    everything = interop.clu_metric(4, 6, features="h", labels="target").from_model_output(h=x, target=y).compute()
    assert float(everything["nc1_pinv"]) == pytest.approx(whole, rel=1e-12)
    assert isinstance(merged.stats, ClassStats)
    with pytest.raises(ValueError, match=r"The model output lacks \['labels'\]; it has \['features'\]"):
        metric.from_model_output(features=x)


def test_metric_class_can_inherit():
    class Base:
        def compute_value(self):
            return ("wrapped", self.compute())  # pyright: ignore[reportAttributeAccessIssue]

    metric: type = interop.clu_metric(2, 2, value="nc1_quotient", base=Base)
    made = metric.from_model_output(features=jnp.eye(2), labels=jnp.arange(2))
    assert isinstance(made, Base)
    assert made.compute_value() == ("wrapped", 0)
