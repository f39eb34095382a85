"""Training that survives an interruption, its log, and several processes."""

from calib_workflows.training.checkpoint import TrainingCheckpoint
from calib_workflows.training.log import TrainingLog, training_curves
from calib_workflows.training.processes import join_process_group, leave_process_group, share_cases

__all__ = [
    "TrainingCheckpoint",
    "TrainingLog",
    "join_process_group",
    "leave_process_group",
    "share_cases",
    "training_curves",
]
