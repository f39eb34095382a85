"""Saved predictions evaluated, and compared with what numpy, scipy and scikit-learn compute from
the same files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from calib_components.errors import InputError
from calib_components.metrics.objects import CANDIDATE, TRUE_OBJECT
from calib_tools.predictions import calibrate_predictions, evaluate_predictions
from calib_tools.predictions.cases import find_case_images
from calib_tools.report.report import report_folders
from calib_workflows import evaluate as evaluate_module
from calib_workflows.evaluation_files import OBJECT_COLUMNS, Evaluation
from tests.calib_components.metrics.by_definition import Case, inside, near
from tests.calib_components.metrics.test_objects import by_hand
from tests.calib_components.metrics.test_segmentation import by_distance_transform
from tests.calib_tools.predictions.made_up import (
    AFFINE,
    SHAPE,
    drawn_from,
    label_of,
    save_channels_last,
    save_nifti,
    save_nnunet,
    softmax_of,
)

NAMES = ["p1_ed", "p1_es", "p2_ed"]
STRUCTURES = ["a=1", "both=1+2"]
SPACING = np.linalg.norm(AFFINE[:3, :3], axis=0)
MEASURED = {  # in each region
    "foreground": ["ece", "cece"],
    "all": ["ece", "nll"],
    "predicted": ["ece", "nll"],
    "near": ["nll"],
}


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


def dsc(predicted: np.ndarray, true: np.ndarray) -> float:
    return 2 * (predicted & true).sum() / (predicted.sum() + true.sum())


def run(
    predictions: Path, labels: Path, out: Path, **options: Any
) -> tuple[list[str], dict[str, np.ndarray]]:
    evaluate_predictions(
        predictions, labels, out, **{"structures": STRUCTURES, "workers": 1, **options}
    )
    if not (out / "cases.csv").exists():
        return [], {}
    table = Evaluation.read(out).cases
    return table.pop("case").tolist(), {name: values.to_numpy() for name, values in table.items()}


def test_label_codes_of_no_structure_are_named_in_one_line(
    predictions: Path, labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As 255 outside of what was photographed: with sigmoids, it is background."""
    for name in NAMES:
        save_channels_last(predictions / f"{name}.nii.gz", softmax_of(0)[1:2])
    for name in NAMES[:2]:
        label = label_of(0) == 1
        label = np.where(np.arange(SHAPE[0])[:, None, None] < 2, 255, label).astype(np.uint8)
        save_nifti(labels / f"{name}_gt.nii.gz", label)
    save_nifti(labels / f"{NAMES[2]}_gt.nii.gz", (label_of(0) == 1).astype(np.uint8))
    run(predictions, labels, tmp_path / "out", structures=["a=1"])
    (line,) = (text for text in caplog.messages if "codes" in text)
    assert line.startswith("Label codes of no structure, in 2 case(s), count as background: 255")
    assert "255 (up to 33 % of a case). To leave" in line
    caplog.clear()
    run(predictions, labels, tmp_path / "left_out", structures=["a=1"], ignore_index=255)
    assert "codes" not in caplog.text


def test_measures_are_those_of_numpy_and_scipy(
    predictions: Path, labels: Path, tmp_path: Path
) -> None:
    cases, columns = run(predictions, labels, tmp_path / "out", patient_pattern=r"p\d")
    assert cases == NAMES
    for i, name in enumerate(cases):
        p = np.moveaxis(nib.load(predictions / f"{name}.nii.gz").get_fdata(), 3, 0)
        label = np.asarray(nib.load(labels / f"{name}_gt.nii.gz").dataobj)
        case = Case(p, np.ones(SHAPE, bool))
        for region, names in MEASURED.items():
            mask = near(label, 5, [*SPACING]) if region == "near" else inside(region, p, label)
            suffix = "" if region == "foreground" else f"_{region}"
            for measure, value in case.measures(label, mask).items():
                column = columns.get(measure + suffix)
                assert (column is not None) == (measure in names), (measure, region)
                if column is not None:
                    assert column[i] == pytest.approx(value, abs=1e-6), (measure, region)
        assert columns["ece_if_true"][i] == pytest.approx(
            case.errors_if_true("foreground")["ece"], abs=1e-6
        )
        millilitres = SPACING.prod() / 1000
        for structure, classes in (("a", [1]), ("both", [1, 2])):
            predicted, true = np.isin(p.argmax(0), classes), np.isin(label, classes)
            expected = {
                "dsc": dsc(predicted, true),
                "hd95": by_distance_transform(predicted, true, SPACING),
                "true_volume": true.sum() * millilitres,
                "expected_volume": p[classes].sum() * millilitres,
            }
            measured = {measure: columns[f"{measure}_{structure}"][i] for measure in expected}
            assert measured == pytest.approx(expected, abs=1e-6)
    summary = Evaluation.read(tmp_path / "out").summary
    assert summary["patients"] == {"p1_ed": "p1", "p1_es": "p1", "p2_ed": "p2"}
    assert len({*summary["labels"].values()}) == 3
    assert (summary["unit"], summary["volume_unit"]) == ("mm", "ml")


def test_overlapping_regions_with_a_sigmoid_each(tmp_path: Path) -> None:
    codes = {"WT": [1, 2, 4], "TC": [1, 4], "ET": [4]}
    label = label_of(0, (0, 1, 2, 4))
    p = np.random.default_rng(0).uniform(size=(3, *SHAPE)).astype(np.float32)
    save_channels_last(tmp_path / "predictions" / "x.nii.gz", p)
    save_nifti(tmp_path / "labels" / "x.nii.gz", label)
    options = {"structures": ["WT=1+2+4", "TC=1+4", "ET=4"], "sigmoid": True}
    _, columns = run(tmp_path / "predictions", tmp_path / "labels", tmp_path / "out", **options)
    masks = np.stack([np.isin(label, values) for values in codes.values()])
    for name, probability, true in zip(codes, p, masks, strict=True):
        assert columns[f"dsc_{name}"][0] == pytest.approx(dsc(probability > 0.5, true))
    two_classes = Case(
        np.stack([1 - p.astype(float).ravel(), p.astype(float).ravel()]), np.ones(p.size, bool)
    )
    measures = two_classes.measures(masks.ravel().astype(int), np.ones(p.size, bool))
    for measure in ("ece", "nll"):
        assert columns[f"{measure}_all"][0] == pytest.approx(measures[measure], abs=1e-6)


def test_label_maps_give_the_segmentation_part_only(labels: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(NAMES):
        save_nifti(
            tmp_path / "predictions" / f"{name}.nii.gz", softmax_of(seed).argmax(0).astype(np.uint8)
        )
    _, columns = run(tmp_path / "predictions", labels, tmp_path / "out", structures=["a=1", "b=7"])
    assert list(columns) == ["dsc_a", "dsc_b", "hd95_a", "hd95_b"]
    files = {file.name for file in (tmp_path / "out").rglob("[!.]*.*")}
    assert files == {"cases.csv", "summary.json", "best.png", "median.png", "worst.png"}


@pytest.mark.parametrize("is_labelled", [True, False])
def test_a_case_that_cannot_be_measured_is_left_out(
    is_labelled: bool, labels: Path, predictions: Path, tmp_path: Path
) -> None:
    (bad,) = predictions.glob(f"{NAMES[1]}*")
    save_channels_last(bad, softmax_of(1) * np.nan)
    with pytest.raises(SystemExit) as ended:
        evaluate_predictions(
            predictions, labels if is_labelled else None, out=tmp_path / "out", workers=1
        )
    assert ended.value.code == 3
    rows = pd.read_csv(tmp_path / "out" / ("cases.csv" if is_labelled else "quality.csv"))
    assert {*rows.iloc[:, 0]} == {NAMES[0], NAMES[2]}
    page = tmp_path / "out" / "quality.html"
    if is_labelled:
        page = tmp_path / "report" / "index.html"
        report_folders(tmp_path / "out", out=page.parent)
    assert bad.name in page.read_text()


def test_objects_are_written_in_millilitres(
    predictions: Path, labels: Path, tmp_path: Path
) -> None:
    options = {"objects": ["both"], "object_p": 0.7, "overlap": 0.1, "patient_pattern": r"p\d"}
    run(predictions, labels, tmp_path / "out", **options)
    table = Evaluation.read(tmp_path / "out").parts["objects"]
    assert [*table] == OBJECT_COLUMNS
    for seed, name in enumerate(NAMES):
        p, label = softmax_of(seed)[1:].sum(0), label_of(seed)
        rows = by_hand(p, label > 0, 0.7, 0.1)
        found = table[table["case"] == name]
        assert {*found["patient"]} == {name[:2]}
        assert {*found["structure"]} == {"both"}
        for kind in (CANDIDATE, TRUE_OBJECT):
            each = found[found["kind"] == kind]
            expected = sorted(row[1:] for row in rows if row[0] == kind)
            volumes = [size * SPACING.prod() / 1000 for size, *_ in expected]
            assert sorted(each["volume"]) == pytest.approx(volumes)
            assert sorted(each["confidence"]) == pytest.approx(sorted(row[1] for row in expected))
            assert each["matched"].sum() == sum(row[2] for row in expected)
    missed = table[(table["kind"] == TRUE_OBJECT) & ~table["matched"]]
    drawn = sorted(file.name for file in (tmp_path / "out" / "cases").glob("missed*"))
    assert drawn == [f"missed{n + 1}.png" for n in range(min(3, missed["case"].nunique()))]
    summary = Evaluation.read(tmp_path / "out").summary
    assert summary["objects"] == {"structures": ["both"], "threshold": 0.7, "overlap": 0.1}


def test_missed_objects_are_encircled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label, prediction = np.zeros((2, *SHAPE), np.uint8)
    label[1, 1, 1] = label[3:5, 2, 1] = prediction[1, 1, 1] = 1
    for name, array in (("labels", label), ("predictions", prediction)):
        save_nifti(tmp_path / name / "x.nii.gz", array)
    shown = {}

    def draw(title: str, missed: Any = None, **_: Any) -> bytes:
        shown[title] = missed
        return b""

    monkeypatch.setattr(evaluate_module, "draw_prediction", draw)
    folders = [tmp_path / name for name in ("predictions", "labels", "out")]
    run(*folders, structures=["lesion=1"], objects=["lesion"])
    volume = 2 * SPACING.prod() / 1000
    circle = shown[f"x\nmissed: {volume:.3g} ml at voxel 3 2 1"]
    assert circle.nonzero().tolist() == [[3, 2], [4, 2]]


def test_voxels_to_leave_out(tmp_path: Path) -> None:
    label, ignored = label_of(0), np.arange(SHAPE[0])[:, None, None] >= 3 + np.zeros(SHAPE)
    save_nifti(tmp_path / "labels" / "x.nii.gz", np.where(ignored, 9, label).astype(np.uint8))
    save_channels_last(tmp_path / "predictions" / "x.nii.gz", softmax_of(0))
    _, columns = run(
        tmp_path / "predictions", tmp_path / "labels", tmp_path / "out", ignore_index=9
    )
    p = softmax_of(0).astype(float)
    expected = Case(p, ~ignored).measures(label, ~ignored)
    for measure in MEASURED["all"]:
        assert columns[f"{measure}_all"][0] == pytest.approx(expected[measure], abs=1e-6)
    assert columns["dsc_a"][0] == pytest.approx(
        dsc((p.argmax(0) == 1) & ~ignored, (label == 1) & ~ignored)
    )


def test_files_of_other_names_are_paired_by_a_table(
    predictions: Path, labels: Path, tmp_path: Path
) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("case,prediction,label,patient\nx,p1_ed.nii.gz,p1_es_gt.nii.gz,Ann\n")
    assert run(predictions, labels, tmp_path / "out", pairs=table)[0] == ["x"]
    assert Evaluation.read(tmp_path / "out").summary["patients"] == {"x": "Ann"}
    with pytest.raises(InputError, match="--pairs needs"):
        evaluate_predictions(predictions, out=tmp_path / "new", pairs=table)


@pytest.mark.parametrize("channels", [2, 3])
def test_background_as_the_last_channel_is_refused_and_a_bad_network_is_not(
    channels: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    label = np.where(rng.random(SHAPE) < 0.8, 0, rng.integers(1, channels, SHAPE)).astype(np.uint8)
    save_nifti(tmp_path / "labels" / "x.nii.gz", label)
    options = {"structures": ["a=1", "b=2"][: channels - 1], "workers": 1}
    good = np.moveaxis(0.7 * np.eye(channels)[label] + 0.3 / channels, -1, 0).astype(np.float32)
    good[:, :2] = softmax_of(0, channels)[:, :2]  # a third at random
    folders = tmp_path / "p", tmp_path / "labels"
    save_channels_last(tmp_path / "p" / "x.nii.gz", np.roll(good, -1, axis=0))
    message = r"x: the background seems to be the last channel: .* would be"
    with pytest.raises(InputError, match=message):
        run(*folders, tmp_path / "out", **options)
    with pytest.raises(InputError, match=message):
        calibrate_predictions(*folders, apply_to=[folders[0]], out=tmp_path / "T", **options)
    for bad in (
        good,
        softmax_of(1, channels),
        np.roll(good, -1, axis=0)[:, :, ::-1],
        0 * good + good[::-1, :1, :1, :1],
    ):
        save_channels_last(tmp_path / "p" / "x.nii.gz", np.ascontiguousarray(bad))
        # Random, mirrored, of one class
        run(*folders, tmp_path / "bad", **options)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("one/a", "two/a", "two/b", "c_0000"):
        save_nifti(tmp_path / f"{name}.nii.gz", label_of(0))
    assert find_case_images(tmp_path, ["c"]) == {"c": tmp_path / "c_0000.nii.gz"}
    assert find_case_images(tmp_path, ["b"]) == {"b": tmp_path / "two" / "b.nii.gz"}
    with pytest.raises(InputError, match=r"one.a\.nii\.gz and .*two.a\.nii\.gz may both be"):
        find_case_images(tmp_path, ["a", "b"])
    save_nifti(tmp_path / "two" / "b_0000.nii.gz", label_of(0))
    with pytest.raises(InputError, match="may both be the image of b"):
        find_case_images(tmp_path, ["b"])


def test_quality_without_labels_is_that_of_numpy(
    predictions: Path, labels: Path, tmp_path: Path
) -> None:
    for seed in range(9):  # of validation patients, whose limits are those of the definition
        save_nifti(
            tmp_path / "other labels" / f"v{seed}.nii.gz",
            softmax_of(100 + seed).argmax(0).astype(np.uint8),
        )
        save_channels_last(tmp_path / "other" / f"v{seed}.nii.gz", softmax_of(200 + seed))
    run(tmp_path / "other", tmp_path / "other labels", tmp_path / "validation")
    save_nifti(tmp_path / "images" / "p1_ed.nii.gz", np.random.default_rng(0).normal(size=SHAPE))
    options: dict[str, Any] = {"structures": STRUCTURES, "workers": 1, "review": "33%"}
    evaluate_predictions(
        predictions, None, tmp_path / "out", validation=tmp_path / "validation", **options
    )
    table, fitted = (
        pd.read_csv(tmp_path / "out" / "quality.csv"),
        Evaluation.read(tmp_path / "validation").cases,
    )
    names = [name.removeprefix("dsc_") for name in fitted if name.startswith("dsc_")]
    expected, true = (
        fitted[[f"{m}_{s}" for s in names]].to_numpy() for m in ("expected_dsc", "dsc")
    )
    residuals = (expected - true) / (1 - expected)
    others = [np.sqrt((np.delete(residuals, i, 0) ** 2).mean(0)) for i in range(9)]
    scale = np.sqrt((residuals**2).mean(0))[names.index("both")]
    q = scale * max((residuals / others).max(1))  # of nine patients
    ranges = fitted["expected_volume_both"], fitted["true_volume_both"]
    off = sorted(abs(ranges[0] - ranges[1]) / ranges[0])[8]
    for name in NAMES:
        p = np.moveaxis(nib.load(predictions / f"{name}.nii.gz").get_fdata(), 3, 0)
        own, mask = p[[1, 2]].sum(0), np.isin(p.argmax(0), [1, 2])
        value, volume = (
            2 * own[mask].sum() / (mask.sum() + own.sum()),
            own.sum() * SPACING.prod() / 1000,
        )
        limits = (
            max(0, value - q * (1 - value)),
            volume,
            volume * max(0, 1 - off),
            volume * (1 + off),
        )
        (found,) = table[(table["scan"] == name) & (table["structure"] == "both")].to_numpy()
        np.testing.assert_allclose(found[2:7].astype(float), (value, *limits), rtol=1e-5, atol=1e-6)
    assert table["review"].tolist().count("yes") >= len(STRUCTURES)
    save_nnunet(tmp_path / "arrays", "p1_ed", softmax_of(0))  # without a grid: that of its image
    evaluate_predictions(
        tmp_path / "arrays", out=tmp_path / "new", images=tmp_path / "images", **options
    )
    again = pd.read_csv(tmp_path / "new" / "quality.csv")
    assert again["expected_volume_ml"].notna().all()
    assert again["dsc_lower_bound"].isna().all()
    # Without the scans of an earlier run
    save_channels_last(tmp_path / "other scan" / "x.nii.gz", softmax_of(0))
    evaluate_predictions(tmp_path / "other scan", out=tmp_path / "new", overwrite=True, **options)
    assert {*pd.read_csv(tmp_path / "new" / "quality.csv")["scan"]} == {"x"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cases.csv").touch()  # of an evaluation with labels
    with pytest.raises(InputError, match="--overwrite"):
        evaluate_predictions(predictions, out=tmp_path / "mine", **options)


def test_label_maps_without_labels_are_refused(labels: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"is a label map\. An estimate of quality needs probabilities"
    ):
        evaluate_predictions(labels, out=tmp_path / "out", structures=STRUCTURES)
    one_hot = np.eye(3)[softmax_of(0).argmax(0)]
    save_nnunet(tmp_path / "one_hot", "a", np.moveaxis(one_hot, -1, 0))
    with pytest.raises(InputError, match=r"a\.npz: all values are 0 or 1"):
        evaluate_predictions(tmp_path / "one_hot", out=tmp_path / "out")
    save_nnunet(tmp_path / "two", "a", softmax_of(0))
    save_nnunet(tmp_path / "two", "b", softmax_of(0, 4))
    with pytest.raises(InputError, match=r"4 channels, .* has 3"):
        evaluate_predictions(tmp_path / "two", out=tmp_path / "out")
    (tmp_path / "flat").mkdir()
    np.save(tmp_path / "flat" / "a.npy", softmax_of(0)[..., 0])
    with pytest.raises(InputError, match=r"a\.npy: \(3, 6, 5\) may be .* Pass --sigmoid"):
        evaluate_predictions(tmp_path / "flat", out=tmp_path / "out")


@pytest.mark.parametrize("with_labels", [False, True])
def test_an_evaluation_of_the_same_or_other_predictions_is_no_validation(
    with_labels: bool, predictions: Path, labels: Path, tmp_path: Path
) -> None:
    run(predictions, labels, tmp_path / "seen", structures=None)
    options: dict[str, Any] = {"validation": tmp_path / "seen", "workers": 1}
    if not with_labels:
        with pytest.raises(InputError, match=r"seen has 3 of .*p1_ed.* other names"):
            evaluate_predictions(predictions, None, tmp_path / "out", **options)
    for name in NAMES:
        save_channels_last(predictions / f"{name}.nii.gz", softmax_of(7)[1:])
    with pytest.raises(InputError, match="seen has the sigmoid False, not True"):
        evaluate_predictions(
            predictions, labels if with_labels else None, tmp_path / "out", sigmoid=True, **options
        )


@pytest.mark.parametrize("with_labels", [False, True])
def test_predictions_of_the_validation_under_other_names_are_refused(
    with_labels: bool, predictions: Path, labels: Path, tmp_path: Path
) -> None:
    """They may be saved by another program and have the labels of another rater."""
    run(predictions, labels, tmp_path / "seen")
    save_nifti(tmp_path / "other labels" / "x.nii.gz", label_of(9))
    flipped = np.array([[0, -1], [1, 1], [2, 1]])
    image = nib.load(predictions / "p2_ed.nii.gz").as_reoriented(flipped)
    save_nifti(tmp_path / "renamed" / "x.nii", image.get_fdata(), image.affine)
    folders = tmp_path / "renamed", tmp_path / "other labels" if with_labels else None
    options: dict[str, Any] = {"validation": tmp_path / "seen", "structures": STRUCTURES}
    with pytest.raises(InputError, match=r"seen has 1 of .* the same volume .* \(x and p2_ed\)"):
        evaluate_predictions(*folders, tmp_path / "out", workers=1, **options)
    assert not (tmp_path / "out").exists()


def test_a_validation_has_the_calibration_and_the_codes_of_the_test(
    predictions: Path, labels: Path, tmp_path: Path
) -> None:
    """Limits of probabilities before a temperature do not hold for those after it."""
    run(predictions, labels, tmp_path / "seen", structures=["a=1", "b=2"])
    options: dict[str, Any] = {"validation": tmp_path / "seen", "workers": 1}
    save_channels_last(tmp_path / "new" / "x.nii.gz", softmax_of(5))
    with pytest.raises(InputError, match="seen has the structures a=1,b=2, not a=2,b=1"):
        evaluate_predictions(
            tmp_path / "new", None, tmp_path / "out", structures=["a=2", "b=1"], **options
        )
    for seed, name in enumerate(NAMES):
        save_nifti(labels / f"{name}_gt.nii.gz", drawn_from(softmax_of(seed)))
    calibrate_predictions(
        predictions,
        labels,
        apply_to=[tmp_path / "new"],
        out=tmp_path / "scaled",
        calibrator="temperature",
        workers=1,
    )
    with pytest.raises(InputError, match="seen has the calibration none, not temperature all 3"):
        evaluate_predictions(
            tmp_path / "scaled", None, tmp_path / "out", structures=["a=1", "b=2"], **options
        )


def test_places_and_options_that_do_not_fit(
    predictions: Path, labels: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "summary.json").write_text("{}")  # as nnU-Net has one
    save_nifti(tmp_path / "images" / "p1_ed.nii.gz", label_of(0))
    run(predictions, labels, tmp_path / "validation", structures=["c=1"])
    for seed, name in enumerate(NAMES):
        save_channels_last(tmp_path / "other" / f"{name}.nii.gz", softmax_of(9 + seed))
    run(tmp_path / "other", labels, tmp_path / "seen")
    pattern = {"validation": tmp_path / "seen", "patient_pattern": r"p\d"}
    for out, options, expected in (
        (tmp_path / "out", pattern, "--validation: .*seen has 3 of .* patient p1 is on both sides"),
        (tmp_path / "mine", {}, "--overwrite"),
        (predictions, {}, "predictions holds files to read"),
        (tmp_path / "out", {"images": tmp_path / "images"}, "p1_es"),
        (tmp_path / "out", {"validation": tmp_path / "validation"}, "--validation"),
        (tmp_path / "out", {"objects": ["c"]}, "--objects must be one of 'a', 'both', got 'c'"),
        (tmp_path / "out", {"overlap": 10}, "--overlap must be a number from 0 to 1"),
    ):
        with pytest.raises(InputError, match=expected):
            run(predictions, labels, out, **options)
    with pytest.raises(InputError, match="--objects needs labels"):
        evaluate_predictions(predictions, None, tmp_path / "out", objects=["a"])
    assert not (tmp_path / "out").exists()
    for name in NAMES:
        save_nifti(tmp_path / "images" / f"{name}.nii.gz", label_of(0), np.eye(4))
    with pytest.raises(InputError, match="affine"):
        run(predictions, labels, tmp_path / "out", images=tmp_path / "images")
