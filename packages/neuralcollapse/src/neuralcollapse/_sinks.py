import json
import math
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from ._record import Record


_SHOWN = ("nc1_pinv", "nc1_quotient", "etf_distance", "self_duality", "ncc_mismatch")


def progress(
    total: int | None = None, *, metrics: tuple[str, ...] = _SHOWN, file: Any = None
) -> Callable[[Record], None]:
    """Make a sink that prints one line a layer: the step, the loop's own numbers, and some metrics.

    **Arguments:**

    - `total`: number of steps of the run, to show how much of it is done.
    - `metrics`: which attributes of [`neuralcollapse.metrics.Report`][] to show.
    - `file`: the text stream to print to; standard error by default.
    """

    def sink(record: Record) -> None:
        done = f"step {record.step}" + ("" if total is None else f"/{total} ({record.step / total:4.0%})")
        extra = "".join(f"  {name} {value:.3g}" for name, value in record.extra.items())
        for layer, report in record.reports.items():
            values = [(name, getattr(report, name)) for name in metrics]
            shown = "".join(f"  {name} {float(value):.3g}" for name, value in values if value is not None)
            print(f"{done}{extra}  {layer}:{shown}", file=file or sys.stderr, flush=True)
        for layer, message in record.errors.items():
            print(f"{done}{extra}  {layer}: not measured: {message}", file=file or sys.stderr, flush=True)

    return sink


def json_lines(path: str | os.PathLike) -> Callable[[Record], None]:
    """Make a sink that appends each record to a file, as one line of JSON.

    **Arguments:**

    - `path`: the file; its folder must exist. Numbers that are not finite become `null`, as JSON has none.
    """
    target = pathlib.Path(path)
    if not target.parent.is_dir():
        raise ValueError(f"`path`: there is no folder {target.parent}.")

    def sink(record: Record) -> None:
        flat = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.to_dict().items()
        }
        with target.open("a") as stream:
            stream.write(json.dumps(flat) + "\n")

    return sink
