"""What a dictionary should make small, differentiable through the factorisation."""

from ._loss import (
    conditioned_defect,
    invariance_defect,
    log_condition,
    log_frobenius_condition,
    residual,
    worst_defect,
)


__all__ = [
    "conditioned_defect",
    "invariance_defect",
    "log_condition",
    "log_frobenius_condition",
    "residual",
    "worst_defect",
]
