"""Where a [`neuralcollapse.Monitor`][] sends its records: a sink is any function of one."""

from ._sinks import json_lines, progress


__all__ = ["json_lines", "progress"]
