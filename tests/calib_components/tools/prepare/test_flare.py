from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from calib_components.errors import InputError
from calib_components.tools.prepare.flare import find_cases, prepare_flare
from tests.helpers import blocks, make_flare, save


def test_images_and_labels_without_the_other_are_cases(tmp_path: Path) -> None:
    save(tmp_path / "TrainingImg" / "train_000_0000.nii.gz", np.zeros((4, 4, 4)))
    save(tmp_path / "TrainingMask" / "train_001.nii.gz", np.zeros((4, 4, 4)))
    assert {case.name for case in find_cases(tmp_path)} == {"train_000", "train_001"}


def test_orientation_and_spacing_are_taken_from_the_header(out: Path, tmp_path: Path) -> None:
    """The same body stored in three ways is prepared to the same volume."""
    body = np.full((24, 20, 5), -1000, np.int16)
    body[4:-4, 2:-2] = np.indices((16, 16, 5)).sum(axis=0) * 10 - 100
    label = blocks(body.shape, [1, 2, 3, 4])
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    make_flare(tmp_path / "src", "a", body, label, affine)

    # Its axes point to inferior, left, anterior, from the corner that is voxel (23, 0, 4) above.
    turned = np.array([[0, -2, 0, 46], [0, 0, 2, 0], [-5, 0, 0, 20], [0, 0, 0, 1.0]])
    make_flare(tmp_path / "src", "b", *(v[::-1, :, ::-1].transpose(2, 0, 1) for v in (body, label)), turned)
    finer = np.diag([1.0, 1.0, 5.0, 1.0])
    make_flare(tmp_path / "src", "c", *(v.repeat(2, axis=0).repeat(2, axis=1) for v in (body, label)), finer)

    prepare_flare(tmp_path / "src", out, image_size=(32, 32), workers=1)
    a, b, c = (nib.load(out / name / "image.nii") for name in "abc")
    np.testing.assert_allclose(a.get_fdata(), b.get_fdata(), atol=1e-4)
    np.testing.assert_allclose(a.affine, b.affine, atol=1e-4)
    np.testing.assert_allclose(a.get_fdata(), c.get_fdata(), atol=0.03)  # half a step of 10 HU in 400
    labels = [nib.load(out / name / "label.nii").get_fdata() for name in "abc"]
    np.testing.assert_array_equal(labels[0], labels[1])
    np.testing.assert_array_equal(labels[0], labels[2])
    np.testing.assert_allclose(a.header.get_zooms(), [1, 1, 5])


def test_window_of_hounsfield_units(out: Path, tmp_path: Path) -> None:
    body = np.full((24, 20, 5), -1000, np.int16)
    body[4:-4, 2:-2] = np.linspace(-150, 400, 16 * 16 * 5).reshape(16, 16, 5)  # inside, all of it above -160
    make_flare(tmp_path / "src", "a", body, blocks(body.shape, [1, 2, 3, 4]), np.diag([2.0, 2, 5, 1]))
    prepare_flare(tmp_path / "src", out, image_size=(16, 16), workers=1)
    expected = ((body[4:-4, 2:-2] + 160.0) / 400).clip(0, 1)
    np.testing.assert_allclose(nib.load(out / "a" / "image.nii").get_fdata(), expected, atol=1e-4)


def test_image_of_air_alone_is_an_error(out: Path, tmp_path: Path) -> None:
    air = np.full((9, 9, 4), -1000, np.int16)
    make_flare(tmp_path / "src", "a", air, np.zeros(air.shape, np.uint8), np.eye(4))
    with pytest.raises(InputError, match=r"a_0000\.nii\.gz: expected an image with contrast, got"):
        prepare_flare(tmp_path / "src", out)
