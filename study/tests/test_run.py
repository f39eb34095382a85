"""Runs of a comparison, with stand-ins for the runs of the bundle."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch.utils.tensorboard import SummaryWriter

from calib_components.errors import InputError
from study.compare import compare_losses
from study.compare import run as module
from study.compare.cells import read_settings
from study.compare.plan import PlannedCell, Protocol
from study.compare.run import run_cell, write_history
from study.compare.settings import PRESETS, choose_settings
from tests.helpers import ACDC


class Bundle:
    """Stands for the runs of a bundle: writes the file that each writes last, and fails where it is
    told to.
    """

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.failing = ""
        self.devices: list[str] = []

    def __call__(self, command: Sequence[str], log_file: Path) -> str | None:
        options = dict(option[2:].split("=", 1) for option in command[4:])
        folder, name = Path(options["output_dir"]), f"{log_file.parent.name} {log_file.stem}"
        self.ran.append(name)
        self.devices.append(options["device"])
        folder.mkdir(parents=True, exist_ok=True)
        if self.failing and self.failing in name:
            return "killed"
        if "calibrate.yaml" in options["config_file"]:
            (folder / "temperature.json").write_text(options["calibrated_path"])
        elif "evaluate.yaml" in options["config_file"]:
            (folder / "summary.json").write_text("{}")
        else:
            (folder / "model.pt").touch()
        return None


@pytest.fixture
def bundle(monkeypatch: pytest.MonkeyPatch) -> Bundle:
    stand_in = Bundle()
    monkeypatch.setattr(module, "run_command", stand_in)
    monkeypatch.setattr(
        module, "write_history", lambda _, folder: (folder / "history.csv").write_text("epoch\n1\n")
    )
    monkeypatch.setattr("calib_tools.jobs.POLL", 0.01)
    return stand_in


def compare(data: Path, *losses: str, **given: Any) -> None:
    given = {"devices": ["cpu"], "max_epochs": 2, "num_workers": 0, **given}
    compare_losses(ACDC, data, data.parent / "out", losses, **given)


def plan(data: Path) -> PlannedCell:
    out = data.parent / "out"
    protocol = Protocol(ACDC, data, out, out / "work", {"max_epochs": 2, "num_workers": 0})
    return protocol.plan_cell(*choose_settings(["nacl"], ACDC), 0)


def test_results_are_small_files_and_the_rest_is_apart(
    data: Path, bundle: Bundle, capsys: Any
) -> None:
    compare(data, "nacl", "ce_dice", seeds=[0, 1], devices=["cpu", "meta"])
    out = data.parent / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock",
        "ce_dice",
        "commands.sh",
        "nacl",
        "plan.json",
        "work",
    ]
    cell = out / "nacl" / "seed1"
    assert {str(path.relative_to(cell)) for path in cell.rglob("*.*")} == {
        "settings.json",
        "history.csv",
        "summary.json",
        "temperature/temperature.json",
        "temperature/summary.json",
    }
    settings = read_settings(cell)
    assert settings.calibration == {"split": "validation", "region": "all", "crop_center": None}
    assert settings.made_with["torch"] == torch.__version__
    plan = json.loads((out / "plan.json").read_text())
    assert [f"{entry['method']} {entry['seed']}" for entry in plan] == [
        "nacl 0",
        "ce_dice 0",
        "nacl 1",
        "ce_dice 1",
    ]
    assert plan[2]["commands"] == settings.commands
    assert (out / "work" / ".gitignore").read_text() == "*\n"
    assert {"cpu", "meta"} == set(bundle.devices)
    assert "4 of 4 cells are finished, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "last", "title"),
    [
        ({"seeds": [0, 1]}, "seed1", "nacl, seed 1"),
        ({"folds": 2}, "seed0_fold1", "nacl, seed 0, fold 1"),
    ],
)
def test_finished_cells_are_skipped_and_a_failed_one_runs_again(
    given: dict[str, Any], last: str, title: str, data: Path, bundle: Bundle, capsys: Any
) -> None:
    bundle.failing = f"{last} evaluate_temperature"
    with pytest.raises(SystemExit) as caught:
        compare(data, "nacl", **given)
    assert caught.value.code == 1
    shown = capsys.readouterr().out
    assert f"{title}: evaluate_temperature failed: killed" in shown
    assert "1 of 2 cells are finished, 1 failed" in shown
    assert not (data.parent / "out" / "nacl" / last).exists()
    bundle.failing, bundle.ran = "", []
    compare(data, "nacl", **given)
    assert bundle.ran == [
        f"{last} {name}" for name in ("train", "evaluate", "calibrate", "evaluate_temperature")
    ]
    assert "finished before" in capsys.readouterr().out


def test_other_settings_are_refused_before_anything_runs(data: Path, bundle: Bundle) -> None:
    compare(data, "nacl")
    before, bundle.ran = (data.parent / "out" / "plan.json").read_text(), []
    # The same cell, and one that could not be compared with it
    for losses in (["nacl"], ["ce_dice"]):
        with pytest.raises(InputError, match="max_epochs"):
            compare(data, *losses, max_epochs=3)
    assert bundle.ran == []
    assert (data.parent / "out" / "plan.json").read_text() == before


def test_test_set_given_later_is_evaluated_without_training(
    data: Path, scanner: Path, bundle: Bundle
) -> None:
    compare(data, "nacl")
    bundle.ran = []
    bundle.failing = "temperature_on_b"
    with pytest.raises(SystemExit):
        compare(data, "nacl", evaluate_on=[f"b={scanner}"])
    cell = data.parent / "out" / "nacl" / "seed0"
    assert read_settings(cell).evaluate_on == {}
    bundle.failing = ""
    compare(data, "nacl", evaluate_on=[f"b={scanner}"])
    assert not any("train" in name or "calibrate" in name for name in bundle.ran)
    assert (cell / "on_b" / "temperature" / "summary.json").is_file()
    settings = read_settings(cell)
    assert settings.evaluate_on["b"]["patients"] == {"x_1": "x", "y_1": "y"}
    assert len(settings.commands) == 6
    bundle.ran = []
    compare(data, "nacl")  # without it, and it stays
    assert bundle.ran == []
    assert read_settings(cell) == settings


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"executor": "slrum"}, "--executor"),
        ({"executor": "slurm", "devices": ["cuda:0"]}, "--devices"),
        ({"workers": -1}, "--workers"),
        ({"work": Path("out")}, "--work"),
        ({"folds": 3}, "--folds"),
        ({"folds": 2, "datalist": Path("datalist.json")}, "--datalist"),
        ({"evaluate_on": ["a/b=scanner"]}, "--evaluate_on"),
        ({"evaluate_on": ["b=data"]}, "--evaluate_on"),
    ],
)
def test_wrong_arguments(
    given: dict[str, Any], word: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    with pytest.raises(InputError, match=word):
        compare_losses(
            **{"bundle": ACDC, "dataset_dir": data, "out": Path("out"), "losses": ["nacl"], **given}
        )
    assert not Path("out").exists()


def test_tuning_is_evaluated_on_the_validation_split(
    data: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    (svls,) = (setting for setting in PRESETS["tuning"] if setting.name == "svls_0.5")
    monkeypatch.setitem(PRESETS, "tuning", [svls])
    compare(data, "tuning")
    settings = read_settings(data.parent / "out" / "svls_0.5" / "seed0")
    assert (settings.evaluation["split"], settings.calibration, settings.patients) == (
        "validation",
        {},
        {"b_1": "b"},
    )


def test_a_cell_waits_for_another_process_and_finds_it_finished(data: Path, bundle: Bundle) -> None:
    cell = plan(data)
    cell.work.mkdir(parents=True)
    thread = threading.Thread(target=run_cell, args=(cell,))
    with FileLock(cell.work / "lock"):
        thread.start()
        time.sleep(0.2)
        assert bundle.ran == []
        cell.results.mkdir(parents=True)
        for step in cell.steps:
            (cell.results / step.output).parent.mkdir(exist_ok=True)
            (cell.results / step.output).touch()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert bundle.ran == []


def test_what_a_killed_process_left_does_not_count(data: Path, bundle: Bundle) -> None:
    cell = plan(data)
    left = [
        cell.work / "eval" / "old.json",
        cell.results.with_name(".unfinished-seed0") / "old.json",
    ]
    for file in left:
        file.parent.mkdir(parents=True)
        file.touch()
    compare(data, "nacl")
    assert not any(file.exists() for file in left)
    assert not list(cell.results.rglob("old.json"))
    assert [path.name for path in cell.results.parent.iterdir()] == ["seed0"]


def test_history_of_a_resumed_training(tmp_path: Path) -> None:
    for epochs in ((1, 2), (2, 3)):  # the second epoch was not saved before the first was killed
        writer = SummaryWriter(str(tmp_path))
        for epoch in epochs:
            writer.add_scalar("train_loss", epoch / 4 + len(epochs) * epochs[0], epoch)
            if epoch > 1:
                writer.add_scalar("val_dsc", epoch / 8, epoch)
        writer.close()
        time.sleep(1.1)  # files are named by the second
    write_history(tmp_path, tmp_path)
    rows = [line.split(",") for line in (tmp_path / "history.csv").read_text().splitlines()]
    assert rows[0] == ["epoch", "seconds", "train_loss", "val_dsc"]
    assert [(row[0], row[2], row[3]) for row in rows[1:]] == [
        ("1", "2.25", ""),
        ("2", "4.5", "0.25"),
        ("3", "4.75", "0.375"),
    ]
    assert all(float(row[1]) >= 0 for row in rows[1:])
