import dataclasses
from typing import Any

from ._class_stats import ClassStats
from ._report import Report


@dataclasses.dataclass(frozen=True)
class Record:
    """One measurement of a training run.

    **Attributes:**

    - `step`: the training step.
    - `reports`: by layer, its [`neuralcollapse.metrics.Report`][]; without the layers in `errors`.
    - `errors`: by layer, why it could not be measured: a dead layer, features that are not finite, an empty class.
    - `extra`: further numbers of the training loop, such as the loss.
    - `seconds`: how long the measurement took, compiling included.
    - `stats`: by layer, the statistics, for whatever else is to be computed.
    """

    step: int
    reports: dict[str, Report]
    errors: dict[str, str]
    extra: dict[str, float]
    seconds: float
    stats: dict[str, ClassStats] = dataclasses.field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the statistics in one flat dictionary, with names such as `"penultimate/nc1_pinv"`."""
        flat: dict[str, Any] = {"step": self.step, **self.extra}
        for layer, report in self.reports.items():
            flat |= {f"{layer}/{name}": value for name, value in report.to_dict().items()}
        return flat | {f"{layer}/error": message for layer, message in self.errors.items()} | {"seconds": self.seconds}
