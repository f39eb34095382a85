"""One temperature is fitted on the validations that the folds of a model saved, and written into its checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit

from calib_components.errors import UNFINISHED, InputError
from calib_components.handlers.calibration import read_estimate
from calib_components.tools.nnunet.calibrate import calibrate_model
from calib_components.tools.nnunet.checkpoint import read_checkpoint
from calib_components.tools.nnunet.trainers.loss_trainers import nnUNetTrainerNACL
from tests.calib_components.tools.evaluate.made_up import SHAPE, save_nifti, save_nnunet, sitk_properties
from tests.calib_components.tools.nnunet.made_up import (
    CASES,
    CPU,
    IGNORE,
    LABELS,
    NAME,
    REGIONS,
    changed,
    make_model,
    validation_of,
)
from tests.helpers import snapshot

LAYERS = {f"/network_weights/decoder.seg_layers.{i}.{name}" for i in range(3) for name in ("weight", "bias")}


def fitted(cases: list[str], labels: Mapping[str, Any] = LABELS, predicted_only: bool = False) -> tuple[float, int]:
    """The temperature of the smallest NLL, and the number of voxels or channels of voxels that it is the mean over."""
    scores, truths = [], []
    for p, predicted, label in (validation_of(case, labels) for case in cases):
        kept = (label != IGNORE) & ((predicted > 0) | (not predicted_only))
        if labels == REGIONS:
            scores.append(logit(p[:, kept].astype(float)))
            truths.append(np.stack([label[kept] > 0, label[kept] == 2]))
        else:
            scores.append(np.log(p[:, kept].astype(float)))
            truths.append(np.arange(3)[:, None] == label[kept])
    score, truth = np.concatenate(scores, 1), np.concatenate(truths, 1)

    def nll(temperature: float) -> float:
        if labels == REGIONS:
            return -np.log(expit(np.where(truth, score, -score) / temperature)).sum()
        return -log_softmax(score / temperature, axis=0)[truth].sum()

    return minimize_scalar(nll, bounds=(0.2, 5), options={"xatol": 1e-7}).x, score.shape[1]


@pytest.fixture
def model(folders: Path) -> Path:
    """A model of two folds, of three validation cases each."""
    return make_model(folders / "results", folders / "preprocessed")


ALL = [*CASES[0], *CASES[1]]


def test_the_temperature_is_fitted_on_all_folds_and_divides_the_logits_of_each(
    model: Path, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(folders)
    trained = [read_checkpoint(model / f"fold_{fold}" / "checkpoint_final.pth") for fold in (0, 1)]
    capsys.readouterr()
    calibrate_model(model, workers=1)

    estimate = read_estimate(model)
    temperature, voxels = fitted(ALL)
    assert estimate.temperature == pytest.approx(temperature, rel=1e-4)
    assert 1.6 < estimate.temperature < 2.5
    assert (estimate.voxels, estimate.patients) == (voxels, 6) == (6 * np.prod(SHAPE), 6)
    after, place = snapshot(folders), model.relative_to(folders)
    written = {str(place / f"fold_{fold}" / "checkpoint_calibrated.pth") for fold in (0, 1)}
    assert after.keys() - before.keys() == written | {str(place / name) for name in ("temperature.json", ".lock")}
    assert {name: after[name] for name in before} == before  # also checkpoint_final.pth, byte for byte
    for fold, checkpoint in enumerate(trained):
        calibrated = torch.load(model / f"fold_{fold}" / "checkpoint_calibrated.pth", weights_only=True)
        assert changed(checkpoint, calibrated) == LAYERS | {"/trainer_name", "/temperature"}
        assert (calibrated["trainer_name"], calibrated["temperature"]) == ("nnUNetTrainer", estimate.temperature)
        for name in (name.rpartition("/")[2] for name in LAYERS):
            one, other = checkpoint["network_weights"][name], calibrated["network_weights"][name]
            torch.testing.assert_close(other, one / estimate.temperature, atol=1e-7, rtol=1e-6)
            assert other.dtype == torch.float32
    command = f"nnUNetv2_predict -d {NAME} -tr nnUNetTrainerNACL -p nnUNetPlans -c 2d -f 0"
    remark = "T is that of single folds. Several folds together average their logits, which is another model"
    advice = (
        "evaluate its predictions of labelled cases that no fold has seen, or fit a T of its own to them with "
        "calibrate_predictions."
    )
    assert capsys.readouterr().out.splitlines() == [
        f"{model}: fold_0, fold_1, 6 validation cases",
        f"T = {estimate.summary()}",
        f"NLL {estimate.nll_before:.4f} -> {estimate.nll_after:.4f} over all voxels, which T is fitted on",
        "T > 1: the model was overconfident on these patients; its probabilities become softer.",
        f"Predict with: {command} -chk checkpoint_calibrated.pth -i IMAGES -o PREDICTIONS",
        f"{remark}: {advice}",
    ]


def test_nnunet_alone_predicts_with_a_calibrated_checkpoint(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable that names the trainers of this package; nnU-Net keeps logits in half precision."""
    calibrate_model(model, workers=1)
    image = torch.randn(1, 2, 40, 36, generator=torch.Generator().manual_seed(0))
    logits = []
    for name in ("checkpoint_final.pth", "checkpoint_calibrated.pth"):
        predictor = nnUNetPredictor(use_mirroring=True, perform_everything_on_device=False, device=CPU)
        predictor.initialize_from_trained_model_folder(str(model), (0, 1), name)
        monkeypatch.delenv("nnUNet_extTrainer", raising=False)
        logits.append(predictor.predict_logits_from_preprocessed_data(image).float())
    assert logits[0].std() > 0.05
    expected = logits[0] / read_estimate(model).temperature
    torch.testing.assert_close(logits[1], expected, atol=5e-3 * float(expected.abs().max()), rtol=0)


def test_again_gives_the_same(model: Path, folders: Path) -> None:
    calibrate_model(model, workers=1)
    once = snapshot(folders)
    calibrate_model(model, workers=1)
    assert snapshot(folders) == once


def test_labels_may_be_elsewhere_and_several_cases_of_a_patient(
    model: Path, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folders / "preprocessed" / NAME / "gt_segmentations").rename(folders / "labels")
    monkeypatch.delenv("nnUNet_preprocessed")
    monkeypatch.chdir(model)
    calibrate_model(Path(), labels=folders / "labels", patient_pattern=r"p\d", workers=1)
    estimate = read_estimate(model)
    assert estimate.temperature == pytest.approx(fitted(ALL)[0], rel=1e-4)
    assert estimate.patients == 4


def test_a_region(model: Path) -> None:
    calibrate_model(model, region="predicted", workers=1)
    estimate = read_estimate(model)
    temperature, voxels = fitted(ALL, predicted_only=True)
    assert estimate.temperature == pytest.approx(temperature, rel=1e-4)
    assert estimate.voxels == voxels < 6 * np.prod(SHAPE)


def test_one_fold(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not an unfinished fold, fold_all, which has no validation of its own, a copy of a fold or a hidden file."""
    model = make_model(folders / "results", folders / "preprocessed", folds=[1])
    (model / "fold_0").mkdir(exist_ok=True)
    (model / "fold_0" / "checkpoint_latest.pth").touch()
    (model / "fold_1" / "validation" / "._p3_a.npz").touch()
    for name in ("fold_all", "fold_1_old"):
        (model / name).mkdir()
        (model / name / "checkpoint_final.pth").touch()
    calibrate_model(model, workers=1)
    assert read_estimate(model).temperature == pytest.approx(fitted([*CASES[1]])[0], rel=1e-4)
    out = capsys.readouterr().out
    assert " -f 1 -chk " in out
    assert "T is that of single folds" not in out
    assert [file.parent.name for file in model.rglob("checkpoint_calibrated.pth")] == ["fold_1"]


def test_voxels_to_ignore(folders: Path) -> None:
    labels = {**LABELS, "ignore": IGNORE}
    model = make_model(folders / "results", folders / "preprocessed", labels)
    calibrate_model(model, workers=1)
    estimate = read_estimate(model)
    temperature, voxels = fitted(ALL, labels)
    assert estimate.temperature == pytest.approx(temperature, rel=1e-4)
    assert estimate.voxels == voxels == 6 * np.prod(SHAPE) * 4 // 6


def test_regions_with_a_sigmoid_each(folders: Path) -> None:
    """Of nnU-Net's own trainer, which the losses of this package cannot replace there."""
    model = make_model(folders / "results", folders / "preprocessed", REGIONS, trainer=nnUNetTrainer)
    calibrate_model(model, workers=1)
    assert read_estimate(model).temperature == pytest.approx(fitted(ALL, REGIONS)[0], rel=1e-4)
    calibrated = torch.load(model / "fold_1" / "checkpoint_calibrated.pth", weights_only=True)
    assert calibrated["network_weights"]["decoder.seg_layers.2.bias"].shape == (2,)


@pytest.mark.parametrize(
    ("labels", "trainer"), [(LABELS, nnUNetTrainerNACL), (REGIONS, nnUNetTrainer)], ids=["classes", "regions"]
)
def test_probabilities_of_an_earlier_training_are_refused(
    labels: Mapping[str, Any], trainer: type[nnUNetTrainer], folders: Path
) -> None:
    """One voxel of the label map that a later validation wrote differs."""
    model = make_model(folders / "results", folders / "preprocessed", labels, trainer=trainer)
    validation = model / "fold_1" / "validation"
    _, predicted, _ = validation_of("p3_b", labels)
    predicted[3, 2, 1] = (predicted[3, 2, 1] + 1) % 3
    save_nifti(validation / "p3_b.nii.gz", predicted)
    before = snapshot(folders)
    with pytest.raises(InputError) as caught:
        calibrate_model(model, workers=1)
    assert str(caught.value) == (
        f"{validation / 'p3_b.npz'}: expected the probabilities of p3_b.nii.gz beside it, got others, such as of an "
        "earlier training; run nnUNetv2_train for this fold again, with --val --npz"
    )
    assert snapshot(folders) == before


def test_probabilities_of_other_classes_are_refused(model: Path) -> None:
    for file in model.glob("fold_*/validation/*.npz"):
        probabilities = np.load(file)["probabilities"]
        np.savez_compressed(file, probabilities=np.concatenate([probabilities, 0 * probabilities[:1]]))
    with pytest.raises(InputError, match=r"\.npz: expected 3 channels, as in dataset\.json, got 4; run nnUNetv2_train"):
        calibrate_model(model, workers=1)


def test_nothing_is_left_where_a_disk_gets_full(model: Path, folders: Path) -> None:
    """The checkpoint of the last fold goes to a device that is always full."""
    before = snapshot(folders)
    checkpoint = model / "fold_1" / "checkpoint_calibrated.pth"
    checkpoint.with_name(f"{UNFINISHED}{checkpoint.name}").symlink_to("/dev/full")
    with pytest.raises(InputError, match=rf"^{checkpoint}: expected a file that can be written, got No space left on"):
        calibrate_model(model, workers=1)
    (model / ".lock").unlink()
    assert snapshot(folders) == before


def write_splits(folders: Path, *validated: list[str]) -> Path:
    file = folders / "preprocessed" / NAME / "splits_final.json"
    file.write_text(json.dumps([{"train": [], "val": cases} for cases in validated]))
    return file


def test_cases_of_another_split_are_refused(model: Path, folders: Path) -> None:
    """Such as of an earlier training: they may be among those that the fold is trained on by now."""
    splits = write_splits(folders, CASES[0], CASES[1][:-1])
    extra = model / "fold_1" / "validation" / f"{CASES[1][-1]}.npz"
    with pytest.raises(InputError) as caught:
        calibrate_model(model, workers=1)
    expected = f"expected only cases that {splits} validates fold_1 on, got another"
    assert str(caught.value) == f"{extra}: {expected}; if it is of an earlier split, move it away"


def test_splits_are_found_where_labels_are_elsewhere(model: Path, folders: Path) -> None:
    splits = write_splits(folders, CASES[0], CASES[1][:-1])
    labels = shutil.copytree(folders / "preprocessed" / NAME / "gt_segmentations", folders / "labels")
    with pytest.raises(InputError, match=f"expected only cases that {splits} validates fold_1 on, got another"):
        calibrate_model(model, labels=labels, workers=1)


def test_a_case_in_two_folds_is_refused(model: Path, folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without the splits, which is said, leftovers of an earlier training would count twice."""
    name = CASES[0][0]
    for file in (model / "fold_0" / "validation").glob(f"{name}.*"):
        shutil.copy(file, model / "fold_1" / "validation")
    with pytest.raises(InputError, match=f"{model}: expected every case in the validation of one fold, got {name} in"):
        calibrate_model(model, workers=1)
    assert "splits_final.json: expected the splits of nnU-Net, got no such file" in caplog.text


def test_a_class_that_is_as_probable_but_for_rounding_is_none_of_an_earlier_training(model: Path) -> None:
    file = model / "fold_1" / "validation" / "p3_b.npz"
    p = np.load(file)["probabilities"]
    p[:, 2, 1, 3] = 0.50000003, 0.49999997, 0  # (C, Z, Y, X)
    np.savez(file, probabilities=p)
    label_map = file.with_suffix(".nii.gz")
    image = nib.load(label_map)
    predicted = np.asarray(image.dataobj).copy()
    predicted[3, 1, 2] = 1
    nib.Nifti1Image(predicted, image.affine, image.header).to_filename(label_map)
    calibrate_model(model, workers=1)
    assert (model / "temperature.json").is_file()


def test_a_validation_that_lacks_cases_is_refused(model: Path, folders: Path) -> None:
    splits = write_splits(folders, [*CASES[0], "p9_a"], CASES[1])
    with pytest.raises(InputError) as caught:
        calibrate_model(model, workers=1)
    expected = f"expected p9_a.npz, as in {splits}, got none; run nnUNetv2_train for this fold again, with --val --npz"
    assert str(caught.value) == f"{model / 'fold_0' / 'validation'}: {expected}"


def test_a_fold_beyond_the_splits_has_one_that_nnunet_drew(model: Path, folders: Path) -> None:
    write_splits(folders, CASES[0])
    calibrate_model(model, workers=1)
    assert read_estimate(model).temperature == pytest.approx(fitted(ALL)[0], rel=1e-4)


def test_weights_newer_than_their_validation_are_warned_of(
    model: Path, folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_splits(folders, CASES[0], CASES[1])
    summary = model / "fold_1" / "validation" / "summary.json"
    os.utime(summary, (0, 0))
    calibrate_model(model, workers=1)
    advice = "run nnUNetv2_train for this fold again, with --val --npz"
    assert [record.message for record in caplog.records] == [
        f"{summary}: older than checkpoint_final.pth; if the fold was trained again since, {advice}"
    ]


@pytest.mark.parametrize(
    ("labels", "trainer"), [(LABELS, nnUNetTrainerNACL), (REGIONS, nnUNetTrainer)], ids=["classes", "regions"]
)
def test_voxels_outside_of_the_crop_are_left_out(
    labels: Mapping[str, Any], trainer: type[nnUNetTrainer], folders: Path
) -> None:
    """There, nnU-Net stores certain background; one foreground label would decide T."""
    model = make_model(folders / "results", folders / "preprocessed", labels, trainer=trainer)
    case = CASES[0][0]
    p, predicted, label = validation_of(case, labels)
    calibrate_model(model, workers=1)
    before = read_estimate(model)
    beyond = [(0, 0), (2, 0), (0, 0)]  # voxels that the crop cuts off
    p = np.pad(p, [(0, 0), *beyond])
    if labels == LABELS:
        p[0, :, :2] = 1
    validation = model / "fold_0" / "validation"
    save_nnunet(validation, case, p, sitk_properties(), dtype=np.float32)
    save_nifti(validation / f"{case}.nii.gz", np.pad(predicted, beyond))
    labelled = folders / "preprocessed" / NAME / "gt_segmentations" / f"{case}.nii.gz"
    save_nifti(labelled, np.pad(label, beyond, constant_values=1))
    calibrate_model(model, workers=1)
    assert read_estimate(model) == before


def test_labels_other_than_those_of_the_training_are_refused(model: Path) -> None:
    dataset = json.loads((model / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "myocardium": 1, "ventricle": 2}
    (model / "dataset.json").write_text(json.dumps(dataset))
    with pytest.raises(InputError, match=r"fold_0/checkpoint_final.pth: expected the labels of dataset.json, .* got a"):
        calibrate_model(model, workers=1)


def test_a_link_to_a_model_has_the_name_that_counts(model: Path, folders: Path) -> None:
    moved = model.rename(folders / "stored")
    model.symlink_to(moved)
    calibrate_model(model, workers=1)
    assert (moved / "fold_0" / "checkpoint_calibrated.pth").is_file()
