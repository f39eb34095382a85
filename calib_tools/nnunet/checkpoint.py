"""nnU-Net's checkpoints: read as data, and with a calibrator in the layers that give the logits."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from calib_components.errors import InputError, reading
from calib_components.posthoc import KINDS, RETIRED, Calibrator

LAYER = re.compile(r"decoder\.seg_layers\.\d+\.(weight|bias)")  # gives the logits of one resolution
TRAINER = "nnUNetTrainer"
# nnU-Net's logger puts numbers of NumPy into a checkpoint; NumPy 1 and 2 name them differently
SCALAR = np.float64(0).__reduce__()[0]
NUMBERS: list[Any] = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")),
    *((SCALAR, f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")),
]


def nnunet_module(name: str) -> ModuleType:
    """Import a module of nnU-Net, such as `utilities.find_objects`, where it is needed: the import
    takes seconds.
    """
    try:
        return importlib.import_module(f"nnunetv2.{name}")
    except ModuleNotFoundError as error:
        raise InputError(
            f"No module {error.name}. Install the extra: pip install -e '.[nnunet]'"
        ) from error


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint of one of nnU-Net's U-Nets: weights, numbers and texts.

    Nothing in the file is run.
    """
    with reading(file, "a checkpoint of nnU-Net"), torch.serialization.safe_globals(NUMBERS):
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        weights, _, _ = (
            dict(checkpoint)[key] for key in ("network_weights", "init_args", "trainer_name")
        )
        has_layers = any(map(LAYER.fullmatch, weights))
        if not all(values.isfinite().all() for values in weights.values()):
            raise ValueError("some weights are NaN or infinite, train it again")
    if not has_layers:
        raise InputError(
            f"{file}: the network has no layers decoder.seg_layers, which only U-Nets of nnU-Net"
            " have."
        )
    names = {*RETIRED, *(name for kind in KINDS.values() for name in kind().state())}
    if found := names & checkpoint.keys():
        raise InputError(
            f"{file} has a {min(found)} already, {checkpoint[min(found)]}. Use the file as trained."
        )
    return checkpoint


def scale_checkpoint(checkpoint: Mapping[str, Any], calibrator: Calibrator) -> dict[str, Any]:
    """Return a checkpoint whose network gives calibrated logits, with nnU-Net alone; the trainer
    becomes its own.

    The calibrator becomes a part of each layer that gives logits, in which it is affine.
    """
    weights = dict(checkpoint["network_weights"])
    for name in filter(LAYER.fullmatch, checkpoint["network_weights"]):
        unit = torch.eye(len(weights[name]), dtype=torch.float64)
        # What a logit of 1 adds is a column of the matrix
        bias = calibrator(torch.zeros_like(unit))[0]
        matrix = (calibrator(unit) - bias).T
        scaled = torch.einsum("nk,k...->n...", matrix, weights[name].double())
        weights[name] = (scaled + bias if name.endswith("bias") else scaled).to(weights[name])
    state = {name: values.tolist() for name, values in calibrator.state().items()}
    return {**checkpoint, "network_weights": weights, "trainer_name": TRAINER, **state}


def check_trainer(file: Path, checkpoint: Mapping[str, Any], channels: int) -> None:
    """Check that a network has these channels, and that its trainer builds it as nnU-Net's own
    does, which replaces it.
    """
    name, weights = checkpoint["trainer_name"], checkpoint["network_weights"]
    if found := {len(weights[each]) for each in weights if LAYER.fullmatch(each)} - {channels}:
        raise InputError(
            f"{file}: the network has {min(found)} channels, not the {channels} of dataset.json."
            " Train it again."
        )
    own = nnunet_module("training.nnUNetTrainer.nnUNetTrainer").nnUNetTrainer
    with reading(
        file,
        f"a trainer that nnU-Net finds, or whose folder nnUNet_extTrainer names, called {name}",
    ):
        trainer = nnunet_module("utilities.find_objects").recursive_find_trainer_class_by_name(name)
    if trainer.build_network_architecture is not own.build_network_architecture:
        raise InputError(
            f"{file}: {name} builds a network of its own, and cannot be replaced by {TRAINER}."
        )
