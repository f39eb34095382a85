"""The bundles as MONAI runs them, on phantoms prepared at a small size."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from scripts import sync_bundles
from scripts.sync_bundles import sync
from tests.helpers import ROOT

ACDC = ROOT / "bundles" / "acdc_mri_nacl_segmentation"
BRATS = ROOT / "bundles" / "brats_mri_nacl_segmentation"
BUNDLES = sorted(path for path in (ROOT / "bundles").iterdir() if path.name != "common")
IMAGE_SIZE = [64, 64]


def run_bundle(bundle: Path, *configs: str, **override: Any) -> None:
    """Run a bundle in this process, on the CPU."""
    monai.bundle.run(
        config_file=[str(bundle / "configs" / name) for name in configs],
        meta_file=str(bundle / "configs" / "metadata.json"),
        bundle_root=str(bundle),
        device="cpu",
        num_workers=0,
        **override,
    )


def command(*configs: str, **override: Any) -> list[str]:
    """The same as a command line."""
    files = [str(ACDC / "configs" / name) for name in configs]
    options = {"config_file": files, "bundle_root": ACDC, "device": "cpu", **override}
    return [sys.executable, "-m", "monai.bundle", "run", *(f"--{key}={value}" for key, value in options.items())]


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the ACDC bundle after two epochs."""
    out = tmp_path_factory.mktemp("trained")
    run_bundle(
        ACDC,
        "train.yaml",
        dataset_dir=str(prepared),
        image_size=IMAGE_SIZE,
        max_epochs=2,
        ckpt_dir=str(out),
        output_dir=str(out),
    )
    return out


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
class TestEveryBundle:
    @pytest.mark.parametrize(("workflow", "config"), [("train", "train.yaml"), ("infer", "inference.yaml")])
    def test_defines_the_properties_that_monai_expects(
        self, bundle: Path, workflow: str, config: str, prepared: Path, tmp_path: Path
    ) -> None:
        parsed = ConfigWorkflow(
            config_file=str(bundle / "configs" / config),
            meta_file=str(bundle / "configs" / "metadata.json"),
            logging_file=str(bundle / "configs" / "logging.conf"),
            workflow_type=workflow,
            dataset_dir=str(prepared),
            image_size=IMAGE_SIZE,
            output_dir=str(tmp_path),
        )
        parsed.initialize()
        assert parsed.check_properties() == []

    def test_inference_needs_nothing_but_monai(self, bundle: Path) -> None:
        assert "calib_components" not in (bundle / "configs" / "inference.yaml").read_text().split("The body")[1]


def test_generated_files_are_in_step_with_their_source() -> None:
    sync(check=True)


def test_generated_files_that_differ_or_have_lost_their_source_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "bundles", tmp_path / "bundles", ignore=shutil.ignore_patterns("models"))
    monkeypatch.setattr(sync_bundles, "ROOT", tmp_path / "bundles")
    configs = tmp_path / "bundles" / ACDC.name / "configs"
    (configs / "train.yaml").write_text("changed")
    (configs / "losses" / "old.yaml").touch()
    with pytest.raises(SystemExit) as error:
        sync(check=True)
    assert error.value.code == 1
    assert capsys.readouterr().out == (
        f"{configs}/losses/old.yaml: has no source in bundles/common: delete it\n"
        f"{configs}/train.yaml: differs from bundles/common: run scripts/sync_bundles.py\n"
    )


def test_training_keeps_best_and_last(trained: Path) -> None:
    best = torch.load(trained / "model.pt", weights_only=True)
    last = torch.load(trained / "last.pt", weights_only=True)
    assert best.keys() == last["network"].keys()
    assert last["epoch"] == 2
    assert 0 < last["best_metric"] <= 1
    assert list(trained.glob("events.out.tfevents.*"))


def test_evaluation_writes_cases_summary_bins_and_figures(prepared: Path, trained: Path, tmp_path: Path) -> None:
    run_bundle(
        ACDC,
        "train.yaml",
        "evaluate.yaml",
        dataset_dir=str(prepared),
        image_size=IMAGE_SIZE,
        ckpt_dir=str(trained),
        output_dir=str(tmp_path),
    )
    testing = json.loads((prepared / "datalist.json").read_text())["testing"]
    with open(tmp_path / "cases.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [item["case"] for item in testing]
    assert list(rows[0]) == [
        "case", "dsc_RV", "dsc_MYO", "dsc_LV", "hd95_RV", "hd95_MYO", "hd95_LV", "ece", "cece", "nll", "brier"
    ]  # fmt: skip

    summary = json.loads((tmp_path / "summary.json").read_text())
    ece = [float(row["ece"]) for row in rows]
    assert summary["cases"] == len(rows) == 4
    assert summary["ece"] == {"mean": pytest.approx(np.mean(ece)), "std": pytest.approx(np.std(ece, ddof=1)), "n": 4}
    in_one_only = {(item["case"], item["structure"]) for item in summary["missed"] + summary["spurious"]}
    assert in_one_only == {
        (row["case"], structure)
        for row in rows
        for structure in ("RV", "MYO", "LV")
        if row[f"dsc_{structure}"] == "0.0" and row[f"hd95_{structure}"] == ""
    }

    calibration = json.loads((tmp_path / "calibration.json").read_text())
    foreground = sum(int((nib.load(prepared / i["label"]).get_fdata() > 0).sum()) for i in testing)
    assert np.sum(calibration["pooled"]["top_label"]["count"]) == foreground
    assert np.array(calibration["per_case"]["classwise"]["count"]).shape == (4, 4, 15)
    for name in ("reliability.png", "reliability_classes.png"):
        assert (tmp_path / name).stat().st_size > 10_000


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


def save(path: Path, *shape: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ones(shape, np.int16), np.eye(4)), path)


def test_inference_without_images_says_so(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    with pytest.raises(SystemExit, match=f"^no such dataset_dir: {folder}$"):
        infer(folder, trained, tmp_path)
    folder.mkdir()
    (folder / "slice.png").touch()
    for place in (folder, folder / "slice.png"):
        with pytest.raises(SystemExit, match=f"^no .nii or .nii.gz file in dataset_dir: {place}$"):
            infer(place, trained, tmp_path)


def test_a_cine_is_an_error_that_names_it(images: Path, trained: Path, tmp_path: Path) -> None:
    save(images / "patient001_4d.nii.gz", 20, 20, 6, 5)
    with pytest.raises(SystemExit) as error:
        infer(images, trained, tmp_path / "predictions")
    got = f"{images}/patient001_4d.nii.gz (20, 20, 6, 5)"
    assert str(error.value) == f"expected 3D images with 1 channel(s), got: {got}"
    assert not (tmp_path / "predictions").exists()


def test_channels_of_an_image_are_checked(trained: Path, tmp_path: Path) -> None:
    for name, shape in {"a_flair": (20, 20, 6), "a_t1": (20, 20, 6), "b": (20, 20, 6, 4)}.items():
        save(tmp_path / f"{name}.nii.gz", *shape)
    missing = f"{tmp_path}/a_t1ce.nii.gz, {tmp_path}/a_t2.nii.gz"
    with pytest.raises(SystemExit, match=f"^files of an image are missing: {missing}$"):
        infer(tmp_path, trained, tmp_path, BRATS)
    save(tmp_path / "a_t1ce.nii.gz", 20, 20, 6, 4)
    save(tmp_path / "a_t2.nii.gz", 20, 20, 6)
    save(tmp_path / "c.nii.gz", 20, 20, 6)
    with pytest.raises(SystemExit) as error:
        infer(tmp_path, trained, tmp_path, BRATS)
    assert str(error.value).endswith(f"got: {tmp_path}/a_t1ce.nii.gz (20, 20, 6, 4); {tmp_path}/c.nii.gz (20, 20, 6)")


def test_labels_beside_the_images_are_not_replaced(trained: Path, tmp_path: Path) -> None:
    save(tmp_path / "scan.nii.gz", 20, 20, 6)
    save(tmp_path / "scan_seg.nii.gz", 20, 20, 6)
    label = (tmp_path / "scan_seg.nii.gz").read_bytes()
    for folder in (tmp_path, tmp_path / "scan.nii.gz"):
        with pytest.raises(SystemExit, match=f"^output_dir holds images, .*: {tmp_path}$"):
            infer(folder, trained, tmp_path)
    assert (tmp_path / "scan_seg.nii.gz").read_bytes() == label


def test_values_that_are_no_numbers_are_an_error(trained: Path, tmp_path: Path) -> None:
    volume = np.ones((20, 20, 6), np.float32)
    volume[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "scan.nii.gz")
    with pytest.raises(RuntimeError) as error:
        infer(tmp_path, trained, tmp_path / "predictions")
    first: BaseException = error.value
    while first.__cause__ or first.__context__:
        first = first.__cause__ or first.__context__  # type: ignore[assignment]
    assert str(first) == f"NaN or infinite values in {tmp_path}/scan.nii.gz"
    assert not list(tmp_path.glob("predictions/*"))


def test_images_of_the_same_name_are_an_error(images: Path, trained: Path, tmp_path: Path) -> None:
    for patient in ("first", "second"):
        shutil.copytree(images, tmp_path / "images" / patient)
    with pytest.raises(SystemExit, match="same name, and their results would replace each other: oblique, straight"):
        infer(tmp_path / "images", trained, tmp_path / "predictions")
    assert not (tmp_path / "predictions").exists()


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


def test_another_image_size_than_the_prepared_one_is_an_error(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        run_bundle(ACDC, "train.yaml", dataset_dir=str(prepared), ckpt_dir=str(tmp_path), output_dir=str(tmp_path))
    assert "slices of 64 x 64, but image_size is [224, 224]" in str(error.value.__cause__)


@pytest.mark.parametrize("loss", ["nacl", "ce_dice"])
def test_loss_overlay_trains(loss: str, prepared: Path, tmp_path: Path) -> None:
    run_bundle(
        ACDC,
        "train.yaml",
        f"losses/{loss}.yaml",
        dataset_dir=str(prepared),
        image_size=IMAGE_SIZE,
        max_epochs=1,
        ckpt_dir=str(tmp_path),
        output_dir=str(tmp_path),
    )
    assert (tmp_path / "model.pt").is_file()


def test_tracking_with_mlflow(prepared: Path, tmp_path: Path) -> None:
    run_bundle(
        ACDC,
        "train.yaml",
        dataset_dir=str(prepared),
        image_size=IMAGE_SIZE,
        max_epochs=1,
        ckpt_dir=str(tmp_path),
        output_dir=str(tmp_path),
        tracking="mlflow",
    )
    assert (tmp_path / "mlruns.db").stat().st_size > 0


def test_killed_training_resumes_to_the_same_bits(prepared: Path, tmp_path: Path) -> None:
    def train(folder: Path, **override: Any) -> list[str]:
        return command(
            "train.yaml",
            dataset_dir=prepared,
            image_size=IMAGE_SIZE,
            max_epochs=4,
            num_workers=1,
            ckpt_dir=folder,
            output_dir=folder,
            **override,
        )

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(train(whole), check=True)

    process = subprocess.Popen(train(killed), start_new_session=True)
    while not (killed / "last.pt").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)  # into the second epoch
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert torch.load(killed / "last.pt", weights_only=True)["epoch"] < 4

    subprocess.run(train(killed, resume=True), check=True)
    expected, resumed = (torch.load(folder / "last.pt", weights_only=True) for folder in (whole, killed))
    assert resumed["best_metric"] == expected["best_metric"]
    for part in ("network", "optimizer"):
        torch.testing.assert_close(resumed[part], expected[part], rtol=0, atol=0)
    expected, resumed = (torch.load(folder / "model.pt", weights_only=True) for folder in (whole, killed))
    torch.testing.assert_close(resumed, expected, rtol=0, atol=0)
