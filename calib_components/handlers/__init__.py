"""Ignite handlers: training that survives an interruption, trained weights, and the files of an evaluation."""

from calib_components.handlers.checkpoint import TrainingCheckpoint
from calib_components.handlers.evaluation import EvaluationWriter, check_case
from calib_components.handlers.processes import join_process_group
from calib_components.handlers.weights import WeightsLoader, load_torchscript, load_weights

__all__ = [
    "EvaluationWriter",
    "TrainingCheckpoint",
    "WeightsLoader",
    "check_case",
    "join_process_group",
    "load_torchscript",
    "load_weights",
]
