"""Saved predictions of any model: what people have, read case by case, evaluated and calibrated."""

from calib_tools.commands import calibrate_predictions, evaluate_predictions

__all__ = ["calibrate_predictions", "evaluate_predictions"]
