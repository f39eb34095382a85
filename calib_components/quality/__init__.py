"""Estimates of the quality of segmentations from their probabilities, without labels.

`ScanEstimates` measures a scan, and `PairwiseDice` how well several segmentations of it agree;
`ESTIMATES` is the table of what follows from it; `Reference` holds what labelled validation scans
gave, and `find_shift` says whether new scans are like them.
"""

from calib_components.quality.estimates import (
    ESTIMATES,
    PairwiseDice,
    ScanEstimates,
    StructureEstimate,
)
from calib_components.quality.reference import Reference, mean_estimate
from calib_components.quality.shift import find_shift

__all__ = [
    "ESTIMATES",
    "PairwiseDice",
    "Reference",
    "ScanEstimates",
    "StructureEstimate",
    "find_shift",
    "mean_estimate",
]
