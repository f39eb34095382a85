"""Inference of the ACDC bundle; what finding, checking and naming images does is in tests of the package."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.helpers import ACDC, BRATS, IMAGE_SIZE, run_bundle


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images of different size, spacing and orientation."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape, affine in (
        ("straight", (70, 61, 5), np.diag([1.5, 1.5, 10, 1])),
        ("oblique", (50, 88, 3), [[0, -1.2, 0, 10], [1.2, 0, 0, -20], [0, 0, 8, 5], [0, 0, 0, 1]]),
    ):
        nib.save(
            nib.Nifti1Image(rng.integers(0, 1000, shape, dtype=np.int16), np.array(affine)), folder / f"{name}.nii.gz"
        )
    return folder


def test_inference_writes_maps_on_the_grid_of_each_image(images: Path, trained: Path, tmp_path: Path) -> None:
    run_bundle(
        ACDC,
        "inference.yaml",
        dataset_dir=str(images),
        image_size=IMAGE_SIZE,
        ckpt_dir=str(trained),
        output_dir=str(tmp_path),
    )
    for name in ("straight", "oblique"):
        source = nib.load(images / f"{name}.nii.gz")
        maps = {kind: nib.load(tmp_path / f"{name}_{kind}.nii.gz") for kind in ("seg", "probability", "uncertainty")}
        for image in maps.values():
            assert image.shape[:3] == source.shape
            np.testing.assert_allclose(image.affine, source.affine, atol=1e-5)
        seg, probability, uncertainty = (image.get_fdata() for image in maps.values())
        assert probability.shape == (*source.shape, 4)
        np.testing.assert_allclose(probability.sum(-1), 1, atol=1e-5)
        np.testing.assert_array_equal(seg, probability.argmax(-1))
        entropy = -(probability * np.log(np.maximum(probability, 1e-30))).sum(-1) / np.log(4)
        np.testing.assert_allclose(uncertainty, entropy, atol=1e-4)


def test_inference_takes_one_file(images: Path, trained: Path, tmp_path: Path) -> None:
    run_bundle(
        ACDC,
        "inference.yaml",
        dataset_dir=str(images / "oblique.nii.gz"),
        image_size=IMAGE_SIZE,
        ckpt_dir=str(trained),
        output_dir=str(tmp_path),
    )
    assert sorted(path.name for path in tmp_path.glob("*.nii.gz")) == [
        f"oblique_{kind}.nii.gz" for kind in ("probability", "seg", "uncertainty")
    ]


def infer(folder: Path, trained: Path, out: Path, bundle: Path = ACDC) -> None:
    run_bundle(bundle, "inference.yaml", dataset_dir=str(folder), ckpt_dir=str(trained), output_dir=str(out))


def test_unsuitable_image_ends_the_run_with_one_line_before_anything_is_written(
    images: Path, trained: Path, tmp_path: Path
) -> None:
    cine = images / "patient001_4d.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((20, 20, 6, 5), np.int16), np.eye(4)), cine)
    with pytest.raises(SystemExit) as error:
        infer(images, trained, tmp_path / "predictions")
    assert error.value.code == f"{cine}: expected a 3D image with 1 channel(s), got shape (20, 20, 6, 5)"
    assert not (tmp_path / "predictions").exists()


def test_missing_channel_is_named(trained: Path, tmp_path: Path) -> None:
    for name in ("a_flair", "a_t1", "a_t2"):
        nib.save(nib.Nifti1Image(np.ones((20, 20, 6), np.int16), np.eye(4)), tmp_path / f"{name}.nii.gz")
    with pytest.raises(
        SystemExit, match=f"^{tmp_path}/a_t1ce.nii.gz: expected a file for each channel of a, got none$"
    ):
        infer(tmp_path, trained, tmp_path / "predictions", BRATS)


def test_other_files_beside_images_change_nothing(images: Path, trained: Path, tmp_path: Path) -> None:
    for name in ("._straight.nii.gz", "straight.nii.gz.part", "straight_seg.nii.gz", "notes.txt"):
        (images / name).write_bytes(b"not an image")
    (images / "folder.nii.gz").mkdir()
    (images / "oblique.nii.gz").rename(images / "OBLIQUE.NII.GZ")
    run_bundle(
        ACDC,
        "inference.yaml",
        dataset_dir=str(images),
        image_size=IMAGE_SIZE,
        ckpt_dir=str(trained),
        output_dir=str(tmp_path / "predictions"),
    )
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == [
        f"{name}_{kind}.nii.gz" for name in ("OBLIQUE", "straight") for kind in ("probability", "seg", "uncertainty")
    ]


def test_image_with_a_value_that_is_not_finite_is_named(trained: Path, tmp_path: Path) -> None:
    volume = np.ones((20, 20, 6), np.float32)
    volume[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "scan.nii.gz")
    with pytest.raises(RuntimeError) as error:
        infer(tmp_path, trained, tmp_path / "predictions")
    first: BaseException = error.value
    while first.__cause__ or first.__context__:
        first = first.__cause__ or first.__context__  # type: ignore[assignment]
    assert str(first) == f"{tmp_path}/scan.nii.gz: expected finite values, got 1 that are NaN or infinite"
    assert not list(tmp_path.glob("predictions/*"))


def test_outside_the_crop_is_background_and_certain(images: Path, trained: Path, tmp_path: Path) -> None:
    run_bundle(
        ACDC,
        "inference.yaml",
        dataset_dir=str(images / "straight.nii.gz"),
        image_size=IMAGE_SIZE,
        crop_size=[32, 48],
        ckpt_dir=str(trained),
        output_dir=str(tmp_path),
    )
    maps = {kind: nib.load(tmp_path / f"straight_{kind}.nii.gz").get_fdata() for kind in ("seg", "uncertainty")}
    inside = np.zeros((70, 61, 5), bool)
    inside[16:54, 6:55] = True  # a half and three quarters of 70 x 61, and the voxel that interpolation adds
    for values in maps.values():
        assert (values[~inside] == 0).all()
    assert (maps["uncertainty"][19:51, 9:52] > 0).all()
