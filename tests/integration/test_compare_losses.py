"""Comparisons that really train and evaluate the ACDC bundle, on phantoms, from the command to the report."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fire
import monai.bundle
import pytest
import torch
from calib_components.tools.compare.processes import ProcessGroup
from calib_components.tools.report.results import read_results

from calib_components.handlers.evaluation import read_cases
from calib_components.tools.compare import compare_losses, report
from calib_components.tools.prepare import prepare_data
from tests.helpers import ACDC, ROOT, Outcome, run_as_typed


def command(prepared: Path, out: Path, losses: str, **further: Any) -> list[str]:
    arguments = {
        "bundle": ACDC,
        "dataset_dir": prepared,
        "out": out,
        "losses": losses,
        "devices": "cpu",
        "max_epochs": 2,
        "num_workers": 0,
        **further,
    }
    return [sys.executable, "scripts/compare_losses.py", *(f"--{name}={value}" for name, value in arguments.items())]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


@pytest.fixture
def runs_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a comparison run its cells' commands in this process: the start of others would take most of the time."""

    def run_here(_: ProcessGroup, command: list[str], **__: Any) -> int:
        fire.Fire(lambda **options: monai.bundle.run(**options), command[4:])
        return 0

    monkeypatch.setattr(ProcessGroup, "call", run_here)


def run_here(command: list[str]) -> Outcome:
    return run_as_typed("compare_losses", compare_losses, command[2:])


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
        ".lock",
        "ce_dice",
        "commands.sh",
        "nacl_max",
        "plan.json",
        "work",
    ]
    for method in ("ce_dice", "nacl_max"):
        assert sorted(path.name for path in (compared / method / "seed0").iterdir()) == [
            "calibration.json", "cases", "cases.csv", "history.csv", "logits.json", "reliability.png",
            "reliability_classes.png", "risk_coverage.json", "settings.json", "summary.json", "temperature",
            "thresholds.json",
        ]  # fmt: skip
        assert {path.name for path in (compared / method / "seed0" / "temperature").iterdir()} >= {
            "calibration.json", "cases.csv", "summary.json", "temperature.json"
        }  # fmt: skip
        assert {"last.ckpt", "model.pt", "model_calibrated.pt"} <= {
            path.name for path in (compared / "work" / method / "seed0").iterdir()
        }
        history = (compared / method / "seed0" / "history.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in history] == ["epoch", "1", "2"]
    assert (compared / "work" / ".gitignore").read_text() == "*\n"


def test_commands_are_plain_runs_of_the_bundle(compared: Path, prepared: Path) -> None:
    lines = (compared / "commands.sh").read_text().splitlines()
    assert lines[2] == "# nacl_max, seed 0"
    train, evaluate, calibrate, _ = (shlex.split(line) for line in lines[3:7])
    assert train[:4] == evaluate[:4] == calibrate[:4] == ["python", "-m", "monai.bundle", "run"]
    assert f"--config_file=['{ACDC}/configs/train.yaml','{ACDC}/configs/calibrate.yaml']" in calibrate
    assert {"--loss::prior=max", "--seed=0", "--resume=True", "--max_epochs=2"} <= set(train)
    assert f"--config_file=['{ACDC}/configs/train.yaml','{ACDC}/configs/losses/nacl.yaml']" in train
    assert f"--config_file=['{ACDC}/configs/train.yaml','{ACDC}/configs/evaluate.yaml']" in evaluate
    assert f"--dataset_dir={prepared}" in train  # whose facts.yaml the bundle reads
    log = (compared / "work" / "nacl_max" / "seed0" / "train.log").read_text()
    assert "> loss::prior: 'max'" in log


def test_report_has_the_means_of_the_evaluation(compared: Path, tmp_path: Path) -> None:
    report(compared, tmp_path, reference="ce_dice")
    page = (tmp_path / "index.html").read_text()
    assert "NACL max" in page
    assert page.count(" case</figcaption>") == 2 * 3
    with open(tmp_path / "means.csv", newline="") as file:
        for row in csv.DictReader(file):
            cell = compared / row["method"] / "seed0"
            folder = cell / "temperature" if row["temperature"] == "with" else cell
            summary = json.loads((folder / "summary.json").read_text())
            assert float(row["mean"]) == pytest.approx(summary[row["measure"]]["mean"], rel=1e-12)


def test_temperature_is_in_the_weights_that_are_evaluated_with_it(compared: Path) -> None:
    for method in ("nacl_max", "ce_dice"):
        work, cell = (folder / method / "seed0" for folder in (compared / "work", compared))
        trained, calibrated = (
            torch.load(work / name, weights_only=True)["temperature"].item()
            for name in ("model.pt", "model_calibrated.pt")
        )
        fit = json.loads((cell / "temperature" / "temperature.json").read_text())
        assert trained == 1
        assert calibrated == pytest.approx(fit["temperature"], rel=1e-6)
        assert fit["patients"] == 2
        (_, plain), (_, scaled) = read_cases(cell), read_cases(cell / "temperature")
        for name in plain:
            if name.startswith(("dsc", "hd95")):
                assert plain[name].tolist() == pytest.approx(scaled[name].tolist(), nan_ok=True)  # the same label maps
        assert plain["nll_all"].tolist() != scaled["nll_all"].tolist()


@pytest.mark.slow
@pytest.mark.usefixtures("runs_in_this_process")
def test_another_test_set_is_evaluated_without_training_again(
    compared: Path, prepared: Path, phantoms: Path, tmp_path: Path
) -> None:
    out, scanner = shutil.copytree(compared, tmp_path / "out"), tmp_path / "scanner"
    prepare_data("acdc", phantoms, scanner, image_size=(64, 64), fractions=(0.0, 0.0, 1.0), workers=1)
    done = run_here(command(prepared, out, "ce_dice", evaluate_on=f"scanner={prepared}"))
    assert done.code == 1
    assert "--evaluate_on: expected other data than --dataset_dir" in done.err
    before = {path: path.read_bytes() for path in (out / "work" / "ce_dice" / "seed0").glob("*.log")}
    done = run_here(command(prepared, out, "ce_dice", evaluate_on=f"scanner={scanner}"))
    assert done.code == 0, done.out + done.err
    assert all(path.read_bytes() == log for path, log in before.items())
    cell = out / "ce_dice" / "seed0"
    for folder in (cell / "on_scanner", cell / "on_scanner" / "temperature"):
        assert json.loads((folder / "summary.json").read_text())["cases"] == 20
    done = run_here(command(prepared, out, "ce_dice", evaluate_on=f"scanner={scanner}"))
    assert "ce_dice, seed 0: finished before" in done.out
    report(out, tmp_path / "report", reference="ce_dice")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "## Means on scanner" in text
    assert "Not evaluated on scanner: NACL max." in text


def test_finished_cells_are_skipped_and_other_settings_are_an_error(compared: Path, prepared: Path) -> None:
    settings = compared / "ce_dice" / "seed0" / "settings.json"
    before = settings.stat().st_mtime_ns
    done = run_here(command(prepared, compared, "nacl_max,ce_dice"))
    assert done.code == 0
    assert done.out.count("seed 0: finished before") == 2
    done = run_here(command(prepared, compared, "ce_dice", max_epochs=3))
    assert done.code == 1
    assert "ce_dice/seed0: expected results of the same settings, got others (max_epochs); delete it" in done.err
    assert settings.stat().st_mtime_ns == before


def test_interrupted_comparison_says_how_to_continue(prepared: Path, tmp_path: Path) -> None:
    work = tmp_path / "work" / "ce_dice" / "seed0"
    typed = command(prepared, tmp_path, "ce_dice", max_epochs=99)
    killed = subprocess.Popen(typed, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (work / "last.ckpt").is_file():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGTERM)
    _, errors = killed.communicate()
    assert killed.returncode == 1
    assert "compare_losses: interrupted; run the same command again to continue" in errors
    assert not (tmp_path / "ce_dice" / "seed0").exists()
    assert torch.load(work / "last.ckpt", weights_only=True)["epoch"] < 99


def check_same_results(whole: Path, resumed: Path) -> None:
    """Check that a resumed comparison has the files of an undisturbed one, and nothing besides."""
    one, other = (folder / "ce_dice" / "seed0" for folder in (whole, resumed))
    files = sorted(path.relative_to(one) for path in one.rglob("*"))
    assert sorted(path.relative_to(other) for path in other.rglob("*")) == files
    for file in files:
        if (one / file).is_file() and file.name not in ("history.csv", "settings.json"):  # times and paths
            assert (other / file).read_bytes() == (one / file).read_bytes(), file.name
    with open(one / "history.csv") as of_one, open(other / "history.csv") as of_other:
        epochs, again = list(csv.DictReader(of_one)), list(csv.DictReader(of_other))
    assert [{**epoch, "seconds": ""} for epoch in again] == [{**epoch, "seconds": ""} for epoch in epochs]
    weights, same = (
        torch.load(folder / "work" / "ce_dice" / "seed0" / "model.pt", weights_only=True) for folder in (whole, resumed)
    )
    torch.testing.assert_close(weights, same, rtol=0, atol=0)
    assert {path.name for path in resumed.rglob(".*")} == {".gitignore", ".lock"}


@pytest.mark.slow
def test_comparison_killed_at_five_moments_ends_with_the_same_results(
    compared: Path, prepared: Path, tmp_path: Path
) -> None:
    """SIGKILL, which no process can handle, to the command alone or to its runs too, shortly after a file appears."""
    rng = random.Random(12)
    work = tmp_path / "work" / "ce_dice" / "seed0"
    for appears, runs_too in (
        (tmp_path / "plan.json", False),
        (work / "train.log", True),
        (work / "last.ckpt", True),
        (work / "eval" / ".unfinished-evaluation", True),
        (tmp_path / "ce_dice" / ".seed0.partial", False),
    ):
        killed = subprocess.Popen(command(prepared, tmp_path, "ce_dice"), cwd=ROOT, stdout=subprocess.DEVNULL)
        while not appears.exists() and killed.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        killed.kill()
        killed.wait()
        for process in running(tmp_path) if runs_too else ():
            with contextlib.suppress(ProcessLookupError):  # ended meanwhile
                os.kill(process, signal.SIGKILL)
    done = run(command(prepared, tmp_path, "ce_dice"))
    assert done.returncode == 0, done.stdout + done.stderr
    check_same_results(compared, tmp_path)


def running(folder: Path) -> list[int]:
    """The processes that were started with this folder among their arguments."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if str(folder).encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("runs_in_this_process")
def test_cross_validation_tests_every_patient_once(phantoms: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    prepare_data("acdc", phantoms, data, image_size=(64, 64), fractions=(0.6, 0.2, 0.2), folds=3, workers=1)
    options = {"losses": ["ce_dice"], "folds": 3, "devices": ["cpu"], "max_epochs": 1, "num_workers": 0}
    compare_losses(ACDC, data, out, **options)
    results = read_results(out)
    assert [cell.settings.fold for cell in results.methods[0].cells] == [0, 1, 2]
    assert len(set(results.patients)) == 10
    fits = [cell.temperature for cell in results.methods[0].cells]
    assert fits[0] is not None
    assert fits[0].patients == 10  # each validates one network
    assert fits[1] == fits[2] == fits[0]
    assert len(results.first.cases) == len(set(results.first.cases)) == 20
    report(out, tmp_path / "report")
    assert "20 cases of 10 patients, each by the network of 3" in (tmp_path / "report" / "report.md").read_text()
