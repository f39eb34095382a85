"""Calibration and segmentation metrics with the conventions of MONAI."""

from calib_components.metrics.bins import CalibrationBins, calibration_bins
from calib_components.metrics.calibration import CECEMetric, ECEMetric, adaptive_calibration_error
from calib_components.metrics.calibration_metric import CalibrationMetric
from calib_components.metrics.consistency import consistency_bands, resampled_errors
from calib_components.metrics.expected_dice import ExpectedDSCMetric, expected_dsc
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
from calib_components.metrics.selective import RiskCoverage, RiskCoverageMetric, risk_coverage
from calib_components.metrics.smooth import SmoothECEMetric, smooth_calibration_error
from calib_components.metrics.thresholds import ThresholdCounts, ThresholdMetric, ThresholdTable, threshold_counts
from calib_components.metrics.volume import VolumeMetric, Volumes, structure_volumes

__all__ = [
    "BrierMetric",
    "CECEMetric",
    "CalibrationBins",
    "CalibrationMetric",
    "DSCMetric",
    "ECEMetric",
    "ExpectedDSCMetric",
    "HD95Metric",
    "LogitMagnitudeMetric",
    "NLLMetric",
    "Region",
    "RiskCoverage",
    "RiskCoverageMetric",
    "SmoothECEMetric",
    "ThresholdCounts",
    "ThresholdMetric",
    "ThresholdTable",
    "VolumeMetric",
    "Volumes",
    "adaptive_calibration_error",
    "brier_score",
    "calibration_bins",
    "consistency_bands",
    "dice",
    "expected_dsc",
    "hausdorff_distance_95",
    "negative_log_likelihood",
    "resampled_errors",
    "risk_coverage",
    "smooth_calibration_error",
    "structure_masks",
    "structure_volumes",
    "threshold_counts",
]
