"""The classification of Koopman problems by the number of limits that an answer needs, as data."""

from ._sci import Problem, Tower, classify, table


__all__ = ["Problem", "Tower", "classify", "table"]
