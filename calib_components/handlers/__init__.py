"""Handlers: training that survives an interruption, trained weights, their calibration, and files
of an evaluation.
"""

from calib_components.handlers.calibration import (
    Calibration,
    calibration_cases,
    read_estimate,
    write_estimate,
)
from calib_components.handlers.checkpoint import TrainingCheckpoint
from calib_components.handlers.evaluation import EvaluationRecords, EvaluationWriter, check_case
from calib_components.handlers.evaluation_files import Evaluation
from calib_components.handlers.processes import join_process_group, leave_process_group, share_cases
from calib_components.handlers.training_log import TrainingLog, training_curves
from calib_components.handlers.weights import (
    WeightsCheckpointLoader,
    load_torchscript,
    load_weights,
)

__all__ = [
    "Calibration",
    "Evaluation",
    "EvaluationRecords",
    "EvaluationWriter",
    "TrainingCheckpoint",
    "TrainingLog",
    "WeightsCheckpointLoader",
    "calibration_cases",
    "check_case",
    "join_process_group",
    "leave_process_group",
    "load_torchscript",
    "load_weights",
    "read_estimate",
    "share_cases",
    "training_curves",
    "write_estimate",
]
