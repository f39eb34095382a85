"""The way back to the image's grid, compared with MONAI's."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    CenterSpatialCrop,
    Compose,
    Invertd,
    Orientation,
    Resize,
    Rotate90,
    Spacing,
)

from calib_components.errors import InputError
from calib_workflows.inference.grid import ImageGrid
from tests.helpers import ACDC, BRATS, ROOT, inference_config

FLARE = ROOT / "bundles" / "flare_ct_nacl_segmentation"
AFFINES = {
    "mirrored": [[-2, 0, 0, 5], [0, 2, 0, 1], [0, 0, 3, 4], [0, 0, 0, 1]],
    "sagittal": [[0, 0, -3, 5], [1.5, 0, 0, 1], [0, -1.5, 0, 4], [0, 0, 0, 1]],
    "coronal": [[2, 0, 0, 5], [0, 0, 3, 1], [0, 2, 0, 4], [0, 0, 0, 1]],
}


def preprocessed(bundle: Path, affine: str, folder: Path) -> tuple[Compose, MetaTensor]:
    """An image of air around noise, as the bundle prepares it for its network."""
    rng = np.random.default_rng(0)
    channels = {BRATS: (4,)}.get(bundle, ())
    values = np.full((60, 50, 20, *channels), -1000 if bundle == FLARE else 0, np.int16)
    inner = values[5:-3, 3:-7, 2:-1]
    inner[:] = rng.integers(1, 300, inner.shape)
    nib.save(nib.Nifti1Image(values, np.array(AFFINES[affine])), folder / "scan.nii.gz")
    transform = inference_config(bundle).get_parsed_content("preprocessing")
    return transform, transform({"image": str(folder / "scan.nii.gz")})["image"]


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("bundle", [ACDC, FLARE, BRATS])
def test_slabs_are_those_of_monai(bundle: Path, affine: str, tmp_path: Path) -> None:
    transform, image = preprocessed(bundle, affine, tmp_path)
    logits = torch.randn(3, *image.shape[1:])
    back = Invertd("pred", transform, "image", nearest_interp=False)
    expected = back({"pred": MetaTensor(logits), "image": image})["pred"].as_tensor()
    grid = ImageGrid(image)
    assert grid.shape == expected.shape[1:] == (60, 50, 20)
    np.testing.assert_array_equal(grid.affine, AFFINES[affine])
    for start, stop in ((0, 20), (0, 1), (7, 13), (19, 20)):
        slab = grid.slab(logits, start, stop)
        torch.testing.assert_close(
            slab.permute(0, 3, 2, 1), expected[..., start:stop], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize(
    ("order", "seen"),
    [(1, (slice(10, 30), slice(7, 23))), (-1, (slice(7, 33), slice(5, 25)))],
    ids=["crop, then resize", "resize, then crop"],
)
def test_where_the_network_saw_nothing(order: int, seen: tuple[slice, slice]) -> None:
    """It sees the voxels whose centres lie in what it is given."""
    steps = [CenterSpatialCrop((20, 16, -1)), Resize((30, 24, 3), mode="trilinear")][::order]
    image = Compose(steps)(MetaTensor(torch.zeros(1, 40, 30, 3), torch.eye(4)))
    image.meta["original_affine"] = np.eye(4)
    grid = ImageGrid(image)
    expected = torch.zeros(3, 30, 40)
    expected[:, seen[1], seen[0]] = 1
    torch.testing.assert_close(grid.is_seen(0, 3), expected.bool())
    torch.testing.assert_close(grid.slab(torch.full(image.shape, 7.0), 0, 3)[0], 7 * expected)


@pytest.mark.parametrize(
    "directions",
    [
        nib.eulerangles.euler2mat(y=np.pi / 4, x=3 * np.pi / 4),
        [[0.48, -0.2805, 0.8312], [0.6, -0.5863, -0.5443], [0.64, 0.76, -0.1131]],
    ],
    ids=["between all axes", "oblique"],
)
def test_each_voxel_comes_back_to_its_place(directions: Any) -> None:
    shape = (5, 4, 3)
    voxels = torch.arange(60.0).view(1, *shape)
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        affine = nib.affines.from_matvec(
            (np.array(directions) @ np.diag([1.5, 1.25, 8.0]))[:, order] * signs
        )
        image = Orientation("RAS")(
            MetaTensor(voxels, affine=affine, meta={"original_affine": affine})
        )
        slab = ImageGrid(image).slab(image.as_tensor(), 0, 3)
        assert torch.equal(slab.permute(0, 3, 2, 1), voxels)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 1.0, 4.0), (2.0, 2.0, 3.0)])
@pytest.mark.parametrize("affine", AFFINES)
def test_volumes_come_back_from_another_spacing(affine: str, spacing: tuple[float, ...]) -> None:
    """A linear image stays one, except beyond the last voxel of a coarser grid."""
    voxels = torch.cartesian_prod(*(torch.arange(n) for n in (9, 8, 7))).double()
    values = (voxels @ torch.tensor([1.0, 2.0, -3.0]).double()).view(1, 9, 8, 7).float()
    image = MetaTensor(
        values, affine=AFFINES[affine], meta={"original_affine": np.array(AFFINES[affine])}
    )
    moved = Spacing(spacing)(Orientation("RAS", labels=None)(image))
    slab = ImageGrid(moved).slab(moved.as_tensor(), 0, 7).permute(0, 3, 2, 1)
    assert slab.shape == values.shape
    torch.testing.assert_close(slab[:, 2:-2, 2:-2, 2:-2], values[:, 2:-2, 2:-2, 2:-2])


def test_way_back_that_is_not_known() -> None:
    meta = {"original_affine": np.eye(4)}
    image = Rotate90()(MetaTensor(torch.zeros(1, 8, 8, 8), affine=2 * torch.eye(4), meta=meta))
    with pytest.raises(InputError, match="volume_transforms"):
        ImageGrid(image)
