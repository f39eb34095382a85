"""Saved predictions of any model: what people have, read case by case, evaluated and calibrated."""

from calib_components.tools.evaluate.calibrate import calibrate_predictions
from calib_components.tools.evaluate.evaluate import evaluate_predictions

__all__ = ["calibrate_predictions", "evaluate_predictions"]
