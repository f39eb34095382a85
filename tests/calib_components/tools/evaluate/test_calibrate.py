"""A temperature is fitted on saved predictions, and others are scaled by it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.special import expit, logit, softmax

from calib_components.errors import InputError
from calib_components.handlers.evaluation_files import read_regions
from calib_components.handlers.temperature import read_temperature
from calib_components.posthoc import TemperatureScaling
from calib_components.tools.evaluate import calibrate_predictions, evaluate_predictions
from calib_components.tools.evaluate.calibrate import scale_probabilities
from calib_components.tools.evaluate.formats import read_probabilities
from calib_components.tools.evaluate.pairs import find_predictions
from tests.calib_components.tools.evaluate.made_up import (
    AFFINE,
    SHAPE,
    save_channels_last,
    save_nifti,
    save_nnunet,
    save_rounded,
    sitk_properties,
    softmax_of,
)
from tests.helpers import run_script

OPTIMISTIC = "that T was fitted on: their evaluation will be too optimistic."
CASES = [f"patient{patient}_{frame}" for patient in range(7) for frame in "ab"]


def logits_of(case: str, channels: int = 3) -> np.ndarray:
    return 2 * np.log(softmax_of(CASES.index(case), channels).astype(np.float64))


def save_label(folder: Path, case: str, p: np.ndarray, sigmoid: bool = False) -> np.ndarray:
    """Labels drawn from probabilities of logits that are half as large, so that T is near 2."""
    rng = np.random.default_rng(CASES.index(case))
    if sigmoid:
        label = (rng.random(SHAPE) < expit(logit(p[0]) / 2)).astype(np.uint8)
    else:
        cumulated = np.cumsum(softmax(np.log(p) / 2, axis=0), axis=0)
        label = (rng.random(SHAPE) > cumulated).sum(0).astype(np.uint8)
    save_nifti(folder / f"{case}_gt.nii.gz", label)
    return label


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Probabilities of 14 cases of 7 patients, with twice the logits that their labels were drawn from."""
    predictions, labels = tmp_path / "validation", tmp_path / "labels"
    for case in CASES:
        p = softmax(logits_of(case), axis=0)
        save_channels_last(predictions / f"{case}.nii", p.astype(np.float32))
        save_label(labels, case, p)
    return predictions, labels


def test_the_temperature_is_that_of_the_logits(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, labels = folders
    out = tmp_path / "scaled"
    calibrate_predictions(*folders, apply_to=predictions, out=out, patient_pattern=r"patient\d", workers=1)

    fit = TemperatureScaling()
    for case in CASES:
        label = np.asarray(nib.load(labels / f"{case}_gt.nii.gz").dataobj)
        fit.update(torch.from_numpy(logits_of(case))[None], torch.from_numpy(label)[None, None], case[:8])
    expected, estimate = fit.compute(), read_temperature(out)
    assert estimate.temperature == pytest.approx(expected.temperature, rel=1e-6)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), rel=1e-6)
    assert (estimate.patients, estimate.voxels) == (7, 14 * np.prod(SHAPE))
    assert 1.8 < estimate.temperature < 2.2
    printed = capsys.readouterr().out
    assert printed.splitlines() == [
        f"T = {expected.summary()}",
        f"NLL {expected.nll_before:.4f} -> {expected.nll_after:.4f} over all voxels, which T is fitted on",
        "T > 1: the model was overconfident on these patients; its probabilities become softer.",
        f"14 of the 14 predictions to scale are of patients {OPTIMISTIC}",
        str(out),
    ]


@pytest.mark.parametrize(
    ("region", "name", "inside"),
    [
        ("predicted", "predicted", lambda p, label: p.argmax(0) != 0),
        ("plausible(0.5)", "plausible(0.5)", lambda p, label: p[0] < 0.5),
        ([1, 2], "structure_1_2", lambda p, label: label != 0),
    ],
)
def test_the_temperature_of_a_region(
    region: object,
    name: str,
    inside: Callable[[np.ndarray, np.ndarray], np.ndarray],
    folders: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """T is that of the voxels of the region as they come, one after another."""
    predictions, labels = folders
    out = tmp_path / "scaled"
    calibrate_predictions(*folders, apply_to=predictions, out=out, region=region, workers=1)
    fit, voxels = TemperatureScaling(), 0
    for case in CASES:
        logits, label = logits_of(case), np.asarray(nib.load(labels / f"{case}_gt.nii.gz").dataobj)
        chosen = inside(softmax(logits, axis=0), label)
        fit.update(torch.from_numpy(logits[:, chosen])[None], torch.from_numpy(label[chosen])[None, None], case)
        voxels += chosen.sum()
    estimate = read_temperature(out)
    assert estimate.temperature == pytest.approx(fit.compute().temperature, rel=1e-5)
    assert 0 < estimate.voxels == voxels < 14 * np.prod(SHAPE)
    assert f" over the voxels of region {name}, which T is fitted on\n" in capsys.readouterr().out


def test_the_temperature_of_the_foreground_may_be_above_1_and_that_of_all_voxels_below(tmp_path: Path) -> None:
    """Background is right with p = 0.6 always, foreground with p = 0.9 in half of its voxels."""
    p = np.zeros((2, 100, 1, 1), np.float32)
    p[0] = 0.6
    p[0, :10] = 0.1
    p[1] = 1 - p[0]
    label = np.zeros(p.shape[1:], np.uint8)
    label[:5] = 1
    save_channels_last(tmp_path / "validation" / "a.nii", p)
    save_nifti(tmp_path / "labels" / "a.nii", label)
    temperatures = []
    for region in ("all", "predicted"):
        arguments = tmp_path / "validation", tmp_path / "labels"
        out = tmp_path / region
        calibrate_predictions(*arguments, apply_to=tmp_path / "validation", out=out, region=region, workers=1)
        temperatures.append(read_temperature(out).temperature)
    assert temperatures[0] < 1 < temperatures[1]


def test_predictions_of_patients_that_were_fitted_are_counted(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the same name, and with a pattern by the same patient."""
    test = tmp_path / "test"
    for name in ("patient0_a", "patient1_c", "patient9_a"):
        save_channels_last(test / f"{name}.nii", softmax_of(0))
    calibrate_predictions(*folders, apply_to=test, out=tmp_path / "scaled", workers=1)
    assert f"\n1 of the 3 predictions to scale is of a patient {OPTIMISTIC}\n" in capsys.readouterr().out
    options = {"patient_pattern": r"patient\d", "workers": 1}
    calibrate_predictions(*folders, apply_to=test, out=tmp_path / "scaled", **options)
    assert f"\n2 of the 3 predictions to scale are of patients {OPTIMISTIC}\n" in capsys.readouterr().out
    for name in ("patient0_a", "patient1_c"):
        (test / f"{name}.nii").unlink()
    calibrate_predictions(*folders, apply_to=test, out=tmp_path / "other", **options)
    assert "optimistic" not in capsys.readouterr().out
    save_channels_last(test / "somebody.nii", softmax_of(0))
    with pytest.raises(InputError, match=r"--patient_pattern: expected a part of each case's name, .*not in somebody"):
        calibrate_predictions(*folders, apply_to=test, out=tmp_path / "more", **options)
    assert not (tmp_path / "more").exists()


def test_voxels_of_probability_0_that_decide_are_spoken_of(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one case, ten voxels of class 2 are certain background, as outside of a crop: 87.3 nats each."""
    predictions, labels = folders
    p = np.moveaxis(softmax(logits_of(CASES[3]), axis=0).astype(np.float32), 0, -1)
    label = np.asarray(nib.load(labels / f"{CASES[3]}_gt.nii.gz").dataobj)
    chosen = np.argwhere(label == 2)[:10]
    p[tuple(chosen.T)] = [1, 0, 0]
    save_nifti(predictions / f"{CASES[3]}.nii", p)
    calibrate_predictions(*folders, apply_to=predictions, out=tmp_path / "scaled", workers=1)
    estimate = read_temperature(tmp_path / "scaled")
    share = 10 * -np.log(np.finfo(np.float32).tiny) / (estimate.nll_before * estimate.voxels)
    assert share > 0.1
    assert (
        "\n10 voxels, in 1 of 14 cases, have a stored probability of 0 for what they are and make up "
        f"{100 * share:.0f} % of the NLL, so they decide T."
    ) in capsys.readouterr().out
    calibrate_predictions(*folders, apply_to=predictions, out=tmp_path / "scaled", region="predicted", workers=1)
    assert "stored probability of 0" not in capsys.readouterr().out  # they are predicted to be background
    calibrate_predictions(*folders, apply_to=predictions, out=tmp_path / "scaled", region="foreground", workers=1)
    assert "\n10 voxels, in 1 of 14 cases, have a stored probability of 0" in capsys.readouterr().out


def test_sigmoids_of_0_and_1_that_decide_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 100 voxels with p = 0.5, or 0.693 nats, three are 0 where the label is 1, and two are 1 where it is 0."""
    p, label = np.full((105, 1, 1), 0.5, np.float32), np.arange(105).reshape(-1, 1, 1) % 2
    p[100:], label[100:] = [[[0]]] * 3 + [[[1]]] * 2, [[[1]]] * 3 + [[[0]]] * 2
    save_nifti(tmp_path / "validation" / "a.nii", p)
    save_nifti(tmp_path / "labels" / "a.nii", label.astype(np.uint8))
    arguments = tmp_path / "validation", tmp_path / "labels"
    options = {"apply_to": tmp_path / "validation", "workers": 1}
    calibrate_predictions(*arguments, **options, out=tmp_path / "all")
    nll = -3 * np.log(np.finfo(np.float32).tiny) + 2 * 24 * np.log(2)  # 1 - p is a step of numbers below 1
    share = 100 * nll / (nll + 100 * np.log(2))
    assert (
        f"\n5 voxels, in 1 of 1 cases, have a stored probability of 0 for what they are and make up {share:.0f} %"
        in (capsys.readouterr().out)
    )
    calibrate_predictions(*arguments, **options, out=tmp_path / "predicted", region="predicted")
    assert "\n2 voxels, in 1 of 1 cases, have a stored probability of 0" in capsys.readouterr().out


def test_scaled_maps_have_the_likelihood_that_was_fitted(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, labels = folders
    out = tmp_path / "scaled"
    calibrate_predictions(*folders, apply_to=predictions, out=out, workers=1)
    estimate, likelihoods = read_temperature(out), []
    assert sorted(contents(out)) == [
        *(f"{case}_probability.nii.gz" for case in CASES), "temperature.json"
    ]  # fmt: skip
    for case in CASES:
        image = nib.load(out / f"{case}_probability.nii.gz")
        scaled = np.asarray(image.dataobj)
        assert (scaled.dtype, scaled.shape) == (np.float32, (*SHAPE, 3))
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
        expected = softmax(logits_of(case) / estimate.temperature, axis=0)
        np.testing.assert_allclose(np.moveaxis(scaled, -1, 0), expected, atol=1e-6)
        label = np.asarray(nib.load(labels / f"{case}_gt.nii.gz").dataobj)
        likelihoods.append(np.take_along_axis(scaled, label[..., None].astype(int), -1))
    assert -np.log(likelihoods).mean() == pytest.approx(estimate.nll_after, abs=1e-5)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_plausible_foreground_of_scaled_maps_is_that_of_before(sigmoid: bool, tmp_path: Path) -> None:
    predictions, labels, scaled = tmp_path / "predictions", tmp_path / "labels", tmp_path / "scaled"
    for case in CASES[:12:2]:
        p = softmax_of(CASES.index(case), 2, scale=6.0)[:1] if sigmoid else softmax(logits_of(case), axis=0)
        save_channels_last(predictions / f"{case}.nii", p.astype(np.float32))
        save_label(labels, case, p, sigmoid)
    calibrate_predictions(predictions, labels, apply_to=predictions, out=scaled, sigmoid=sigmoid, workers=1)
    estimate = read_temperature(scaled)
    assert 1.5 < estimate.temperature < 7

    def plausible_voxels(folder: Path, temperature: float) -> int:
        out = tmp_path / f"evaluation of {folder.name}"
        evaluate_predictions(folder, labels, out, sigmoid=sigmoid, workers=1)
        assert json.loads((out / "summary.json").read_text())["temperature"] == pytest.approx(temperature)
        return int(read_regions(out)["plausible"]["top_label"].count.sum())

    before, after = plausible_voxels(predictions, 1.0), plausible_voxels(scaled, estimate.temperature)
    assert before == pytest.approx(after, abs=1)  # a voxel at the threshold may be rounded to its other side
    model = tmp_path / "model"  # nnunet calibrate writes the temperature above the folds, whose maps are not scaled
    shutil.copytree(predictions, model / "fold_0" / "validation")
    shutil.copy(scaled / "temperature.json", model)
    assert plausible_voxels(model, 1.0) == before
    (scaled / "temperature.json").unlink()
    assert plausible_voxels(scaled, 1.0) > 1.05 * before


def test_channels_with_a_sigmoid_each(tmp_path: Path) -> None:
    predictions, labels, out = tmp_path / "validation", tmp_path / "labels", tmp_path / "scaled"
    for case in CASES:
        p = softmax_of(CASES.index(case), channels=2, scale=4.0)[:1]
        save_nifti(predictions / f"{case}.nii.gz", p[0])
        save_label(labels, case, p, sigmoid=True)
    calibrate_predictions(predictions, labels, apply_to=predictions, out=out, structures=["tumour=1"], workers=1)
    estimate = read_temperature(out)
    assert 1.7 < estimate.temperature < 2.3
    scaled = np.asarray(nib.load(out / f"{CASES[0]}_probability.nii.gz").dataobj)
    p = np.asarray(nib.load(predictions / f"{CASES[0]}.nii.gz").dataobj, np.float64)
    assert scaled.shape == SHAPE
    np.testing.assert_allclose(scaled, expit(logit(p) / estimate.temperature), atol=1e-6)


def test_regions_of_our_inference_lose_the_background_before_them(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, labels, out = tmp_path / "ours", folders[1], tmp_path / "scaled"
    for case in CASES:
        p = softmax_of(CASES.index(case))
        regions = np.stack([p[0], p[1] + p[2], p[2]])
        save_channels_last(predictions / f"{case}_probability.nii.gz", regions)
    options = {"structures": ["whole=1+2", "core=2"], "sigmoid": True, "workers": 1}
    calibrate_predictions(predictions, labels, apply_to=predictions, out=out, **options)
    temperature = read_temperature(out).temperature
    scaled = np.asarray(nib.load(out / f"{CASES[0]}_probability.nii.gz").dataobj)
    p = softmax_of(0).astype(np.float64)
    expected = expit(logit(np.stack([p[1] + p[2], p[2]], -1)) / temperature)
    np.testing.assert_allclose(scaled, expected, atol=1e-5)
    again = tmp_path / "again"  # what was written can be read with the same options
    (out / "temperature.json").unlink()  # which says that they are scaled already
    calibrate_predictions(out, labels, apply_to=out, out=again, **options)
    assert read_temperature(again).temperature == pytest.approx(1, abs=1e-4)


def test_nnunets_arrays_are_scaled_on_their_grid_or_stay_arrays(folders: tuple[Path, Path], tmp_path: Path) -> None:
    test, out = tmp_path / "test", tmp_path / "scaled"
    p = softmax_of(50)
    save_nnunet(test, "with_grid", p, sitk_properties())
    save_nnunet(test, "without", p)
    calibrate_predictions(*folders, apply_to=test, out=out, workers=1)
    assert sorted(contents(out)) == [
        "temperature.json", "with_grid_probability.nii.gz", "without.npz"
    ]  # fmt: skip
    expected = softmax(np.log(p.astype(np.float64)) / read_temperature(out).temperature, axis=0)
    for name, prediction in find_predictions(out).items():
        stored = read_probabilities(prediction, sigmoid=False)
        np.testing.assert_allclose(stored.values, expected, atol=1e-3)
        assert (stored.affine is None) == (name == "without")
        if stored.affine is not None:
            np.testing.assert_allclose(stored.affine, AFFINE, atol=1e-4)


@pytest.mark.parametrize(("dtype", "largest", "error"), [(np.uint16, 65535, 0.01), (np.uint8, 255, 0.15)])
def test_rounded_files_give_nearly_the_temperature_of_the_numbers_that_were_rounded(
    dtype: type, largest: int, error: float, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    predictions, labels = folders
    rounded = tmp_path / "rounded"
    for case in CASES:
        save_rounded(rounded / f"{case}.nii.gz", softmax(logits_of(case), axis=0), dtype, 1 / largest)
    temperatures = []
    for folder in (predictions, rounded):
        out = tmp_path / f"{folder.name}_scaled"
        calibrate_predictions(folder, labels, apply_to=folder, out=out, workers=1)
        temperatures.append(read_temperature(out).temperature)
    assert temperatures[1] == pytest.approx(temperatures[0], rel=error)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_temperature_of_one_gives_back_the_probabilities(sigmoid: bool) -> None:
    p = torch.from_numpy(softmax_of(0))
    torch.testing.assert_close(scale_probabilities(p, 1.0, sigmoid), p, atol=1e-6, rtol=0)
    edges = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(scale_probabilities(edges, 1.0, sigmoid, highest=1 - 2**-24), edges, atol=1e-6, rtol=0)


def test_zeros_that_were_rounded_are_taken_for_half_a_step() -> None:
    scaled = scale_probabilities(torch.tensor([1.0, 0.0]), 2.0, lowest=1 / 400)
    torch.testing.assert_close(scaled, torch.tensor([20.0, 1.0]) / 21)
    scaled = scale_probabilities(torch.tensor([1.0, 0.0]), 2.0, sigmoid=True, lowest=1 / 10, highest=9 / 10)
    torch.testing.assert_close(scaled, torch.tensor([0.75, 0.25]))


def test_voxels_to_leave_out_do_not_count(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, labels = folders
    kept = 0
    for case in CASES:
        file = labels / f"{case}_gt.nii.gz"
        label = np.asarray(nib.load(file).dataobj).copy()
        label[:2] = 9
        kept += (label != 9).sum()
        save_nifti(file, label)
    out = tmp_path / "scaled"
    calibrate_predictions(predictions, labels, apply_to=predictions, out=out, ignore_index=9, workers=1)
    assert read_temperature(out).voxels == kept
    for case in CASES:
        save_nifti(labels / f"{case}_gt.nii.gz", np.full(SHAPE, 9, np.uint8))
    with pytest.raises(InputError, match="--ignore_index: expected voxels to fit a temperature on, got none"):
        calibrate_predictions(predictions, labels, apply_to=predictions, out=out, ignore_index=9, workers=1)


def test_the_same_command_again_replaces_its_files(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, _ = folders
    out = tmp_path / "scaled"
    contents = []
    for _ in range(2):
        calibrate_predictions(*folders, apply_to=predictions, out=out, workers=1)
        contents.append({file.name: np.asarray(nib.load(file).dataobj).tobytes() for file in out.glob("*.nii.gz")})
    assert contents[0] == contents[1]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder that a user sees."""
    return {file.name: file.read_bytes() for file in folder.glob("[!.]*")}


def save_targets(folder: Path, seed: int) -> Path:
    for name in "ab":
        save_channels_last(folder / f"{name}.nii", softmax_of(seed))
    return folder


def test_maps_of_an_earlier_run_stay_until_all_new_ones_are_there(folders: tuple[Path, Path], tmp_path: Path) -> None:
    test, out = save_targets(tmp_path / "test", 0), tmp_path / "scaled"
    calibrate_predictions(*folders, apply_to=test, out=out, workers=1)
    before = contents(out)
    save_targets(test, 1)
    save_channels_last(test / "b.nii", 100 * softmax_of(1))
    with pytest.raises(InputError, match=r"b.nii: expected probabilities from 0 to 1, .* percentages"):
        calibrate_predictions(*folders, apply_to=test, out=out, workers=1)
    assert contents(out) == before
    (out / ".unfinished-scaled").mkdir()  # as a run that was killed leaves it
    (out / ".unfinished-scaled" / "older_probability.nii.gz").touch()
    save_targets(test, 1)
    calibrate_predictions(*folders, apply_to=test, out=out, workers=1)
    after = contents(out)
    assert after.keys() == before.keys()
    assert after["a_probability.nii.gz"] != before["a_probability.nii.gz"]
    assert after["temperature.json"] == before["temperature.json"]


def test_only_one_run_at_a_time_writes_to_a_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Another run is refused before the fit; one that was killed does not stand in the way."""
    test, out = save_targets(tmp_path / "test", 0), tmp_path / "scaled"
    calibrate_predictions(*folders, apply_to=test, out=out, workers=1)
    before = contents(out)
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); "
    other = [sys.executable, "-c", f"{code} time.sleep(60)", out / ".lock"]
    with subprocess.Popen(other, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it has the lock
        with pytest.raises(InputError, match=f"^{out}: expected no other run that writes to it, got one$"):
            calibrate_predictions(*folders, apply_to=test, out=out, region="predicted", workers=1)
        assert contents(out) == before
        process.kill()
    calibrate_predictions(*folders, apply_to=test, out=out, region="predicted", workers=1)
    assert contents(out).keys() == before.keys()
    assert contents(out)["temperature.json"] != before["temperature.json"]


def test_the_lock_is_held_until_all_maps_are_moved(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test, out = save_targets(tmp_path / "test", 0), tmp_path / "scaled"
    replace, refused = Path.replace, []

    def replace_while_locked(source: Path, target: Path) -> Path:
        with open(out / ".lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                refused.append(target.name)
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", replace_while_locked)
    calibrate_predictions(*folders, apply_to=test, out=out, workers=1)
    assert refused[-3:] == ["a_probability.nii.gz", "b_probability.nii.gz", "temperature.json"]


def test_a_name_that_is_too_long_for_its_result_is_refused_before_the_fit(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes of `.unfinished-` are 12, of `_probability.nii.gz` 19, of `.npz` 4: of 255, 224 and 239 are left."""
    test, out = tmp_path / "test", tmp_path / "scaled"
    save_channels_last(test / f"{'ö' * 112}.nii", softmax_of(0))
    save_nnunet(test, "b" * 239, softmax_of(0))
    calibrate_predictions(*folders, apply_to=test, out=out, workers=1)
    assert len(contents(out)) == 3
    for longer in (
        lambda: save_channels_last(test / f"{'ö' * 112}a.nii", softmax_of(0)),
        lambda: save_nnunet(test, "b" * 240, softmax_of(0)),
    ):
        file = longer()
        capsys.readouterr()
        message = f"^{file}: expected a shorter name, got one whose result, {file.stem}.*, is 1 byte.s. too long while"
        with pytest.raises(InputError, match=message):
            calibrate_predictions(*folders, apply_to=test, out=out, workers=1)
        assert capsys.readouterr().out == ""
        file.unlink()


def test_an_interrupted_move_leaves_no_temperature(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test, out = save_targets(tmp_path / "test", 0), tmp_path / "scaled"
    calibrate_predictions(*folders, apply_to=test, out=out, workers=1)
    replace = Path.replace

    def fail(source: Path, target: Path) -> Path:
        if target == out / "b_probability.nii.gz":
            raise OSError(5, "Input/output error")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError, match=r"^--out: expected a folder that can be written, got .*scaled: Input/output"):
        calibrate_predictions(*folders, apply_to=test, out=out, workers=1)
    assert sorted(contents(out)) == ["a_probability.nii.gz", "b_probability.nii.gz"]


def test_names_that_are_no_text(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test, out = tmp_path / os.fsdecode(b"t\xe9st"), tmp_path / os.fsdecode(b"sk\xe4liert")
    save_channels_last(test / os.fsdecode(b"f\xe4ll.nii"), softmax_of(0))
    calibrate_predictions(*folders, apply_to=test, out=out, workers=1)
    assert (out / os.fsdecode(b"f\xe4ll_probability.nii.gz")).is_file()
    assert capsys.readouterr().out.endswith("sk\\udce4liert\n")


def test_unsuitable_folders_are_refused_before_the_fit(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, labels = folders
    out = tmp_path / "scaled"
    test = tmp_path / "test"
    save_channels_last(test / "case.nii", softmax_of(0, channels=4))
    with pytest.raises(InputError, match=r"case.nii: expected 3 channel\(s\), as in .*, got 4 channel\(s\)"):
        calibrate_predictions(*folders, apply_to=test, out=out)
    save_nifti(test / "case.nii", np.zeros(SHAPE, np.uint8))
    with pytest.raises(InputError, match=r"case.nii: expected 3 channel\(s\), as in .*, got a label map"):
        calibrate_predictions(*folders, apply_to=test, out=out)
    maps = tmp_path / "maps"
    for case in CASES:
        save_nifti(maps / f"{case}.nii", np.zeros(SHAPE, np.uint8))
    with pytest.raises(InputError, match="expected probabilities to fit a temperature, got a label map"):
        calibrate_predictions(maps, labels, apply_to=predictions, out=out, structures=["a=1", "b=2"])
    for inside in (predictions / "scaled", predictions, tmp_path, labels / "x"):
        with pytest.raises(InputError, match="--out: expected a folder apart from"):
            calibrate_predictions(*folders, apply_to=predictions, out=inside)
    assert not out.exists()
    out.mkdir()
    (out / "older_probability.nii.gz").write_text("")
    expected = "--out: expected a folder without other files, got"
    remedy = f"delete what an earlier run made of predictions that are no longer in {predictions}, or choose another"
    with pytest.raises(InputError, match=f"^{expected} older_probability.nii.gz in {out}; {remedy} folder$"):
        calibrate_predictions(*folders, apply_to=predictions, out=out)
    (out / "temperature.json").mkdir()  # its name is right, but a file cannot take its place
    with pytest.raises(InputError, match=f"^{expected} older_probability.nii.gz and 1 more in {out}; "):
        calibrate_predictions(*folders, apply_to=predictions, out=out)
    with pytest.raises(InputError, match=r"^region: expected one of 'all', 'predicted', .* indices, got 'predict'$"):
        calibrate_predictions(*folders, apply_to=predictions, out=tmp_path / "new", region="predict")
    with pytest.raises(InputError, match="workers: expected a whole number of at least 1, got 0"):
        calibrate_predictions(*folders, apply_to=predictions, out=tmp_path / "new", workers=0)


def test_predictions_that_are_scaled_already_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    test, out = save_targets(tmp_path / "test", 0), tmp_path / "scaled"
    calibrate_predictions(*folders, apply_to=test, out=out, workers=1)
    message = f"^{out}: expected predictions as the network gives them, got some that are divided by T = [12].* already"
    with pytest.raises(InputError, match=message):
        calibrate_predictions(*folders, apply_to=out, out=tmp_path / "twice", workers=1)
    shutil.copy(out / "temperature.json", folders[0])
    with pytest.raises(InputError, match=f"^{folders[0]}: expected predictions as the network gives them, got some"):
        calibrate_predictions(*folders, apply_to=test, out=tmp_path / "twice", workers=1)
    assert not (tmp_path / "twice").exists()


def test_a_region_of_channels_needs_codes_of_the_same_numbers(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """The label code 3 is channel 2 here."""
    predictions, labels = folders
    for file in labels.iterdir():
        label = np.asarray(nib.load(file).dataobj)
        save_nifti(file, np.where(label == 2, 3, label).astype(np.uint8))
    given = {"apply_to": predictions, "out": tmp_path / "scaled", "structures": ["a=1", "b=3"], "workers": 1}
    message = r"^--region: expected a name such as predicted, got \[2\]: channel 2 has the label code 3$"
    with pytest.raises(InputError, match=message):
        calibrate_predictions(*folders, **given, region=2)
    for region in (1, "predicted"):
        calibrate_predictions(*folders, **given, region=region)


def test_a_region_of_sigmoids_is_that_of_their_classes(tmp_path: Path) -> None:
    """Which are 0 and 1, whatever the label codes are."""
    predictions, labels = tmp_path / "validation", tmp_path / "labels"
    for case in CASES:
        p = softmax_of(CASES.index(case))[:1]
        save_channels_last(predictions / f"{case}.nii", p)
        save_label(labels, case, p, sigmoid=True)
    options = {"structures": ["whole=1+4"], "sigmoid": True, "workers": 1}
    calibrate_predictions(predictions, labels, apply_to=predictions, out=tmp_path / "scaled", region=1, **options)
    calibrate_predictions(predictions, labels, apply_to=predictions, out=tmp_path / "all", **options)
    of_structure, of_all = (read_temperature(tmp_path / name) for name in ("scaled", "all"))
    assert 0 < of_structure.voxels < of_all.voxels


@pytest.mark.parametrize("changed", [1, 40])
def test_label_maps_of_another_run_beside_what_is_fitted(
    changed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Post-processing changes a few voxels only; a file of other numbers may be the image."""
    predictions, labels = tmp_path / "validation", tmp_path / "labels"
    for case in CASES:
        p = softmax(logits_of(case), axis=0)
        save_nnunet(predictions, case, p, sitk_properties())
        label_map = p.argmax(0).astype(np.uint8)
        label_map.flat[:changed] = (label_map.flat[:changed] + 1) % 3
        save_nifti(predictions / f"{case}.nii.gz", label_map)
        save_label(labels, case, p)
    options = {"apply_to": predictions, "out": tmp_path / "scaled", "workers": 1}
    calibrate_predictions(predictions, labels, **options)
    assert len(caplog.messages) == (changed > 1)
    assert all("most probable class to be that of the label map beside it" in message for message in caplog.messages)
    caplog.clear()
    for case in CASES:
        save_nifti(predictions / f"{case}.nii.gz", np.full(SHAPE, -1000, np.int16))
    calibrate_predictions(predictions, labels, **options)
    assert caplog.messages == []


@pytest.mark.slow
def test_the_command_line_with_several_processes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, labels = folders
    calibrate_predictions(*folders, apply_to=predictions, out=tmp_path / "one", workers=1)
    arguments = ("--apply_to", predictions, "--out", tmp_path / "two", "--workers", 2, "--structures", "a=1,b=2")
    done = run_script("scripts/calibrate_predictions.py", predictions, labels, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("T = ")
    assert done.stderr == ""
    one, two = read_temperature(tmp_path / "one"), read_temperature(tmp_path / "two")
    assert one == two
