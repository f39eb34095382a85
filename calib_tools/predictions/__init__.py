"""Saved predictions of any model: what people have, read case by case, evaluated and calibrated."""

from calib_tools.predictions.calibrate import calibrate_predictions
from calib_tools.predictions.evaluate import evaluate_predictions

__all__ = ["calibrate_predictions", "evaluate_predictions"]
