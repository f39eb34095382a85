"""Calibration and segmentation metrics with the conventions of MONAI.

A function takes a batch and returns the value of each case. A metric is called with batches, or
lists of channel-first cases of any sizes; then `aggregate()` is the mean over cases and
`aggregate("none")` the value of each. Values are float64. One that is undefined, such as that of a
case without voxels, is NaN and left out of every mean.

These arguments are the same everywhere:

- `y_pred`: Probabilities of any floating-point type, `(B, N, *S)`, with N classes or channels and
  any number of spatial dimensions.
- `y`: Ground truth of any type that holds whole numbers: class index `(B, 1, *S)` or `(B, *S)`, or
  one-hot `(B, N, *S)`; for sigmoids 0 or 1, `(B, N, *S)`. Calibration metrics also take
  probabilities `(B, N, *S)`, such as the share of raters of each class: then a voxel and a rater
  are one observation.
- `num_bins`: Number of bins of equal width on (0, 1], up to 10,000.
- `region`: Which voxels count, see `calib_components.metrics.regions`: a `Region`, its name, such
  as "predicted" or "near(3)", or class indices. `ECEMetric`, `CECEMetric` and `CalibrationMetric`
  require it: an ECE is another number in each. `NLLMetric` and `BrierMetric` default to the paper's
  "foreground", which is no test of calibration: pass "all" for one.
- `foreground_only`: True is the region "foreground", False is "all".
- `ignore_index`: Ground-truth value of voxels to leave out; their probabilities are not checked.
- `sigmoid`: Whether each channel is a binary problem of its own, with a probability from a sigmoid
  and ground truth 0 or 1. One channel always is.
- `structures`: Class indices by name, such as `{"heart": [1, 2]}`; for sigmoids, the channel of
  each.

These errors, too. `InputError`, a `ValueError`: shapes do not match or hold no voxel, `y_pred` does
not hold probabilities, `y` holds invalid labels, or an option has an unsuitable value.
"""

from calib_components.metrics.bins import CalibrationBins
from calib_components.metrics.calibration import (
    BrierMetric,
    CalibrationMetric,
    CECEMetric,
    ECEMetric,
    NLLMetric,
)
from calib_components.metrics.case import Case
from calib_components.metrics.intervals import interval
from calib_components.metrics.objects import find_objects
from calib_components.metrics.region_measures import calibration_bins
from calib_components.metrics.regions import Region
from calib_components.metrics.segmentation import (
    DSCMetric,
    HD95Metric,
    dice,
    hausdorff_distance_95,
    structure_masks,
)
from calib_components.metrics.volumes import (
    ExpectedDSCMetric,
    StructureMeasures,
    VolumeMetric,
    measure_structures,
)

__all__ = [
    "BrierMetric",
    "CECEMetric",
    "CalibrationBins",
    "CalibrationMetric",
    "Case",
    "DSCMetric",
    "ECEMetric",
    "ExpectedDSCMetric",
    "HD95Metric",
    "NLLMetric",
    "Region",
    "StructureMeasures",
    "VolumeMetric",
    "calibration_bins",
    "dice",
    "find_objects",
    "hausdorff_distance_95",
    "interval",
    "measure_structures",
    "structure_masks",
]
