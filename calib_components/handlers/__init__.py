"""Handlers: training that survives an interruption, trained weights, their temperature, and files of an evaluation."""

from calib_components.handlers.checkpoint import TrainingCheckpoint
from calib_components.handlers.evaluation import EvaluationWriter, check_case
from calib_components.handlers.processes import join_process_group, leave_process_group, share_cases
from calib_components.handlers.temperature import (
    TemperatureCalibration,
    calibration_cases,
    read_temperature,
    write_temperature,
)
from calib_components.handlers.weights import WeightsCheckpointLoader, load_torchscript, load_weights

__all__ = [
    "EvaluationWriter",
    "TemperatureCalibration",
    "TrainingCheckpoint",
    "WeightsCheckpointLoader",
    "calibration_cases",
    "check_case",
    "join_process_group",
    "leave_process_group",
    "load_torchscript",
    "load_weights",
    "read_temperature",
    "share_cases",
    "write_temperature",
]
