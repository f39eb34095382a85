"""A calibrator is fitted on saved predictions, and others are calibrated by it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, logit, softmax

from calib_components.errors import InputError
from calib_components.posthoc import TemperatureScaling
from calib_tools.predictions import calibrate_predictions, evaluate_predictions
from calib_workflows.calibrate import read_estimate
from calib_workflows.evaluation_files import Evaluation
from tests.calib_tools.predictions.made_up import (
    AFFINE,
    SHAPE,
    drawn_from,
    save_channels_last,
    save_nifti,
    save_nnunet,
    save_rounded,
    softmax_of,
)

CASES = [f"patient{patient}_{frame}" for patient in range(8) for frame in "ab"]
Folders = tuple[Path, Path]


def logits_of(case: str, channels: int = 3) -> np.ndarray:
    return 2 * np.log(softmax_of(CASES.index(case), channels).astype(np.float64))


def save_label(folder: Path, case: str, p: np.ndarray, sigmoid: bool = False) -> None:
    """Labels drawn from probabilities of logits that are half as large, so that T is near 2."""
    if sigmoid:
        rng = np.random.default_rng(CASES.index(case))
        label = (rng.random(SHAPE) < expit(logit(p[0]) / 2)).astype(np.uint8)
    else:
        label = drawn_from(softmax(np.log(p) / 2, axis=0), seed=CASES.index(case))
    save_nifti(folder / f"{case}_gt.nii.gz", label)


def label_of_case(labels: Path, case: str) -> np.ndarray:
    return np.asarray(nib.load(labels / f"{case}_gt.nii.gz").dataobj)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Probabilities of 16 cases of 8 patients, with twice the logits that their labels were drawn
    from.
    """
    for case in CASES:
        p = softmax(logits_of(case), axis=0)
        save_channels_last(tmp_path / "validation" / f"{case}.nii", p.astype(np.float32))
        save_label(tmp_path / "labels", case, p)
    return tmp_path / "validation", tmp_path / "labels"


def calibrate(folders: Folders, out: Path, **options: Any) -> Any:
    given = {"apply_to": [folders[0]], "calibrator": "temperature", "workers": 1, **options}
    calibrate_predictions(*folders, out=out, **given)
    return read_estimate(out)


@pytest.mark.parametrize("region", ["all", "predicted", [1, 2]])
def test_the_temperature_is_that_of_the_logits_in_a_region(
    region: Any, folders: Folders, tmp_path: Path, capsys: Any
) -> None:
    estimate = calibrate(folders, tmp_path / "out", region=region, patient_pattern=r"patient\d")
    fit = TemperatureScaling(region)
    for case in CASES:
        label = torch.from_numpy(label_of_case(folders[1], case))
        fit.update(torch.from_numpy(logits_of(case))[None], label[None, None], case[:8])
    expected = fit.compute()
    assert estimate.temperature == pytest.approx(expected.temperature, rel=1e-5)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), rel=1e-5)
    assert (estimate.patients, estimate.voxels) == (8, expected.voxels)
    printed = capsys.readouterr().out
    assert f"T = {estimate.summary()}" in printed
    assert "16 of the 16 predictions to scale belong to patients of the fit" in printed


@pytest.mark.parametrize("kind", ["temperature", "vector", "bias"])
def test_calibrated_maps_have_the_likelihood_that_was_fitted(
    kind: str, folders: Folders, tmp_path: Path
) -> None:
    estimate, likelihoods = calibrate(folders, tmp_path / "out", calibrator=kind), []
    maps = [f"{case}_probability.nii.gz" for case in CASES]
    files = sorted([*maps, f"{kind}.json", "calibrators.csv"])
    assert sorted(file.name for file in (tmp_path / "out").glob("[!.]*")) == files
    for case in CASES:
        image = nib.load(tmp_path / "out" / f"{case}_probability.nii.gz")
        scaled = np.asarray(image.dataobj)
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
        if kind == "temperature":
            expected = softmax(logits_of(case) / estimate.temperature, axis=0)
            np.testing.assert_allclose(np.moveaxis(scaled, -1, 0), expected, atol=1e-6)
        label = label_of_case(folders[1], case)
        likelihoods.append(np.take_along_axis(scaled, label[..., None].astype(int), -1))
    assert -np.log(likelihoods).mean() == pytest.approx(estimate.nll_after, abs=1e-5)
    evaluate_predictions(tmp_path / "out", folders[1], tmp_path / "evaluation", workers=1)
    summary = Evaluation.read(tmp_path / "evaluation").summary
    assert summary["nll_all"]["mean"] == pytest.approx(estimate.nll_after, abs=1e-5)
    assert summary["calibration"] == {"calibrator": kind, "region": "all", "patients": 16}
    with pytest.raises(InputError, match=rf"{kind}\.json: its predictions are calibrated already"):
        calibrate((tmp_path / "out", folders[1]), tmp_path / "twice")


@pytest.mark.parametrize(
    ("factor", "choice", "advised", "applied"),
    [
        (1.0, None, "T", "temperature"),
        (1.0, "vector", "T", "vector"),
        (0.5, "temperature", "none", "temperature"),
        (0.5, None, "none", None),
    ],
)
def test_the_advised_is_applied_unless_another_is_chosen(
    factor: float,
    choice: str | None,
    advised: str,
    applied: str | None,
    folders: Folders,
    tmp_path: Path,
    capsys: Any,
) -> None:
    """The command says what is advised, what it applies, and what comes next."""
    for case in CASES:
        p = softmax(factor * logits_of(case), axis=0)
        save_channels_last(folders[0] / f"{case}.nii", p.astype(np.float32))
    out = tmp_path / "out"
    options = {"calibrator": choice, "patient_pattern": r"patient\d", "workers": 1}
    calibrate_predictions(*folders, apply_to=[folders[0]], out=out, **options)
    printed = capsys.readouterr().out
    assert f"Advised: {advised}, as" in printed
    is_other = choice is not None and choice[0] != advised[0].lower()
    assert ("is applied all the same, as the option calibrator says." in printed) == is_other
    what = f"with this {applied}" if applied else "as they were: use those, or choose a --calib"
    assert f"{out}: 16 maps {what}" in printed
    assert f"\nNext: evaluate_predictions {out} LABELS" in printed
    assert [file.stem for file in out.glob("*.json")] == ([applied] if applied else [])
    table = pd.read_csv(out / "calibrators.csv", index_col=0)
    assert [*table.index] == ["none", "temperature", "bias", "vector"]
    if applied is None:
        found = nib.load(out / f"{CASES[0]}_probability.nii.gz").get_fdata()
        np.testing.assert_allclose(
            np.moveaxis(found, -1, 0), softmax(factor * logits_of(CASES[0]), axis=0), atol=1e-6
        )


def test_predictions_of_the_fit_under_other_names_are_noted(
    folders: Folders, tmp_path: Path, capsys: Any
) -> None:
    save_channels_last(tmp_path / "test" / "t3.nii", softmax_of(99))
    for index, case in enumerate(CASES[:3]):
        nib.load(folders[0] / f"{case}.nii").to_filename(tmp_path / "test" / f"t{index}.nii")
    calibrate(folders, tmp_path / "out", apply_to=[tmp_path / "test"])
    assert (
        "3 of the 4 predictions to scale belong to patients of the fit: the same volume"
        in capsys.readouterr().out
    )


def test_arrays_without_a_grid_stay_arrays(folders: Folders, tmp_path: Path) -> None:
    for case in CASES[:2]:
        save_nnunet(tmp_path / "arrays", case, softmax(logits_of(case), axis=0), dtype=np.float32)
    estimate = calibrate((tmp_path / "arrays", folders[1]), tmp_path / "out")
    scaled = np.load(tmp_path / "out" / f"{CASES[0]}.npz")["probabilities"].transpose(0, 3, 2, 1)
    np.testing.assert_allclose(
        scaled, softmax(logits_of(CASES[0]) / estimate.temperature, axis=0), atol=1e-6
    )


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float16"])
def test_coarse_probabilities_are_scaled_and_not_fitted_to(
    kind: str, folders: Folders, tmp_path: Path
) -> None:
    coarse = tmp_path / "coarse"
    for case in CASES:
        p = softmax(logits_of(case), axis=0)
        if kind == "float16":
            save_nnunet(coarse, case, p, AFFINE)
        else:
            save_rounded(coarse / f"{case}.nii", p, kind, 1 / np.iinfo(kind).max)
    with pytest.raises(InputError, match=r"patient0_a\.n.*: integers or half precision .*bits 32"):
        calibrate((coarse, folders[1]), tmp_path / "out")
    assert not [*(tmp_path / "out").glob("[!.]*")]
    calibrate(folders, tmp_path / "scaled", apply_to=[coarse])
    evaluate_predictions(coarse, folders[1], tmp_path / "evaluation", workers=1)


@pytest.mark.parametrize("channels", [3, 1], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("share", [0.125, 0.25, 0.31, 0.4, 0.5])
def test_certain_background_where_a_structure_is_labelled_is_not_fitted_to(
    share: float, channels: int, folders: Folders, tmp_path: Path
) -> None:
    for case in CASES:
        p = softmax(logits_of(case), axis=0)
        label = label_of_case(folders[1], case).copy()
        outside = np.random.default_rng(1).random(SHAPE) < share
        label[outside] = 1
        p[:, outside] = np.eye(3)[0][:, None]
        p = p if channels == 3 else p[1:2]
        save_channels_last(folders[0] / f"{case}.nii", p.astype(np.float32))
        save_nifti(folders[1] / f"{case}_gt.nii.gz", label)
    with pytest.raises(InputError, match=r"patient0_a\.nii: .* is 0 in 0\..*--ignore_index"):
        calibrate(folders, tmp_path / "out", structures=["a=1", "b=2"][: min(channels, 2)])


def test_maps_that_version_0_4_calibrated(folders: Folders, tmp_path: Path) -> None:
    (folders[0] / "class_temperature.json").write_text("{}")
    with pytest.raises(InputError, match=r"version 0\.4 scaled its predictions"):
        calibrate(folders, tmp_path / "out")


def test_votes_are_no_probabilities(folders: Folders, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folders[1], tmp_path / "other"))
    with pytest.raises(InputError, match="is a label map"):
        calibrate_predictions(
            folders[1],
            members=[folders[1], other],
            apply_to=[folders[1], other],
            out=tmp_path / "out",
            structures=["a=1", "b=2"],
        )


def test_each_sigmoid_is_scaled(tmp_path: Path) -> None:
    predictions, labels = tmp_path / "predictions", tmp_path / "labels"
    p = {case: softmax_of(CASES.index(case), 2)[:1] for case in CASES[:8:2]}
    for case, values in p.items():
        save_channels_last(predictions / f"{case}.nii", values)
        save_label(labels, case, values, sigmoid=True)
    t = calibrate((predictions, labels), tmp_path / "scaled", sigmoid=True).temperature
    for case, values in p.items():
        found = nib.load(tmp_path / "scaled" / f"{case}_probability.nii.gz").get_fdata()
        expected = expit(logit(values[0].astype(float)) / t)
        np.testing.assert_allclose(found.squeeze(), expected, atol=1e-5)


def test_places_and_files_that_do_not_fit(folders: Folders, tmp_path: Path) -> None:
    predictions, labels = folders
    out = tmp_path / "out"
    save_nifti(tmp_path / "maps" / f"{CASES[0]}.nii", label_of_case(labels, CASES[0]))
    save_channels_last(tmp_path / "two" / "x.nii", softmax_of(0, 2))
    save_channels_last(tmp_path / "mine" / "other_probability.nii.gz", softmax_of(0))
    (tmp_path / "mine" / "temperature.json").touch()  # of calibrate.yaml
    other = tmp_path / "maps of another network"
    save_channels_last(other / f"{CASES[0]}_probability.nii.gz", softmax_of(0))
    for used, options, expected in (
        ((tmp_path / "maps", labels), {"structures": ["a=1"]}, "label map"),
        (folders, {"apply_to": [tmp_path / "two"]}, "has 2 channels"),
        (folders, {"apply_to": [tmp_path / "maps"]}, "has 0 channels"),
        (folders, {"out": predictions / "in"}, "--out"),
        (folders, {"out": tmp_path / "mine"}, "--overwrite"),
        (folders, {"out": other}, "--overwrite"),
        (folders, {"out": tmp_path / "mine", "overwrite": True}, "another prediction"),
        (folders, {"structures": ["b=1", "a=2+3"], "region": [2]}, "--region"),
    ):
        with pytest.raises(InputError, match=expected):
            calibrate(used, **{"out": out, **options})
    assert [*out.glob("[!.]*")] == []


def test_maps_of_an_earlier_run_stay_if_one_fails(folders: Folders, tmp_path: Path) -> None:
    calibrate(folders, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("[!.]*")}
    broken = tmp_path / "test" / f"{CASES[0]}.nii"
    for case in CASES:
        save_channels_last(tmp_path / "test" / f"{case}.nii", softmax_of(1))
    save_channels_last(broken, 3 * softmax_of(0))
    with pytest.raises(InputError, match="percentages"):
        calibrate(folders, tmp_path / "out", apply_to=[tmp_path / "test"], overwrite=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").glob("[!.]*")} == before


def test_maps_of_a_run_that_was_killed_are_not_taken_for_whole(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("calib_tools.predictions.calibrate.write_fit", kill)
        with pytest.raises(KeyboardInterrupt):
            calibrate(folders, out)
    assert len([*out.glob("*_probability.nii.gz")]) == len(CASES)
    with pytest.raises(InputError, match=r"not all of which are calibrated\. Run calibrate"):
        evaluate_predictions(out, folders[1], tmp_path / "evaluation", workers=1)
    calibrate(folders, out)
    evaluate_predictions(out, folders[1], tmp_path / "evaluation", workers=1)
    assert Evaluation.read(tmp_path / "evaluation").summary["calibration"] is not None
