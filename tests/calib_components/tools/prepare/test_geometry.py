"""Labels and channels are brought onto the voxels of their image, or refused."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from calib_components.errors import InputError
from calib_components.tools.prepare.geometry import onto

SHAPE = (4, 5, 3)
BETWEEN = nib.affines.from_matvec(nib.eulerangles.euler2mat(z=np.pi / 4) @ np.diag([1.5, 1.25, 8.0]))  # two axes
TILT = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, 0.2, 0.1) @ np.diag([1.5, 1.25, 8.0]), [-90, 30, 700])


def volume(affine: np.ndarray, shape: tuple[int, ...] = SHAPE) -> MetaTensor:
    values = torch.arange(float(np.prod(shape))).reshape(1, *shape)
    return MetaTensor(values, torch.from_numpy(np.array(affine)))


def test_same_headers_change_nothing() -> None:
    array, turned = onto(volume(TILT), "label", volume(TILT), "image")
    assert not turned
    assert torch.equal(array, volume(TILT).as_tensor())


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
@pytest.mark.parametrize("signs", [*itertools.product((1, -1), repeat=3)])
@pytest.mark.parametrize("affine", [TILT, BETWEEN], ids=["tilted", "between"])
def test_all_48_orientations_are_brought_back(
    affine: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.uint8).reshape(SHAPE), affine)
    stored = image.as_reoriented(np.array([[order.index(axis), signs[axis]] for axis in range(3)]))
    label = MetaTensor(torch.from_numpy(np.array(stored.dataobj, np.float32))[None], torch.from_numpy(stored.affine))
    array, turned = onto(label, "label", volume(affine), "image")
    assert torch.equal(array, volume(TILT).as_tensor())
    assert turned == (order != (0, 1, 2) or signs != (1, 1, 1))


def test_rounding_is_not_a_difference() -> None:
    rounded = nib.affines.from_matvec(np.eye(3), [0, 0.1, 0]) @ TILT.astype(np.float32)
    array, turned = onto(volume(rounded), "label", volume(TILT), "image")
    assert not turned
    assert torch.equal(array, volume(TILT).as_tensor())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nib.affines.from_matvec(np.eye(3), [0, 0, 1]), "got voxels that lie 1 mm off"),
        (nib.affines.from_matvec(np.eye(3), [0.2, 0, 0]), "got voxels that lie 0.2 mm off"),
        (np.diag([2.0, 2, 2, 1]), "got voxels of 3 x 2.5 x 16 instead of 1.5 x 1.25 x 8 mm"),
        (np.diag([-1.0, -1, 1, 1]), "got axes turned by"),  # mirrored about the scanner's centre, not the image's
        (nib.affines.from_matvec(nib.eulerangles.euler2mat(z=0.1)), "got axes turned by 5.7 degrees"),
    ],
)
def test_other_places_are_refused(change: np.ndarray, message: str) -> None:
    with pytest.raises(InputError) as caught:
        onto(volume(change @ TILT), "label.nii", volume(TILT), "image.nii")
    assert str(caught.value).startswith("label.nii: expected the voxels of image.nii, got ")
    assert message in str(caught.value)
    assert str(caught.value).endswith("--ignore_headers takes them for the voxels of the image")


def test_other_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"a: expected shape \(4, 5, 3\) as in b, got \(5, 4, 3\)"):
        onto(volume(TILT, (5, 4, 3)), "a", volume(TILT), "b")
