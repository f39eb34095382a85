"""Calibration and segmentation metrics with the conventions of MONAI."""

from calib_components.metrics.calibration import (
    BrierMetric,
    CalibrationBins,
    CalibrationMetric,
    CECEMetric,
    ECEMetric,
    NLLMetric,
    adaptive_calibration_error,
    brier_score,
    calibration_bins,
    negative_log_likelihood,
)
from calib_components.metrics.logits import LogitMagnitudeMetric
from calib_components.metrics.segmentation import (
    DiceMetric,
    HD95Metric,
    dice,
    hausdorff_distance_95,
    structure_masks,
)

__all__ = [
    "BrierMetric",
    "CECEMetric",
    "CalibrationBins",
    "CalibrationMetric",
    "DiceMetric",
    "ECEMetric",
    "HD95Metric",
    "LogitMagnitudeMetric",
    "NLLMetric",
    "adaptive_calibration_error",
    "brier_score",
    "calibration_bins",
    "dice",
    "hausdorff_distance_95",
    "negative_log_likelihood",
    "structure_masks",
]
