"""Inference of the ACDC bundle; what finding, checking and naming images does is in tests of the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from tests.helpers import ACDC, SIZE, make_weights, run_bundle, run_bundle_as_typed, save

STEP = 1.001 / 65535  # of the whole numbers that maps are stored as


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, for slices of 64 x 64."""
    return make_weights(ACDC, tmp_path_factory.mktemp("weights"), (64, 64))


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


def test_inference_writes_maps_on_the_grid_of_each_image(images: Path, weights: Path, tmp_path: Path) -> None:
    run_bundle(
        ACDC,
        "inference.yaml",
        dataset_dir=str(images),
        ckpt_dir=str(weights),
        output_dir=str(tmp_path),
    )
    for name in ("straight", "oblique"):
        source = nib.Nifti1Image.from_filename(images / f"{name}.nii.gz")
        maps = {
            kind: nib.Nifti1Image.from_filename(tmp_path / f"{name}_{kind}.nii.gz")
            for kind in ("seg", "probability", "uncertainty")
        }
        for image in maps.values():
            assert image.shape[:3] == source.shape
            np.testing.assert_allclose(image.affine, source.affine, atol=1e-5)
        seg, probability, uncertainty = (image.get_fdata() for image in maps.values())
        assert probability.shape == (*source.shape, 4)
        np.testing.assert_allclose(probability.sum(-1), 1, atol=2 * STEP)  # four numbers, each rounded by up to a half
        of_label = np.take_along_axis(probability, seg[..., None].astype(int), -1)[..., 0]
        np.testing.assert_allclose(of_label, probability.max(-1), atol=STEP)
        entropy = -(probability * np.log(np.maximum(probability, 1e-30))).sum(-1) / np.log(4)
        np.testing.assert_allclose(uncertainty, entropy, atol=1e-4)


def test_inference_takes_one_file(images: Path, weights: Path, tmp_path: Path) -> None:
    run_bundle(
        ACDC,
        "inference.yaml",
        dataset_dir=str(images / "oblique.nii.gz"),
        ckpt_dir=str(weights),
        output_dir=str(tmp_path),
    )
    assert sorted(path.name for path in tmp_path.glob("*.nii.gz")) == [
        f"oblique_{kind}.nii.gz" for kind in ("probability", "seg", "uncertainty")
    ]


def test_items_given_in_python_take_the_place_of_the_folder(images: Path, weights: Path, tmp_path: Path) -> None:
    def workflow(name: str) -> ConfigWorkflow:
        made = ConfigWorkflow(
            config_file=str(ACDC / "configs" / "inference.yaml"),
            workflow_type="infer",
            bundle_root=str(ACDC),
            dataset_dir=str(tmp_path / "none"),
            ckpt_dir=str(weights),
            output_dir=str(tmp_path / "out"),
            device="cpu",
        )
        made.dataset_data = [{"image": str(images / name)}]
        made.initialize()
        return made

    with pytest.raises(RuntimeError) as error:
        workflow("missing.nii.gz").run()
    assert "missing.nii.gz does not exist" in str(error.value.__cause__)
    workflow("straight.nii.gz").run()
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_unsuitable_image_ends_the_run_before_anything_is_written(images: Path, weights: Path, tmp_path: Path) -> None:
    cine = images / "patient001_4d.nii.gz"
    save(cine, np.ones((20, 20, 6, 5), np.int16))
    out = tmp_path / "predictions"
    ended = run_bundle_as_typed(
        ACDC, "inference.yaml", dataset_dir=str(images), ckpt_dir=str(weights), output_dir=str(out)
    )
    assert ended.code == 1
    assert ended.err.startswith(f"{cine}: shape (20, 20, 6, 5)")
    assert ended.err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_image_with_a_value_that_is_not_finite_is_named(num_workers: int, weights: Path, tmp_path: Path) -> None:
    volume = np.ones((20, 20, 6), np.float32)
    volume[0, 0, 0] = np.nan
    save(tmp_path / "scan.nii.gz", volume)
    out = tmp_path / "predictions"
    places = {"dataset_dir": str(tmp_path), "ckpt_dir": str(weights), "output_dir": str(out)}
    ended = run_bundle_as_typed(ACDC, "inference.yaml", num_workers=num_workers, **places)
    assert ended.code == 1
    assert "scan.nii.gz" in ended.err
    assert "NaN" in ended.err
    assert not list(out.glob("*"))


def test_shards_and_an_interruption_give_the_same_maps(images: Path, weights: Path, tmp_path: Path) -> None:
    def run(out: str, **options: Any) -> None:
        places = {"dataset_dir": str(images), "ckpt_dir": str(weights), "output_dir": str(tmp_path / out)}
        run_bundle(ACDC, "inference.yaml", **places, **options)

    run("whole")
    for shard in ("1/2", "2/2", "2/2"):  # the last one has nothing to do
        run("shards", shard=shard, skip_existing=True)
    (tmp_path / "shards" / "oblique_seg.nii.gz").unlink()
    run("shards", skip_existing=True)
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "shards").iterdir())
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "shards" / name).read_bytes()
    places = {"dataset_dir": str(images), "ckpt_dir": str(weights), "output_dir": str(tmp_path / "whole")}
    assert "overwrite" in run_bundle_as_typed(ACDC, "inference.yaml", **places).err
    run("whole", overwrite=True)


def test_outside_the_crop_is_background_and_certain(images: Path, weights: Path, tmp_path: Path) -> None:
    run_bundle(
        ACDC,
        "inference.yaml",
        dataset_dir=str(images / "straight.nii.gz"),
        crop_size=[32, 48],
        ckpt_dir=str(weights),
        output_dir=str(tmp_path),
    )
    maps = {
        kind: nib.Nifti1Image.from_filename(tmp_path / f"straight_{kind}.nii.gz").get_fdata()
        for kind in ("seg", "uncertainty")
    }
    inside = np.zeros((70, 61, 5), bool)
    inside[16:54, 6:55] = True  # a half and three quarters of 70 x 61, and the voxel that interpolation adds
    for values in maps.values():
        assert (values[~inside] == 0).all()
    assert (maps["uncertainty"][19:51, 9:52] > 0).all()


def infer(array: np.ndarray, affine: np.ndarray, weights: Path, folder: Path, **override: Any) -> np.ndarray:
    """The probabilities for an image, without its channels' last axis."""
    save(folder / "scan.nii.gz", array, affine)
    run_bundle(
        ACDC,
        "inference.yaml",
        dataset_dir=str(folder / "scan.nii.gz"),
        ckpt_dir=str(weights),
        output_dir=str(folder / "out"),
        **override,
    )
    return nib.Nifti1Image.from_filename(folder / "out" / "scan_probability.nii.gz").get_fdata()


def test_the_axis_of_the_slices_in_the_file_changes_nothing(weights: Path, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 1000, (40, 50, 4), dtype=np.int16)
    affine = np.diag([1.5, 1.5, 8, 1])
    expected = infer(array, affine, weights, tmp_path / "2")
    for axis, order in ((0, [2, 0, 1]), (1, [0, 2, 1])):
        found = infer(array.transpose(order), affine[:, [*order, 3]], weights, tmp_path / str(axis))
        np.testing.assert_array_equal(np.moveaxis(found, axis, 2), expected)


def test_averaged_over_orientations_the_turn_of_the_slices_changes_nothing(tmp_path: Path) -> None:
    weights = make_weights(ACDC, tmp_path / "weights")
    array = np.random.default_rng(0).integers(0, 1000, (*SIZE, 2), dtype=np.int16)
    affine = np.diag([1.5, 1.5, 8, 1])
    expected = infer(array, affine, weights, tmp_path / "stored", tta=True)
    found = infer(np.rot90(array).copy(), affine, weights, tmp_path / "turned", tta=True)
    np.testing.assert_allclose(found, np.rot90(expected), atol=STEP)
