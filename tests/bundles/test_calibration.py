"""Calibrated weights: all that reads them afterwards gives the probabilities softmax(logits / T) of the network."""

from __future__ import annotations

import csv
import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.nets import UNet

from calib_components.handlers import load_weights, read_temperature
from tests.bad_input.harness import snapshot
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
    out = tmp_path_factory.mktemp("calibrated")
    shutil.copytree(trained, out, dirs_exist_ok=True)
    run_bundle(
        ACDC, "train.yaml", "calibrate.yaml", dataset_dir=str(prepared), ckpt_dir=str(out), output_dir=str(out / "eval")
    )
    return out


def test_only_the_temperature_is_added(trained: Path, calibrated: Path) -> None:
    before, after = (torch.load(folder / "model.pt", weights_only=True) for folder in (trained, calibrated))
    estimate = read_temperature(calibrated / "eval")
    assert after.pop("temperature") == np.float32(estimate.temperature)
    assert abs(estimate.temperature - 1) > 0.01  # otherwise the other tests show little
    assert estimate.patients == 2
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    changed = {name for name, content in snapshot(calibrated).items() if content != snapshot(trained).get(name)}
    written = ("reliability_temperature.png", "temperature.json", "temperature_fit.json")
    assert changed == {"eval", *(f"eval/{name}" for name in written), "model.pt"}
    assert (calibrated / "eval" / "reliability_temperature.png").stat().st_size > 10_000


def test_temperature_is_that_of_the_whole_validation_split(calibrated: Path, trained: Path, prepared: Path) -> None:
    """The derivative of the NLL over all its voxels is zero at T."""
    config = inference_config(ACDC)
    network = config.get_parsed_content("network_def").eval()
    load_weights(network, trained / "model.pt")
    temperature = read_temperature(calibrated / "eval").temperature
    derivative = scale = 0.0
    for item in json.loads((prepared / "datalist.json").read_text())["validation"]:
        image, label = (
            torch.from_numpy(np.float32(nib.load(prepared / item[key]).dataobj)) for key in ("image", "label")
        )
        with torch.no_grad():
            logits = network(image.movedim(-1, 0)[:, None]).double()
        p, true = (logits / temperature).softmax(1), label.movedim(-1, 0)[:, None].long()
        derivatives = (p * logits).sum(1) - logits.gather(1, true)[:, 0]
        derivative, scale = derivative + derivatives.sum().item(), scale + derivatives.abs().sum().item()
    assert abs(derivative) < 1e-4 * scale


def evaluate(folder: Path, prepared: Path, out: Path, **options: Any) -> list[dict[str, str]]:
    places = {"dataset_dir": str(prepared), "ckpt_dir": str(folder), "output_dir": str(out)}
    run_bundle(ACDC, "train.yaml", "evaluate.yaml", **places, **options)
    with open(out / "cases.csv") as file:
        return list(csv.DictReader(file))


def test_evaluation(calibrated: Path, trained: Path, prepared: Path, tmp_path: Path) -> None:
    temperature = read_temperature(calibrated / "eval").temperature
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


def test_inference(calibrated: Path, trained: Path, phantoms: Path, tmp_path: Path) -> None:
    image = phantoms / "training" / "patient001" / "patient001_frame01.nii.gz"

    def maps(folder: Path, name: str, **options: Any) -> dict[str, np.ndarray]:
        places = {"dataset_dir": str(image), "ckpt_dir": str(folder), "output_dir": str(tmp_path / name)}
        run_bundle(ACDC, "inference.yaml", **places, **options)
        kinds = ("seg", "probability", "uncertainty")
        return {kind: nib.load(tmp_path / name / f"patient001_frame01_{kind}.nii.gz").get_fdata() for kind in kinds}

    own = maps(calibrated, "own")
    expected = maps(trained, "expected", network_def=divided(read_temperature(calibrated / "eval").temperature))
    before = maps(trained, "before")
    step = 1.001 / 65535  # of the whole numbers that maps are stored as
    np.testing.assert_allclose(own["probability"], expected["probability"], rtol=0, atol=step)
    np.testing.assert_allclose(own["uncertainty"], expected["uncertainty"], rtol=0, atol=step)
    of_label = np.take_along_axis(own["probability"], own["seg"][..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(of_label, own["probability"].max(-1), rtol=0, atol=step)  # but for equal ones
    assert np.abs(own["probability"] - before["probability"]).max() > 0.01
    assert (own["seg"] != before["seg"]).mean() < 0.05  # interpolated probabilities may have another maximum


def test_label_map_is_the_same_on_the_grid_of_the_network(calibrated: Path, trained: Path, prepared: Path) -> None:
    networks = [inference_config(ACDC).get_parsed_content("network_def").eval() for _ in range(2)]
    for network, folder in zip(networks, (calibrated, trained), strict=True):
        load_weights(network, folder / "model.pt")
    images = [
        torch.from_numpy(np.float32(nib.load(prepared / item["image"]).dataobj)).movedim(-1, 0)[:, None]
        for item in json.loads((prepared / "datalist.json").read_text())["testing"]
    ]
    with torch.no_grad():
        own, before = (torch.cat([network(image).softmax(1) for image in images]) for network in networks)
    assert torch.equal(own.argmax(1), before.argmax(1))
    assert not torch.allclose(own, before, atol=0.01)


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


def test_training_again_starts_and_ends_without_it(calibrated: Path, prepared: Path, tmp_path: Path) -> None:
    """As MONAI Label does, which loads the weights before it trains further."""
    load = {
        "_target_": "CheckpointLoader",
        "load_path": str(calibrated / "model.pt"),
        "load_dict": {"model": "@network"},
    }
    config = inference_config(ACDC).load_config_file(ACDC / "configs" / "train.yaml")
    handlers = [*config["train"]["handlers"], load]
    places = {"dataset_dir": str(prepared), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)}
    run_bundle(ACDC, "train.yaml", max_epochs=1, **{"train::handlers": handlers, "learning_rate": 1e-12}, **places)
    weights, loaded = (torch.load(folder / "model.pt", weights_only=True) for folder in (tmp_path, calibrated))
    assert weights["temperature"] == 1
    name = "model.0.conv.unit0.conv.weight"
    torch.testing.assert_close(weights[name], loaded[name], rtol=0, atol=1e-6)  # they were loaded


@pytest.mark.parametrize("bundle", [bundle for bundle in BUNDLES if bundle != ACDC], ids=lambda path: path.name)
def test_every_bundle_calibrates_on_the_split_that_is_named(bundle: Path, tmp_path: Path) -> None:
    make_prepared(bundle, tmp_path / "data")
    make_weights(bundle, tmp_path / "models")
    places = {"dataset_dir": str(tmp_path / "data"), "ckpt_dir": str(tmp_path / "models")}
    options = {"split": "testing", "region": "foreground", "calibrated_path": str(tmp_path / "hospital" / "model.pt")}
    before = snapshot(tmp_path / "models")
    run_bundle(bundle, "train.yaml", "calibrate.yaml", output_dir=str(tmp_path / "eval"), **places, **options)
    estimate = read_temperature(tmp_path / "eval")
    assert set(estimate.leave_one_out) == {"testing0", "testing1"}
    weights = torch.load(tmp_path / "hospital" / "model.pt", weights_only=True)
    assert weights["temperature"] == np.float32(estimate.temperature)
    assert (tmp_path / "hospital" / "facts.yaml").is_file()
    assert snapshot(tmp_path / "models") == before


def in_one_process(bundle: Path) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        run_bundle(bundle, "train.yaml", "calibrate.yaml", image_size=list(SIZE))
    return printed.getvalue()


def in_two_processes(bundle: Path) -> str:
    return run_two(bundle, "train", "calibrate", "multi_gpu_evaluate")


@pytest.mark.usefixtures("one_thread")
def test_two_processes_fit_what_one_does(tmp_path: Path) -> None:
    bundle = copy_with_weights(ACDC, tmp_path)
    make_prepared(bundle, bundle / "data", 5)  # not a multiple of two
    original = (bundle / "models" / "model.pt").read_bytes()
    weights, estimates = [], []
    for calibrate in (in_one_process, in_two_processes):
        (bundle / "models" / "model.pt").write_bytes(original)
        assert calibrate(bundle).count("Wrote the temperature ") == 1
        weights.append(torch.load(bundle / "models" / "model.pt", weights_only=True))
        estimates.append(read_temperature(bundle / "eval"))
    assert estimates[0].voxels == estimates[1].voxels
    assert estimates[1].temperature == pytest.approx(estimates[0].temperature, rel=1e-9)
    assert estimates[1].leave_one_out == pytest.approx(estimates[0].leave_one_out, rel=1e-9)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-7, atol=0)


@pytest.mark.slow
def test_more_processes_than_cases(tmp_path: Path) -> None:
    """Those of a split are too few for a fit; a given temperature needs none."""
    bundle = copy_with_weights(ACDC, tmp_path)
    make_prepared(bundle, bundle / "data", 1)
    before = snapshot(bundle / "models")
    with pytest.raises(AssertionError) as failed:
        run_two(bundle, "train", "calibrate", "multi_gpu_evaluate")
    line = "validate::dataset: expected at least 2 cases, one for each process, got 1; use fewer processes\n"
    assert line in str(failed.value)
    assert str(failed.value).count("Traceback") == 1  # that of torchrun
    assert snapshot(bundle / "models") == before
    run_two(bundle, "train", "calibrate", "multi_gpu_evaluate", temperature=0.5)
    assert torch.load(bundle / "models" / "model.pt", weights_only=True)["temperature"] == 0.5
