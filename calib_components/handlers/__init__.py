"""Ignite handlers: training that survives an interruption, and the files of an evaluation."""

from calib_components.handlers.checkpoint import TrainingCheckpoint
from calib_components.handlers.evaluation import EvaluationWriter

__all__ = ["EvaluationWriter", "TrainingCheckpoint"]
