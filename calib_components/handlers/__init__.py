"""Ignite handlers: training that survives an interruption, and the files of an evaluation."""

from calib_components.handlers.checkpoint import TrainingCheckpoint
from calib_components.handlers.evaluation import EvaluationWriter
from calib_components.handlers.processes import join_process_group

__all__ = ["EvaluationWriter", "TrainingCheckpoint", "join_process_group"]
