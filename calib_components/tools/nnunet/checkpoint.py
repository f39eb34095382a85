"""nnU-Net's checkpoints: read as data, and with a temperature in the layers that give the logits."""

from __future__ import annotations

import contextlib
import io
import pydoc
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calib_components.errors import InputError, reading
from calib_components.tools.evaluate.plain_pickle import ALLOWED, plain
from calib_components.tools.nnunet.environment import nnunet_module

__all__ = ["check_network", "read_checkpoint", "scale_checkpoint"]

LAYER = re.compile(r"decoder\.seg_layers\.\d+\.(weight|bias)")  # gives the logits of one resolution
ARCHITECTURES = "dynamic_network_architectures."  # the package of nnU-Net's own
SOURCES = (ARCHITECTURES, "torch.nn.")  # where the parts of a network may be from
BUILT = "a network that nnU-Net builds from plans.json and dataset.json"
TRAINER = "nnUNetTrainer"
TOLERANCE = 1e-5  # of float32 logits


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint: its weights, numbers and texts; nothing in the file is ever run.

    Raises:
        InputError: It cannot be read, holds anything else, lacks what nnU-Net predicts with, or has a temperature
            already.
    """
    stand_ins: Any = [(stand_in, ".".join(name)) for name, stand_in in ALLOWED.items()]
    with reading(file, "a checkpoint of nnU-Net"), torch.serialization.safe_globals(stand_ins):
        if others := torch.serialization.get_unsafe_globals_in_checkpoint(file):
            raise InputError(f"{file}: expected weights, numbers and texts, got {others[0]}; it was not loaded")
        checkpoint = plain(torch.load(file, map_location="cpu", weights_only=True))
        if not isinstance(checkpoint, dict):
            raise ValueError("something else")
        weights, arguments, trainer = (checkpoint[key] for key in ("network_weights", "init_args", "trainer_name"))
        if not (isinstance(weights, dict) and isinstance(arguments["configuration"], str) and isinstance(trainer, str)):
            raise ValueError("something else")
    if "temperature" in checkpoint:
        raise InputError(
            f"{file}: expected a checkpoint as trained, got one with temperature {checkpoint['temperature']}"
        )
    return checkpoint


def scale_checkpoint(checkpoint: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    """Return a checkpoint whose network gives the logits divided by a temperature, with nnU-Net alone.

    Weight and bias of each layer that gives logits are divided by it, and the trainer becomes nnU-Net's own.
    """
    weights = {
        name: value / temperature if LAYER.fullmatch(name) else value
        for name, value in checkpoint["network_weights"].items()
    }
    return {**checkpoint, "network_weights": weights, "trainer_name": TRAINER, "temperature": temperature}


def check_network(file: Path, checkpoint: Mapping[str, Any], plans: dict[str, Any], dataset: dict[str, Any]) -> None:
    """Check that nnU-Net's own trainer builds the network of a checkpoint, and that a temperature divides its logits.

    The network sees noise, as trained and with a temperature of 2, by which numbers are divided without rounding.

    Args:
        file: The checkpoint, for messages.
        checkpoint: As `read_checkpoint` returns it.
        plans: `plans.json` of the model.
        dataset: `dataset.json` of the model.

    Raises:
        InputError: The trainer cannot be found or builds a network of its own, or the architecture is another one.
    """
    name = checkpoint["trainer_name"]
    own = nnunet_module("training.nnUNetTrainer.nnUNetTrainer").nnUNetTrainer
    if _trainer(file, name).build_network_architecture is not own.build_network_architecture:
        raise InputError(
            f"{file}: expected the network that {TRAINER} builds, got one that {name} builds in its own way"
        )
    with reading(file, BUILT):
        network, noise = _build(file, own, checkpoint["init_args"]["configuration"], plans, dataset)
    try:
        network.load_state_dict(checkpoint["network_weights"])
    except RuntimeError as error:
        raise InputError(
            f"{file}: expected the weights of the network in plans.json, got {' '.join(str(error).split())}"
        ) from None
    network.eval()
    with reading(file, BUILT), torch.inference_mode():
        before = network(noise)
        network.load_state_dict(scale_checkpoint(checkpoint, 2.0)["network_weights"])
        after = network(noise)
    for logits, halved in zip(before, after, strict=True):
        if (halved - logits / 2).abs().max() > TOLERANCE * logits.abs().max().clamp_min(1):
            raise InputError(
                f"{file}: expected a network whose logits come from decoder.seg_layers, got one in which dividing them "
                "does not divide the logits"
            )


def _trainer(file: Path, name: str) -> Any:
    find = nnunet_module("utilities.find_objects").recursive_find_trainer_class_by_name
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it lists where it looks
            return find(name)
    except RuntimeError:
        raise InputError(
            f"{file}: expected a trainer that nnU-Net finds, got {name}; name its folder in nnUNet_extTrainer"
        ) from None
    except Exception as error:  # of a file that it imports while it looks
        raise InputError(
            f"{file}: expected trainers that can be imported, got {error} while nnU-Net looks for {name}"
        ) from error


def _build(
    file: Path, trainer: Any, configuration: str, plans: dict[str, Any], dataset: dict[str, Any]
) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return the network of a model, with all resolutions, and noise to give it."""
    manager = nnunet_module("utilities.plans_handling.plans_handler").PlansManager(plans)
    settings = manager.get_configuration(configuration)
    if not settings.network_arch_class_name.startswith(ARCHITECTURES):
        raise InputError(f"{file}: expected an architecture of nnU-Net's own, got {settings.network_arch_class_name}")
    parts = [settings.network_arch_init_kwargs[name] for name in settings.network_arch_init_kwargs_req_import]
    for part in (settings.network_arch_class_name, *(part for part in parts if part is not None)):
        if not _is_layer(part):
            raise InputError(f"{file}: expected plans with layers of PyTorch and nnU-Net, got {part}; it was not run")
    count = nnunet_module("utilities.label_handling.label_handling").determine_num_input_channels
    channels = count(manager, settings, dataset)
    heads = manager.get_label_manager(dataset).num_segmentation_heads
    network = trainer.build_network_architecture(manager, settings, channels, heads, enable_deep_supervision=True)
    size = 2 * np.prod(settings.pool_op_kernel_sizes, axis=0)  # instance norm needs more than one voxel at the bottom
    return network, torch.randn(1, channels, *size.tolist(), generator=torch.Generator().manual_seed(0))


def _is_layer(name: str) -> bool:
    """Whether plans may name this: nnU-Net calls whatever they name, from any module."""
    found = pydoc.locate(name) if name.startswith(SOURCES) else None
    return isinstance(found, type) and issubclass(found, torch.nn.Module)
