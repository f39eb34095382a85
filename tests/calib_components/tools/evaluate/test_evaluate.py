"""Saved predictions evaluated, and compared with what numpy, scipy and scikit-learn compute from the same files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.ndimage import binary_erosion, distance_transform_edt
from sklearn.metrics import brier_score_loss

from calib_components import figures
from calib_components.errors import InputError
from calib_components.handlers import write_temperature
from calib_components.handlers.evaluation import read_cases, read_regions, read_summary, read_thresholds
from calib_components.posthoc import TemperatureScaling
from calib_components.tools.evaluate import evaluate, evaluate_predictions
from calib_components.tools.locks import only_run
from tests.calib_components.metrics.by_definition import Case, inside
from tests.calib_components.tools.evaluate.made_up import (
    AFFINE,
    SHAPE,
    label_of,
    save_channels_last,
    save_nifti,
    save_nnunet,
    save_rounded,
    sitk_properties,
    softmax_of,
)
from tests.helpers import ROOT, run_script

NAMES = ["p1_ed", "p1_es", "p2_ed"]
STRUCTURES = ["a=1", "both=1+2"]
SPACING = np.linalg.norm(AFFINE[:3, :3], axis=0)


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the page and the diagrams, which take seconds, unless a test asks for them."""
    if "page" not in request.node.name:
        monkeypatch.setattr(evaluate, "report_evaluations", lambda *_: None)
        for name in ("reliability_diagram", "uncertainty_overlay"):
            monkeypatch.setattr(figures, name, lambda *_, **__: Figure(figsize=(1, 1), dpi=30))


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        save_nifti(tmp_path / "labels" / f"{name}_gt.nii.gz", label_of(seed))
    return tmp_path / "labels"


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        save_channels_last(tmp_path / "predictions" / f"{name}.nii.gz", softmax_of(seed))
    return tmp_path / "predictions"


def hd95(predicted: np.ndarray, true: np.ndarray) -> float:
    """In millimetres, by its definition."""
    surfaces = [mask & ~binary_erosion(mask) for mask in (predicted, true)]
    distances = [distance_transform_edt(~end, SPACING)[start] for start, end in (surfaces, surfaces[::-1])]
    return float(np.percentile(np.concatenate(distances), 95))


def run(predictions: Path, labels: Path, out: Path, **options: Any) -> tuple[list[str], dict[str, np.ndarray]]:
    evaluate_predictions(predictions, labels, out, **{"structures": STRUCTURES, "workers": 1, **options})
    return read_cases(out)


def test_measures_are_those_of_numpy_and_scipy(predictions: Path, labels: Path, tmp_path: Path) -> None:
    cases, columns = run(predictions, labels, tmp_path / "out", patient_pattern=r"p\d")
    assert cases == NAMES
    for i, name in enumerate(cases):
        p = np.moveaxis(nib.load(predictions / f"{name}.nii.gz").get_fdata(), 3, 0)
        label = np.asarray(nib.load(labels / f"{name}_gt.nii.gz").dataobj)
        case = Case(p, np.ones(SHAPE, bool))
        for region in ("foreground", "all", "predicted", "plausible", "predicted_band", "union", "band"):
            suffix = "" if region == "foreground" else f"_{region}"
            for measure, value in case.measures(label, inside(region, p, label)).items():
                assert columns[f"{measure}{suffix}"][i] == pytest.approx(value, abs=1e-6), (measure, region)
        assert columns["ece_if_true"][i] == pytest.approx(case.errors_if_true("foreground")["ece"], abs=1e-6)
        of_classes = [brier_score_loss(label.ravel() == k, p[k].ravel()) for k in range(3)]
        assert columns["brier_all"][i] == pytest.approx(sum(of_classes), abs=1e-6)
        millilitres = SPACING.prod() / 1000
        for structure, classes in (("a", [1]), ("both", [1, 2])):
            predicted, true = np.isin(p.argmax(0), classes), np.isin(label, classes)
            of_structure = p[classes].sum(0)
            dsc = 2 * (predicted & true).sum() / (predicted.sum() + true.sum())
            assert columns[f"dsc_{structure}"][i] == pytest.approx(dsc)
            assert columns[f"hd95_{structure}"][i] == pytest.approx(hd95(predicted, true), abs=1e-6)
            assert columns[f"true_volume_{structure}"][i] == pytest.approx(true.sum() * millilitres)
            assert columns[f"segmented_volume_{structure}"][i] == pytest.approx(predicted.sum() * millilitres)
            assert columns[f"expected_volume_{structure}"][i] == pytest.approx(of_structure.sum() * millilitres)
            assert columns[f"volume_high_{structure}"][i] == pytest.approx((of_structure > 0.05).sum() * millilitres)
        assert columns["aurc"][i] > 0
    summary = read_summary(tmp_path / "out")
    assert summary["patients"] == {"p1_ed": "p1", "p1_es": "p1", "p2_ed": "p2"}
    assert (summary["unit"], summary["volume_unit"], summary["temperature"]) == ("mm", "ml", 1)
    assert not (tmp_path / "out" / ".measured").exists()


def save_inference(folder: Path, name: str, p: np.ndarray) -> None:
    save_channels_last(folder / f"{name}_probability.nii.gz", p)
    save_nifti(folder / f"{name}_seg.nii.gz", p.argmax(0).astype(np.uint8))
    save_nifti(folder / f"{name}_uncertainty.nii.gz", p.max(0))


def save_nnunet_in_full(folder: Path, name: str, p: np.ndarray) -> None:
    save_nnunet(folder, name, p, sitk_properties(), dtype=np.float32)
    save_nifti(folder / f"{name}.nii.gz", p.argmax(0).astype(np.uint8))


@pytest.mark.parametrize("save", [save_inference, save_nnunet_in_full])
def test_every_form_has_the_same_measures(
    save: Callable[[Path, str, np.ndarray], None], predictions: Path, labels: Path, tmp_path: Path
) -> None:
    for seed, name in enumerate(NAMES):
        save(tmp_path / "other", name, softmax_of(seed))
    expected = run(predictions, labels, tmp_path / "a")[1]
    found = run(tmp_path / "other", labels, tmp_path / "b")[1]
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-9, err_msg=name)


def test_overlapping_regions_with_a_sigmoid_each(tmp_path: Path) -> None:
    """Regions of BraTS: probabilities of channels do not add up to 1."""
    codes = {"WT": [1, 2, 4], "TC": [1, 4], "ET": [4]}
    label = label_of(0, (0, 1, 2, 4))
    p = np.random.default_rng(0).uniform(size=(3, *SHAPE)).astype(np.float32)
    save_channels_last(tmp_path / "predictions" / "x.nii.gz", p)
    save_nifti(tmp_path / "labels" / "x.nii.gz", label)
    structures = ["WT=1+2+4", "TC=1+4", "ET=4"]
    _, columns = run(
        tmp_path / "predictions", tmp_path / "labels", tmp_path / "out", structures=structures, sigmoid=True
    )
    masks = np.stack([np.isin(label, values) for values in codes.values()])
    for name, probability, true in zip(codes, p, masks, strict=True):
        predicted = probability > 0.5
        dsc = 2 * (predicted & true).sum() / (predicted.sum() + true.sum())
        assert columns[f"dsc_{name}"][0] == pytest.approx(dsc)
        expected = probability.astype(float).sum() * SPACING.prod() / 1000
        assert columns[f"expected_volume_{name}"][0] == pytest.approx(expected)
    two_classes = Case(np.stack([1 - p.astype(float).ravel(), p.astype(float).ravel()]), np.ones(p.size, bool))
    measures = two_classes.measures(masks.ravel().astype(int), np.ones(p.size, bool))
    for measure in ("ece", "nll", "brier"):
        assert columns[f"{measure}_all"][0] == pytest.approx(measures[measure], abs=1e-6)
    assert read_thresholds(tmp_path / "out")[0] == list(codes)


def test_label_maps_give_the_segmentation_part_only(labels: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(NAMES):
        save_nifti(tmp_path / "predictions" / f"{name}.nii.gz", softmax_of(seed).argmax(0).astype(np.uint8))
    _, columns = run(tmp_path / "predictions", labels, tmp_path / "out")
    assert list(columns) == ["dsc_a", "dsc_both", "hd95_a", "hd95_both"]
    files = {file.name for file in (tmp_path / "out").rglob("[!.]*.*")}
    assert files == {"cases.csv", "summary.json", "best.png", "median.png", "worst.png"}


def test_structure_that_no_label_has_is_named(
    predictions: Path, labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for seed, name in enumerate(NAMES):
        save_nifti(tmp_path / "maps" / f"{name}.nii.gz", softmax_of(seed).argmax(0).astype(np.uint8))
    run(tmp_path / "maps", labels, tmp_path / "out", structures=["a=1", "c=2", "b=7"])
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [f"{labels}: no label has b, code 7; --structures names the codes"]


def test_voxels_to_leave_out(predictions: Path, tmp_path: Path) -> None:
    label = label_of(0)
    ignored = np.zeros(SHAPE, bool)
    ignored[3:] = True
    save_nifti(tmp_path / "labels" / "p1_ed.nii.gz", np.where(ignored, 9, label).astype(np.uint8))
    only = tmp_path / "only"
    save_channels_last(only / "p1_ed.nii.gz", softmax_of(0))
    _, columns = run(only, tmp_path / "labels", tmp_path / "out", ignore_index=9)
    p = softmax_of(0).astype(float)
    measures = Case(p, ~ignored).measures(label, ~ignored)
    for measure in ("ece", "cece", "nll", "brier"):
        assert columns[f"{measure}_all"][0] == pytest.approx(measures[measure], abs=1e-6)
    assert columns["true_volume_a"][0] == pytest.approx(((label == 1) & ~ignored).sum() * SPACING.prod() / 1000)
    predicted, true = (p.argmax(0) == 1) & ~ignored, (label == 1) & ~ignored
    assert columns["dsc_a"][0] == pytest.approx(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))


def test_rounding_of_bytes_moves_the_nll_by_little(predictions: Path, labels: Path, tmp_path: Path) -> None:
    """A certain voxel that is wrong was stored as 0: it counts as half a step, not as impossible."""
    for seed, name in enumerate(NAMES):
        save_rounded(tmp_path / "rounded" / f"{name}.nii.gz", softmax_of(seed), np.uint8, 1 / 255)
    exact = run(predictions, labels, tmp_path / "a")[1]
    rounded = run(tmp_path / "rounded", labels, tmp_path / "b")[1]
    np.testing.assert_allclose(rounded["nll_all"], exact["nll_all"], rtol=0.05)
    np.testing.assert_allclose(rounded["brier_all"], exact["brier_all"], rtol=0.01)


def test_number_of_processes_changes_nothing(predictions: Path, labels: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        run(predictions, labels, tmp_path / str(workers), workers=workers)
    for name in ("cases.csv", "summary.json", "calibration.json", "thresholds.json", "risk_coverage.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_continues_after_an_interruption(
    predictions: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    read: list[str] = []
    stop_at = ["p2_ed"]

    def read_case(case: Any, *options: Any) -> Any:
        if case.name in stop_at:
            raise KeyboardInterrupt
        read.append(case.name)
        return original(case, *options)

    original = evaluate.read_case
    monkeypatch.setattr(evaluate, "read_case", read_case)
    with pytest.raises(KeyboardInterrupt):
        run(predictions, labels, tmp_path / "out")
    assert not (tmp_path / "out" / "summary.json").exists()
    stop_at.clear()
    save_channels_last(predictions / "p1_es.nii.gz", softmax_of(7))  # a newer prediction
    (file,) = (file for file in (tmp_path / "out" / ".measured").iterdir() if "p1_ed" in str(torch.load(file)["stamp"]))
    run(predictions, labels, tmp_path / "out")
    assert read == ["p1_ed", "p1_es", "p1_es", "p2_ed"]
    assert "1 of 3 cases measured before" in capsys.readouterr().out
    assert not file.exists()
    whole = run(predictions, labels, tmp_path / "whole")[1]
    for name, values in read_cases(tmp_path / "out")[1].items():
        np.testing.assert_array_equal(values, whole[name])
    read.clear()
    (tmp_path / "out" / ".measured").mkdir()
    (tmp_path / "out" / ".measured" / file.name).write_bytes(b"broken")
    run(predictions, labels, tmp_path / "out")
    assert read == NAMES  # a broken file is no result


def rewrite_label(folder: Path) -> None:
    save_nifti(folder / "labels" / "p1_ed_gt.nii.gz", label_of(9))


def rewrite_image(folder: Path) -> None:
    save_nifti(folder / "images" / "p1_ed.nii.gz", 50 * softmax_of(9)[0])


def add_temperature(folder: Path) -> None:
    fit = TemperatureScaling()
    for seed, name in enumerate(NAMES):
        logits, label = (torch.from_numpy(values)[None] for values in (np.log(softmax_of(seed)), label_of(seed)[None]))
        fit.update(logits, label, name)
    write_temperature(fit.compute(), folder / "predictions")


@pytest.mark.parametrize(
    ("change", "options", "read_again"),
    [
        (rewrite_label, {}, ["p1_ed"]),
        (rewrite_image, {}, ["p1_ed"]),
        (add_temperature, {}, NAMES),
        (None, {"structures": ["a=2", "both=1+2"]}, NAMES),
    ],
    ids=["label", "image", "temperature", "structures"],
)
def test_what_has_changed_after_an_interruption_is_measured_again(
    change: Callable[[Path], None] | None,
    options: dict[str, Any],
    read_again: list[str],
    predictions: Path,
    labels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed, name in enumerate(NAMES):
        save_nifti(tmp_path / "images" / f"{name}.nii.gz", 100 * softmax_of(seed)[0])
    read: list[str] = []
    original = evaluate.read_case

    def read_case(case: Any, *given: Any) -> Any:
        read.append(case.name)
        return original(case, *given)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "_gather", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(predictions, labels, tmp_path / "out", images=tmp_path / "images")
    if change is not None:
        change(tmp_path)
    monkeypatch.setattr(evaluate, "read_case", read_case)
    continued = run(predictions, labels, tmp_path / "out", images=tmp_path / "images", **options)[1]
    assert read == read_again
    fresh = run(predictions, labels, tmp_path / "fresh", images=tmp_path / "images", **options)[1]
    for name, values in fresh.items():
        np.testing.assert_array_equal(continued[name], values)


def test_slice_that_is_drawn(predictions: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one with the most true foreground, with the image."""
    drawn: dict[str, Any] = {}

    def write_record(folder: Path, case: str, stored: Any, of_case: Any, **noted: Any) -> None:
        drawn[case] = of_case
        original(folder, case, stored, of_case, **noted)

    original = evaluate.write_record
    monkeypatch.setattr(evaluate, "write_record", write_record)
    for seed, name in enumerate(NAMES):
        save_nifti(tmp_path / "images" / f"{name}.nii.gz", 100 * softmax_of(seed)[0])
    run(predictions, labels, tmp_path / "out", images=tmp_path / "images")
    for seed, name in enumerate(NAMES):
        p, label = softmax_of(seed), label_of(seed)
        k = (label > 0).sum((0, 1)).argmax()
        np.testing.assert_allclose(drawn[name].image, 100 * p[0, ..., k], rtol=1e-6)
        np.testing.assert_array_equal(drawn[name].label, label[..., k])
        np.testing.assert_array_equal(drawn[name].prediction, p.argmax(0)[..., k])
        entropy = -(p * np.log(p)).sum(0) / np.log(3)
        np.testing.assert_allclose(drawn[name].uncertainty, entropy[..., k], atol=1e-5)


def test_page_of_the_command(predictions: Path, labels: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(NAMES):
        save_nifti(tmp_path / "images" / f"{name}_0000.nii.gz", 100 * softmax_of(seed)[0])
    done = run_script(
        ROOT / "scripts" / "evaluate_predictions.py", predictions, labels, "--out", tmp_path / "out",
        "--structures", "a=1,b=2", "--images", tmp_path / "images", "--patient_pattern", r"p\d", "--workers", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "report/index.html" in done.stdout
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert page.count("<img") > 5
    assert "2 patients" in page
    assert {*read_regions(tmp_path / "out")} == {
        "foreground", "all", "predicted", "plausible", "predicted_band", "union", "band", "structure_a", "structure_b",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"out": "predictions"},
            r"--out: expected a folder of its own for the results, got .*predictions, which holds",
        ),
        (
            {"images": "labels"},
            r"labels: expected an image for each case, called NAME or NAME_0000, got none for p1_ed",
        ),
        ({"workers": 0}, r"workers: expected a whole number of at least 1, got 0"),
        ({"patient_pattern": "x"}, r"--patient_pattern: expected a part of each case's name, got 'x', not in p1_ed"),
        ({"structures": ["ece=1", "ece_all=2"]}, None),
    ],
)
def test_unsuitable_options_are_named_before_the_work(
    options: dict[str, Any], message: str | None, predictions: Path, labels: Path, tmp_path: Path
) -> None:
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()}
    paths = {key: tmp_path / value for key, value in options.items() if key in ("out", "images")}
    given = {"out": tmp_path / "out", **options, **paths}
    if message is not None:
        with pytest.raises(InputError, match=f"^(?:.*/)?{message}"):
            run(predictions, labels, **given)
        assert {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()} == before
    else:
        assert run(predictions, labels, **given)[0] == NAMES


def test_image_of_another_grid_is_named(predictions: Path, labels: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(NAMES):
        save_nifti(tmp_path / "images" / f"{name}.nii.gz", softmax_of(seed)[0], AFFINE + np.eye(4, k=3) * 5)
    with pytest.raises(InputError, match=r"images/p1_ed.nii.gz: expected the voxels of .*labels/p1_ed_gt.nii.gz"):
        run(predictions, labels, tmp_path / "out", images=tmp_path / "images")


def test_images_of_one_name_are_refused(predictions: Path, labels: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(NAMES):
        save_nifti(tmp_path / "images" / "t1" / f"{name}.nii.gz", softmax_of(seed)[0])
    save_nifti(tmp_path / "images" / "t2" / f"{NAMES[0]}.nii.gz", softmax_of(0)[0])
    with pytest.raises(
        InputError, match=r"t2/p1_ed.nii.gz: expected one image of this name in .*, got another, .*t1/p1"
    ):
        run(predictions, labels, tmp_path / "out", images=tmp_path / "images")


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_codes_of_no_structure_are_named_once(labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "predictions"
    for seed, name in enumerate(NAMES):
        part, whole = np.random.default_rng(seed).random((2, *SHAPE), np.float32)
        save_channels_last(folder / f"{name}.nii.gz", np.stack([part / 2, whole]))
    save_nifti(labels / "p1_ed_gt.nii.gz", label_of(0, (0, 1, 2, 7)))
    options = {"structures": ["a=1", "both=1+2"], "sigmoid": True}
    run(folder, labels, tmp_path / "a", **options)
    assert warned(caplog) == [
        f"{labels}: code 7, in 1 of 3 label maps, belongs to no structure and counts as background"
    ]
    save_nifti(labels / "p1_es_gt.nii.gz", label_of(0, (0, 1, 2, *range(7, 14))))
    caplog.clear()
    run(folder, labels, tmp_path / "b", **options, workers=2)
    codes = "codes 7, 8, 9, 10, 11 and 2 more, in 2 of 3 label maps"
    assert warned(caplog) == [f"{labels}: {codes}, belong to no structure and count as background"]


def test_channels_of_regions_in_another_order_are_named(
    labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "predictions"
    for seed, name in enumerate(NAMES):
        part, whole = np.random.default_rng(seed).random((2, *SHAPE), np.float32)
        save_channels_last(folder / f"{name}.nii.gz", np.stack([whole, part / 2]))
    run(folder, labels, tmp_path / "a", structures=["both=1+2", "a=1"], sigmoid=True)
    assert warned(caplog) == []
    run(folder, labels, tmp_path / "b", structures=["a=1", "both=1+2"], sigmoid=True)
    of_order = "a, which is a part of both by its codes, is predicted larger than it"
    assert warned(caplog) == [f"{folder}: {of_order}; --structures names the channels in their order"]


@pytest.mark.parametrize("turned", [False, True])
def test_label_maps_of_another_run_beside_arrays_are_spoken_of(
    turned: bool, labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """nnU-Net writes both; post-processing changes a few voxels only."""
    folder, affine = tmp_path / "nnunet", AFFINE
    if turned:  # the label map, as the image was, and not the array
        affine = AFFINE @ nib.orientations.inv_ornt_aff(np.array([[0, -1], [1, 1], [2, 1]]), SHAPE)
    for name in NAMES:
        p = softmax_of(NAMES.index(name))
        save_nnunet(folder, name, p, sitk_properties())
        of_array = p.argmax(0).astype(np.uint8)
        save_nifti(folder / f"{name}.nii.gz", of_array[::-1] if turned else of_array, affine)
    evaluate_predictions(folder, labels, out=tmp_path / "evaluation", workers=1)
    assert warned(caplog) == []
    save_nifti(folder / f"{NAMES[1]}.nii.gz", (softmax_of(9).argmax(0)).astype(np.uint8), affine)
    evaluate_predictions(folder, labels, out=tmp_path / "evaluation", workers=1)
    (line,) = warned(caplog)
    assert line.startswith(f"{folder / NAMES[1]}.npz: expected the most probable class to be that of the label map")


def test_codes_of_label_maps_that_are_compared(labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in NAMES:
        save_nifti(tmp_path / "maps" / f"{name}.nii.gz", label_of(3, (0, 1, 2, 5)))
    run(tmp_path / "maps", labels, tmp_path / "out", structures=["a=1", "b=2"])
    background = "belongs to no structure and counts as background"
    assert warned(caplog) == [f"{tmp_path / 'maps'}: code 5, in 3 of 3 label maps, {background}"]


@pytest.mark.filterwarnings("error")
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_probabilities_of_0_and_1_alone_may_be_label_maps(
    labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "predictions"
    for seed, name in enumerate(NAMES):
        save_nifti(folder / f"{name}.nii.gz", (label_of(seed) > 0).astype(np.float32))
    save_nifti(folder / "p1_ed.nii.gz", np.zeros(SHAPE, np.float32))  # nothing is segmented: may be a probability
    run(folder, labels, tmp_path / "out", structures=["a=1+2"])
    (line,) = warned(caplog)
    assert line.startswith(f"{folder / 'p1_es.nii.gz'}: every value is 0 or 1, as in 1 more; if these are label maps")
    caplog.clear()
    for seed, name in enumerate(NAMES):
        save_nifti(folder / f"{name}.nii.gz", softmax_of(seed)[1])
    run(folder, labels, tmp_path / "out", structures=["a=1+2"])
    assert warned(caplog) == []


@pytest.mark.parametrize("form", ["float", "bytes"])
def test_a_softmax_that_is_read_as_sigmoids_is_named(
    form: str, labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "predictions"
    for seed, name in enumerate(NAMES):
        p = softmax_of(seed, 8)
        if form == "float":
            save_channels_last(folder / f"{name}.nii.gz", p)
        else:  # cut off, so that sums are less than 1 by up to 8 / 255
            save_rounded(folder / f"{name}.nii.gz", np.floor(255 * p) / 255, np.uint8, 1 / 255)
    options = {"structures": [f"s{code}=1+{code}" for code in range(2, 10)], "sigmoid": True}
    run(folder, labels, tmp_path / "a", **options)
    (line,) = warned(caplog)
    assert line.startswith(f"{folder}: the channels add up to 1 in every voxel, so they look like a softmax")
    assert line.endswith("leave out --sigmoid")
    p[0, 0, 0, 0] += 0.3 if p[0, 0, 0, 0] < 0.5 else -0.3
    save_channels_last(folder / f"{name}.nii.gz", p)
    caplog.clear()
    run(folder, labels, tmp_path / "b", **options)
    assert warned(caplog) == []


def test_spacings_that_may_be_lost_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for seed, name in enumerate(NAMES):
        for folder, values in (("predictions", np.moveaxis(softmax_of(seed), 0, 3)), ("labels", label_of(seed))):
            save_nifti(tmp_path / folder / f"{name}.nii.gz", values, np.diag([-1.0, 1, 1, 1]))
    run(tmp_path / "predictions", tmp_path / "labels", tmp_path / "a")
    remedy = "if headers lost their spacing, millimetres and millilitres here are voxels"
    assert warned(caplog) == [f"{tmp_path / 'labels'}: every header says voxels of 1 x 1 x 1 mm; {remedy}"]
    affine = np.diag([1.0, 1, 1.001, 1])  # one case is enough
    save_channels_last(tmp_path / "predictions" / "p1_ed.nii.gz", softmax_of(0), affine)
    save_nifti(tmp_path / "labels" / "p1_ed.nii.gz", label_of(0), affine)
    caplog.clear()
    run(tmp_path / "predictions", tmp_path / "labels", tmp_path / "b")
    assert warned(caplog) == []


def test_only_one_run_at_a_time_writes_to_a_folder(predictions: Path, labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".unfinished-evaluation").mkdir(parents=True)  # that of the other run
    with only_run(out), pytest.raises(InputError, match=f"^{out}: expected no other run that writes to it, got one$"):
        run(predictions, labels, out)
    assert (out / ".unfinished-evaluation").is_dir()
    run(predictions, labels, out)
    assert not (out / ".unfinished-evaluation").exists()


@pytest.mark.parametrize("shape", [(1, 12, 10), (1, 1, 1)])
def test_page_of_volumes_that_are_thin(shape: tuple[int, ...], tmp_path: Path) -> None:
    for seed in range(2):
        save_channels_last(tmp_path / "predictions" / f"{seed}.nii", softmax_of(seed, shape=shape))
        save_nifti(tmp_path / "labels" / f"{seed}.nii", label_of(seed, shape=shape))
    assert run(tmp_path / "predictions", tmp_path / "labels", tmp_path / "out")[0] == ["0", "1"]
    assert (tmp_path / "out" / "report" / "index.html").is_file()


@pytest.mark.filterwarnings("error")
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_page_of_names_that_the_font_lacks_and_images_of_any_number(
    predictions: Path, labels: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    image = softmax_of(0)[0].astype(float)
    for name, value in zip(NAMES, (np.inf, -np.inf, 1e300), strict=True):
        save_nifti(tmp_path / "images" / f"{name}.nii.gz", np.where(label_of(0) == 1, value, image))
    run(predictions, labels, tmp_path / "out", structures=["\u5fc3\u81d3=1", "b=2"], images=tmp_path / "images")
    assert "\u5fc3\u81d3" in (tmp_path / "out" / "report" / "index.html").read_text()
    assert capfd.readouterr().err == ""


def test_an_evaluation_that_cannot_be_written_leaves_the_earlier_report(
    predictions: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "out" / "report" / "index.html"
    there: list[bool] = []
    monkeypatch.setattr(evaluate, "report_evaluations", lambda *_: there.append(page.exists()))
    run(predictions, labels, tmp_path / "out")
    page.parent.mkdir()
    page.write_text("the earlier page")
    monkeypatch.setattr(evaluate, "check_report_folder", lambda _: None)
    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "write_evaluation", fail)
        with pytest.raises(InputError, match="full"):
            run(predictions, labels, tmp_path / "out")
    assert page.is_file()
    run(predictions, labels, tmp_path / "out")
    assert there == [False, False]  # no page of other tables while the next is made


def fail(*_: Any, **__: Any) -> None:
    raise InputError("disk: expected to be written, got full")


def test_half_precision_sigmoids_that_are_stored_as_1(tmp_path: Path) -> None:
    """A wrong 1 counts as what it can have been, 1 - 2^-12, and a wrong 0 as 2^-25."""
    label = np.zeros((4, 4, 1), np.uint8)
    label[:2] = 1
    p = label.astype(np.float16)
    p[0, 0], p[3, 3] = 0, 1
    (tmp_path / "predictions").mkdir()
    np.save(tmp_path / "predictions" / "x.npy", p)
    save_nifti(tmp_path / "labels" / "x.nii", label)
    _, columns = run(tmp_path / "predictions", tmp_path / "labels", tmp_path / "out", structures=["a=1"])
    assert columns["nll_all"][0] == pytest.approx((12 + 25) * np.log(2) / 16)
    assert columns["brier_all"][0] == pytest.approx(2 * 2 / 16)
    assert columns["ece_all"][0] == pytest.approx(2 / 16)


def test_a_case_of_which_all_voxels_are_left_out(predictions: Path, labels: Path, tmp_path: Path) -> None:
    for name in NAMES[:2]:
        save_nifti(labels / f"{name}_gt.nii.gz", np.full(SHAPE, 9, np.uint8))
    _, columns = run(predictions, labels, tmp_path / "out", ignore_index=9)
    assert np.isnan(columns["ece_all"]).tolist() == [True, True, False]
    save_nifti(labels / f"{NAMES[2]}_gt.nii.gz", np.full(SHAPE, 9, np.uint8))
    expected = r"^--ignore_index: expected voxels with other codes, got 9 in every voxel of all 3 label\(s\)$"
    with pytest.raises(InputError, match=expected):
        run(predictions, labels, tmp_path / "all", ignore_index=9)
    assert not (tmp_path / "all" / "summary.json").exists()


def test_page_is_replaced_when_the_command_runs_again(predictions: Path, labels: Path, tmp_path: Path) -> None:
    for name in ("liver", "kidney"):
        run(predictions, labels, tmp_path / "out", structures=[f"{name}=1"])
        assert name in (tmp_path / "out" / "report" / "index.html").read_text()
    assert not (tmp_path / "out" / ".measured").exists()


def test_page_in_a_folder_whose_name_is_not_utf8(predictions: Path, labels: Path, tmp_path: Path) -> None:
    out = os.fsencode(tmp_path) + b"/o\xff"
    done = subprocess.run(
        [sys.executable, "scripts/evaluate_predictions.py", predictions, labels, "--out", out, "--workers", "1"],
        cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert rb"/o\udcff/report/index.html" in done.stdout
    assert os.path.exists(out + b"/report/index.html")
