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
from calib_components.metrics.case import Case
from calib_tools.predictions import formats
from calib_tools.predictions.cases import read_case
from calib_tools.predictions.classes import IGNORED, classes_of
from calib_tools.predictions.formats import Header, Reader
from calib_tools.predictions.pairing import find_pairs, find_predictions
from tests.calib_tools.predictions.made_up import (
    AFFINE,
    SHAPE,
    label_of,
    save_channels_last,
    save_nifti,
    save_nnunet,
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
) -> Case:
    (pair,) = find_pairs({"": root / "predictions"}, {"": root / "labels"})
    assert pair.name == "case"
    return read_case(pair, classes_of([pair.prediction], structures, sigmoid, ignore))


def check_softmax(saved: Case, p: np.ndarray = P, atol: float = 1e-6) -> None:
    assert saved.probabilities is not None
    torch.testing.assert_close(saved.probabilities, torch.from_numpy(p), atol=atol, rtol=0)
    assert torch.equal(saved.prediction, torch.from_numpy(p.argmax(0).astype(np.uint8)))
    assert torch.equal(saved.label, torch.from_numpy(LABEL[None]))
    assert saved.spacing == pytest.approx(nib.affines.voxel_sizes(AFFINE))


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


class TextReader(Reader):
    """A made-up format: text files of one channel each, which say where their voxels lie."""

    def header(self) -> Header:
        return Header(1, SHAPE, AFFINE)

    def load(self) -> tuple[np.ndarray, np.dtype, float]:
        values = np.loadtxt(self.file, dtype=np.float32).reshape(1, *SHAPE)
        return values, values.dtype, 1.0


def test_a_made_up_format_is_read_for_predictions_and_labels(
    predictions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(formats.FORMATS, ".txt", TextReader)
    for file, values in (("predictions/case.txt", P[1]), ("labels/case_gt.txt", LABEL == 1)):
        (tmp_path / file).parent.mkdir()
        np.savetxt(tmp_path / file, values.reshape(1, -1))
    saved = read_one(tmp_path)
    torch.testing.assert_close(saved.probabilities, torch.from_numpy(P[1:2]))
    assert torch.equal(saved.label[0], torch.from_numpy((LABEL == 1).astype(np.uint8)))


def test_labels_as_arrays_lie_where_the_prediction_does(predictions: Path, tmp_path: Path) -> None:
    save_channels_last(predictions / "case.nii.gz", P)
    (tmp_path / "labels").mkdir()
    np.save(tmp_path / "labels" / "case.npy", LABEL)
    check_softmax(read_one(tmp_path))


def test_predictions_and_labels_as_arrays_have_voxels_of_1_mm(
    predictions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder, values in ((predictions, P), (tmp_path / "labels", LABEL)):
        folder.mkdir()
        np.save(folder / "case.npy", values)
    saved = read_one(tmp_path)
    torch.testing.assert_close(saved.probabilities, torch.from_numpy(P))
    assert torch.equal(saved.label, torch.from_numpy(LABEL[None]))
    assert (saved.spacing, saved.voxel_volume) == ((1, 1, 1), pytest.approx(1e-3))
    (line,) = caplog.messages
    assert line.endswith(
        "Voxels of 1 mm are assumed: distances are in voxels, 1 ml is 1000 voxels."
    )


@pytest.mark.parametrize("label", [LABEL[..., 0], LABEL[..., :1]], ids=["(X, Y)", "(X, Y, 1)"])
def test_arrays_in_2d(label: np.ndarray, predictions: Path, tmp_path: Path) -> None:
    for folder in (predictions, tmp_path / "labels"):
        folder.mkdir()
    np.save(tmp_path / "labels" / "case.npy", label)
    np.save(predictions / "case.npy", P[..., :1])
    saved = read_one(tmp_path)
    torch.testing.assert_close(saved.probabilities, torch.from_numpy(P[..., :1]))
    assert torch.equal(saved.label, torch.from_numpy(LABEL[None, ..., :1]))
    np.save(predictions / "case.npy", P[..., 0])
    with pytest.raises(InputError, match=r"\(C, X, Y\), save it as \(C, X, Y, 1\), \(3, 6, 5, 1\)"):
        read_one(tmp_path)


def test_pairs_from_a_table(predictions: Path, labels: Path, tmp_path: Path) -> None:
    save_channels_last(predictions / "other.nii.gz", P)
    table = tmp_path / "pairs.csv"
    table.write_text("case,prediction,label\na,other.nii.gz,case.nii.gz")
    (pair,) = find_pairs({"": predictions}, {"": labels}, table)
    assert pair.name == "a"
    check_softmax(read_case(pair, classes_of([pair.prediction])))
    for text, expected in (
        ("case,prediction\na,b.nii", "label"),
        ("case,prediction,label", "no rows"),
        ("case,prediction,label\na,b.mha,c.nii", "b.mha: unknown format"),
        ("case,prediction,label\na,b.nii,case.nii.gz", "b.nii"),
        ("case,prediction,label\na,b.nii,c.nii\na,d.nii,e.nii", "'a' occurs twice"),
        ("case,prediction,label\na,b.nii", "lacks its case, prediction or label"),
        ("case,prediction,label\n,b.nii,c.nii", "lacks its case, prediction or label"),
        ("case,prediction,label\na,b.nii,c.nii\nb,d.nii,c.nii", r"c\.nii stands in 2 places"),
        ("case,prediction,label\na,b.nii,c.nii\nb,b.nii,e.nii", r"b\.nii stands in 2 places"),
        (
            "case,prediction,label,patient\na,b.nii,c.nii,p\nb,d.nii,e.nii,",
            "case b has no patient, and others have one",
        ),
        ("case,prediction,label\n..,b.nii,c.nii", "is no file name"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=expected):
            find_pairs({"": predictions}, {"": labels}, table)


def test_a_folder_of_nnunet(predictions: Path, labels: Path, tmp_path: Path) -> None:
    save_nnunet(predictions, "case", P, AFFINE)
    (predictions / "plans.json").write_text("{}")
    check_softmax(read_one(tmp_path), atol=5e-4)


def test_turned_arrays_come_back_to_the_label(
    predictions: Path, labels: Path, tmp_path: Path
) -> None:
    turned = nib.Nifti1Image(np.moveaxis(P, 0, -1), AFFINE).as_reoriented(
        np.array([[1, -1], [0, 1], [2, -1]])
    )
    p = np.moveaxis(turned.get_fdata(), -1, 0)
    save_nnunet(predictions, "case", p, turned.affine, dtype=np.float32)
    check_softmax(read_one(tmp_path))


def test_a_file_for_each_channel_is_refused(
    predictions: Path, labels: Path, tmp_path: Path
) -> None:
    for index, channel in enumerate(P):
        save_nifti(predictions / f"case_{index}.nii.gz", channel)
    with pytest.raises(InputError, match="Channels lie along the fourth axis of one file"):
        find_pairs({"": predictions}, {"": labels})


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


def test_names_that_do_not_pair(
    predictions: Path, labels: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_channels_last(predictions / "case.nii.gz", P)
    save_nifti(labels / "more.nii", LABEL)
    assert (
        len(find_pairs({"": predictions}, {"": labels})) == 1
    )  # such as the predictions of one fold
    assert "left out: more" in caplog.text
    save_channels_last(predictions / "alone.nii.gz", P)
    with pytest.raises(InputError, match="no label for alone"):
        find_pairs({"": predictions}, {"": labels})


def test_two_of_one_name_are_refused(predictions: Path, labels: Path) -> None:
    image = save_nifti(predictions / "case.nii.gz", LABEL.astype(np.int16))
    save_nifti(predictions / "case_seg.nii.gz", LABEL)
    with pytest.raises(InputError, match="--pairs"):
        find_predictions(predictions)
    image.unlink()
    save_nnunet(predictions, "case", P)
    save_nnunet(predictions / "sub", "case", P)
    with pytest.raises(InputError, match="Two files are called case"):
        find_predictions(predictions)
    save_nifti(labels / "case.nii", LABEL)
    with pytest.raises(InputError, match="Two files are called case"):
        find_pairs({"": predictions}, {"": labels})


def test_an_array_beside_a_nifti_of_the_same_is_refused(predictions: Path, labels: Path) -> None:
    """A segmentation or an image beside probabilities says where they lie."""
    for array in (save_nnunet(predictions, "case", P), predictions / "case.npy"):
        if array.suffix == ".npy":
            np.save(array, P)
        save_channels_last(predictions / "case.nii.gz", P)
        with pytest.raises(InputError, match=rf"case\.nii\.gz and .*case\{array.suffix}"):
            find_pairs({"": predictions}, {"": labels})
        for beside in (LABEL, P[0]):
            save_nifti(predictions / "case.nii.gz", beside)
            (pair,) = find_pairs({"": predictions}, {"": labels})
            assert pair.prediction.file == array
        array.unlink()
    np.save(labels / "case.npy", LABEL)
    with pytest.raises(InputError, match=r"labels.case\.nii\.gz and .*labels.case\.npy"):
        find_pairs({"": predictions}, {"": labels})


def test_booleans_are_the_label_of_one_structure(predictions: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    np.save(tmp_path / "labels" / "case.npy", LABEL > 0)
    save_channels_last(predictions / "case.nii.gz", P[:1])
    assert torch.equal(read_one(tmp_path).label[0].bool(), torch.from_numpy(LABEL > 0))
    for channels in (P, P[:2]):
        save_channels_last(predictions / "case.nii.gz", channels)
        with pytest.raises(InputError, match=r"case\.npy: booleans do not tell the structures"):
            read_one(tmp_path, sigmoid=len(channels) == 2)


def test_folders_without_files_are_named(predictions: Path, labels: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"predictions: cannot read the folder"):
        find_pairs({"": predictions}, {"": labels})
    predictions.mkdir()
    with pytest.raises(InputError, match="predictions: no file ends in"):
        find_pairs({"": predictions}, {"": labels})
    with pytest.raises(InputError, match="predictions: no file ends in"):
        find_pairs({"": labels}, {"": predictions})
    (predictions / "case.nii").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"case\.nii"):
        find_pairs({"": predictions}, {"": labels})


def test_other_grids_are_refused_before_voxels_are_read(
    predictions: Path, labels: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_channels_last(predictions / "case.nii.gz", P, AFFINE + np.eye(4)[:, [3, 3, 3, 0]] * 5)
    with pytest.raises(InputError, match="by up to 5 mm"):
        find_pairs({"": predictions}, {"": labels})
    (predictions / "case.nii.gz").unlink()
    save_nnunet(predictions, "case", P.transpose(0, 3, 2, 1))  # without a grid
    with pytest.raises(InputError, match="order of the axes"):
        find_pairs({"": predictions}, {"": labels})
    save_nnunet(predictions, "case", P)
    find_pairs({"": predictions}, {"": labels})
    assert "flipped or swapped" in caplog.text
