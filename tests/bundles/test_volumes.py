"""3D: the hippocampus bundle from raw images to maps, and 3D networks in bundles of slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from calib_tools.prepare import prepare_data
from calib_workflows.calibrate import read_estimate
from calib_workflows.data.facts import facts_beside
from calib_workflows.evaluation_files import Evaluation
from tests.helpers import (
    BRATS,
    FLARE,
    HIPPOCAMPUS,
    make_images,
    make_prepared,
    refusal,
    run_bundle,
    save,
)

PATCH = [16, 24, 16]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task04 in small, in LPS: ellipsoids of two halves, some of them larger than a patch; both
    sides of 7 patients.
    """
    root, rng = tmp_path_factory.mktemp("task"), np.random.default_rng(0)
    for number in range(1, 15):
        shape = (14 + number % 5, 20 + number % 7, 18)
        x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
        inside = x**2 + y**2 + z**2 < 0.4
        label = np.where(inside, np.where(y > 0, 1, 2), 0).astype(np.uint8)
        image = (400 * inside + 100 * label + rng.normal(0, 60, shape)).astype(np.float32)
        for folder, values in (("imagesTr", image), ("labelsTr", label)):
            save(
                root / folder / f"hippocampus_{number:03d}.nii.gz",
                values,
                np.diag([-1.0, -1.0, 1.0, 1.0]),
            )
    return root


@pytest.mark.slow
def test_from_raw_images_to_maps(task: Path, tmp_path: Path) -> None:
    prepare_data("hippocampus", task, tmp_path / "data", fractions=(0.4, 0.3, 0.3), workers=1)
    places = {
        "dataset_dir": str(tmp_path / "data"),
        "ckpt_dir": str(tmp_path / "models"),
        "crop_size": PATCH,
    }
    run_bundle(HIPPOCAMPUS, "train.yaml", output_dir=str(tmp_path / "log"), max_epochs=8, **places)
    facts = facts_beside(tmp_path / "models" / "model.pt")
    assert facts is not None
    assert (facts.spatial_dims, facts.image_size, facts.crop_size, facts.any_orientation) == (
        3,
        None,
        PATCH,
        True,
    )
    run_bundle(
        HIPPOCAMPUS,
        "train.yaml",
        "calibrate.yaml",
        output_dir=str(tmp_path / "fit"),
        calibrator="temperature",
        **places,
    )
    where = {**places, "output_dir": str(tmp_path / "eval"), "split": "validation"}
    run_bundle(HIPPOCAMPUS, "train.yaml", "evaluate.yaml", **where)
    found, fit = Evaluation.read(tmp_path / "eval"), read_estimate(tmp_path / "fit")
    sizes = found.regions["all"]["top_label_per_case"].count.sum(-1)
    voxels = [
        np.prod(nib.load(tmp_path / "data" / case / "image.nii").shape)
        for case in found.cases["case"]
    ]
    assert sizes.tolist() == voxels  # without padding
    assert np.average(found.cases["nll_all"], weights=sizes) == pytest.approx(
        fit.nll_after, rel=1e-5
    )
    assert found.summary["dsc"]["mean"] > 0.5

    infer: dict[str, Any] = {
        "dataset_dir": str(task / "imagesTr"),
        "ckpt_dir": str(tmp_path / "models"),
    }
    run_bundle(HIPPOCAMPUS, "inference.yaml", output_dir=str(tmp_path / "maps"), **infer)
    table = pd.read_csv(tmp_path / "maps" / "quality.csv").set_index(["scan", "structure"])
    for case, expected in zip(
        found.cases["case"], found.cases["expected_dsc_anterior"], strict=True
    ):
        assert table.loc[(case, "anterior"), "expected_dsc"] == pytest.approx(expected, rel=1e-4)
    for case, nll in zip(found.cases["case"], found.cases["nll_all"], strict=True):
        own = nib.load(task / "labelsTr" / f"{case}.nii.gz")
        probability, seg = (
            nib.load(tmp_path / "maps" / f"{case}_{kind}.nii.gz") for kind in ("probability", "seg")
        )
        np.testing.assert_array_equal(seg.affine, own.affine)
        of_label = np.take_along_axis(
            probability.get_fdata(), own.get_fdata()[..., None].astype(int), -1
        )
        # The maps are those that were evaluated
        assert -np.log(of_label).mean() == pytest.approx(nll, abs=1e-3)
        assert (seg.get_fdata() == probability.get_fdata().argmax(-1)).mean() > 0.999
    one, mirrored = task / "imagesTr" / "hippocampus_003.nii.gz", tmp_path / "mirrored.nii.gz"
    save(
        mirrored,
        nib.load(one).get_fdata()[::-1].astype(np.float32),
        np.diag([-1.0, -1.0, 1.0, 1.0]),
    )
    for file in (one, mirrored):
        run_bundle(
            HIPPOCAMPUS,
            "inference.yaml",
            output_dir=str(tmp_path / f"tta of {file.name}"),
            tta=True,
            **{**infer, "dataset_dir": str(file)},
        )
    maps = [
        nib.load(tmp_path / f"tta of {name}.nii.gz" / f"{name}_probability.nii.gz").get_fdata()
        for name in ("hippocampus_003", "mirrored")
    ]
    np.testing.assert_allclose(maps[0], maps[1][::-1], atol=1e-3)


NETWORKS: dict[str, Any] = {
    "DynUNet": {
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 16],
    },
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
}


@pytest.mark.parametrize(("name", "bundle"), [("DynUNet", FLARE), ("SegResNet", BRATS)], ids=str)
def test_3d_networks_in_bundles_of_slices(name: str, bundle: Path, tmp_path: Path) -> None:
    make_prepared(bundle, tmp_path / "data")
    options = {
        "in_channels": "@in_channels",
        "out_channels": "@num_classes",
        "spatial_dims": 3,
        **NETWORKS[name],
    }
    network = {
        "_target_": "calib_components.posthoc.TemperatureScaled",
        "network": {"_target_": name, **options},
    }
    files, places = (
        ("train.yaml", "volumes.yaml"),
        {"ckpt_dir": str(tmp_path / "models"), "network_def": network},
    )
    data = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "log")}
    assert "crop_size must be three multiples of 8" in refusal(bundle, *files, **data, **places)
    run_bundle(bundle, *files, **data, **places, crop_size=[16, 24, 8], max_epochs=1)
    images = {
        "dataset_dir": str(make_images(bundle, tmp_path / "images")),
        "output_dir": str(tmp_path / "maps"),
    }
    if bundle == FLARE:
        images["ignore_intensity"] = True
    assert "Give configs/volumes.yaml, too" in refusal(bundle, "inference.yaml", **images, **places)
    run_bundle(bundle, "inference.yaml", "volumes.yaml", **images, **places, save="label")
    (label,) = (tmp_path / "maps").glob("*.nii.gz")
    assert "scan" in (tmp_path / "maps" / "quality.csv").read_text()
    assert nib.load(label).shape == (30, 41, 4)
    assert torch.load(tmp_path / "models" / "model.pt", weights_only=True)["temperature"] == 1
