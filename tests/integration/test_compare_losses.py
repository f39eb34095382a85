"""Comparisons that really train and evaluate the ACDC bundle, on phantoms."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import ACDC, ROOT

pytestmark = pytest.mark.slow


def command(prepared: Path, out: Path, losses: str, **further: Any) -> list[str]:
    arguments = {"bundle": ACDC, "dataset_dir": prepared, "out": out, "losses": losses, "devices": "cpu"}
    arguments |= {"max_epochs": 2, "num_workers": 0, **further}
    return [sys.executable, "scripts/compare_losses.py", *(f"--{name}={value}" for name, value in arguments.items())]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def compared(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two losses, side by side."""
    out = tmp_path_factory.mktemp("compared")
    done = run(command(prepared, out, "nacl_max,ce_dice", workers=2))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 cells are finished, 0 failed" in done.stdout
    return out


def test_networks_are_trained_and_evaluated_without_and_with_their_temperature(compared: Path) -> None:
    for method, target in (("nacl_max", "NACLLoss"), ("ce_dice", "DiceCELoss")):
        cell, work = compared / method / "seed0", compared / "work" / method / "seed0"
        settings = json.loads((cell / "settings.json").read_text())
        assert settings["training"]["loss"]["_target_"].endswith(target)
        assert [row.split(",")[0] for row in (cell / "history.csv").read_text().splitlines()] == ["epoch", "1", "2"]
        trained, calibrated = (
            torch.load(work / name, weights_only=True)["temperature"].item()
            for name in ("model.pt", "model_calibrated.pt")
        )
        fit = json.loads((cell / "temperature" / "temperature.json").read_text())
        assert (trained, fit["patients"]) == (1, 2)
        assert calibrated == pytest.approx(fit["temperature"], rel=1e-6)
        plain, scaled = (json.loads((folder / "summary.json").read_text()) for folder in (cell, cell / "temperature"))
        assert plain["dsc"] == scaled["dsc"]  # the same label maps
        assert plain["nll_all"] != scaled["nll_all"]


def test_other_settings_are_refused_in_one_line(compared: Path, prepared: Path) -> None:
    done = run(command(prepared, compared, "ce_dice", max_epochs=3))
    assert done.returncode == 2
    assert done.stderr.startswith("compare_losses: ce_dice, seed 0")
    assert "max_epochs" in done.stderr
    assert "Traceback" not in done.stderr


def test_killed_comparison_ends_with_the_same_results(compared: Path, prepared: Path, tmp_path: Path) -> None:
    """SIGKILL, which no process can handle, to the command and its training."""
    work = tmp_path / "work" / "ce_dice" / "seed0"
    killed = subprocess.Popen(command(prepared, tmp_path, "ce_dice"), cwd=ROOT, start_new_session=True)
    while not (work / "last.ckpt").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert torch.load(work / "last.ckpt", weights_only=False)["epoch"] in (1, 2)
    done = run(command(prepared, tmp_path, "ce_dice"))
    assert done.returncode == 0, done.stdout + done.stderr
    one, other = (folder / "ce_dice" / "seed0" for folder in (compared, tmp_path))
    files = sorted(path.relative_to(one) for path in one.rglob("*"))
    assert sorted(path.relative_to(other) for path in other.rglob("*")) == files
    for file in files:
        if (one / file).is_file() and file.name not in ("history.csv", "settings.json"):  # times and paths
            assert (other / file).read_bytes() == (one / file).read_bytes(), file
    histories = []
    for cell in (one, other):
        with open(cell / "history.csv", newline="") as file:
            histories.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    assert histories[0] == histories[1]
