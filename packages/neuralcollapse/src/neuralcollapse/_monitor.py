import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ._check import RefusedValue
from ._class_stats import ClassStats
from ._convention import Convention, ConventionName
from ._custom_types import Within
from ._ncc import NCCStats
from ._record import Record
from ._report import Report, report
from ._taps import capture


HEAD = "penultimate"


class Monitor:
    """Measure neural collapse during training, keep the history, and send each record to sinks.

    ```python
    monitor = neuralcollapse.Monitor.equinox(lambda m: m.layers[-1], num_classes=10, every=100)
    for step in range(1000):
        model, state, loss = train_step(model, state, x, y)
        monitor.measure(step, model, [(x, y)], loss=loss)
    steps, values = monitor.curve("nc1_pinv")
    ```

    [`neuralcollapse.Monitor.equinox`][] makes one for an Equinox model. The constructor takes any model: say how its features
    and its classifier are had. Measure over the training set, as the theory does, with augmentation off.

    **Arguments:**

    - `features_fn`: `features_fn(model, x)` returns the features of a batch, or a dictionary of them by layer, first layer first.
        The last one enters the classifier. It is compiled; what it returns is reshaped to one sample a row.
    - `num_classes`: number of classes.
    - `head_fn`: `head_fn(model)` returns the classifier `(weight, bias)`, `bias` or both `None` if there is none.
    - `every`: measure at steps that are multiples of this.
    - `sinks`: functions of a [`neuralcollapse.Record`][], such as those of [`neuralcollapse.sinks`][].
    - `convention`: see [`neuralcollapse.Convention`][].
    - `within`: how much of the within-class covariance is kept; for `"low-rank"`, give `rank`.
    - `rank`: rows of the sketch of `"low-rank"`.
    - `ncc`: whether to make a second pass over the batches, for the metrics over samples.
    """

    def __init__(
        self,
        features_fn: Callable[[Any, Any], Any],
        num_classes: int,
        *,
        head_fn: Callable[[Any], tuple[Any, Any]] | None = None,
        every: int = 1,
        sinks: Sequence[Callable[[Record], None]] = (),
        convention: ConventionName | Convention = "papyan",
        within: Within = "full",
        rank: int | None = None,
        ncc: bool = True,
    ):
        if every < 1:
            raise ValueError(f"`every` must be at least 1, got {every}.")
        self.history: list[Record] = []
        self._head_fn = head_fn
        self._every = every
        self._sinks = tuple(sinks)
        self._convention = Convention.of(convention)
        self._init = lambda dim, dtype: ClassStats.init(num_classes, dim, within, rank=rank, dtype=dtype)
        self._ncc = ncc and head_fn is not None

        def rows(model: Any, x: Any, y: Any) -> tuple[Any, ...]:
            features = features_fn(model, x)
            by_layer = features if isinstance(features, Mapping) else {HEAD: features}
            # Noted while tracing: a dictionary would come out of `jit` sorted by name.
            self._layers = tuple(by_layer)
            return tuple(h.reshape(y.size, -1) for h in by_layer.values())

        def update(model: Any, stats: Any, x: Any, y: Any, mask: Any) -> tuple[ClassStats, ...]:
            flat = None if mask is None else mask.reshape(-1)
            return tuple(s.update(h, y.reshape(-1), flat) for s, h in zip(stats, rows(model, x, y), strict=True))

        def count(model: Any, ncc: NCCStats, x: Any, y: Any, mask: Any) -> NCCStats:
            features = rows(model, x, y)[-1]
            return ncc.update(features, y.reshape(-1), None if mask is None else mask.reshape(-1))

        self._layers: tuple[str, ...] = ()
        self._rows, self._update, self._count = rows, eqx.filter_jit(update), eqx.filter_jit(count)

    @staticmethod
    def equinox(
        head: Callable[[Any], Any],
        num_classes: int,
        *,
        layers: Mapping[str, Callable[[Any], Any]] | None = None,
        **kwargs: Any,
    ) -> "Monitor":
        """Make a monitor for an Equinox model that is called on one sample: `jax.vmap(model)(x)`.

        **Arguments:**

        - `head`: from the model to its last layer, an `eqx.nn.Linear`.
        - `num_classes`: number of classes.
        - `layers`: by name, from the model to further layers whose inputs are measured, first layer first.
        - `**kwargs`: as for [`neuralcollapse.Monitor`][].

        **Returns:**

        The monitor. What enters the last layer is named `"penultimate"`. The model is put into inference mode.
        """
        where = {**(layers or {}), HEAD: head}

        def features_fn(model: Any, x: Any) -> dict[str, Any]:
            tapped = capture(eqx.nn.inference_mode(model), where)
            return jax.vmap(tapped)(x)[1]

        def features_in_order(model: Any, x: Any) -> dict[str, Any]:
            features = features_fn(model, x)
            # Dictionaries come out of `vmap` sorted by name.
            return {name: features[name] for name in where}

        return Monitor(
            features_in_order, num_classes, head_fn=lambda model: (head(model).weight, head(model).bias), **kwargs
        )

    def due(self, step: int) -> bool:
        """Whether this step is measured."""
        return step % self._every == 0

    def measure(self, step: int, model: Any, batches: Iterable[Any], **extra: Any) -> Record | None:
        """Measure the model at a step that is due; do nothing at others.

        **Arguments:**

        - `step`: the training step.
        - `model`: the model.
        - `batches`: tuples `(x, y)` or `(x, y, mask)`. With a second pass (`ncc=True`) something that can be gone through
            twice, such as a list.
        - `**extra`: numbers to record with it, such as the loss.

        **Returns:**

        The record, or `None` at a step that is not due. A layer that cannot be measured (all means coincide, features are not
        finite) does not stop the training: the record says why.

        **Raises:**

        `ValueError` if there are no batches, or `batches` is an iterator and a second pass is due.
        """
        if not self.due(step):
            return None
        if self._ncc and isinstance(batches, Iterator):
            raise ValueError("`batches` can be gone through only once: give a list, or `ncc=False` to the monitor.")
        start, stats = time.perf_counter(), ()
        for x, y, mask in map(_unpack, batches):
            if not stats:
                shapes = eqx.filter_eval_shape(self._rows, model, x, y)
                stats = tuple(self._init(h.shape[1], np.promote_types(h.dtype, np.float32)) for h in shapes)
            stats = self._update(model, stats, x, y, mask)
        if not stats:
            raise ValueError("`batches` is empty.")
        weight, bias = (None, None) if self._head_fn is None else self._head_fn(model)
        by_layer = dict(zip(self._layers, stats, strict=True))
        return self._record(step, by_layer, weight, bias, (model, batches), extra, start)

    def observe(
        self,
        step: int,
        stats: ClassStats | Mapping[str, ClassStats],
        weight: Any = None,
        bias: Any = None,
        **extra: Any,
    ) -> Record:
        """Record statistics that the training loop has gathered itself, at any step.

        **Arguments:**

        - `step`: the training step.
        - `stats`: the statistics, or a dictionary of them by layer, first layer first.
        - `weight`: the classifier that the last layer's features enter.
        - `bias`: its bias.
        - `**extra`: numbers to record with it, such as the loss.
        """
        by_layer = {HEAD: stats} if isinstance(stats, ClassStats) else dict(stats)
        return self._record(step, by_layer, weight, bias, None, extra, time.perf_counter())

    def curve(self, metric: str, layer: str | None = None) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return one metric over the history.

        **Arguments:**

        - `metric`: an attribute of [`neuralcollapse.metrics.Report`][], or the name of a number that was recorded with it.
        - `layer`: which layer; by default the last one.

        **Returns:**

        The steps, and the values; NaN where the layer could not be measured.
        """
        if not self.history:
            raise ValueError("Nothing has been measured yet.")
        first = self.history[0]
        if metric not in Report.__dataclass_fields__ and metric not in first.extra:
            raise ValueError(
                f"`metric` is neither an attribute of a report nor one of {sorted(first.extra)}: {metric!r}."
            )
        name = list(first.stats)[-1] if layer is None else layer
        if name not in first.stats:
            raise ValueError(f"`layer` must be one of {list(first.stats)}, got {layer!r}.")
        values = []
        for record in self.history:
            found = (
                record.extra.get(metric) if metric in first.extra else getattr(record.reports.get(name), metric, None)
            )
            values.append(np.nan if found is None else float(found))
        return np.array([r.step for r in self.history]), np.array(values)

    def _record(
        self, step: int, stats: dict, weight: Any, bias: Any, second_pass: Any, extra: dict, start: float
    ) -> Record:
        reports, errors = {}, {}
        *_, last = stats
        for name, s in stats.items():
            is_head = name == last and weight is not None
            try:
                ncc = self._agreement(s, weight, bias, *second_pass) if is_head and self._ncc and second_pass else None
                w, b = (weight, bias) if is_head else (None, None)
                reports[name] = report(s, w, b, convention=self._convention, ncc=ncc)
            except RefusedValue as error:
                errors[name] = str(error)
        numbers = {name: float(value) for name, value in extra.items()}
        record = Record(int(step), reports, errors, numbers, time.perf_counter() - start, stats)
        self.history.append(record)
        for sink in self._sinks:
            sink(record)
        return record

    def _agreement(self, stats: ClassStats, weight: Any, bias: Any, model: Any, batches: Iterable[Any]) -> NCCStats:
        ncc = NCCStats.init(stats, weight, bias)
        for x, y, mask in map(_unpack, batches):
            ncc = self._count(model, ncc, x, y, mask)
        return ncc


def _unpack(batch: Any) -> tuple[Any, Any, Any]:
    if not isinstance(batch, Sequence) or len(batch) not in (2, 3):
        raise ValueError(f"Each of `batches` must be (x, y) or (x, y, mask), got {type(batch).__name__}.")
    x, y, *mask = batch
    return x, jnp.asarray(y), jnp.asarray(mask[0]) if mask else None
