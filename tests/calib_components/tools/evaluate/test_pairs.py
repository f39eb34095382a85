"""Predictions and labels are paired by name, checked by their headers, and read on the voxels of the label."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from calib_components.errors import InputError
from calib_components.tools.evaluate.classes import IGNORED, name_classes
from calib_components.tools.evaluate.pairs import (
    Saved,
    classes_of,
    find_cases,
    find_predictions,
    patients_of,
    read_case,
)
from tests.calib_components.tools.evaluate.made_up import (
    AFFINE,
    SHAPE,
    first_version_properties,
    label_of,
    nibabel_properties,
    save_channels_last,
    save_nifti,
    save_nnunet,
    sitk_properties,
    softmax_of,
)

P, LABEL = softmax_of(0), label_of(0)


def places(root: Path) -> tuple[Path, Path]:
    return root / "predictions", root / "labels"


def read_one(
    root: Path, structures: list[str] | None = None, sigmoid: bool = False, ignore: int | None = None
) -> Saved:
    cases = find_cases(*places(root))
    assert [case.name for case in cases] == ["case"]
    return read_case(cases[0], classes_of(cases, structures, sigmoid, ignore))


def check_softmax(saved: Saved, p: np.ndarray = P, label: np.ndarray = LABEL, atol: float = 1e-6) -> None:
    assert saved.probabilities is not None
    torch.testing.assert_close(saved.probabilities, torch.from_numpy(p), atol=atol, rtol=0)
    assert torch.equal(saved.prediction, torch.from_numpy(p.argmax(0).astype(np.uint8)))
    assert torch.equal(saved.label, torch.from_numpy(label[None]))
    np.testing.assert_allclose(saved.affine, AFFINE, atol=1e-4)
    np.testing.assert_allclose(saved.spacing, [1.5, 1.25, 8.0], atol=1e-5)


def test_probabilities_and_label_of_one_name(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    save_channels_last(predictions / "case.nii.gz", P)
    save_nifti(labels / "case.nii", LABEL)
    check_softmax(read_one(tmp_path))


def test_a_folder_of_our_inference_and_one_of_images_and_labels(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    save_channels_last(predictions / "case_probability.nii.gz", P)
    save_nifti(predictions / "case_seg.nii.gz", LABEL)
    save_nifti(predictions / "case_uncertainty.nii.gz", P[0])
    save_nifti(labels / "patient" / "case_gt.nii.gz", LABEL)
    save_nifti(labels / "patient" / "case.nii.gz", P[0])  # the image
    save_nifti(labels / "patient" / "case_4d.nii.gz", P)
    save_nifti(labels / ".hidden" / "other_gt.nii.gz", LABEL)
    check_softmax(read_one(tmp_path))


def test_a_folder_of_nnunet(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    save_nnunet(predictions, "case", P, sitk_properties())
    save_nifti(predictions / "case.nii.gz", P.argmax(0).astype(np.uint8))
    for name in ("dataset.json", "plans.json", "predict_from_raw_data_args.json"):
        (predictions / name).write_text("{}")
    save_nifti(labels / "case.nii.gz", LABEL)
    check_softmax(read_one(tmp_path), atol=5e-4)


def test_nnunets_reoriented_arrays_come_back_to_the_label(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    image = nib.Nifti1Image(np.moveaxis(P, 0, -1), AFFINE)
    turned = image.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    properties = nibabel_properties(original_affine=AFFINE, reoriented_affine=turned.affine)
    save_nnunet(predictions, "case", np.moveaxis(turned.get_fdata(), -1, 0), properties, dtype=np.float32)
    save_nifti(predictions / "case.nii.gz", P.argmax(0).astype(np.uint8))
    save_nifti(labels / "case.nii.gz", LABEL)
    check_softmax(read_one(tmp_path))


def test_a_file_for_each_channel(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    for index, channel in enumerate(softmax_of(0, channels=12)):
        save_nifti(predictions / f"case_{index}.nii.gz", channel)
    save_nifti(labels / "case_label.nii.gz", LABEL)
    check_softmax(read_one(tmp_path), softmax_of(0, channels=12))


def test_names_that_end_in_a_number_are_names_where_labels_have_them(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    for index in range(2):
        save_nifti(predictions / f"patient_{index}.nii.gz", P[index])
        save_nifti(labels / f"patient_{index}.nii.gz", LABEL)
    assert [case.name for case in find_cases(predictions, labels)] == ["patient_0", "patient_1"]
    assert list(find_predictions(predictions)) == ["patient"]
    save_nifti(predictions / "patient_3.nii.gz", P[0])  # a gap: not the files of one prediction
    assert list(find_predictions(predictions)) == ["patient_0", "patient_1", "patient_3"]
    for name, values in (("maps", LABEL), ("all", P)):  # neither are label maps and files of all channels
        for index in range(2):
            save_nifti(tmp_path / name / f"patient_{index}.nii", np.moveaxis(values, 0, -1))
        assert list(find_predictions(tmp_path / name)) == ["patient_0", "patient_1"]


@pytest.mark.parametrize(
    ("numbers", "missing"),
    [("0 1 2 3 5", 4), ("1 2 3", 0), ("00 01 02", 0), ("0 1 2 3 4 5 6 7 8 10", 9)],
)
def test_channels_that_are_numbered_in_another_way_are_named(numbers: str, missing: int, tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    for number in numbers.split():
        save_nifti(predictions / f"case_1_{number}.nii", P[0])
    save_nifti(labels / "case_1_gt.nii", LABEL)
    expected = r"channels of case_1 that are numbered from 0, without gaps and leading zeros, got none called case_1_"
    with pytest.raises(InputError, match=rf"predictions/case_1_\w+.nii: expected {expected}{missing}$"):
        find_cases(predictions, labels)


@pytest.mark.parametrize(("values", "numbers"), [(P[0], "2"), (LABEL, "1 2"), (np.moveaxis(P, 0, -1), "1 2")])
def test_what_is_no_file_for_each_channel_has_no_label(values: np.ndarray, numbers: str, tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    for number in numbers.split():
        save_nifti(predictions / f"case_{number}.nii", values)
    save_nifti(labels / "case.nii", LABEL)
    with pytest.raises(InputError, match=r"predictions: expected a label in .*, got none for case_"):
        find_cases(predictions, labels)


def test_cases_that_are_called_by_numbers(tmp_path: Path) -> None:
    """Also if there is a label of the name that they have in common."""
    predictions, labels = places(tmp_path)
    for number in (1, 2, 4):
        save_nifti(predictions / f"patient_{number}.nii", P[0])
        save_nifti(labels / f"patient_{number}.nii", LABEL)
    save_nifti(labels / "patient.nii", LABEL)
    assert [case.name for case in find_cases(predictions, labels)] == ["patient_1", "patient_2", "patient_4"]


@pytest.mark.parametrize("suffix", ["gt", "seg", "label"])
@pytest.mark.parametrize("kind", ["npz", "nii", "labels"])
def test_predictions_that_are_called_like_labels_with_a_suffix(suffix: str, kind: str, tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    for name in (f"a_{suffix}", f"b_{suffix}"):
        if kind == "npz":
            save_nnunet(predictions, name, P, sitk_properties())
        elif kind == "nii":
            save_channels_last(predictions / f"{name}.nii.gz", P)
        else:
            save_nifti(predictions / f"{name}.nii", LABEL)
        save_nifti(labels / f"{name}.nii.gz", LABEL)
        save_nifti(labels / f"{name[0]}.nii.gz", P[0])  # the image
    cases = find_cases(predictions, labels)
    assert [case.label.name for case in cases] == [f"a_{suffix}.nii.gz", f"b_{suffix}.nii.gz"]
    assert [case.prediction.files[0].name.split(".")[0] for case in cases] == [f"a_{suffix}", f"b_{suffix}"]


def test_sigmoid_regions(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    p = np.random.default_rng(0).random((3, *SHAPE), np.float32)
    save_channels_last(predictions / "case.nii.gz", p)
    label = label_of(0, codes=(0, 1, 2, 4))
    save_nifti(labels / "case.nii.gz", label)
    saved = read_one(tmp_path, ["WT=1+2+4", "TC=1+4", "ET=4"], sigmoid=True)
    assert torch.equal(saved.probabilities, torch.from_numpy(p))
    expected = np.stack([label > 0, (label == 1) | (label == 4), label == 4])
    assert torch.equal(saved.label, torch.from_numpy(expected.astype(np.uint8)))
    drawn = np.where(p[2] > 0.5, 3, np.where(p[1] > 0.5, 2, p[0] > 0.5))
    assert torch.equal(saved.prediction, torch.from_numpy(drawn.astype(np.uint8)))


def test_regions_of_our_inference_have_the_background_before_them(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    classes = softmax_of(0, channels=4)
    ours = np.stack([classes[0], classes[3], classes[1] + classes[3], classes[1:].sum(0)])
    save_channels_last(predictions / "case_probability.nii.gz", ours)
    save_nifti(labels / "case.nii.gz", label_of(0, codes=(0, 1, 2, 4)))
    structures = ["ET=4", "TC=1+4", "WT=1+2+4"]
    saved = read_one(tmp_path, structures, sigmoid=True)
    assert torch.equal(saved.probabilities, torch.from_numpy(ours[1:]))
    with pytest.raises(InputError, match=r"4 classes that add up to 1 .*; --sigmoid reads channels"):
        read_one(tmp_path, structures)


def test_one_channel_is_the_foreground(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    save_nifti(predictions / "case.nii.gz", P[1])
    save_nifti(labels / "case.nii.gz", LABEL)
    saved = read_one(tmp_path, ["tumour=2"])
    assert torch.equal(saved.probabilities, torch.from_numpy(P[1:2]))
    assert torch.equal(saved.label, torch.from_numpy((LABEL == 2)[None].astype(np.uint8)))
    assert torch.equal(saved.prediction, torch.from_numpy((P[1] > 0.5).astype(np.uint8)))


def test_label_maps_have_no_probabilities(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    other = label_of(1, codes=(0, 1, 2, 4))
    save_nifti(predictions / "case_seg.nii.gz", other)
    save_nifti(labels / "case.nii.gz", np.where(LABEL == 2, 9, LABEL))
    saved = read_one(tmp_path, ["WT=1+2+4", "ET=4"], sigmoid=True, ignore=9)
    assert saved.probabilities is None
    assert torch.equal(saved.prediction, torch.from_numpy(np.array([0, 1, 2, 0, 3], np.uint8)[other]))
    assert torch.equal(saved.label, torch.from_numpy(np.where(LABEL == 2, IGNORED, LABEL)[None]))
    saved = read_one(tmp_path, ["ET=4"], ignore=9)  # other codes are background
    assert torch.equal(saved.prediction, torch.from_numpy((other == 4).astype(np.uint8)))
    save_nifti(predictions / "case_seg.nii.gz", other[..., None])
    assert torch.equal(read_one(tmp_path, ["ET=4"], ignore=9).prediction, saved.prediction)


def test_an_image_beside_its_segmentation_is_not_the_prediction(tmp_path: Path) -> None:
    predictions, _ = places(tmp_path)
    save_nifti(predictions / "scan.nii.gz", np.full(SHAPE, -900, np.int16))
    save_nifti(predictions / "scan_seg.nii.gz", LABEL)
    with pytest.raises(InputError, match=r"scan.nii.gz: expected one prediction called scan, got another, ") as caught:
        find_predictions(predictions)
    assert str(caught.value).endswith("scan_seg.nii.gz; if scan.nii.gz is the image, move it away")


def test_channels_in_another_order_than_the_structures_are_spoken_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predictions, labels = places(tmp_path)
    save_channels_last(predictions / "case.nii.gz", P)
    save_nifti(labels / "case.nii", LABEL)
    check_softmax(read_one(tmp_path, ["LV=1", "RV=2"]))
    assert caplog.messages == []
    check_softmax(read_one(tmp_path, ["RV=2", "LV=1"]))
    (line,) = caplog.messages
    assert line.startswith(f"{predictions}/case.nii.gz: the channels after the background are taken in ascending order")
    assert line.endswith("not as in --structures: LV, RV")


def test_predictions_without_a_label_are_named(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    for name in ("a", "b", *(f"extra{index}" for index in range(7))):
        save_nnunet(predictions, name, P)
    save_nifti(labels / "b.nii.gz", LABEL)
    expected = r"a label in .*labels for each .*, got none for a, extra0, .*extra3 and 3 more"
    with pytest.raises(InputError, match=f"^{predictions}: expected {expected}$"):
        find_cases(predictions, labels)


def test_labels_without_a_prediction_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Such as the labels of all cases, for the predictions of one fold."""
    predictions, labels = places(tmp_path)
    save_nnunet(predictions, "b", P, sitk_properties())
    for name in ("a", "b", "c"):
        save_nifti(labels / f"{name}.nii.gz", LABEL)
    assert [case.name for case in find_cases(predictions, labels)] == ["b"]
    (record,) = caplog.records
    assert record.getMessage() == f"{labels}: 2 label(s) without a prediction, left out: a, c"


def test_folders_without_files_are_named(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    with pytest.raises(InputError, match="labels: expected a folder, got nothing"):
        find_cases(predictions, labels)
    labels.mkdir()
    with pytest.raises(InputError, match=r"labels: expected labels, .nii or .nii.gz files, got none"):
        find_cases(predictions, labels)
    save_nifti(labels / "case.nii", LABEL)
    predictions.write_text("")
    with pytest.raises(InputError, match="predictions: expected a folder, got a file"):
        find_cases(predictions, labels)
    predictions.unlink()
    predictions.mkdir()
    with pytest.raises(
        InputError, match=r"predictions: expected predictions, .nii, .nii.gz, .npz or .npy files, got none"
    ):
        find_cases(predictions, labels)


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    save_channels_last(predictions / "case_probability.nii.gz", P)
    save_nnunet(predictions, "case", P)
    with pytest.raises(InputError, match=r"expected one prediction called case, got another, .*case"):
        find_predictions(predictions)
    save_nifti(labels / "case_gt.nii", LABEL)
    save_nifti(labels / "sub" / "case_seg.nii.gz", LABEL)
    with pytest.raises(
        InputError, match=r"case_seg.nii.gz: expected one label called case, got another, .*case_gt.nii"
    ):
        find_cases(predictions, labels)
    save_nifti(labels / "case_gt.nii.gz", LABEL)
    with pytest.raises(InputError, match=r"case_gt.nii.gz: expected one such file, got another, .*case_gt.nii"):
        find_cases(predictions, labels)


def test_other_grids_are_refused_before_voxels_are_read(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    file = save_channels_last(predictions / "case.nii.gz", P)
    label = save_nifti(labels / "case.nii.gz", LABEL, AFFINE + np.eye(4)[:, [3, 3, 3, 0]] * 5)
    with pytest.raises(InputError, match=f"^{file}: expected the voxels of {label}, got some that lie up to 5 mm off$"):
        find_cases(predictions, labels)
    save_nifti(label, LABEL[1:])
    with pytest.raises(InputError, match=rf"^{file}: expected shape \(5, 5, 4\) as in {label}, got \(6, 5, 4\)$"):
        find_cases(predictions, labels)


def test_arrays_without_a_grid_are_compared_by_shape(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    predictions, labels = places(tmp_path)
    file = save_nnunet(predictions, "case", P, dtype=np.float32)
    save_nifti(labels / "case.nii.gz", LABEL)
    with caplog.at_level(logging.WARNING):
        check_softmax(read_one(tmp_path))
    assert "1 prediction(s) without a .pkl or NIfTI file that says where their voxels lie" in caplog.text
    assert "axes may be flipped or swapped, and HD95 and volumes use the labels' grids" in caplog.text
    np.savez(file, probabilities=P)  # not in reverse order
    with pytest.raises(
        InputError, match=r"expected shape \(6, 5, 4\) .*, got \(4, 5, 6\); its axes are in reverse order"
    ):
        find_cases(predictions, labels)


def test_arrays_of_nnunets_first_version_lie_where_the_segmentation_beside_them_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its properties have no affine that is read."""
    predictions, labels = places(tmp_path)
    flipped = AFFINE.copy()
    flipped[:, 0], flipped[:, 3] = -AFFINE[:, 0], AFFINE[:, 3] + 5 * AFFINE[:, 0]
    save_nnunet(predictions, "case", P[:, ::-1], first_version_properties(flipped), "softmax", np.float32)
    save_nifti(predictions / "case.nii.gz", P[:, ::-1].argmax(0).astype(np.uint8), flipped)
    save_nifti(labels / "case.nii.gz", LABEL)
    check_softmax(read_one(tmp_path))
    assert not caplog.records
    file = save_nnunet(predictions, "case", P[:, 1:, 1:], first_version_properties(), "softmax")
    hint = "; nnU-Net's first version saves only the part that it crops to$"
    with pytest.raises(InputError, match=rf"^{file}: expected the shape of .*case.nii.gz beside it, .*{hint}"):
        find_cases(predictions, labels)
    (predictions / "case.nii.gz").unlink()
    with pytest.raises(InputError, match=rf"^{file}: expected shape \(6, 5, 4\) as in .*, got \(5, 4, 4\){hint}"):
        find_cases(predictions, labels)
    save_nnunet(predictions, "case", np.concatenate([P, P], 1))
    with pytest.raises(InputError, match=r"got \(12, 5, 4\)$"):  # larger: nothing is cropped
        find_cases(predictions, labels)


def test_one_kind_of_predictions_a_folder(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    for name in "abc":
        save_nifti(labels / f"{name}.nii", LABEL)
        save_channels_last(predictions / f"{name}.nii", P)
    save_nifti(predictions / "b.nii", LABEL)
    expected = r"b.nii: expected probabilities of 3 channel\(s\) like .*a.nii, got a label map"
    with pytest.raises(InputError, match=expected):
        find_cases(predictions, labels)


def test_classes_of_another_number_of_channels_are_refused(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    save_channels_last(predictions / "case.nii", P)
    save_nifti(labels / "case.nii", LABEL)
    with pytest.raises(InputError, match=r"case.nii: expected 4 channels, got 3"):
        read_case(find_cases(predictions, labels)[0], name_classes(4))


def test_patients_by_their_names() -> None:
    names = ["a_patient001_frame01", "b_patient001_frame12", "patient002"]
    assert list(patients_of(names, r"patient\d+").values()) == ["patient001", "patient001", "patient002"]
    assert patients_of(names, None) == {name: name for name in names}
    with pytest.raises(InputError, match=r"--patient_pattern: expected a part of .*'frame.*', not in patient002"):
        patients_of(names, r"frame\d+")
    with pytest.raises(InputError, match=r"--patient_pattern: expected a regular expression, got '\('"):
        patients_of(names, "(")


def test_lengths_in_another_unit_are_refused(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    save_channels_last(predictions / "case.nii", P)
    file = save_nifti(labels / "case.nii", LABEL)
    for unit, message in (
        ("unknown", None),
        ("mm", None),
        ("meter", "expected lengths in millimetres, got metres, as xyzt_units"),
        ("micron", "expected lengths in millimetres, got micrometres, as xyzt_units"),
    ):
        image = nib.Nifti1Image(LABEL, AFFINE)
        image.header.set_xyzt_units(unit, "sec")
        image.to_filename(file)
        if message is None:
            assert len(find_cases(predictions, labels)) == 1
        else:
            with pytest.raises(InputError, match=f"^{file}: {message}"):
                find_cases(predictions, labels)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    """Such as those of a data set on another disk, also if one leads back to the folder that it is in."""
    predictions, labels = places(tmp_path)
    save_channels_last(tmp_path / "disk" / "case.nii.gz", P)
    save_nifti(labels / "case.nii.gz", LABEL)
    predictions.mkdir()
    (predictions / "a").symlink_to(tmp_path / "disk")
    (predictions / "b").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(predictions)
    (labels / "itself").symlink_to(labels)
    (case,) = find_cases(predictions, labels)
    assert case.prediction.files == (predictions / "a" / "case.nii.gz",)
    check_softmax(read_case(case, classes_of([case], None, False, None)))


@pytest.mark.parametrize("name", ["x.nii.gz", "x.nii", "x.NPZ", "x.npy", "x.pkl"])
def test_links_to_files_that_are_not_there_are_named(name: str, tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    save_channels_last(predictions / "case.nii.gz", P)
    save_nifti(labels / "case.nii.gz", LABEL)
    for folder in (predictions, labels):
        (folder / "notes.txt").symlink_to(tmp_path / "gone")  # no file that is read
        find_cases(predictions, labels)
        (folder / name).symlink_to(tmp_path / "gone")
        with pytest.raises(InputError, match=f"^{folder / name}: expected a file, got a link to .*gone, which is not"):
            find_cases(predictions, labels)
        (folder / name).unlink()


def test_the_first_channel_that_is_not_read_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    predictions, labels = places(tmp_path)
    file = save_channels_last(predictions / "case_probability.nii.gz", softmax_of(0, channels=4))
    save_nifti(labels / "case.nii.gz", LABEL)
    cases = find_cases(predictions, labels)
    classes_of(cases, ["a=1", "b=2", "c=3", "d=4"], True, None)
    assert not caplog.records
    classes_of(cases, ["a=1", "b=2", "c=1+2"], True, None)
    (record,) = caplog.records
    expected = "4 channels for 3 structures; the first is taken for the background and not read"
    assert record.getMessage() == f"{file}: {expected}"


def test_codes_of_no_structure_are_noted(tmp_path: Path) -> None:
    predictions, labels = places(tmp_path)
    save_nifti(predictions / "case.nii.gz", label_of(1, codes=(0, 1, 5)))
    save_nifti(labels / "case.nii.gz", label_of(0, codes=(0, 1, 3, 9)))
    saved = read_one(tmp_path, ["a=1"], ignore=9)
    assert (saved.other_codes, saved.other_predicted) == ([3], [5])
    save_nifti(predictions / "case.nii.gz", P[0])
    saved = read_one(tmp_path, ["a=1"], ignore=9)
    assert (saved.other_codes, saved.other_predicted) == ([3], [])
