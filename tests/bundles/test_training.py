"""Training and evaluation of the ACDC bundle on phantoms."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.helpers import ACDC, refusal, run_bundle, snapshot


def run(prepared: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """Train in this process, and give what `last.ckpt` holds."""
    places = {"dataset_dir": str(prepared), "ckpt_dir": str(folder), "output_dir": str(folder)}
    run_bundle(ACDC, "train.yaml", **places, **options)
    return torch.load(folder / "last.ckpt", weights_only=True)


def assert_same_training(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same epoch, metric, weights and state of the optimizer, bit by bit."""
    for name in ("epoch", "best_metric"):
        assert found[name] == expected[name]
    for name in ("network", "optimizer"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


def test_an_extended_training_shows_a_line_for_each_epoch(
    trained: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained, tmp_path / "copied")
    run(prepared, folder, max_epochs=3, resume=True)
    lines = [line.split(" INFO ")[-1] for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3
    assert lines[0] == f"Resuming after epoch 2 of {folder}/last.ckpt."
    number = r"[\d.]+"
    expected = (
        f"Epoch 3 of 3: train_loss {number}, val_dsc {number}, val_ece {number}, best val_dsc"
        rf" {number} in epoch \d, 0:00:00 left"
    )
    assert re.fullmatch(expected, lines[1])
    assert lines[2].startswith("Next: calibrate the network, with configs/calibrate.yaml")
    assert len([*folder.glob("events.out.tfevents.*")]) == 2  # curves of both parts


def test_training_keeps_best_and_last(trained: Path, prepared: Path) -> None:
    best = torch.load(trained / "model.pt", weights_only=True)
    last = torch.load(trained / "last.ckpt", weights_only=True)
    assert best.keys() == last["network"].keys()
    assert last["epoch"] == 2
    assert 0 < last["best_metric"] <= 1
    assert list(trained.glob("events.out.tfevents.*"))
    # Of several, MONAI Label takes the one with the shortest name, and leaves out what does not fit
    # the network.
    assert [file.name for file in trained.glob("*.pt")] == ["model.pt"]
    facts, own = (
        yaml.safe_load((folder / "facts.yaml").read_text()) for folder in (prepared, trained)
    )
    assert own == {**facts, "any_orientation": True, "source": ""}  # weights travel, folders do not
    assert facts["source"] != ""


@pytest.mark.slow
def test_tracking_with_mlflow(prepared: Path, tmp_path: Path) -> None:
    run(prepared, tmp_path, max_epochs=1, tracking="mlflow")
    with closing(sqlite3.connect(tmp_path / "mlruns.db")) as database:
        tracked = {name for (name,) in database.execute("SELECT DISTINCT key FROM metrics")}
    assert {"train_loss", "val_dsc"} <= tracked


def test_resuming_with_other_settings_is_refused(
    trained: Path, prepared: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained, tmp_path / "copied")
    before = snapshot(folder)
    places = {
        "dataset_dir": str(prepared),
        "ckpt_dir": str(folder),
        "output_dir": str(tmp_path / "log"),
    }
    line = refusal(ACDC, "train.yaml", resume=True, any_orientation=False, **places)
    assert line.startswith(
        f"{folder}/last.ckpt is of a run with other settings: any_orientation True, not False;"
    )
    assert snapshot(folder) == before
    places["output_dir"] = str(tmp_path / "none")
    assert re.match(
        f"ckpt_dir: {folder} has model.pt. .*--resume true", refusal(ACDC, "train.yaml", **places)
    )
    assert (snapshot(folder), (tmp_path / "none").exists()) == (before, False)


@pytest.mark.slow
def test_extended_training_in_half_precision_and_compiled_ends_with_the_same_bits(
    prepared: Path, tmp_path: Path
) -> None:
    options = {
        "network_def::dropout": 0.1,
        "network_def::channels": [8, 16],  # compiling takes as long as there are layers
        "network_def::strides": [2],
        "bfloat16": True,
        "compile": True,
    }
    whole = run(prepared, tmp_path / "whole", max_epochs=4, **options)
    run(prepared, tmp_path / "parts", max_epochs=1, **options)
    assert_same_training(
        run(prepared, tmp_path / "parts", max_epochs=4, resume=True, **options), whole
    )


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_training_killed_at_random_moments_resumes_to_the_same_bits(
    prepared: Path, tmp_path: Path
) -> None:
    """SIGKILL, which no process can handle, to the training and its worker.

    Without workers, bits are the same too.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = run(prepared, whole, max_epochs=4)
    arguments = {
        "config_file": ACDC / "configs" / "train.yaml",
        "bundle_root": ACDC,
        "dataset_dir": prepared,
        "ckpt_dir": killed,
        "output_dir": killed,
        "max_epochs": 4,
        "num_workers": 1,
        "device": "cpu",
        "resume": True,
        "overwrite": True,
    }
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        *(f"--{name}={value}" for name, value in arguments.items()),
    ]
    moments = random.Random(0)
    for moment in ("from the beginning", "Epoch"):  # the start, or the end of the first epoch
        log = tmp_path / f"{moment}.log"
        with open(log, "w") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True
            )
        while f"{moment}" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3))  # an epoch takes about as long
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    # Overwrite: it may have been killed between the weights and the checkpoint of the first epoch
    resumed = run(prepared, killed, max_epochs=4, resume=True, overwrite=True)
    assert_same_training(resumed, expected)
    models = [torch.load(folder / "model.pt", weights_only=True) for folder in (killed, whole)]
    torch.testing.assert_close(*models, rtol=0, atol=0)
    assert {path.name for path in killed.iterdir()} >= {"facts.yaml", "last.ckpt", "model.pt"}
