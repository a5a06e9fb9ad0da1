"""Every metric of neural collapse, NC1 to NC5: one call for all of them, and each by itself."""

from ._decomposition import MSEDecomposition, mse_decomposition
from ._duality import bias_alignment, duality_etf, duality_of, ood_orthogonality, self_duality, uniform_duality
from ._frames import (
    equiangular,
    equinorm,
    etf_distance,
    etf_floor,
    gnc2,
    gof_distance,
    max_equiangle,
    of_distance,
)
from ._gof import GOFReport, gof_report
from ._layerwise import Profile, Spectrum, layerwise, principal_angles, spectrum
from ._pairs import PairMoments
from ._report import Report, report
from ._variability import cdnv, class_variability, nc1_fisher, nc1_pinv, nc1_quotient


__all__ = [
    "GOFReport",
    "MSEDecomposition",
    "PairMoments",
    "Profile",
    "Report",
    "Spectrum",
    "bias_alignment",
    "cdnv",
    "class_variability",
    "duality_etf",
    "duality_of",
    "equiangular",
    "equinorm",
    "etf_distance",
    "etf_floor",
    "gnc2",
    "gof_distance",
    "gof_report",
    "layerwise",
    "max_equiangle",
    "mse_decomposition",
    "nc1_fisher",
    "nc1_pinv",
    "nc1_quotient",
    "of_distance",
    "ood_orthogonality",
    "principal_angles",
    "report",
    "self_duality",
    "spectrum",
    "uniform_duality",
]
