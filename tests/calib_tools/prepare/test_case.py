"""One case: its labels and channels on the voxels of the image, what is refused, and the way to the
grid and back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from calib_components.errors import InputError
from calib_tools.prepare.case import (
    SourceCase,
    find_pairs,
    load_case,
    read_volume,
    transform_case,
)
from calib_tools.prepare.facts import facts_of_dataset
from tests.helpers import SPACING, blocks, save

SHAPE = (4, 5, 3)
BETWEEN = from_matvec(euler2mat(z=np.pi / 4) @ np.diag([1.5, 1.25, 8.0]))  # between two axes
TILT = from_matvec(euler2mat(0.3, 0.2, 0.1) @ np.diag([1.5, 1.25, 8.0]), [-90, 30, 700])


VALUES = np.arange(60, dtype=np.float32).reshape(SHAPE)


def read_beside(image: nib.Nifti1Image, label: nib.Nifti1Image, folder: Path) -> np.ndarray:
    """The voxels of a label as they are read beside an image."""
    for name, volume in (("image", image), ("label", label)):
        volume.to_filename(folder / f"{name}.nii")
    target = read_volume(folder / "image.nii")
    read = read_volume(folder / "label.nii", target)
    np.testing.assert_array_equal(read.affine, target.affine)
    return read.numpy()[0]


class TestLabelOnTheVoxelsOfTheImage:
    @pytest.mark.parametrize("affine", [TILT, BETWEEN], ids=["tilted", "between"])
    def test_all_48_orientations_are_brought_back(self, affine: np.ndarray, tmp_path: Path) -> None:
        image = nib.Nifti1Image(VALUES, affine)
        for order, signs in itertools.product(
            itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)
        ):
            turned = image.as_reoriented(np.array([*zip(order, signs, strict=True)]))
            np.testing.assert_array_equal(read_beside(image, turned, tmp_path), VALUES)

    @pytest.mark.parametrize(
        "change",
        [
            from_matvec(np.eye(3), [0.2, 0, 0]),
            np.diag([2.0, 2, 2, 1]),
            from_matvec(euler2mat(z=0.1)),
            np.diag([-1.0, -1, 1, 1]),  # mirrored about the scanner's centre, not the image's
        ],
        ids=["0.2 mm", "voxel size", "turned", "mirrored"],
    )
    def test_other_places_are_refused(self, change: np.ndarray, tmp_path: Path) -> None:
        image, label = (nib.Nifti1Image(VALUES, affine) for affine in (TILT, change @ TILT))
        differs = r"label\.nii: affine differs from that of .*image\.nii "
        with pytest.raises(InputError, match=differs):
            read_beside(image, label, tmp_path)

    def test_other_shape_is_refused(self, tmp_path: Path) -> None:
        image, label = (nib.Nifti1Image(values, TILT) for values in (VALUES, VALUES[1:]))
        with pytest.raises(InputError, match="shape"):
            read_beside(image, label, tmp_path)


@pytest.fixture
def case(tmp_path: Path) -> SourceCase:
    """A good case of one channel."""
    image = np.random.default_rng(0).integers(0, 500, (18, 16, 4)).astype(np.int16)
    save(tmp_path / "image.nii.gz", image)
    save(tmp_path / "label.nii.gz", blocks(image.shape, [1, 2, 3]))
    return SourceCase(
        "a", "a", images=(tmp_path / "image.nii.gz",), label=tmp_path / "label.nii.gz"
    )


def changed(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda file: save(file, change(np.asanyarray(nib.load(file).dataobj)))


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    array[3, 4, 1] = np.nan
    return array


BAD: list[tuple[str, Callable[[Path], Any], str]] = [
    ("image", Path.unlink, "no such file"),
    ("image", lambda file: file.write_bytes(file.read_bytes()[:-100]), ""),
    ("image", changed(lambda v: np.stack([v] * 3, -1)), "3 channel(s) in place of 1"),
    ("label", changed(lambda v: np.stack([v] * 2, -1)), "2 channel(s) in place of 1"),
    ("image", changed(lambda v: v[:, :, 0]), "not that of a 3D volume"),
    ("label", changed(lambda v: v[:-1]), "shape (17, 16, 4) differs from (18, 16, 4)"),
    ("image", changed(lambda v: v * 0 + 7), "no contrast"),
    ("image", changed(with_nan), "1 values are NaN or infinite"),
    ("label", changed(lambda v: v * 2), "label values 4, 6 are none of [0, 1, 2, 3]"),
    (
        "label",
        lambda file: save(file, np.zeros((18, 16, 4)), from_matvec(np.eye(3), [3, 0, 0]) @ SPACING),
        "3 mm",
    ),
]


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("key", "spoil", "message"), BAD)
def test_bad_case_names_its_file(
    key: str, spoil: Callable[[Path], Any], message: str, spatial_dims: int, case: SourceCase
) -> None:
    facts = facts_of_dataset("acdc", case.label.parent, (16, 32))
    if spatial_dims == 3:
        facts = replace(
            facts_of_dataset("hippocampus", case.label.parent), label_codes=facts.label_codes
        )
    file = case.label if key == "label" else case.images[0]
    spoil(file)
    with pytest.raises(InputError) as caught:
        transform_case(case, facts)
    assert str(caught.value).startswith(str(file).removesuffix(".gz"))
    assert message in str(caught.value)


def test_channels_of_several_files(case: SourceCase, tmp_path: Path) -> None:
    facts = facts_of_dataset("brats", tmp_path)
    files = [tmp_path / f"{name}.nii" for name in "abcd"]
    values = np.asanyarray(nib.load(case.images[0]).dataobj)
    for number, file in enumerate(files):
        save(file, values + number)
    turned = nib.Nifti1Image(values + 1, SPACING).as_reoriented(np.array([[1, 1], [0, -1], [2, 1]]))
    nib.save(turned, files[1])
    save(case.label, blocks(values.shape, [1, 2, 4]))
    several = SourceCase("a", "a", images=tuple(files), label=case.label)
    loaded = load_case(several, facts)
    np.testing.assert_array_equal(
        loaded["image"], np.stack([values + number for number in range(4)])
    )
    assert loaded["label"].unique().tolist() == [0, 1, 2, 3]


def test_two_labels_of_an_image_are_refused(tmp_path: Path) -> None:
    for name in ("images/a", "labels/a_gt", "labels/a_seg"):
        file = tmp_path / f"{name}.nii.gz"
        file.parent.mkdir(exist_ok=True)
        file.touch()
    with pytest.raises(InputError, match=r"a_seg.nii.gz: a_gt.nii.gz is a label of a, too"):
        find_pairs(tmp_path / "images", tmp_path / "labels")
