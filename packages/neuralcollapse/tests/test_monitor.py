import io
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neuralcollapse import ClassStats, Monitor, NCCStats, metrics, sinks


@pytest.fixture
def model(getkey):
    # Names whose order is not that of the alphabet.
    return eqx.nn.MLP(6, 4, 5, 2, key=getkey())


LAYERS = {"z": lambda m: m.layers[0], "a": lambda m: m.layers[1]}


def test_measurement_is_that_of_the_features(model, samples):
    x, y = (jnp.asarray(a) for a in samples())
    records = []
    monitor = Monitor.equinox(lambda m: m.layers[-1], 4, layers=LAYERS, every=10, sinks=[records.append])
    batches = [(x[:10], y[:10]), (x[10:], y[10:], jnp.arange(10) < 9)]
    assert monitor.measure(5, model, batches) is None
    record = monitor.measure(10, model, batches, loss=jnp.array(0.5))
    assert record is not None
    assert records == monitor.history == [record]
    assert list(record.reports) == ["z", "a", "penultimate"]
    hidden = jax.nn.relu(jax.vmap(model.layers[0])(x[:19]))
    last, head = jax.nn.relu(jax.vmap(model.layers[1])(hidden)), model.layers[-1]
    for name, features in {"z": x[:19], "a": hidden, "penultimate": last}.items():
        stats = ClassStats.init(4, features.shape[1]).update(features, y[:19])
        expected = metrics.report(stats)
        if name == "penultimate":
            ncc = NCCStats.init(stats, head.weight, head.bias).update(features, y[:19])
            expected = metrics.report(stats, head.weight, head.bias, ncc=ncc)
        assert record.reports[name].to_dict() == pytest.approx(expected.to_dict(), rel=1e-10, abs=1e-13)
    flat = record.to_dict()
    assert (flat["step"], flat["loss"]) == (10, 0.5)
    assert flat["penultimate/ncc_mismatch"] == float(record.reports["penultimate"].to_dict()["ncc_mismatch"])


def test_curves(model, samples):
    x, y = samples()
    monitor = Monitor.equinox(lambda m: m.layers[-1], 4, layers=LAYERS, every=2)
    for step in range(5):
        monitor.measure(step, model, [(jnp.asarray(x), jnp.asarray(y))], loss=step)
    steps, values = monitor.curve("etf_distance")
    np.testing.assert_array_equal(steps, [0, 2, 4])
    np.testing.assert_array_equal(monitor.curve("loss")[1], [0, 2, 4])
    assert np.all(values == values[0])
    assert np.all(np.isnan(monitor.curve("self_duality", "z")[1]))
    with pytest.raises(ValueError, match="`layer` must be one of"):
        monitor.curve("nc1_pinv", "head")
    with pytest.raises(ValueError, match="`metric` is neither"):
        monitor.curve("nc6")


def test_any_model_will_do(samples):
    x, y = samples((6, 6, 6, 6))
    # Sequences: labels and features of several leading axes; bfloat16, whose statistics are float32.
    shaped = (jnp.asarray(x, jnp.bfloat16).reshape(4, 6, 6), jnp.asarray(y).reshape(4, 6))
    monitor = Monitor(
        lambda scale, x: scale * x, 4, head_fn=lambda _: (jnp.ones((4, 6)).at[0].set(2), None), within="trace"
    )
    record = monitor.measure(0, jnp.array(2, jnp.bfloat16), [shaped])
    assert record is not None
    stats = record.stats["penultimate"]
    assert stats.anchor.dtype == jnp.float32
    np.testing.assert_array_equal(stats.counts, [6, 6, 6, 6])
    expected = ClassStats.init(4, 6, dtype="float32").update(2 * shaped[0].reshape(24, 6), y)
    np.testing.assert_allclose(stats.means(), expected.means(), rtol=1e-6)


def test_a_layer_that_cannot_be_measured_does_not_stop_the_training(samples):
    x, y = (jnp.asarray(a) for a in samples())
    shown = io.StringIO()
    monitor = Monitor(lambda m, x: {"dead": 0 * x, "bad": m * x, "good": x}, 4, sinks=[sinks.progress(4, file=shown)])
    record = monitor.measure(1, jnp.nan, [(x, y)], loss=jnp.nan)
    assert record is not None
    assert list(record.reports) == ["good"]
    assert "All class means coincide" in record.errors["dead"]
    assert "NaN or infinite features" in record.errors["bad"]
    assert np.isnan(monitor.curve("nc1_pinv", "dead")[1]).all()
    lines = shown.getvalue().splitlines()
    assert lines[0].startswith("step 1/4 ( 25%)  loss nan  good:  nc1_pinv ")
    assert lines[1].startswith("step 1/4 ( 25%)  loss nan  dead: not measured: All class means coincide")


def test_statistics_of_the_loop_itself(samples, collect, tmp_path):
    x, y = samples()
    monitor = Monitor(lambda _, x: x, 4, sinks=[sinks.json_lines(tmp_path / "log.jsonl")])
    w = np.random.default_rng(0).normal(size=(4, 6))
    for step in (3, 7):
        monitor.observe(step, collect(x, y, 4), w, loss=float("nan"))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 7]
    assert lines[0]["loss"] is None
    expected = metrics.report(collect(x, y, 4), w).to_dict()["self_duality"]
    assert lines[0]["penultimate/self_duality"] == expected
    with pytest.raises(ValueError, match="`path`: there is no folder"):
        sinks.json_lines(tmp_path / "nowhere" / "log.jsonl")
