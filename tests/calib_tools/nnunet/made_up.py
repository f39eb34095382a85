"""Small plans of nnU-Net, trainers of them, and a trained model with its validation, made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.special import expit, softmax

from calib_tools.nnunet.trainers.loss_trainers import TRAINERS
from tests.calib_tools.predictions.made_up import (
    SHAPE,
    save_nifti,
    save_nnunet,
)

NACL = TRAINERS["nnUNetTrainerNACL"]
CPU = torch.device("cpu")
NAME = "Dataset001_Made"
LABELS = {"background": 0, "a": 1, "b": 2}
IGNORE = 3
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}
CASES = {0: ("p1_a", "p1_b", "p2_a"), 1: ("p3_a", "p3_b", "p4_a")}  # of each fold


def dataset_of(labels: Mapping[str, Any] = LABELS) -> dict[str, Any]:
    """What `dataset.json` says."""
    order = {"regions_class_order": [1, 2]} if labels == REGIONS else {}
    description = {
        "channel_names": {"0": "MR"},
        "labels": dict(labels),
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    return description | order


def plans_of(dimensions: int = 2, architecture: str = "PlainConvUNet") -> dict[str, Any]:
    """What `plans.json` says of a network of four stages, so of three resolutions."""
    blocks = "n_conv_per_stage" if architecture == "PlainConvUNet" else "n_blocks_per_stage"
    network = {
        "n_stages": 4,
        "features_per_stage": [4, 8, 8, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": [[3] * dimensions] * 4,
        "strides": [[1] * dimensions] + [[2] * dimensions] * 3,
        blocks: [1] * 4,
        "n_conv_per_stage_decoder": [1] * 3,
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
    }
    configuration = {
        "data_identifier": "made",
        "batch_size": 2,
        "patch_size": [32 if dimensions == 2 else 16] * dimensions,
        "spacing": [1.0] * dimensions,
        "batch_dice": dimensions == 2,
        "architecture": {
            "network_class_name": (
                f"dynamic_network_architectures.architectures.unet.{architecture}"
            ),
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
        },
    }
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "configurations": {"2d" if dimensions == 2 else "3d_fullres": configuration},
    }


def make_trainer(
    trainer: Callable[..., nnUNetTrainer] = NACL,
    plans: dict[str, Any] | None = None,
    labels: Mapping[str, Any] = LABELS,
    deep_supervision: bool = True,
) -> nnUNetTrainer:
    """A trainer, with network, optimizer and loss, and without data; it needs the variable
    `nnUNet_results`.
    """
    plans = deepcopy(plans or plans_of())
    (configuration,) = plans["configurations"]
    made = trainer({**plans, "continue_training": False}, configuration, 0, dataset_of(labels), CPU)
    made.enable_deep_supervision = deep_supervision
    torch.manual_seed(0)
    heads = made.label_manager.num_segmentation_heads
    made.network = made.build_network_architecture(
        made.plans_manager, made.configuration_manager, 1, heads, deep_supervision
    )
    with torch.no_grad():
        for parameter in made.network.parameters():  # biases are 0 otherwise
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.optimizer, made.lr_scheduler = made.configure_optimizers()
    return made


def save_checkpoint(trainer: nnUNetTrainer, file: Path) -> None:
    """Save a checkpoint with NumPy's numbers, which nnU-Net's logger puts there."""
    losses = {"train_losses": np.float32(0.5), "val_losses": np.float64(0.25), "lrs": 0.01}
    for key, value in losses.items():
        trainer.logger.log(key, value, 0)
    trainer._best_ema = np.float64(0.75)
    trainer.save_checkpoint(str(file))


def validation_of(
    case: str, labels: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities `(C, X, Y, Z)` of a case, the label map that nnU-Net draws of them, and a
    label.

    Labels are drawn from logits that are half as large, so that T is near 2.
    """
    rng = np.random.default_rng([*map(ord, case)])
    if labels == REGIONS:
        whole = 3 * rng.normal(size=SHAPE)
        logits = np.stack([whole, whole - 3 * np.abs(rng.normal(size=SHAPE))])
        # The core lies in the whole
        label = (rng.random(SHAPE) < expit(logits / 2)).sum(0).astype(np.uint8)
        return expit(logits).astype(np.float32), (logits > 0).sum(0).astype(np.uint8), label
    logits = 3 * rng.normal(size=(3, *SHAPE))
    p = softmax(logits, axis=0).astype(np.float32)
    label = (
        (rng.random(SHAPE) > np.cumsum(softmax(logits / 2, axis=0), axis=0)).sum(0).astype(np.uint8)
    )
    if "ignore" in labels:
        label[:2] = IGNORE
    return p, p.argmax(0).astype(np.uint8), label


def write_splits(preprocessed: Path, folds: Sequence[int] = (0, 1)) -> None:
    splits = [{"train": CASES[1 - fold], "val": CASES[fold]} for fold in folds]
    (preprocessed / NAME / "splits_final.json").write_text(json.dumps(splits))


def make_model(
    results: Path,
    preprocessed: Path,
    labels: Mapping[str, Any] = LABELS,
    folds: Sequence[int] = (0, 1),
    trainer: type[nnUNetTrainer] = NACL,
) -> Path:
    """A trained model of `Dataset001_Made`: its folds, each with what it saved of its validation,
    and the labels.
    """
    made = make_trainer(trainer, labels=labels)
    model = results / NAME / f"{trainer.__name__}__nnUNetPlans__2d"
    for fold in folds:
        validation = model / f"fold_{fold}" / "validation"
        validation.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            for parameter in made.network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        made.my_init_kwargs["fold"] = fold
        save_checkpoint(made, model / f"fold_{fold}" / "checkpoint_final.pth")
        for case in CASES[fold]:
            p, predicted, label = validation_of(case, labels)
            save_nnunet(validation, case, p, dtype=np.float32)
            save_nifti(validation / f"{case}.nii.gz", predicted)
            save_nifti(preprocessed / NAME / "gt_segmentations" / f"{case}.nii.gz", label)
        (validation / "summary.json").write_text("{}")
    write_splits(preprocessed)
    (model / "plans.json").write_text(json.dumps(plans_of()))
    (model / "dataset.json").write_text(json.dumps(dataset_of(labels)))
    return model


def changed(one: Any, other: Any, place: str = "") -> set[str]:
    """Where two checkpoints differ."""
    if isinstance(one, list | tuple):
        one, other = (dict(enumerate(values)) for values in (one, other))
    if isinstance(one, dict):
        parts = (
            {key} if key not in one or key not in other else changed(one[key], other[key], key)
            for key in one | other
        )
        return {f"{place}/{name}" for names in parts for name in names}
    return set() if np.array_equal(one, other) else {place}
