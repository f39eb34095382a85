"""Calibration and segmentation metrics with the conventions of MONAI."""

from calib_components.metrics.bins import CalibrationBins, calibration_bins
from calib_components.metrics.calibration import CECEMetric, ECEMetric, adaptive_calibration_error
from calib_components.metrics.calibration_metric import CalibrationMetric
from calib_components.metrics.consistency import consistency_bands, resampled_errors
from calib_components.metrics.logits import LogitMagnitudeMetric
from calib_components.metrics.regions import Region
from calib_components.metrics.scoring_rules import BrierMetric, NLLMetric, brier_score, negative_log_likelihood
from calib_components.metrics.segmentation import (
    DSCMetric,
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
    "DSCMetric",
    "ECEMetric",
    "HD95Metric",
    "LogitMagnitudeMetric",
    "NLLMetric",
    "Region",
    "adaptive_calibration_error",
    "brier_score",
    "calibration_bins",
    "consistency_bands",
    "dice",
    "hausdorff_distance_95",
    "negative_log_likelihood",
    "resampled_errors",
    "structure_masks",
]
