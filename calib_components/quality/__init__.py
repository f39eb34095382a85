"""Estimates of the quality of segmentations from their probabilities, without labels.

`ScanEstimates` measures a scan, and `PairwiseDice` how well several segmentations of it agree;
`ESTIMATES` is the table of what follows from it; `Reference` holds what labelled validation scans
gave; `describe_scan`, `write_record` and `write_table` make `quality.csv` and `quality.html`.
"""

from calib_components.quality.estimates import (
    ESTIMATES,
    PairwiseDice,
    ScanEstimates,
    StructureEstimate,
)
from calib_components.quality.page import draw_slice
from calib_components.quality.reference import Reference, mean_estimate
from calib_components.quality.table import describe_scan, write_record, write_table

__all__ = [
    "ESTIMATES",
    "PairwiseDice",
    "Reference",
    "ScanEstimates",
    "StructureEstimate",
    "describe_scan",
    "draw_slice",
    "mean_estimate",
    "write_record",
    "write_table",
]
