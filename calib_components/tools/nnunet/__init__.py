"""nnU-Net: trainers with the losses of this package, and a temperature in its checkpoints."""

from __future__ import annotations

from pathlib import Path

from calib_components.tools.cli import Command
from calib_components.tools.nnunet.calibrate import calibrate_model
from calib_components.tools.nnunet.dataset import make_acdc

__all__ = ["COMMANDS"]


def print_trainers() -> None:
    """Print the folder of the trainers, for nnU-Net's environment variable `nnUNet_extTrainer`."""
    print(Path(__file__).parent / "trainers")


COMMANDS: dict[str, Command] = {
    "trainers": print_trainers,
    "acdc": make_acdc,
    "calibrate": calibrate_model,
}
