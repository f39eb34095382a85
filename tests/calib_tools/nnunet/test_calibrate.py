"""One temperature is fitted on the validations that the folds of a model saved, and written into
its checkpoints.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from calib_components.errors import InputError
from calib_components.posthoc import TemperatureScaling
from calib_tools.commands import calibrate_model
from calib_tools.nnunet.checkpoint import NUMBERS, read_checkpoint, scale_checkpoint
from calib_workflows.calibrate import read_estimate
from tests.calib_tools.nnunet.made_up import (
    CASES,
    CPU,
    IGNORE,
    LABELS,
    NAME,
    REGIONS,
    changed,
    make_model,
    validation_of,
    write_splits,
)
from tests.calib_tools.predictions.made_up import save_nifti, save_nnunet
from tests.helpers import snapshot

ALL = [*CASES[0], *CASES[1]]


def fitted(
    cases: Sequence[str],
    labels: Mapping[str, Any] = LABELS,
    region: str = "all",
    pattern: str = ".*",
) -> tuple[float, int, int]:
    """The temperature fitted to the logits of the cases, and the numbers of voxels and patients."""
    sigmoid = labels == REGIONS
    fit = TemperatureScaling(region, IGNORE if "ignore" in labels else None, sigmoid)
    for case in cases:
        p, _, label = validation_of(case, labels)
        truth = np.stack([label > 0, label == 2]) if sigmoid else label[None]
        logits = (
            torch.from_numpy(p).double().logit() if sigmoid else torch.from_numpy(p).double().log()
        )
        fit.update(logits[None], torch.from_numpy(truth)[None], re.match(pattern, case)[0])
    estimate = fit.compute()
    return pytest.approx(estimate.temperature, rel=1e-4), estimate.voxels, estimate.patients


def found(model: Path) -> tuple[float, int, int]:
    estimate = read_estimate(model)
    return estimate.temperature, estimate.voxels, estimate.patients


@pytest.fixture
def model(folders: Path) -> Path:
    """A model of two folds, of three validation cases each."""
    return make_model(folders / "results", folders / "preprocessed")


def test_the_temperature_is_fitted_on_all_folds_and_divides_the_logits_of_each(
    model: Path, folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(folders)
    trained = [read_checkpoint(model / f"fold_{fold}" / "checkpoint_final.pth") for fold in (0, 1)]
    calibrate_model(model, workers=1)
    estimate = read_estimate(model)
    assert found(model) == fitted(ALL)
    after = snapshot(folders)
    # Also checkpoint_final.pth, byte for byte
    assert {name: after[name] for name in before} == before
    added = {name.rpartition("__2d/")[2] for name in after.keys() - before.keys()}
    assert added == {
        "calibrators.csv",
        "temperature.json",
        *(f"fold_{fold}/checkpoint_calibrated.pth" for fold in (0, 1)),
    }
    for fold, checkpoint in enumerate(trained):
        with torch.serialization.safe_globals(NUMBERS):
            calibrated = torch.load(
                model / f"fold_{fold}" / "checkpoint_calibrated.pth", weights_only=True
            )
        assert calibrated["temperature"] == pytest.approx(estimate.temperature)
        fit = TemperatureScaling()
        fit.set_state(calibrated)
        assert changed(scale_checkpoint(checkpoint, fit), calibrated) == set()
    assert (
        f"-d {NAME} -tr nnUNetTrainerNACL -p nnUNetPlans -c 2d -f 0 -chk checkpoint_cal"
        in capsys.readouterr().out
    )
    calibrate_model(model, workers=1)
    assert snapshot(folders) == after  # again gives the same
    # nnU-Net alone predicts with it, without the trainers of this package; it keeps logits in half
    # precision.
    image = torch.randn(1, 2, 40, 36, generator=torch.Generator().manual_seed(0))
    logits = []
    for name in ("checkpoint_final.pth", "checkpoint_calibrated.pth"):
        predictor = nnUNetPredictor(
            use_mirroring=True, perform_everything_on_device=False, device=CPU
        )
        predictor.initialize_from_trained_model_folder(str(model), (0, 1), name)
        monkeypatch.delenv("nnUNet_extTrainer", raising=False)
        logits.append(predictor.predict_logits_from_preprocessed_data(image).float())
    expected = logits[0] / estimate.temperature
    torch.testing.assert_close(logits[1], expected, atol=5e-3 * float(expected.abs().max()), rtol=0)


def test_patients_and_a_region(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model)
    calibrate_model(Path(), region="predicted", patient_pattern=r"p\d", workers=1)
    assert found(model) == fitted(ALL, LABELS, "predicted", r"p\d")
    with pytest.raises(InputError, match="is of a run with region predicted, not all"):
        calibrate_model(Path(), workers=1)
    calibrate_model(Path(), workers=1, overwrite=True)
    assert found(model) == fitted(ALL)


def test_one_fold_beside_folders_that_are_none(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(folders / "results", folders / "preprocessed", folds=[1])
    (model / "fold_1" / "validation" / "._p3_a.npz").touch()
    for name in ("fold_all", "fold_1_old"):
        (model / name).mkdir()
        (model / name / "checkpoint_final.pth").touch()
    calibrate_model(model, workers=1)
    assert found(model) == fitted(CASES[1])
    assert "Several folds together" not in capsys.readouterr().out
    assert [file.parent.name for file in model.rglob("checkpoint_calibrated.pth")] == ["fold_1"]


@pytest.mark.parametrize(
    "labels", [{**LABELS, "ignore": IGNORE}, REGIONS], ids=["ignored voxels", "regions"]
)
def test_ignored_voxels_and_regions(labels: Mapping[str, Any], folders: Path) -> None:
    trainer = {"trainer": nnUNetTrainer} if labels == REGIONS else {}
    model = make_model(folders / "results", folders / "preprocessed", labels, **trainer)
    calibrate_model(model, workers=1)
    assert found(model) == fitted(ALL, labels)


def test_voxels_outside_of_the_crop_are_left_out(model: Path, folders: Path) -> None:
    """There, nnU-Net stores certain background; one foreground label would decide T."""
    calibrate_model(model, workers=1)
    before = read_estimate(model)
    p, predicted, label = validation_of(CASES[0][0], LABELS)
    beyond = [(0, 0), (2, 0), (0, 0)]  # voxels that the crop cuts off
    p = np.pad(p, [(0, 0), *beyond])
    p[0, :, :2] = 1
    validation = model / "fold_0" / "validation"
    save_nnunet(validation, CASES[0][0], p, dtype=np.float32)
    save_nifti(validation / f"{CASES[0][0]}.nii.gz", np.pad(predicted, beyond))
    labels = folders / "preprocessed" / NAME / "gt_segmentations"
    save_nifti(labels / f"{CASES[0][0]}.nii.gz", np.pad(label, beyond, constant_values=1))
    calibrate_model(model, workers=1)
    assert read_estimate(model) == before


def test_a_patient_or_an_image_on_both_sides_of_a_fold(
    model: Path, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = folders / "raw" / NAME / "imagesTr"
    monkeypatch.setenv("nnUNet_raw", str(folders / "raw"))
    for index, case in enumerate(ALL):
        save_nifti(images / f"{case}_0000.nii.gz", np.random.default_rng(index).random((4, 4, 3)))
    with pytest.raises(
        InputError,
        match=r"fold_0 is trained on its validation: patient a is on both sides \(p1_a and p3",
    ):
        calibrate_model(model, patient_pattern="[ab]$", workers=1)
    save_nifti(images / "p4_a_0000.nii.gz", np.random.default_rng(1).random((4, 4, 3)))
    with pytest.raises(InputError, match=r"the same volume is on both sides \(p1_b and p4_a\)"):
        calibrate_model(model, patient_pattern=r"p\d", workers=1)


def break_model(how: str, model: Path, folders: Path) -> None:
    validation = model / "fold_1" / "validation"
    if how == "is missing":
        (validation / "p3_a.npz").unlink()
    elif how == "earlier training":
        _, predicted, _ = validation_of("p3_b", LABELS)
        predicted[3, 2, 1] = (predicted[3, 2, 1] + 1) % 3
        save_nifti(validation / "p3_b.nii.gz", predicted)
    elif how == "the split of fold_1":
        write_splits(folders / "preprocessed", [0])
    elif how == "TRAINER__PLANS__CONFIGURATION":
        shutil.move(model, model.with_name("mine"))
    elif how == "no fold_N":
        for fold in model.glob("fold_*"):
            shutil.rmtree(fold)


@pytest.mark.parametrize(
    "how",
    [
        "is missing",
        "earlier training",
        "the split of fold_1",
        "TRAINER__PLANS__CONFIGURATION",
        "no fold_N",
    ],
)
def test_what_is_refused(how: str, model: Path, folders: Path) -> None:
    break_model(how, model, folders)
    before = snapshot(folders)
    with pytest.raises(InputError, match=how):
        calibrate_model(model if model.exists() else model.with_name("mine"), workers=1)
    assert snapshot(folders) == before
