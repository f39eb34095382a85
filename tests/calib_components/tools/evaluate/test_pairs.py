"""Predictions and labels are paired by name, checked by their headers, and read on the voxels of
the label.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from calib_components.errors import InputError
from calib_components.tools.evaluate.classes import IGNORED
from calib_components.tools.evaluate.pairs import (
    Saved,
    classes_of,
    find_cases,
    find_predictions,
    read_case,
)
from tests.calib_components.tools.evaluate.made_up import (
    AFFINE,
    SHAPE,
    label_of,
    nibabel_properties,
    save_channels_last,
    save_nifti,
    save_nnunet,
    sitk_properties,
    softmax_of,
)

P, LABEL = softmax_of(0), label_of(0)


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    return tmp_path / "predictions"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    save_nifti(tmp_path / "labels" / "case.nii.gz", LABEL)
    return tmp_path / "labels"


def read_one(
    root: Path,
    structures: list[str] | None = None,
    sigmoid: bool = False,
    ignore: int | None = None,
) -> Saved:
    cases = find_cases(root / "predictions", root / "labels")
    assert [case.name for case in cases] == ["case"]
    return read_case(cases[0], classes_of(cases, structures, sigmoid, ignore))


def check_softmax(saved: Saved, p: np.ndarray = P, atol: float = 1e-6) -> None:
    assert saved.probabilities is not None
    torch.testing.assert_close(saved.probabilities, torch.from_numpy(p), atol=atol, rtol=0)
    assert torch.equal(saved.prediction, torch.from_numpy(p.argmax(0).astype(np.uint8)))
    assert torch.equal(saved.label, torch.from_numpy(LABEL[None]))
    np.testing.assert_allclose(saved.affine, AFFINE, atol=1e-4)


def test_a_folder_of_our_inference_and_one_of_images_and_labels(
    predictions: Path, tmp_path: Path
) -> None:
    save_channels_last(predictions / "case_probability.nii.gz", P)
    save_nifti(predictions / "case_seg.nii.gz", LABEL)
    save_nifti(predictions / "case_uncertainty.nii.gz", P[0])
    save_nifti(tmp_path / "labels" / "patient" / "case_gt.nii.gz", LABEL)
    save_nifti(tmp_path / "labels" / "patient" / "case.nii.gz", P[0])  # the image
    save_nifti(tmp_path / "labels" / ".hidden" / "other_gt.nii.gz", LABEL)
    check_softmax(read_one(tmp_path))


def test_a_stray_file_with_a_suffix_among_plain_labels(
    predictions: Path, labels: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("case", "other"):
        save_channels_last(predictions / f"{name}_probability.nii.gz", P)
    save_nifti(labels / "case_SEG.nii.gz", 3 - LABEL)
    # An image
    save_nifti(labels / "other.nii.gz", np.arange(LABEL.size, dtype=np.int16).reshape(SHAPE))
    with pytest.raises(InputError, match="no label for other"):
        find_cases(predictions, labels)
    save_nifti(labels / "other.nii.gz", LABEL)
    assert [case.label.name for case in find_cases(predictions, labels)] == [
        "case.nii.gz",
        "other.nii.gz",
    ]
    assert "case_SEG.nii.gz" in caplog.text


def test_a_folder_of_nnunet(predictions: Path, labels: Path, tmp_path: Path) -> None:
    save_nnunet(predictions, "case", P, sitk_properties())
    save_nifti(predictions / "case.nii.gz", P.argmax(0).astype(np.uint8))
    (predictions / "plans.json").write_text("{}")
    check_softmax(read_one(tmp_path), atol=5e-4)


def test_turned_arrays_come_back_to_the_label(
    predictions: Path, labels: Path, tmp_path: Path
) -> None:
    turned = nib.Nifti1Image(np.moveaxis(P, 0, -1), AFFINE).as_reoriented(
        np.array([[1, -1], [0, 1], [2, -1]])
    )
    properties = nibabel_properties(original_affine=AFFINE, reoriented_affine=turned.affine)
    save_nnunet(
        predictions, "case", np.moveaxis(turned.get_fdata(), -1, 0), properties, dtype=np.float32
    )
    check_softmax(read_one(tmp_path))


def test_a_file_for_each_channel(predictions: Path, labels: Path, tmp_path: Path) -> None:
    for index, channel in enumerate(softmax_of(0, channels=12)):
        save_nifti(predictions / f"case_{index}.nii.gz", channel)
    check_softmax(read_one(tmp_path), softmax_of(0, channels=12))
    (predictions / "case_0.nii.gz").unlink()
    with pytest.raises(InputError, match="Number files of channels from 0"):
        find_cases(predictions, labels)


def test_names_that_end_in_a_number_are_names_where_labels_have_them(
    predictions: Path, tmp_path: Path
) -> None:
    for index in range(2):
        save_nifti(predictions / f"patient_{index}.nii.gz", P[index])
        save_nifti(tmp_path / "labels" / f"patient_{index}.nii.gz", LABEL)
    assert [case.name for case in find_cases(predictions, tmp_path / "labels")] == [
        "patient_0",
        "patient_1",
    ]
    assert list(find_predictions(predictions)) == ["patient"]


@pytest.mark.parametrize("suffix", ["gt", "seg", "label"])
def test_predictions_that_are_called_like_labels_with_a_suffix(
    suffix: str, predictions: Path, tmp_path: Path
) -> None:
    save_channels_last(predictions / f"a_{suffix}.nii.gz", P)
    save_nifti(tmp_path / "labels" / f"a_{suffix}.nii.gz", LABEL)
    save_nifti(tmp_path / "labels" / "a.nii.gz", P[0])  # the image
    (case,) = find_cases(predictions, tmp_path / "labels")
    assert case.label.name == f"a_{suffix}.nii.gz"


def test_sigmoid_regions_also_after_the_background(predictions: Path, tmp_path: Path) -> None:
    label = label_of(0, codes=(0, 1, 2, 4))
    save_nifti(tmp_path / "labels" / "case.nii.gz", label)
    p = np.random.default_rng(0).random((3, *SHAPE), np.float32)
    structures = ["WT=1+2+4", "TC=1+4", "ET=4"]
    # As our inference writes it
    for name, values in (("case", p), ("case_probability", np.concatenate([p[:1], p]))):
        file = save_channels_last(predictions / f"{name}.nii.gz", values)
        saved = read_one(tmp_path, structures, sigmoid=True)
        assert torch.equal(saved.probabilities, torch.from_numpy(p))
        expected = np.stack([label > 0, (label == 1) | (label == 4), label == 4])
        assert torch.equal(saved.label, torch.from_numpy(expected.astype(np.uint8)))
        drawn = np.where(p[2] > 0.5, 3, np.where(p[1] > 0.5, 2, p[0] > 0.5))
        assert torch.equal(saved.prediction, torch.from_numpy(drawn.astype(np.uint8)))
        file.unlink()


def test_label_maps_have_no_probabilities(predictions: Path, tmp_path: Path) -> None:
    other = label_of(1, codes=(0, 1, 2, 4))
    save_nifti(predictions / "case_seg.nii.gz", other)
    save_nifti(tmp_path / "labels" / "case.nii.gz", np.where(LABEL == 2, 9, LABEL))
    saved = read_one(tmp_path, ["ET=4"], ignore=9)
    assert saved.probabilities is None
    assert torch.equal(saved.prediction, torch.from_numpy((other == 4).astype(np.uint8)))
    assert torch.equal(
        saved.label, torch.from_numpy(np.where(LABEL == 2, IGNORED, 0)[None].astype(np.uint8))
    )
    assert (saved.other_codes, saved.other_predicted) == ([1], [1, 2])


def test_names_that_do_not_pair(
    predictions: Path, labels: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_channels_last(predictions / "case.nii.gz", P)
    save_nifti(labels / "more.nii", LABEL)
    assert len(find_cases(predictions, labels)) == 1  # such as the predictions of one fold
    assert "left out: more" in caplog.text
    save_channels_last(predictions / "alone.nii.gz", P)
    with pytest.raises(InputError, match="no label for alone"):
        find_cases(predictions, labels)


def test_two_of_one_name_are_refused(predictions: Path, labels: Path) -> None:
    image = save_nifti(predictions / "case.nii.gz", LABEL.astype(np.int16))
    save_nifti(predictions / "case_seg.nii.gz", LABEL)
    with pytest.raises(InputError, match="image"):
        find_predictions(predictions)
    image.unlink()
    save_nnunet(predictions, "case", P)
    save_nnunet(predictions / "sub", "case", P)
    with pytest.raises(InputError, match="Two predictions are called case"):
        find_predictions(predictions)
    save_nifti(labels / "case.nii", LABEL)
    with pytest.raises(InputError, match="Two labels are called case"):
        find_cases(predictions, labels)


def test_folders_without_files_are_named(predictions: Path, labels: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"predictions: cannot read the folder"):
        find_cases(predictions, labels)
    predictions.mkdir()
    with pytest.raises(InputError, match="predictions holds no predictions"):
        find_cases(predictions, labels)
    with pytest.raises(InputError, match="predictions holds no labels"):
        find_cases(labels, predictions)
    (predictions / "case.nii").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"case\.nii"):
        find_cases(predictions, labels)


def test_other_grids_are_refused_before_voxels_are_read(
    predictions: Path, labels: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_channels_last(predictions / "case.nii.gz", P, AFFINE + np.eye(4)[:, [3, 3, 3, 0]] * 5)
    with pytest.raises(InputError, match="by up to 5 mm"):
        find_cases(predictions, labels)
    (predictions / "case.nii.gz").unlink()
    save_nnunet(predictions, "case", P.transpose(0, 3, 2, 1))  # without a grid
    with pytest.raises(InputError, match="order of the axes"):
        find_cases(predictions, labels)
    save_nnunet(predictions, "case", P)
    find_cases(predictions, labels)
    assert "flipped or swapped" in caplog.text


def test_one_number_of_channels_a_folder(predictions: Path, labels: Path) -> None:
    save_channels_last(predictions / "case.nii", P)
    save_nifti(predictions / "other.nii", LABEL)
    save_nifti(labels / "other.nii", LABEL)
    with pytest.raises(InputError, match=r"other\.nii has 0 channels"):
        find_cases(predictions, labels)
