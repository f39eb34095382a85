"""Checkpoints of nnU-Net are read as data, and scaled so that their network's logits are divided by the temperature."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import dynamic_network_architectures.architectures.unet as unet
import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)

from calib_components.errors import InputError
from calib_components.tools.nnunet.checkpoint import check_network, read_checkpoint, scale_checkpoint
from calib_components.tools.nnunet.trainers.loss_trainers import nnUNetTrainerNACL
from tests.calib_components.tools.nnunet.made_up import changed, dataset_of, leaves, make_trainer, plans_of

# What nnU-Net's logger puts into a checkpoint beside weights.
NUMPY: list[Any] = [np._core.multiarray.scalar, np.dtype, np.dtypes.Float32DType, np.dtypes.Float64DType]


class Harmful:
    """Makes a folder when its pickle is run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.folder),)


def save_trained(file: Path, **options: Any) -> nnUNetTrainer:
    """A checkpoint as nnU-Net writes it, with a training step behind it."""
    trainer = make_trainer(**options)
    trainer.loss = trainer._build_loss()
    shape = trainer.configuration_manager.patch_size
    targets = [torch.zeros(2, 1, *(side // 2**level for side in shape)) for level in range(3)]
    trainer.train_step({"data": torch.ones(2, 1, *shape), "target": targets})
    for key, value in (("train_losses", np.float32(0.5)), ("mean_fg_dice", np.float64(0.75)), ("lrs", 0.01)):
        trainer.logger.log(key, value, 0)
    trainer.logger.log("dice_per_class_or_region", [np.float32(0.25), np.float64(0.125)], 0)
    trainer._best_ema = np.float64(0.75)
    trainer.inference_allowed_mirroring_axes = (0, 1)
    trainer.save_checkpoint(str(file))
    return trainer


def test_what_nnunet_writes_is_read_as_plain_values(tmp_path: Path) -> None:
    trainer = save_trained(tmp_path / "a.pth")
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    with torch.serialization.safe_globals(NUMPY):
        loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    read, written = leaves(checkpoint), leaves(loaded)
    assert {type(value) for value in written.values()} > {np.float32, np.float64}
    assert read.keys() == written.keys()
    assert {type(value) for value in read.values()} <= {torch.Tensor, torch.device, int, float, str, bool, type(None)}
    assert changed(checkpoint, loaded) == set()
    assert checkpoint["logging"]["train_losses"] == [0.5]
    assert checkpoint["logging"]["dice_per_class_or_region"] == [[0.25, 0.125]]
    assert checkpoint["network_weights"].keys() == trainer.network.state_dict().keys()
    assert any(place.endswith("momentum_buffer") for place in read)


def test_a_pickle_that_does_more_than_hold_data_is_not_run(tmp_path: Path) -> None:
    save_trained(tmp_path / "a.pth")
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    checkpoint["logging"]["more"] = Harmful(tmp_path / "harm")
    torch.save(checkpoint, tmp_path / "a.pth")
    with pytest.raises(InputError) as caught:
        read_checkpoint(tmp_path / "a.pth")
    expected = (
        f"{tmp_path / 'a.pth'}: expected weights, numbers and texts, got {os.mkdir.__module__}.mkdir; it was not loaded"
    )
    assert str(caught.value) == expected
    assert not (tmp_path / "harm").exists()
    call, arguments = Harmful(tmp_path / "harm").__reduce__()
    call(*arguments)  # what a pickle runs
    assert (tmp_path / "harm").is_dir()  # so it would have been


def test_a_pickle_in_the_old_form_is_not_run_either(tmp_path: Path) -> None:
    torch.save({"network_weights": Harmful(tmp_path / "harm")}, tmp_path / "a", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"^.*/a: expected a checkpoint of nnU-Net, got [^\n]+$"):
        read_checkpoint(tmp_path / "a")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"network_weights": None}, "something else"),
        ({"trainer_name": 3}, "something else"),
        ({"init_args": {"configuration": 1}}, "something else"),
        ({"init_args": {}}, "one that lacks 'configuration'"),
    ],
)
def test_other_contents_are_refused(change: dict[str, Any], got: str, tmp_path: Path) -> None:
    save_trained(tmp_path / "a.pth")
    torch.save({**read_checkpoint(tmp_path / "a.pth"), **change}, tmp_path / "a.pth")
    with pytest.raises(InputError) as caught:
        read_checkpoint(tmp_path / "a.pth")
    assert str(caught.value) == f"{tmp_path / 'a.pth'}: expected a checkpoint of nnU-Net, got {got}"


def test_one_with_a_temperature_is_refused(tmp_path: Path) -> None:
    save_trained(tmp_path / "a.pth")
    torch.save(scale_checkpoint(read_checkpoint(tmp_path / "a.pth"), 1.5), tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"b.pth: expected a checkpoint as trained, got one with temperature 1.5$"):
        read_checkpoint(tmp_path / "b.pth")


@pytest.mark.parametrize("architecture", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_logits_of_all_resolutions_are_divided(
    architecture: str, dimensions: int, temperature: float, tmp_path: Path
) -> None:
    plans = plans_of(dimensions, architecture)
    trainer = save_trained(tmp_path / "a.pth", plans=plans)
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    before = deepcopy(checkpoint)
    scaled = scale_checkpoint(checkpoint, temperature)
    check_network(tmp_path / "a.pth", checkpoint, plans, dataset_of())
    assert scaled["temperature"] == temperature
    assert scaled["trainer_name"] == "nnUNetTrainer"
    assert changed(checkpoint, before) == set()  # a copy was scaled

    network = trainer.network.eval()
    image = torch.randn(1, 1, *trainer.configuration_manager.patch_size, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        logits = network(image)
        network.load_state_dict(scaled["network_weights"])
        divided = network(image)
    assert len(logits) == 3
    for one, other in zip(logits, divided, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert one.std() > 0.05
        torch.testing.assert_close(other, one / temperature, atol=1e-5, rtol=1e-5)


def test_a_trainer_of_nnunet_with_its_usual_network_is_accepted(tmp_path: Path) -> None:
    save_trained(tmp_path / "a.pth", trainer=nnUNetTrainerNoMirroring)
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    assert checkpoint["trainer_name"] == "nnUNetTrainerNoMirroring"
    check_network(tmp_path / "a.pth", checkpoint, plans_of(), dataset_of())


class Squashed(unet.PlainConvUNet):
    """A network whose last step is not the layers that nnU-Net's decoder ends with."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [4 * logits.tanh() for logits in super().forward(x)]


@pytest.mark.parametrize(
    ("name", "plans", "message"),
    [
        ("nnUNetTrainerBN", plans_of(), "expected the network that nnUNetTrainer builds, got one that nnUNetTrainerBN"),
        ("nnUNetTrainerOfMine", plans_of(), "expected a trainer that nnU-Net finds, got nnUNetTrainerOfMine; name its"),
        (
            "nnUNetTrainerNACL",
            plans_of(architecture="monai.networks.nets.UNet"),
            "expected an architecture of nnU-Net's own, got monai.networks.nets.UNet",
        ),
        (
            "nnUNetTrainerNACL",
            plans_of(features=6),
            r"expected the weights of the network in plans\.json, got .*size mismatch for encoder",
        ),
        (
            "nnUNetTrainerNACL",
            plans_of(architecture="ResidualEncoderUNet"),
            r"expected the weights of the network in plans\.json, got .*Missing key",
        ),
    ],
)
def test_another_network_is_refused(name: str, plans: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_trained(tmp_path / "a.pth")
    checkpoint = {**read_checkpoint(tmp_path / "a.pth"), "trainer_name": name}
    with pytest.raises(InputError, match=rf"^{tmp_path / 'a.pth'}: {message}[^\n]*$"):
        check_network(tmp_path / "a.pth", checkpoint, plans, dataset_of())


def test_a_network_that_goes_on_after_its_layers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet, "Squashed", Squashed, raising=False)
    plans = plans_of()
    plans["configurations"]["2d"]["architecture"]["network_class_name"] = f"{unet.__name__}.Squashed"
    save_trained(tmp_path / "a.pth", trainer=nnUNetTrainerNACL, plans=plans)
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"expected a network whose logits come from decoder\.seg_layers, got one in"):
        check_network(tmp_path / "a.pth", checkpoint, plans, dataset_of())
