"""Calibration of trained weights: fitted, and written into them.

Whole runs are in tests/bundles.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator

from calib_components.errors import InputError
from calib_components.metrics import CalibrationBins, calibration_bins
from calib_components.posthoc import (
    Calibrator,
    ClassBias,
    TemperatureEstimate,
    TemperatureScaled,
    TemperatureScaling,
    VectorScaling,
    describe_calibration,
    find_reference,
)
from calib_components.quality import Reference
from calib_workflows import calibrate as calibrate_module
from calib_workflows import figures
from calib_workflows.calibrate import Calibration, read_estimate, write_estimate
from calib_workflows.data.facts import Facts, write_facts
from calib_workflows.weights import load_weights
from tests.helpers import files, snapshot

CLASSES, PATIENTS, TRUE = 3, 8, 0.6
FACTS = Facts("acdc", 3, 1, ["background", "a", "b"], [0, 1, 2], {"a": [1]}, [], [32, 32], [16, 16])
STRUCTURES = {"b": [2], "both": [1, 2]}
NAMES = ["calibrators.csv", "reliability_temperature.png", "temperature.json"]


def network() -> TemperatureScaled:
    """A network that passes its logits on."""
    scaled = TemperatureScaled(torch.nn.Conv2d(CLASSES, CLASSES, 1, bias=False))
    with torch.no_grad():
        scaled.network.weight.copy_(torch.eye(CLASSES)[..., None, None])
    return scaled


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    """Two cases of each patient: images that are logits, and labels drawn from them at the
    temperature TRUE.
    """
    generator = torch.Generator().manual_seed(0)
    items = []
    for index in range(2 * PATIENTS):
        image = 2 * torch.randn((CLASSES, 12, 10), generator=generator)
        p = (image / TRUE).softmax(0).movedim(0, -1).reshape(-1, CLASSES)
        label = p.multinomial(1, generator=generator).reshape(1, 12, 10)
        items.append(
            {
                "case": f"case{index}",
                "patient": f"patient{index // 2}",
                "image": image,
                "label": label,
            }
        )
    return items


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, CalibrationBins]]:
    """The panels of each figure, which is not drawn here: that takes a second."""
    panels: list[dict[str, CalibrationBins]] = []

    def draw(bins: dict[str, CalibrationBins]) -> Figure:
        panels.append(bins)
        return Figure(figsize=(1, 1), dpi=30)

    monkeypatch.setattr(figures, "reliability_diagram", draw)
    return panels


Calibrate = Callable[..., TemperatureScaled]


@pytest.fixture
def calibrate(cases: list[dict[str, Any]], tmp_path: Path) -> Calibrate:
    """Calibrate the weights in `models`, and give the network afterwards."""
    (tmp_path / "models").mkdir()
    torch.save(network().state_dict(), tmp_path / "models" / "model.pt")

    def run(
        items: list[dict[str, Any]] = cases, region: Any = "all", **options: Any
    ) -> TemperatureScaled:
        loader = DataLoader(Dataset(items), batch_size=2)
        scaled, file = network(), tmp_path / "models" / "model.pt"
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"), val_data_loader=loader, network=scaled
        )
        given = {
            "load_path": file,
            "calibrated_path": file,
            "output_dir": tmp_path / "out",
            "network": scaled,
        }
        chosen = {"calibrator": "temperature", "region": region, "structures": STRUCTURES}
        Calibration(evaluator, **{**given, **chosen, **options}).run()
        return scaled

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "models" / "model.pt", weights_only=True)


def load(folder: Path) -> TemperatureScaled:
    scaled = network()
    load_weights(scaled, folder / "models" / "model.pt")
    return scaled


def check_reference(
    found: torch.Tensor, cases: list[dict[str, Any]], temperatures: Mapping[str, float]
) -> None:
    """Compare the reference with what NumPy makes of the cases, at the temperature of the other
    patients.
    """
    for row, case in zip(Reference.from_tensor(found, [*STRUCTURES]).values, cases, strict=True):
        p, true = (
            (case["image"] / temperatures[case["patient"]]).softmax(0).double().numpy(),
            case["label"][0].numpy(),
        )
        for values, classes in zip(row, STRUCTURES.values(), strict=True):
            own, mask, is_true = (
                p[classes].sum(0),
                np.isin(p.argmax(0), classes),
                np.isin(true, classes),
            )
            dsc = 2 * (mask & is_true).sum() / (mask.sum() + is_true.sum())
            expected = (
                2 * own[mask].sum() / (mask.sum() + own.sum()),
                dsc,
                own.sum(),
                is_true.sum(),
            )
            np.testing.assert_allclose(values, (int(case["patient"][7:]), *expected), rtol=1e-5)


def test_writes_what_the_calibrator_fits_and_nothing_else(
    calibrate: Calibrate,
    cases: list[dict[str, Any]],
    drawn: list[dict[str, CalibrationBins]],
    tmp_path: Path,
) -> None:
    before = weights(tmp_path)
    scaled = calibrate()
    estimate, fit = read_estimate(tmp_path / "out"), TemperatureScaling()
    for case in cases:
        fit.update(case["image"][None], case["label"][None], case["patient"])
    assert estimate == fit.compute()
    assert estimate.low < TRUE < estimate.high
    assert (estimate.patients, estimate.voxels) == (PATIENTS, 2 * PATIENTS * 120)
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == NAMES
    after = weights(tmp_path)
    assert (
        after.pop("temperature").item()
        == scaled.temperature.item()
        == np.float32(estimate.temperature)
    )
    del before["temperature"]
    assert torch.equal(after["reference"], find_reference(load(tmp_path)))
    check_reference(after.pop("reference"), cases, estimate.leave_one_out)
    fitted_on = {"calibrator": "temperature", "region": "all", "patients": PATIENTS}
    assert describe_calibration(load(tmp_path)) == fitted_on
    del after["fitted_on"]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    images, labels = (torch.stack([case[key] for case in cases]) for key in ("image", "label"))
    others = torch.tensor([estimate.leave_one_out[case["patient"]] for case in cases])
    for when, logits in (("before", images), ("after", images / others.view(-1, 1, 1, 1))):
        for region in ("all", "predicted"):
            expected = calibration_bins(logits.softmax(1), labels, region=region).pooled()
            assert torch.equal(drawn[0].pop(f"{region}, {when}").count, expected.count)
    once = snapshot(tmp_path)
    calibrate()  # again, from calibrated weights
    assert snapshot(tmp_path) == once


@pytest.mark.parametrize("kind", [VectorScaling, ClassBias])
def test_other_calibrators_replace_the_temperature(
    kind: type[Calibrator], calibrate: Calibrate, cases: list[dict[str, Any]], tmp_path: Path
) -> None:
    calibrate()
    scaled = calibrate(calibrator=kind.name)
    names = ["calibrators.csv", f"{kind.name}.json", f"reliability_{kind.name}.png"]
    # Nothing of the temperature
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == sorted(names)
    fit = kind()
    for case in cases:
        fit.update(case["image"][None], case["label"][None], case["patient"])
    assert read_estimate(tmp_path / "out") == fit.compute()
    table = pd.read_csv(tmp_path / "out" / "calibrators.csv")
    assert [*table["calibrator"]] == ["none", "temperature", "bias", "vector"]
    assert [*table.columns[1:]] == ["nll", "dsc", "dsc b", "dsc both", "bias", "gap"]
    image = cases[0]["image"][None]
    torch.testing.assert_close(scaled(image), fit(image))
    torch.testing.assert_close(load(tmp_path)(image), fit(image))
    assert describe_calibration(load(tmp_path))["calibrator"] == kind.name  # type: ignore[index]
    calibrate()
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == NAMES


def test_without_a_choice_the_advised_is_written(
    calibrate: Calibrate, cases: list[dict[str, Any]], tmp_path: Path
) -> None:
    """A temperature of logits at another one, a bias of biased ones, nothing of calibrated ones."""
    bias = torch.tensor([0.0, 1.0, -1.0]).view(3, 1, 1)
    for change, expected in (
        (lambda image: image, "temperature"),
        (lambda image: image / TRUE + bias, "bias"),
        (lambda image: image / TRUE, None),
    ):
        items = [{**case, "image": change(case["image"])} for case in cases]
        calibrate(items, calibrator=None)
        found = describe_calibration(load(tmp_path))
        assert (found and found["calibrator"]) == expected
        names = {"calibrators.csv"}
        if expected:
            names |= {f"{expected}.json", f"reliability_{expected}.png"}
        assert files(tmp_path / "out") == names
        assert len(find_reference(load(tmp_path))) == len(cases)


@pytest.fixture
def run_on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Tell that the run has other cases; `home` trained the weights."""
    monkeypatch.setattr(calibrate_module, "is_trained_on", lambda _, cases: cases == "home")
    return lambda cases: monkeypatch.setattr(calibrate_module, "cases_of_run", lambda: cases)


def test_labels_of_another_scanner_start_from_the_weights_as_they_are(
    calibrate: Calibrate,
    cases: list[dict[str, Any]],
    tmp_path: Path,
    run_on: Callable[[str], None],
) -> None:
    """Whose own temperature is what none keeps, also after a fit to earlier labels."""
    run_on("home")
    calibrate(calibrated_path=None)
    shipped, mine = tmp_path / "models" / "model.pt", tmp_path / "models" / "mine.pt"
    before = shipped.read_bytes()
    run_on("five labels")
    with pytest.raises(InputError, match="calibrated_path: no training on these cases made"):
        calibrate(calibrated_path=None)
    with pytest.raises(InputError, match=r"model\.pt is calibrated on other cases"):
        calibrate()
    twice = [{**case, "image": 2 * case["image"]} for case in cases]
    own = {"calibrated_path": mine, "output_dir": tmp_path / "mine", "calibrator": None}
    calibrate(twice[:10], **own)
    assert torch.load(mine, weights_only=True)["temperature"] == pytest.approx(2 * TRUE, rel=0.2)
    table = pd.read_csv(tmp_path / "mine" / "calibrators.csv", index_col=0)
    assert table["nll"]["none"] > table["nll"]["temperature"]
    run_on("other labels")
    with pytest.raises(InputError, match=r"mine\.pt is calibrated on other cases"):
        calibrate(cases[:10], load_path=mine, **own)
    # Of images that are like those of the training, none is as shipped
    calibrate(cases[:10], load_path=mine, overwrite=True, **own)
    found, expected = (torch.load(file, weights_only=True) for file in (mine, shipped))
    assert found["temperature"] == expected["temperature"]
    assert torch.equal(found["fitted_on"], expected["fitted_on"])
    assert len(found["reference"]) == 10
    assert shipped.read_bytes() == before


def test_weights_that_are_fitted_to_these_cases_are_compared_without_that_fit(
    calibrate: Calibrate, tmp_path: Path, run_on: Callable[[str], None]
) -> None:
    """Which would be of the patients that it is compared on."""
    run_on("labels")
    tables = []
    for _ in range(2):
        calibrate()
        tables.append((tmp_path / "out" / "calibrators.csv").read_text())
    assert tables[0] == tables[1]


def test_one_patient_is_calibrated_if_asked_alone(
    calibrate: Calibrate, cases: list[dict[str, Any]], tmp_path: Path
) -> None:
    calibrate(cases[:2])
    assert read_estimate(tmp_path / "out").patients == 1
    calibrate(cases[:2], calibrator=None)
    assert files(tmp_path / "out") == {"calibrators.csv"}


def test_warnings_of_the_fit_and_of_exports(
    calibrate: Calibrate,
    cases: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    for name in ("model.ts", "model.onnx", "model.pt.plan", "other.ts", "model.txt"):
        (tmp_path / "models" / name).touch()
    caplog.set_level("INFO")
    calibrate(cases[:2])
    _, first, second, third = (
        line.getMessage() for line in caplog.records if line.levelname == "WARNING"
    )
    said = {line.getMessage() for line in caplog.records}
    assert said >= {*read_estimate(tmp_path / "out").warnings()}
    assert [line.split(" may have")[0] for line in (first, second, third)] == [
        f"{tmp_path}/models/{name}" for name in ("model.ts", "model.onnx", "model.pt.plan")
    ]


def test_another_file_gets_the_facts_of_the_weights(calibrate: Calibrate, tmp_path: Path) -> None:
    write_facts(FACTS, tmp_path / "models")
    before, file = snapshot(tmp_path / "models"), tmp_path / "a" / "b" / "hospital.pt"
    for _ in range(2):
        calibrate(calibrated_path=file, facts=FACTS)
    assert snapshot(tmp_path / "models") == before
    assert (file.parent / "facts.yaml").read_bytes() == (
        tmp_path / "models" / "facts.yaml"
    ).read_bytes()
    assert torch.load(file, weights_only=True)["temperature"] == pytest.approx(TRUE, abs=0.1)
    link = tmp_path / "models" / "link.pt"
    link.symlink_to("model.pt")
    calibrate(load_path=link, calibrated_path=link)
    assert link.is_symlink()
    assert weights(tmp_path)["temperature"] == pytest.approx(TRUE, abs=0.1)


def test_full_disk_leaves_all_as_it_was(
    calibrate: Calibrate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate()
    torch.save(network().state_dict(), tmp_path / "models" / "model.pt")
    before, write, written = snapshot(tmp_path), Path.write_bytes, []

    def write_some(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_some)
    with pytest.raises(InputError, match="No space left on device"):
        calibrate()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": torch.nn.Conv2d(1, 3, 1)}, "Conv2d carries no calibrator"),
        ({"region": [7]}, "region"),
        ({"calibrator": "scalar"}, "calibrator must be"),
        ({"load_path": "absent.pt"}, "absent.pt"),
        ({"facts": replace(FACTS, class_names=["background", "b", "a"])}, "class_names"),
        ({"calibrated_path": "models/other.pt"}, "other weights"),
        ({"calibrated_path": "models/image.pt"}, "image.pt: cannot read"),
        ({"calibrated_path": "others/new.pt"}, "other data"),
        (
            {"members": ["models/model.pt", "models/other.pt"], "calibrated_path": None},
            "name the file of the ensemble",
        ),
    ],
)
def test_mistakes_leave_all_as_it_was(
    options: dict[str, Any],
    message: str,
    calibrate: Calibrate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_facts(FACTS, "models")
    torch.save(
        {**network().state_dict(), "network.weight": torch.ones(3, 3, 1, 1)}, "models/other.pt"
    )
    Path("models/image.pt").write_bytes(b"an image")
    Path("others").mkdir()
    write_facts(replace(FACTS, crop_size=[32, 32]), "others")
    torch.save(network().state_dict(), "others/model.pt")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=message):
        calibrate(**options)
    assert {**snapshot(tmp_path), "out": "folder"} == {**before, "out": "folder"}


def test_calibrator_of_other_weights_is_replaced_if_asked_alone(
    calibrate: Calibrate, tmp_path: Path
) -> None:
    calibrate()
    before = snapshot(tmp_path / "out")
    weights = network().state_dict()
    weights["network.weight"] *= 2
    torch.save(weights, tmp_path / "models" / "model.pt")
    with pytest.raises(InputError, match="is of a run with weights"):
        calibrate()
    assert snapshot(tmp_path / "out") == before
    calibrate(overwrite=True)
    assert files(tmp_path / "out") == {*NAMES}


def test_estimate_comes_back_from_its_file(tmp_path: Path) -> None:
    estimate = TemperatureEstimate(
        0.7, np.nan, 0.8, {"a": 0.65, "b": 0.75}, 0.2, 0.1, 2, 100, False
    )
    write_estimate(estimate, tmp_path)
    assert str(read_estimate(tmp_path)) == str(estimate)
    assert json.loads((tmp_path / "temperature.json").read_text())["low"] is None
    (tmp_path / "temperature.json").write_text('{"temperature": 0.7}')
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match=r"temperature.json: cannot read"):
            read_estimate(folder)
