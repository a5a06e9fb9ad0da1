"""Neural collapse: measured in one pass over the data, and compared with what theory says of the optimum."""

__all__: list[str] = []
