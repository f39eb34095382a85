"""Calibrated weights: all that reads them afterwards gives the probabilities softmax(logits / T) of the network."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.nets import UNet

from calib_components.handlers import read_estimate
from tests.bundles.test_multi_gpu import run_two
from tests.helpers import (
    ACDC,
    BUNDLES,
    SIZE,
    copy_with_weights,
    inference_config,
    make_prepared,
    make_weights,
    run_bundle,
    snapshot,
)


class Divided(UNet):
    """MONAI's own network, with its logits divided: what a calibrated one must agree with."""

    def __init__(self, temperature: float, **options: Any) -> None:
        super().__init__(**options)
        self.divisor = temperature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / self.divisor


def divided(temperature: float) -> dict[str, Any]:
    """What replaces `network_def`."""
    config = inference_config(ACDC)
    options = {name: value for name, value in config["network_def"].items() if name != "_target_"}
    return {"_target_": f"{__name__}.Divided", "temperature": temperature, **options}


@pytest.fixture(scope="module")
def trained(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a UNet without a temperature, as they were before there was one."""
    out = shutil.copytree(trained, tmp_path_factory.mktemp("trained"), dirs_exist_ok=True)
    weights = torch.load(out / "model.pt", weights_only=True)
    assert weights.pop("temperature") == 1
    torch.save(weights, out / "model.pt")
    return out


@pytest.fixture(scope="module")
def calibrated(trained: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the temperature fitted on the validation patients."""
    out = shutil.copytree(trained, tmp_path_factory.mktemp("calibrated"), dirs_exist_ok=True)
    places = {"dataset_dir": str(prepared), "ckpt_dir": str(out), "output_dir": str(out / "eval")}
    run_bundle(ACDC, "train.yaml", "calibrate.yaml", **places)
    return out


def test_only_the_temperature_is_added(trained: Path, calibrated: Path) -> None:
    before, after = (torch.load(folder / "model.pt", weights_only=True) for folder in (trained, calibrated))
    estimate = read_estimate(calibrated / "eval")
    assert after.pop("temperature") == np.float32(estimate.temperature)
    assert abs(estimate.temperature - 1) > 0.01  # otherwise the other tests show little
    assert estimate.patients == 2
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    changed = {name for name, content in snapshot(calibrated).items() if content != snapshot(trained).get(name)}
    written = ("reliability_temperature.png", "temperature.json", "temperature_fit.json")
    assert changed == {"eval", *(f"eval/{name}" for name in written), "model.pt"}
    assert (calibrated / "eval" / "reliability_temperature.png").stat().st_size > 10_000


def evaluate(folder: Path, prepared: Path, out: Path, **options: Any) -> list[dict[str, str]]:
    places = {"dataset_dir": str(prepared), "ckpt_dir": str(folder), "output_dir": str(out)}
    run_bundle(ACDC, "train.yaml", "evaluate.yaml", **places, **options)
    with open(out / "cases.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_evaluation(calibrated: Path, trained: Path, prepared: Path, tmp_path: Path) -> None:
    temperature = read_estimate(calibrated / "eval").temperature
    own = evaluate(calibrated, prepared, tmp_path / "own")
    expected = evaluate(trained, prepared, tmp_path / "expected", network_def=divided(temperature))
    before = evaluate(trained, prepared, tmp_path / "before")
    for name in ("ece", "cece", "nll", "brier"):
        values, wanted, old = (np.array([float(row[name]) for row in rows]) for rows in (own, expected, before))
        np.testing.assert_allclose(values, wanted, rtol=1e-5)
        assert (np.abs(values - old) > 1e-3 * old).all()
    # The same label maps, but for single voxels in which two classes are equally probable but for rounding.
    dsc, old = (
        np.array([[float(row[name] or "nan") for name in row if name.startswith("dsc")] for row in rows])
        for rows in (own, before)
    )
    np.testing.assert_allclose(dsc, old, rtol=0, atol=1e-3)
    assert json.loads((tmp_path / "own" / "summary.json").read_text())["temperature"] == np.float32(temperature)


@pytest.mark.slow
def test_inference(calibrated: Path, trained: Path, phantoms: Path, tmp_path: Path) -> None:
    image = phantoms / "training" / "patient001" / "patient001_frame01.nii.gz"

    def maps(folder: Path, name: str, **options: Any) -> dict[str, np.ndarray]:
        places = {"dataset_dir": str(image), "ckpt_dir": str(folder), "output_dir": str(tmp_path / name)}
        run_bundle(ACDC, "inference.yaml", **places, **options)
        kinds = ("seg", "probability", "uncertainty")
        return {kind: nib.load(tmp_path / name / f"patient001_frame01_{kind}.nii.gz").get_fdata() for kind in kinds}

    own = maps(calibrated, "own")
    expected = maps(trained, "expected", network_def=divided(read_estimate(calibrated / "eval").temperature))
    before = maps(trained, "before")
    step = 1.001 / 65535  # of the whole numbers that maps are stored as
    np.testing.assert_allclose(own["probability"], expected["probability"], rtol=0, atol=step)
    np.testing.assert_allclose(own["uncertainty"], expected["uncertainty"], rtol=0, atol=step)
    assert np.abs(own["probability"] - before["probability"]).max() > 0.01
    assert (own["seg"] != before["seg"]).mean() < 0.05  # interpolated probabilities may have another maximum


def test_calibrating_again_and_undoing_it(calibrated: Path, trained: Path, prepared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(calibrated, tmp_path / "again")
    places = {"ckpt_dir": str(folder), "output_dir": str(folder / "eval")}
    run_bundle(ACDC, "train.yaml", "calibrate.yaml", dataset_dir=str(prepared), **places)
    assert snapshot(folder) == snapshot(calibrated)
    run_bundle(ACDC, "train.yaml", "calibrate.yaml", dataset_dir=str(tmp_path / "none"), temperature=1, **places)
    undone = torch.load(folder / "model.pt", weights_only=True)
    assert undone.pop("temperature") == 1
    assert list((folder / "eval").iterdir()) == []
    torch.testing.assert_close(undone, torch.load(trained / "model.pt", weights_only=True), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("bundle", [bundle for bundle in BUNDLES if bundle != ACDC], ids=lambda path: path.name)
def test_every_bundle_calibrates_on_the_split_that_is_named(bundle: Path, tmp_path: Path) -> None:
    make_prepared(bundle, tmp_path / "data")
    make_weights(bundle, tmp_path / "models")
    places = {"dataset_dir": str(tmp_path / "data"), "ckpt_dir": str(tmp_path / "models")}
    options = {"split": "testing", "region": "foreground", "calibrated_path": str(tmp_path / "hospital" / "model.pt")}
    before = snapshot(tmp_path / "models")
    run_bundle(bundle, "train.yaml", "calibrate.yaml", output_dir=str(tmp_path / "eval"), **places, **options)
    estimate = read_estimate(tmp_path / "eval")
    assert set(estimate.leave_one_out) == {"testing0", "testing1"}
    weights = torch.load(tmp_path / "hospital" / "model.pt", weights_only=True)
    assert weights["temperature"] == np.float32(estimate.temperature)
    assert (tmp_path / "hospital" / "facts.yaml").is_file()
    assert snapshot(tmp_path / "models") == before


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_fit_what_one_does(tmp_path: Path) -> None:
    bundle = copy_with_weights(ACDC, tmp_path)
    make_prepared(bundle, bundle / "data", 5)  # not a multiple of two
    original = (bundle / "models" / "model.pt").read_bytes()
    with redirect_stdout(io.StringIO()) as printed:
        run_bundle(bundle, "train.yaml", "calibrate.yaml", image_size=list(SIZE))
    weights = [torch.load(bundle / "models" / "model.pt", weights_only=True)]
    estimates = [read_estimate(bundle / "eval")]
    (bundle / "models" / "model.pt").write_bytes(original)
    by_two = run_two(bundle, "train", "calibrate", "multi_gpu_evaluate")
    weights.append(torch.load(bundle / "models" / "model.pt", weights_only=True))
    estimates.append(read_estimate(bundle / "eval"))
    assert [text.count("Wrote the temperature ") for text in (printed.getvalue(), by_two)] == [1, 1]
    assert estimates[0].voxels == estimates[1].voxels
    assert estimates[1].temperature == pytest.approx(estimates[0].temperature, rel=1e-9)
    assert estimates[1].leave_one_out == pytest.approx(estimates[0].leave_one_out, rel=1e-9)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-7, atol=0)


class TestAsTyped:
    """In a process of its own, with what Fire makes of options."""

    def run(self, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
        configs = [str(ACDC / "configs" / name) for name in ("train.yaml", "calibrate.yaml")]
        places = [f"--dataset_dir={folder}/data", f"--ckpt_dir={folder}", f"--output_dir={folder}/eval"]
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs), "--device=cpu"]
        return subprocess.run([*command, *places, *options], capture_output=True, text=True, check=False)

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        make_prepared(ACDC, tmp_path / "data")
        return make_weights(ACDC, tmp_path)

    def test_calibrates(self, folder: Path) -> None:
        done = self.run(folder, "--region=[1,2]", "--split=testing", "--num_workers=0")
        assert done.returncode == 0, done.stderr
        fit = json.loads((folder / "eval" / "temperature_fit.json").read_text())
        assert fit["region"]["classes"] == [1, 2]
        assert fit["patients"].keys() == {"testing0", "testing1"}

    def test_a_broken_file_ends_with_one_line(self, folder: Path) -> None:
        """Its error comes from a worker that loads data, through MONAI."""
        file = folder / "data" / "validation0" / "image.nii"
        file.write_bytes(file.read_bytes()[:2000])
        before = snapshot(folder)
        done = self.run(folder, "--num_workers=1")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(str(file))
        assert "Traceback" not in done.stdout + done.stderr
        assert snapshot(folder) == before
