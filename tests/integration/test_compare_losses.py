"""Comparisons that really train and evaluate the ACDC bundle, on phantoms, from the command to the report."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from calib_components.tools.comparison import report
from tests.helpers import ACDC, ROOT


def command(prepared: Path, out: Path, losses: str, **further: Any) -> list[str]:
    arguments = {
        "bundle": ACDC,
        "dataset_dir": prepared,
        "out": out,
        "losses": losses,
        "devices": "cpu",
        "max_epochs": 2,
        "image_size": [64, 64],
        "num_workers": 0,
        **further,
    }
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


def test_keeps_small_files_as_results_and_the_rest_apart(compared: Path) -> None:
    assert sorted(path.name for path in compared.iterdir()) == [
        "ce_dice",
        "commands.sh",
        "nacl_max",
        "plan.json",
        "work",
    ]
    for method in ("ce_dice", "nacl_max"):
        assert sorted(path.name for path in (compared / method / "seed0").iterdir()) == [
            "calibration.json", "cases", "cases.csv", "history.csv", "logits.json", "reliability.png",
            "reliability_classes.png", "settings.json", "summary.json",
        ]  # fmt: skip
        assert {"last.pt", "model.pt"} <= {path.name for path in (compared / "work" / method / "seed0").iterdir()}
        history = (compared / method / "seed0" / "history.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in history] == ["epoch", "1", "2"]
    assert (compared / "work" / ".gitignore").read_text() == "*\n"


def test_commands_are_plain_runs_of_the_bundle(compared: Path, prepared: Path) -> None:
    lines = (compared / "commands.sh").read_text().splitlines()
    assert lines[2] == "# nacl_max, seed 0"
    train, evaluate = (shlex.split(line) for line in lines[3:5])
    assert train[:4] == evaluate[:4] == ["python", "-m", "monai.bundle", "run"]
    assert {"--loss::prior=max", "--seed=0", "--resume=True", "--max_epochs=2", "--image_size=[64, 64]"} <= set(train)
    base = f"'{ACDC}/configs/train.yaml','{prepared}/facts.yaml'"
    assert f"--config_file=[{base},'{ACDC}/configs/losses/nacl.yaml']" in train
    assert f"--config_file=[{base},'{ACDC}/configs/evaluate.yaml']" in evaluate
    log = (compared / "work" / "nacl_max" / "seed0" / "train.log").read_text()
    assert "> loss::prior: 'max'" in log


def test_report_has_the_means_of_the_evaluation(compared: Path, tmp_path: Path) -> None:
    report(compared, tmp_path, reference="ce_dice")
    page = (tmp_path / "index.html").read_text()
    assert "NACL max" in page
    assert page.count(" case</figcaption>") == 2 * 3
    with open(tmp_path / "means.csv", newline="") as file:
        for row in csv.DictReader(file):
            summary = json.loads((compared / row["method"] / "seed0" / "summary.json").read_text())
            assert float(row["mean"]) == pytest.approx(summary[row["measure"]]["mean"], rel=1e-12)


def test_finished_cells_are_skipped_and_other_settings_are_an_error(compared: Path, prepared: Path) -> None:
    settings = compared / "ce_dice" / "seed0" / "settings.json"
    before = settings.stat().st_mtime_ns
    done = run(command(prepared, compared, "nacl_max,ce_dice"))
    assert done.returncode == 0
    assert done.stdout.count("seed 0: finished before") == 2
    done = run(command(prepared, compared, "ce_dice", max_epochs=3))
    assert done.returncode == 1
    assert "ce_dice/seed0: made with other settings (max_epochs); delete it" in done.stderr
    assert settings.stat().st_mtime_ns == before


def test_killed_comparison_continues_to_the_same_results(compared: Path, prepared: Path, tmp_path: Path) -> None:
    again = command(prepared, tmp_path, "ce_dice")
    work = tmp_path / "work" / "ce_dice" / "seed0"
    killed = subprocess.Popen(again, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (work / "last.pt").is_file():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGTERM)
    _, errors = killed.communicate()
    assert killed.returncode == 1
    assert "compare_losses: interrupted; run the same command again to continue" in errors
    assert not (tmp_path / "ce_dice" / "seed0").exists()
    assert torch.load(work / "last.pt", weights_only=True)["epoch"] == 1

    subprocess.run(again, cwd=ROOT, check=True, capture_output=True)
    assert "Resuming after epoch 1" in (work / "train.log").read_text()
    whole, resumed = (folder / "ce_dice" / "seed0" for folder in (compared, tmp_path))
    for path in sorted(whole.rglob("*.*")):
        if path.name not in ("history.csv", "settings.json"):  # times and paths
            assert (resumed / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name
    of_whole, of_resumed = (list(csv.DictReader((folder / "history.csv").open())) for folder in (whole, resumed))
    assert [{**epoch, "seconds": ""} for epoch in of_resumed] == [{**epoch, "seconds": ""} for epoch in of_whole]
