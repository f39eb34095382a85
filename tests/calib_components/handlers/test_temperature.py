"""The temperature of trained weights: fitted, and written into them. Whole runs are in tests/bundles."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from scipy.optimize import minimize_scalar

from calib_components import figures
from calib_components.data.facts import Facts, write_facts
from calib_components.errors import InputError
from calib_components.handlers import TemperatureCalibration, calibration_cases, read_temperature, write_temperature
from calib_components.metrics import CalibrationBins, Region, calibration_bins
from calib_components.posthoc import TemperatureEstimate, TemperatureScaled
from tests.bad_input.harness import snapshot
from tests.helpers import ACDC, SIZE, make_prepared

CLASSES, PATIENTS, TRUE = 3, 8, 0.6
FACTS = Facts("acdc", 3, 1, ["background", "a", "b"], [0, 1, 2], {"a": [1]}, [], [32, 32], [16, 16])


def network() -> TemperatureScaled:
    """A network that passes its logits on."""
    scaled = TemperatureScaled(torch.nn.Conv2d(CLASSES, CLASSES, 1, bias=False))
    with torch.no_grad():
        scaled.network.weight.copy_(torch.eye(CLASSES)[..., None, None])
    return scaled


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    """Two cases of each patient: images that are logits, and labels drawn from them at the temperature TRUE."""
    generator = torch.Generator().manual_seed(0)
    items = []
    for index in range(2 * PATIENTS):
        image = 2 * torch.randn((CLASSES, 12, 10), generator=generator)
        p = (image / TRUE).softmax(0).movedim(0, -1).reshape(-1, CLASSES)
        label = p.multinomial(1, generator=generator).reshape(1, 12, 10)
        items.append({"case": f"case{index}", "patient": f"patient{index // 2}", "image": image, "label": label})
    return items


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, CalibrationBins]]:
    """The panels of each figure, which is not drawn here: that takes a second."""
    panels: list[dict[str, CalibrationBins]] = []

    def draw(bins: dict[str, CalibrationBins], bands: bool) -> Figure:
        panels.append(bins)
        return Figure(figsize=(1, 1), dpi=30)

    monkeypatch.setattr(figures, "reliability_diagram", draw)
    return panels


@pytest.fixture
def calibrate(cases: list[dict[str, Any]], tmp_path: Path) -> Callable[..., TemperatureScaled]:
    """Calibrate the weights in `models`, and give the network afterwards."""
    (tmp_path / "models").mkdir()
    torch.save(network().state_dict(), tmp_path / "models" / "model.pt")

    def run(items: list[dict[str, Any]] = cases, **options: Any) -> TemperatureScaled:
        loader = DataLoader(Dataset(items), batch_size=2)
        scaled = network()
        evaluator = SupervisedEvaluator(device=torch.device("cpu"), val_data_loader=loader, network=scaled)
        file = tmp_path / "models" / "model.pt"
        given = {"load_path": file, "calibrated_path": file, "output_dir": tmp_path / "out", "network": scaled}
        TemperatureCalibration(evaluator, **{**given, **options}).run()
        return scaled

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "models" / "model.pt", weights_only=True)


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """What the package itself said: other tests of the process may have let Ignite speak. The weights have no facts."""
    own = [r for r in caplog.records if r.name.startswith("calib_components") and r.levelno >= level]
    return [line for line in (record.getMessage() for record in own) if "expected the facts of the data" not in line]


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def lowest_nll(cases: list[dict[str, Any]]) -> float:
    """The temperature that an optimizer finds with all logits in memory."""
    logits = torch.cat([case["image"].flatten(1).T for case in cases]).double()
    label = torch.cat([case["label"].flatten() for case in cases])
    nll = minimize_scalar(
        lambda log: torch.nn.functional.cross_entropy(logits / np.exp(log), label).item(),
        bounds=(-2, 2),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(np.exp(nll.x))


def test_temperature_has_the_lowest_nll(
    calibrate: Callable[..., TemperatureScaled], cases: list[dict[str, Any]], tmp_path: Path
) -> None:
    before = weights(tmp_path)
    scaled = calibrate()
    estimate = read_temperature(tmp_path / "out")
    assert estimate.temperature == pytest.approx(lowest_nll(cases), rel=1e-4)
    assert estimate.low < TRUE < estimate.high
    assert (estimate.patients, estimate.voxels) == (PATIENTS, 2 * PATIENTS * 120)
    assert set(estimate.leave_one_out) == {case["patient"] for case in cases}
    assert estimate.nll_after < estimate.nll_before
    after = weights(tmp_path)
    assert after.pop("temperature").item() == scaled.temperature.item() == np.float32(estimate.temperature)
    del before["temperature"]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_reliability_is_drawn_before_and_after(
    calibrate: Callable[..., TemperatureScaled],
    cases: list[dict[str, Any]],
    drawn: list[dict[str, CalibrationBins]],
    tmp_path: Path,
) -> None:
    temperature = calibrate().temperature
    (panels,) = drawn
    images, labels = (torch.stack([case[key] for case in cases]) for key in ("image", "label"))
    assert list(panels) == ["all, before", "all, after", "predicted, before", "predicted, after"]
    for region in ("all", "predicted"):
        for when, logits in (("before", images), ("after", images / temperature)):
            expected = calibration_bins(logits.softmax(1), labels, region=region).pooled()
            assert torch.equal(panels.pop(f"{region}, {when}").count, expected.count)
    assert panels == {}
    assert (tmp_path / "out" / "reliability_temperature.png").read_bytes().startswith(b"\x89PNG")


def test_fitting_again_gives_the_same_bytes(calibrate: Callable[..., TemperatureScaled], tmp_path: Path) -> None:
    calibrate()
    once = snapshot(tmp_path)
    calibrate()
    assert snapshot(tmp_path) == once


def test_given_temperature_is_written_without_a_case(
    calibrate: Callable[..., TemperatureScaled], tmp_path: Path
) -> None:
    calibrate(temperature=1)
    undone = snapshot(tmp_path)
    calibrate([], temperature=0.5)
    assert weights(tmp_path)["temperature"] == 0.5
    assert not (tmp_path / "out").exists()
    calibrate(temperature=1)
    assert snapshot(tmp_path) == undone


def test_given_temperature_removes_what_is_said_of_another(
    calibrate: Callable[..., TemperatureScaled], tmp_path: Path
) -> None:
    calibrate()
    assert len(list((tmp_path / "out").iterdir())) == 3
    (tmp_path / "out" / "cases.csv").touch()
    calibrate(temperature=1)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["cases.csv"]
    assert weights(tmp_path)["temperature"] == 1


def test_given_temperature_that_cannot_be_written_leaves_all_as_it_was(
    calibrate: Callable[..., TemperatureScaled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate()
    before = snapshot(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(
        InputError, match=r"model.pt: expected a file that can be written, got No space left on device$"
    ):
        calibrate(temperature=1)
    assert snapshot(tmp_path) == before


def test_given_temperature_does_not_need_facts_of_the_weights(
    calibrate: Callable[..., TemperatureScaled], tmp_path: Path
) -> None:
    """The default facts of a bundle may be of another number of classes."""
    other = TemperatureScaled(torch.nn.Conv2d(CLASSES, 5, 1, bias=False))
    torch.save(other.state_dict(), tmp_path / "models" / "model.pt")
    calibrate(temperature=2)
    other.load_state_dict(weights(tmp_path))
    assert other.temperature == 2


def test_what_else_a_file_holds_stays(calibrate: Callable[..., TemperatureScaled], tmp_path: Path) -> None:
    content = {"model": network().state_dict(), "optimizer": {"state": {}}, "epoch": 3}
    torch.save(content, tmp_path / "models" / "model.pt")
    calibrate()
    after = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert {name: after[name] for name in ("optimizer", "epoch")} == {"optimizer": {"state": {}}, "epoch": 3}
    assert after["model"]["temperature"] == pytest.approx(read_temperature(tmp_path / "out").temperature)


def test_errors_before_and_after_are_said(
    calibrate: Callable[..., TemperatureScaled], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, "calib_components")
    calibrate()
    _, temperature, nll, ece, split, *_ = messages(caplog, logging.INFO)
    estimate = read_temperature(tmp_path / "out")
    assert temperature.startswith(
        f"Temperature {estimate.temperature:.3f}, fitted on {PATIENTS} patients; 95 % interval {estimate.low:.3f} to "
        f"{estimate.high:.3f} (held the true temperature in {100 * estimate.coverage:.0f} % of simulations); "
    )
    assert temperature.endswith(" without one of them")
    assert nll == f"NLL {estimate.nll_before:.4f} -> {estimate.nll_after:.4f} (region all)"
    assert "(all voxels)" in ece
    assert "(predicted foreground)" in ece
    before, after = (float(value) for value in ece.split(" (all")[0].removeprefix("ECE ").split(" -> "))
    assert before > 3 * after
    assert split.startswith("The validation cases of the data that the weights were trained on chose their epoch too")


@pytest.mark.parametrize(
    ("split", "said"),
    [("training", "is more confident on them than it should"), ("testing", "no longer independent of them")],
)
def test_what_a_split_means_is_said(
    split: str, said: str, calibrate: Callable[..., TemperatureScaled], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "calib_components")
    calibrate(split=split)
    assert said in caplog.text
    assert "epoch" not in "".join(messages(caplog, logging.INFO))


def test_warnings_of_the_fit_are_passed_on(
    calibrate: Callable[..., TemperatureScaled],
    cases: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    calibrate(cases[:2])
    estimate = read_temperature(tmp_path / "out")
    assert (estimate.patients, estimate.leave_one_out) == (1, {})
    assert messages(caplog) == estimate.warnings()
    assert "patient" in caplog.text


@pytest.mark.parametrize("wrong", ["model.ts", "model.onnx", "model.pt.plan"])
def test_exports_of_other_weights_are_named_once(
    wrong: str, calibrate: Callable[..., TemperatureScaled], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for name in (wrong, "other.ts", "model.txt"):
        (tmp_path / "models" / name).touch()
    calibrate()
    assert messages(caplog) == [
        f"{tmp_path}/models/{wrong}: made from the weights as they were before; export it again, or delete it"
    ]
    caplog.clear()
    calibrate()
    assert not messages(caplog)


class TestAnotherFolder:
    def test_gets_the_facts_of_the_weights(self, calibrate: Callable[..., TemperatureScaled], tmp_path: Path) -> None:
        write_facts(FACTS, tmp_path / "models")
        before = snapshot(tmp_path / "models")
        calibrate(calibrated_path=tmp_path / "a" / "b" / "hospital.pt", facts=FACTS)
        assert snapshot(tmp_path / "models") == before
        assert (tmp_path / "a" / "b" / "facts.yaml").read_bytes() == (tmp_path / "models" / "facts.yaml").read_bytes()
        written = torch.load(tmp_path / "a" / "b" / "hospital.pt", weights_only=True)
        assert written["temperature"] == pytest.approx(read_temperature(tmp_path / "out").temperature)
        calibrate(calibrated_path=tmp_path / "a" / "b" / "hospital.pt")  # again

    def test_of_another_training_is_refused(self, calibrate: Callable[..., TemperatureScaled], tmp_path: Path) -> None:
        """Its `last.ckpt` would stay beside weights of this one."""
        shutil.copytree(tmp_path / "models", tmp_path / "other")
        (tmp_path / "other" / "last.ckpt").touch()
        before = snapshot(tmp_path)
        with pytest.raises(
            InputError, match=r"^calibrated_path: expected a file that is not the model.pt of another tr"
        ):
            calibrate(calibrated_path=tmp_path / "other" / "model.pt")
        assert snapshot(tmp_path) == before
        calibrate(calibrated_path=tmp_path / "other" / "hospital.pt")

    @pytest.mark.parametrize("there", ["facts", "weights"])
    def test_of_other_weights_is_refused(
        self, there: str, calibrate: Callable[..., TemperatureScaled], tmp_path: Path
    ) -> None:
        write_facts(FACTS, tmp_path / "models")
        (tmp_path / "other").mkdir()
        if there == "facts":
            write_facts(replace(FACTS, crop_size=[32, 32]), tmp_path / "other")
        else:  # those of a bundle's own data have no facts beside them
            torch.save(network().state_dict(), tmp_path / "other" / "model.pt")
        before = snapshot(tmp_path)
        with pytest.raises(
            InputError, match=r"^calibrated_path: expected a folder without weights of other data, got "
        ):
            calibrate(calibrated_path=tmp_path / "other" / "hospital.pt")
        assert snapshot(tmp_path) == before

    @pytest.mark.parametrize(
        "name", ["models/last.ckpt", "data/image.nii", "models/facts.yaml", "out/temperature.json"]
    )
    def test_is_never_a_file_of_others(
        self, name: str, calibrate: Callable[..., TemperatureScaled], tmp_path: Path
    ) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("last.ckpt"):
            torch.save({"network": {}, "optimizer": {}}, tmp_path / name)
        elif "image" in name:
            (tmp_path / name).write_bytes(b"an image")
        before = snapshot(tmp_path)
        for options in ({}, {"temperature": 2.0}):
            message = rf"{name}: expected trained weights, got |file of weights.*got .*{name}"
            with pytest.raises(InputError, match=message):
                calibrate(calibrated_path=tmp_path / name, **options)
        assert snapshot(tmp_path) == before

    def test_is_found_through_a_link(self, calibrate: Callable[..., TemperatureScaled], tmp_path: Path) -> None:
        (tmp_path / "models" / "link.pt").symlink_to("model.pt")
        calibrate(calibrated_path=tmp_path / "models" / "link.pt", temperature=2.0)
        assert (tmp_path / "models" / "link.pt").is_symlink()
        assert weights(tmp_path)["temperature"] == 2


def test_an_error_that_grows_is_warned_of(
    calibrate: Callable[..., TemperatureScaled],
    drawn: list[dict[str, CalibrationBins]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calibrate()
    assert "is larger with this temperature" not in caplog.text
    (panels,) = drawn
    ratios = {
        title: (panels[f"{name}, after"].expected_error() / panels[f"{name}, before"].expected_error()).item()
        for name, title in (("all", "all voxels"), ("predicted", "predicted foreground"))
    }
    lower, higher = sorted(ratios, key=ratios.__getitem__)
    assert ratios[lower] < 0.99 * ratios[higher] < 1
    monkeypatch.setattr("calib_components.handlers.temperature.WORSE", (ratios[lower] + ratios[higher]) / 2)
    calibrate()
    assert f"The ECE of {higher} is larger with this temperature" in caplog.text
    assert f"The ECE of {lower} is larger" not in caplog.text


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("split", "holdout", "training, validation, testing, got 'holdout'"),
        ("temperature", 0, "a number from 0.001 to 1000, got 0"),
        ("temperature", float("nan"), "a number from 0.001 to 1000, got nan"),
        ("pool", [], "folders of earlier fits, got none"),
    ],
)
def test_arguments_are_checked_before_the_work(
    argument: str, value: Any, expected: str, calibrate: Callable[..., TemperatureScaled], tmp_path: Path
) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=f"^{argument}: expected {expected}$"):
        calibrate(**{argument: value})
    assert snapshot(tmp_path) == before


def test_facts_of_the_data_are_compared(calibrate: Callable[..., TemperatureScaled], tmp_path: Path) -> None:
    write_facts(FACTS, tmp_path / "models")
    with pytest.raises(InputError, match=r"models/facts.yaml: expected weights of the data's class_names"):
        calibrate(facts=replace(FACTS, class_names=["background", "b", "a"]))


def test_network_without_a_temperature(calibrate: Callable[..., TemperatureScaled], tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    for options in ({}, {"temperature": 1}):
        with pytest.raises(InputError, match=r"^network_def: expected a network with a temperature, .*TemperatureUNet"):
            calibrate(network=torch.nn.Conv2d(1, 3, 1), **options)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("region", "line"),
    [
        ("foreground", "region: expected one with voxels of the validation cases, got foreground, which has none"),
        (7, "region: expected class indices from 0 to 2, got [7]"),
    ],
)
def test_region_without_voxels(
    region: Any, line: str, calibrate: Callable[..., TemperatureScaled], cases: list[dict[str, Any]], tmp_path: Path
) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(InputError) as error:
        calibrate([{**case, "label": torch.zeros(1, 12, 10)} for case in cases], region=region)
    assert str(error.value) == line
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(("owner", "name"), [(Path, "write_bytes"), (Path, "write_text"), (Figure, "savefig")])
def test_full_disk_leaves_all_as_it_was(
    owner: Any,
    name: str,
    calibrate: Callable[..., TemperatureScaled],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calibrate()
    torch.save(network().state_dict(), tmp_path / "models" / "model.pt")
    before = snapshot(tmp_path)
    monkeypatch.setattr(owner, name, full_disk)
    with pytest.raises(InputError, match=r"^\S+: expected a file that can be written, got No space left on device$"):
        calibrate()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["temperature.json", "temperature_fit.json", "reliability_temperature.png"])
def test_folder_in_the_way(name: str, calibrate: Callable[..., TemperatureScaled], tmp_path: Path) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=f"out/{name}: expected a file or nothing, got a folder$"):
        calibrate()
    assert snapshot(tmp_path) == before


class TestPool:
    """One temperature for several networks, here of two folds."""

    @pytest.fixture
    def folds(
        self, calibrate: Callable[..., TemperatureScaled], cases: list[dict[str, Any]], tmp_path: Path
    ) -> list[Path]:
        folders = [tmp_path / "fold0", tmp_path / "fold1"]
        calibrate(cases[:6], output_dir=folders[0])
        calibrate(cases[6:], output_dir=folders[1])
        return folders

    def test_is_fitted_to_the_patients_of_all_without_a_case(
        self, folds: list[Path], calibrate: Callable[..., TemperatureScaled], tmp_path: Path
    ) -> None:
        own = [read_temperature(folder).temperature for folder in folds]
        scaled = calibrate([], pool=folds)
        pooled = read_temperature(tmp_path / "out")
        assert min(own) < pooled.temperature < max(own)
        assert weights(tmp_path)["temperature"].item() == scaled.temperature.item() == np.float32(pooled.temperature)
        calibrate(output_dir=tmp_path / "whole")
        whole = read_temperature(tmp_path / "whole")
        both = [asdict(pooled), asdict(whole)]
        leave_one_out = [estimate.pop("leave_one_out") for estimate in both]
        assert leave_one_out[0] == pytest.approx(leave_one_out[1])
        assert both[0] == pytest.approx(both[1])

    def test_of_each_fold_in_its_own_folder_is_the_same(
        self, folds: list[Path], calibrate: Callable[..., TemperatureScaled]
    ) -> None:
        """The fit of each stays, so that the next one pools the same; the figure, of another temperature, goes."""
        kept = [(folder / "temperature_fit.json").read_bytes() for folder in folds]
        for folder in folds:
            calibrate([], pool=folds, output_dir=folder)
        assert read_temperature(folds[0]) == read_temperature(folds[1])
        assert [(folder / "temperature_fit.json").read_bytes() for folder in folds] == kept
        assert {file.name for file in folds[0].iterdir()} == {"temperature.json", "temperature_fit.json"}

    def test_band_in_mm(self, calibrate: Callable[..., TemperatureScaled], tmp_path: Path) -> None:
        region = Region("band", 3, spacing=(1, 2))
        calibrate(region=region)
        once = read_temperature(tmp_path / "out")
        calibrate([], region=region, pool=[tmp_path / "out"])
        assert read_temperature(tmp_path / "out") == once

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"region": "predicted"}, r"fold0/temperature_fit.json: other: expected a fit with region 'predicted' as"),
            ({"temperature": 2}, r"^temperature: expected null beside a pool of fits, got 2$"),
            (
                {"pool": ["fold0", "fold1", "x/../fold0"]},
                r"fold0/temperature_fit.json: expected other patients than in ",
            ),
            (
                {"pool": ["fold2"]},
                r"fold2/temperature_fit.json: expected what calibrate.yaml keeps of a fit, got No such",
            ),
            ({"pool": ["empty"]}, r"empty/temperature_fit.json: values: expected a dictionary with region, .*, got $"),
            (
                {"calibrated_path": "temperature_fit.json"},
                r"^calibrated_path: expected a file of weights, such as model",
            ),
        ],
    )
    def test_what_cannot_be_pooled_leaves_all_as_it_was(
        self,
        options: dict[str, Any],
        message: str,
        folds: list[Path],
        calibrate: Callable[..., TemperatureScaled],
        tmp_path: Path,
    ) -> None:
        (tmp_path / "x").mkdir()
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "temperature_fit.json").write_text("{}")
        before = snapshot(tmp_path)
        pool = [tmp_path / name for name in options.get("pool", ["fold0", "fold1"])]
        with pytest.raises(InputError, match=message):
            calibrate([], **{**options, "pool": pool})
        assert snapshot(tmp_path) == before


class TestEstimateInAFile:
    ESTIMATE = TemperatureEstimate(0.7, 0.6, 0.8, 0.9, {"a": 0.65, "b": 0.75}, 0.2, 0.1, 2, 100, False)
    ONE = TemperatureEstimate(0.7, np.nan, np.nan, np.nan, {}, 0.2, 0.1, 1, 100, False)

    def test_comes_back(self, tmp_path: Path) -> None:
        write_temperature(self.ESTIMATE, tmp_path)
        assert read_temperature(tmp_path) == self.ESTIMATE
        write_temperature(self.ONE, tmp_path)
        assert str(read_temperature(tmp_path)) == str(self.ONE)
        assert json.loads((tmp_path / "temperature.json").read_text())["low"] is None

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"temperature": 0.7}', b"\xff\xfe\0"])
    def test_broken_file_is_named(self, content: str | bytes, tmp_path: Path) -> None:
        (tmp_path / "temperature.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(InputError, match=r"temperature.json: expected a fitted temperature, got ") as error:
            read_temperature(tmp_path)
        assert "\n" not in str(error.value)

    def test_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"temperature.json: expected a fitted temperature, got No such file"):
            read_temperature(tmp_path)


class TestCalibrationCases:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        return make_prepared(ACDC, tmp_path / "data")

    def test_have_their_patient_or_else_are_one(self, data: Path, tmp_path: Path) -> None:
        content = json.loads((data / "datalist.json").read_text())
        content["validation"][0]["patient"] = None
        content["validation"][1]["patient"] = "p7 "
        (tmp_path / "datalist.json").write_text(json.dumps(content))
        items = calibration_cases(tmp_path / "datalist.json", "validation", data, SIZE, 1)
        assert [(item["case"], item["patient"]) for item in items] == [
            ("validation0", "validation0"),
            ("validation1", "p7"),
        ]

    @pytest.mark.parametrize("given", [{"temperature": 1}, {"pool": ["fold0", "fold1"]}], ids=["temperature", "pool"])
    def test_none_are_read_where_none_are_needed(self, given: dict[str, Any], tmp_path: Path) -> None:
        assert calibration_cases(tmp_path / "none.json", "validation", tmp_path, SIZE, 1, **given) == []

    @pytest.mark.parametrize("split", ["validation", "testing"])
    def test_a_split_without_cases_is_refused(self, split: str, data: Path, tmp_path: Path) -> None:
        (tmp_path / "datalist.json").write_text(json.dumps({"training": [], split: []}))
        with pytest.raises(InputError) as error:
            calibration_cases(tmp_path / "datalist.json", split, data, SIZE, 1)
        line = str(error.value)
        assert line.startswith(
            f"{tmp_path}/datalist.json: expected cases for {split} to fit the temperature on, got none"
        )
        for remedy in ("--fractions", "--split testing", "training (on which", "--dataset_dir"):
            assert remedy in line
        assert "\n" not in line
