"""calibrate.yaml writes a temperature into the weights, and evaluation divides by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from calib_components.posthoc import ClassBias
from calib_components.posthoc.network import calibrator_in
from calib_workflows.calibrate import read_estimate
from calib_workflows.evaluation_files import Evaluation
from tests.helpers import ACDC, run_bundle, snapshot


def test_evaluation_has_the_nll_of_the_fit(trained: Path, prepared: Path, tmp_path: Path) -> None:
    folder, fit, evaluation = (
        shutil.copytree(trained, tmp_path / "weights"),
        tmp_path / "fit",
        tmp_path / "evaluation",
    )
    places = {"dataset_dir": str(prepared), "ckpt_dir": str(folder)}
    before = snapshot(folder)
    chosen = {"output_dir": str(fit), "calibrator": "temperature"}
    run_bundle(ACDC, "train.yaml", "calibrate.yaml", **chosen, **places)
    assert {name for name, content in snapshot(folder).items() if before.get(name) != content} == {
        "model.pt"
    }
    run_bundle(
        ACDC,
        "train.yaml",
        "evaluate.yaml",
        output_dir=str(evaluation),
        split="validation",
        **places,
    )
    estimate, found = read_estimate(fit), Evaluation.read(evaluation)
    assert estimate.patients == 2
    nll = np.average(
        found.cases["nll_all"], weights=found.regions["all"]["top_label_per_case"].count.sum(-1)
    )
    assert nll == pytest.approx(estimate.nll_after, rel=1e-5)
    assert nll < 0.999 * estimate.nll_before
    fitted_on = {"calibrator": "temperature", "region": "all", "patients": 2}
    assert found.summary["calibration"] == fitted_on


def test_an_ensemble_is_calibrated_as_one_and_its_members_are_compared(
    trained: Path, prepared: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    weights = torch.load(trained / "model.pt", weights_only=True)
    second = {name: values + 0.02 * torch.randn_like(values) for name, values in weights.items()}
    (tmp_path / "second").mkdir()
    torch.save(second, tmp_path / "second" / "model.pt")
    shutil.copy(trained / "facts.yaml", tmp_path / "second")
    file, fit, evaluation = (tmp_path / name for name in ("own/ensemble.pt", "fit", "evaluation"))
    run_bundle(
        ACDC,
        "train.yaml",
        "calibrate.yaml",
        members=[str(folder / "model.pt") for folder in (trained, tmp_path / "second")],
        dataset_dir=str(prepared),
        calibrated_path=str(file),
        output_dir=str(fit),
        calibrator="temperature",
    )
    run_bundle(
        ACDC,
        "train.yaml",
        "evaluate.yaml",
        dataset_dir=str(prepared),
        load_path=str(file),
        output_dir=str(evaluation),
        split="validation",
    )
    estimate, found = read_estimate(fit), Evaluation.read(evaluation)
    count = found.regions["all"]["top_label_per_case"].count.sum(-1)
    nll = np.average(found.cases["nll_all"], weights=count)
    assert nll == pytest.approx(estimate.nll_after, rel=1e-5)
    assert found.cases["pairwise_dsc_LV"].between(0.01, 0.999).all()


def test_another_calibrator_is_named_in_the_configuration(
    trained: Path, prepared: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained, tmp_path / "weights")
    run_bundle(
        ACDC,
        "train.yaml",
        "calibrate.yaml",
        dataset_dir=str(prepared),
        ckpt_dir=str(folder),
        output_dir=str(tmp_path / "fit"),
        calibrator="bias",
    )
    estimate = read_estimate(tmp_path / "fit")
    assert (estimate.name, estimate.patients) == ("bias", 2)
    weights = torch.load(folder / "model.pt", weights_only=True)
    assert "temperature" not in weights
    assert type(calibrator_in(weights)) is ClassBias


def test_a_bundle_calibrates_on_the_split_and_region_that_are_named(
    trained: Path, prepared: Path, tmp_path: Path
) -> None:
    before = snapshot(trained)
    run_bundle(
        ACDC,
        "train.yaml",
        "calibrate.yaml",
        dataset_dir=str(prepared),
        ckpt_dir=str(trained),
        output_dir=str(tmp_path / "eval"),
        calibrated_path=str(tmp_path / "hospital" / "model.pt"),
        split="testing",
        region=[1, 2],
        calibrator="temperature",
    )
    estimate = read_estimate(tmp_path / "eval")
    assert estimate.region == "structure_1_2"
    testing = json.loads((prepared / "datalist.json").read_text())["testing"]
    assert estimate.leave_one_out.keys() == {item["patient"] for item in testing}
    weights = torch.load(tmp_path / "hospital" / "model.pt", weights_only=True)
    assert weights["temperature"] == np.float32(estimate.temperature)
    assert (tmp_path / "hospital" / "facts.yaml").is_file()
    assert snapshot(trained) == before
