"""Checkpoints of nnU-Net are read as data, and scaled so that their network's logits are divided by
the temperature.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from calib_components.errors import InputError
from calib_components.posthoc import (
    Calibrator,
    TemperatureScaling,
    VectorScaling,
)
from calib_tools.nnunet.checkpoint import (
    check_trainer,
    read_checkpoint,
    scale_checkpoint,
)
from tests.calib_tools.nnunet.made_up import make_trainer, plans_of, save_checkpoint
from tests.calib_tools.predictions.made_up import Harmful
from tests.helpers import made_up


def save_trained(file: Path, **options: Any) -> Any:
    trainer = make_trainer(**options)
    save_checkpoint(trainer, file)
    return trainer


def test_a_pickle_that_does_more_than_hold_data_is_not_run(tmp_path: Path) -> None:
    save_trained(tmp_path / "a.pth")
    content = {**read_checkpoint(tmp_path / "a.pth"), "more": Harmful(tmp_path / "harm")}
    for name, new_form in (("a.pth", True), ("b.pth", False)):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=new_form)
        with pytest.raises(InputError, match=name):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        # Of another architecture
        ({"network_weights": {"layers.0.weight": torch.ones(1)}}, "seg_layers"),
        ({"network_weights": None}, "checkpoint"),
        ({"network_weights": {"a": torch.tensor([1, torch.nan])}}, "some weights are NaN"),
        ({"temperature": 1.5}, "temperature"),
        ({"class_bias": [1.5, 2]}, "class_bias"),  # of version 0.4
        (None, "trainer_name"),
    ],
)
def test_other_contents_are_refused(
    change: dict[str, Any] | None, word: str, tmp_path: Path
) -> None:
    save_trained(tmp_path / "a.pth")
    content = read_checkpoint(tmp_path / "a.pth")
    if change is None:
        del content["trainer_name"]
    torch.save({**content, **(change or {})}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=word):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("architecture", "dimensions", "kind"),
    [("PlainConvUNet", 3, TemperatureScaling), ("ResidualEncoderUNet", 2, VectorScaling)],
)
def test_logits_of_all_resolutions_are_calibrated(
    architecture: str, dimensions: int, kind: type[Calibrator], tmp_path: Path
) -> None:
    trainer = save_trained(tmp_path / "a.pth", plans=plans_of(dimensions, architecture))
    network = trainer.network.eval()
    image = torch.randn(
        1, 1, *trainer.configuration_manager.patch_size, generator=torch.Generator().manual_seed(5)
    )
    with torch.no_grad():
        logits = network(image)
        calibrator = made_up(kind, logits[0].shape[1])
        scaled = scale_checkpoint(read_checkpoint(tmp_path / "a.pth"), calibrator)
        network.load_state_dict(scaled["network_weights"])
        calibrated = network(image)
    assert scaled["trainer_name"] == "nnUNetTrainer"
    assert {name: scaled[name] for name in calibrator.state()} == {
        k: v.tolist() for k, v in calibrator.state().items()
    }
    for one, other in zip(logits, calibrated, strict=True):
        assert one.std() > 0.05
        torch.testing.assert_close(other, calibrator(one), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "word"),
    [("nnUNetTrainerBN", "network of its own"), ("nnUNetTrainerOfMine", "nnUNet_extTrainer")],
)
def test_a_trainer_with_another_network_or_none_is_refused(name: str, word: str) -> None:
    weights = {"decoder.seg_layers.0.weight": torch.ones(3, 2)}

    def check(name: str, channels: int = 3) -> None:
        checkpoint = {"trainer_name": name, "network_weights": weights}
        check_trainer(Path("a.pth"), checkpoint, channels)

    with pytest.raises(InputError, match=word):
        check(name)
    for usual in ("nnUNetTrainerNoMirroring", "nnUNetTrainerNACL_5epochs"):
        check(usual)
        with pytest.raises(InputError, match=r"a\.pth: the network has 3 channels, not the 4"):
            check(usual, 4)
