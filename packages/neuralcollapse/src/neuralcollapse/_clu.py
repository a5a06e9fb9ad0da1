import dataclasses
from typing import Any

import jax

from ._class_stats import ClassStats
from ._convention import Convention, ConventionName
from ._custom_types import Within
from ._report import report


def clu_metric(
    num_classes: int,
    dim: int,
    *,
    value: str | None = None,
    features: str = "features",
    labels: str = "labels",
    convention: ConventionName | Convention = "papyan",
    within: Within = "full",
    base: type = object,
) -> type:
    """Make a metric class in the manner of `clu.metrics` and `metrax`: `empty`, `from_model_output`, `merge`, `compute`.

    ```python
    @flax.struct.dataclass
    class Metrics(clu.metrics.Collection):
        loss: clu.metrics.Average.from_output("loss")
        collapse: interop.clu_metric(10, 512, value="nc1_pinv", base=clu.metrics.Metric)
    ```

    Neither library is needed; with `base=clu.metrics.Metric` the class is one of theirs.

    **Arguments:**

    - `num_classes`: number of classes.
    - `dim`: number of features.
    - `value`: which attribute of [`neuralcollapse.metrics.Report`][] is computed; `None`: all that there are, as a dictionary.
    - `features`: the name of the model output that holds the features, one sample a row.
    - `labels`: the name of the model output that holds the labels. A model output `mask` is used, too.
    - `convention`: see [`neuralcollapse.Convention`][].
    - `within`: how much of the within-class covariance is kept; not `"low-rank"`.
    - `base`: the class to inherit from.

    **Returns:**

    A pytree class. Its instances hold the statistics in `.stats`: give those to `metrics.report` together with a classifier.
    `.reduce()` merges along a leading axis, as after `jax.pmap`.
    """
    kind = Convention.of(convention)

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class CollapseMetric(base):
        stats: ClassStats

        @classmethod
        def empty(cls) -> Any:
            return cls(stats=ClassStats.init(num_classes, dim, within))

        @classmethod
        def from_model_output(cls, **outputs: Any) -> Any:
            missing = {features, labels} - set(outputs)
            if missing:
                raise ValueError(f"The model output lacks {sorted(missing)}; it has {sorted(outputs)}.")
            start = ClassStats.init(num_classes, dim, within)
            return cls(stats=start.update(outputs[features], outputs[labels], outputs.get("mask")))

        def merge(self, other: Any) -> Any:
            return type(self)(stats=self.stats.merge(other.stats))

        def compute(self) -> Any:
            out = report(self.stats, convention=kind)
            return out.to_arrays() if value is None else getattr(out, value)

        def reduce(self) -> Any:
            first = jax.tree.map(lambda x: x[0], self)
            rest = jax.tree.map(lambda x: x[1:], self)
            return jax.lax.scan(lambda merged, other: (merged.merge(other), None), first, rest)[0]

    return CollapseMetric
