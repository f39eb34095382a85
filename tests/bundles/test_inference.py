"""Inference of the ACDC bundle; what finding, checking and naming images does is in tests of the
package.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from highdicom.seg import segread
from pydicom.data import get_testdata_file

from calib_components.errors import root_cause
from calib_components.posthoc import ClassBias
from calib_workflows.weights import with_calibrator
from tests.calib_workflows.data.test_dicom import AFFINES, save_series, volume_of
from tests.helpers import (
    ACDC,
    make_weights,
    refusal,
    run_bundle,
    save,
    snapshot,
)
from tests.phantoms import AFFINE, GROUPS, draw

STEP = 1.001 / 65535  # of the whole numbers that maps are stored as


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, for slices of 64 x 64."""
    return make_weights(ACDC, tmp_path_factory.mktemp("weights"), (64, 64))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images of different size, spacing and orientation."""
    rng = np.random.default_rng(0)
    for name, shape, affine in (
        ("straight", (70, 61, 5), np.diag([1.5, 1.5, 10, 1])),
        ("oblique", (50, 88, 3), [[0, -1.2, 0, 10], [1.2, 0, 0, -20], [0, 0, 8, 5], [0, 0, 0, 1]]),
    ):
        save(
            tmp_path / "images" / f"{name}.nii.gz",
            rng.integers(0, 1000, shape, np.int16),
            np.array(affine),
        )
    return tmp_path / "images"


def infer(source: Path, weights: Path, out: Path, **override: Any) -> None:
    places = {"dataset_dir": str(source), "ckpt_dir": str(weights), "output_dir": str(out)}
    run_bundle(ACDC, "inference.yaml", **places, **override)


def probabilities(array: np.ndarray, weights: Path, folder: Path) -> np.ndarray:
    """The probabilities for an image, `(*S, C)`."""
    save(folder / "scan.nii.gz", array, np.diag([1.5, 1.5, 10, 1]))
    infer(folder / "scan.nii.gz", weights, folder / "out")
    return nib.load(folder / "out" / "scan_probability.nii.gz").get_fdata()


def test_maps_are_on_the_grid_of_each_image(images: Path, weights: Path, tmp_path: Path) -> None:
    infer(images, weights, tmp_path)
    table = pd.read_csv(tmp_path / "quality.csv")
    for name in ("straight", "oblique"):
        source = nib.load(images / f"{name}.nii.gz")
        kinds = ("seg", "probability", "uncertainty")
        maps = [nib.load(tmp_path / f"{name}_{kind}.nii.gz") for kind in kinds]
        for image in maps:
            assert image.shape[:3] == source.shape
            np.testing.assert_allclose(image.affine, source.affine, atol=1e-5)
        seg, probability, uncertainty = (image.get_fdata() for image in maps)
        assert probability.shape == (*source.shape, 4)
        # Four numbers, each rounded by up to a half
        np.testing.assert_allclose(probability.sum(-1), 1, atol=2 * STEP)
        of_label = np.take_along_axis(probability, seg[..., None].astype(int), -1)[..., 0]
        np.testing.assert_allclose(of_label, probability.max(-1), atol=STEP)
        entropy = -(probability * np.log(np.maximum(probability, 1e-30))).sum(-1) / np.log(4)
        np.testing.assert_allclose(uncertainty, entropy, atol=1e-4)
        found = table[table["scan"] == name].set_index("structure")
        volume = probability.sum((0, 1, 2)) * abs(np.linalg.det(source.affine)) / 1000
        assert found.loc[["RV", "MYO", "LV"], "expected_volume_ml"].tolist() == pytest.approx(
            volume[1:], rel=1e-3
        )
    assert "2 segmentations to check" in (tmp_path / "quality.html").read_text()


def test_logits_are_calibrated_as_the_weights_say(weights: Path, tmp_path: Path) -> None:
    """On the grid of the network; logarithms of the probabilities are logits."""
    array = np.random.default_rng(0).integers(0, 1000, (64, 64, 2), np.int16)
    fitted = ClassBias()
    fitted.set_state({"bias_scale": [0.9], "bias_shift": [0.0, 0.3, -0.4, 0.5]})
    calibrated = make_weights(ACDC, tmp_path / "weights", (64, 64))
    (calibrated / "model.pt").write_bytes(with_calibrator(calibrated / "model.pt", fitted))
    plain = torch.from_numpy(probabilities(array, weights, tmp_path / "plain"))
    expected = fitted(plain.log().movedim(-1, 1)).softmax(1).movedim(1, -1)
    found = probabilities(array, calibrated, tmp_path / "calibrated")
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_cannot_be_read_are_left_out(
    workers: int, weights: Path, tmp_path: Path
) -> None:
    volumes = {name: volume_of(0, (64, 64, 2)).astype("f4") for name in ("blank", "good", "nan")}
    volumes["blank"][:], volumes["nan"][0, 0, 0] = 7, np.nan
    for name, volume in volumes.items():
        save(tmp_path / "in" / f"{name}.nii.gz", volume, np.eye(4))
    with pytest.raises(SystemExit) as ended:
        infer(tmp_path / "in", weights, tmp_path / "out", save="label", num_workers=workers)
    assert ended.value.code == 3
    assert pd.read_csv(tmp_path / "out" / "quality.csv")["scan"].unique() == ["good"]
    page = (tmp_path / "out" / "quality.html").read_text()
    assert "blank.nii.gz: channel 0 has no contrast" in page
    assert "nan.nii.gz: 1 values are NaN" in page
    (tmp_path / "in" / "good.nii.gz").unlink()
    with pytest.raises(RuntimeError) as failed:
        infer(tmp_path / "in", weights, tmp_path / "none", save="label")
    assert "no image of this run can be segmented" in str(root_cause(failed.value))


def test_dicom_series_are_segmented_as_their_volumes(weights: Path, tmp_path: Path) -> None:
    affine, volume = AFFINES["oblique"], volume_of(0, (70, 61, 5))
    save_series(tmp_path / "dicom" / "scan", volume, affine)
    save(tmp_path / "scan.nii.gz", volume.astype(np.int16), affine)
    infer(tmp_path / "scan.nii.gz", weights, tmp_path / "nifti", save="label")
    (tmp_path / "dicom" / "report").mkdir()
    shutil.copy(str(get_testdata_file("test-SR.dcm")), tmp_path / "dicom" / "report")
    with pytest.raises(SystemExit) as ended:
        infer(tmp_path / "dicom", weights, tmp_path / "out", save=["label", "dicom"])
    assert ended.value.code == 3  # the report was left out
    name = "P-1_20240102_3"
    assert pd.read_csv(tmp_path / "out" / "quality.csv")["scan"].unique() == [name]
    found, expected = (
        nib.as_closest_canonical(nib.load(file))
        for file in (tmp_path / f"out/{name}_seg.nii.gz", tmp_path / "nifti/scan_seg.nii.gz")
    )
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    assert (np.asarray(found.dataobj) == np.asarray(expected.dataobj)).all()
    assert np.asarray(found.dataobj).any()
    seg = segread(tmp_path / f"out/{name}_seg.dcm")
    codes = [part.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for part in seg.SegmentSequence]
    assert codes == ["Right ventricle", "Left ventricle myocardium", "Left ventricle"]
    masks = seg.get_volume(combine_segments=True).array
    counts = np.bincount(np.asarray(found.dataobj).ravel(), minlength=4)
    assert np.bincount(masks.ravel(), minlength=4)[1:].tolist() == counts[1:].tolist()
    line = refusal(
        ACDC,
        "inference.yaml",
        dataset_dir=str(tmp_path / "scan.nii.gz"),
        ckpt_dir=str(weights),
        output_dir=str(tmp_path / "none"),
        save="dicom",
    )
    assert "save: DICOM is written of DICOM alone" in line


def test_shards_and_an_interruption_give_the_same_maps(
    images: Path, weights: Path, tmp_path: Path
) -> None:
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    infer(images, weights, whole)
    for shard in ("1/2", "2/2", "2/2"):  # the last one has nothing to do
        infer(images, weights, shards, shard=shard, skip_existing=True)
    (shards / "oblique_seg.nii.gz").unlink()
    infer(images, weights, shards, skip_existing=True)
    assert snapshot(shards) == snapshot(whole)
    places = {"dataset_dir": str(images), "ckpt_dir": str(weights), "output_dir": str(whole)}
    assert "overwrite" in refusal(ACDC, "inference.yaml", **places)
    infer(images, weights, whole, overwrite=True)


def test_outside_the_crop_is_background_and_certain(
    images: Path, weights: Path, tmp_path: Path
) -> None:
    infer(images / "straight.nii.gz", weights, tmp_path, crop_size=[32, 48], crop_center=[0.5, 0.5])
    seg, uncertainty = (
        nib.load(tmp_path / f"straight_{kind}.nii.gz").get_fdata()
        for kind in ("seg", "uncertainty")
    )
    inside = np.zeros((70, 61, 5), bool)
    # A half and three quarters of 70 x 61, and the voxel that interpolation adds
    inside[16:54, 6:55] = True
    assert (seg[~inside] == 0).all()
    assert (uncertainty[~inside] == 0).all()
    assert (uncertainty[19:51, 9:52] > 0).all()


def test_the_crop_lies_around_the_heart(tmp_path: Path) -> None:
    """With the shipped weights, also in slices of other sizes; and the centre that was found gives
    the maps again.
    """
    rng = np.random.default_rng(3)
    heart = draw(np.array(GROUPS["DCM"]), (224, 224, 3), np.array([112, 112, 1.5]), rng)[0]
    wide = draw(1.6 * np.array(GROUPS["DCM"]), (250, 380, 3), np.array([150, 250, 1.5]), rng)[0]
    nothing = np.indices((150, 120, 3), np.int16)[0]
    scans = {
        "centre": heart,
        "shifted": np.roll(heart, (32, -48), (0, 1)),
        "wide": wide,
        "nothing": nothing,
    }
    for name, array in scans.items():
        save(tmp_path / "images" / f"{name}.nii.gz", array, AFFINE)
    run_bundle(
        ACDC,
        "inference.yaml",
        dataset_dir=str(tmp_path / "images"),
        output_dir=str(tmp_path / "maps"),
    )
    table = pd.read_csv(tmp_path / "maps" / "quality.csv").groupby("scan").first()
    found = {
        name: [float(share) for share in text.split(",")]
        for name, text in table["crop_center"].items()
    }
    np.testing.assert_allclose(found["centre"], [0.5, 0.5], atol=0.06)
    np.testing.assert_allclose(found["shifted"], [(112 + 32) / 224, (112 - 48) / 224], atol=0.06)
    np.testing.assert_allclose(found["wide"], [150 / 250, 250 / 380], atol=0.06)
    assert (found["nothing"], table["review"]["nothing"]) == ([0.5, 0.5], "yes")
    assert "Nothing was found in the whole slices" in table["reason"]["nothing"]
    run_bundle(
        ACDC,
        "inference.yaml",
        dataset_dir=str(tmp_path / "images" / "wide.nii.gz"),
        output_dir=str(tmp_path / "given"),
        crop_center=found["wide"],
    )
    first, again = (
        nib.load(tmp_path / folder / "wide_probability.nii.gz").get_fdata()
        for folder in ("maps", "given")
    )
    np.testing.assert_array_equal(first, again)
