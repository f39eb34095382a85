"""Training and evaluation of the ACDC bundle on phantoms."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import time
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss

from calib_components.losses import L1ACEDiceCELoss, NACLLoss
from tests.helpers import ACDC, run_bundle, run_bundle_as_typed, snapshot


def run(prepared: Path, folder: Path, *configs: str, **options: Any) -> dict[str, Any]:
    """Train in this process, and give what `last.ckpt` holds."""
    places = {"dataset_dir": str(prepared), "ckpt_dir": str(folder), "output_dir": str(folder)}
    run_bundle(ACDC, "train.yaml", *configs, **{**places, **options})
    return torch.load(folder / "last.ckpt", weights_only=True)


def test_training_keeps_best_and_last(trained: Path, prepared: Path) -> None:
    best = torch.load(trained / "model.pt", weights_only=True)
    last = torch.load(trained / "last.ckpt", weights_only=True)
    assert best.keys() == last["network"].keys()
    assert last["epoch"] == 2
    assert 0 < last["best_metric"] <= 1
    assert list(trained.glob("events.out.tfevents.*"))
    # Of several, MONAI Label takes the one with the shortest name, and leaves out what does not fit the network.
    assert [file.name for file in trained.glob("*.pt")] == ["model.pt"]
    facts, own = (yaml.safe_load((folder / "facts.yaml").read_text()) for folder in (prepared, trained))
    assert own == {**facts, "source": ""}  # weights travel, folders do not
    assert facts["source"] != ""


def test_evaluation_writes_a_row_for_each_case(prepared: Path, trained: Path, tmp_path: Path) -> None:
    places = {"dataset_dir": str(prepared), "ckpt_dir": str(trained), "output_dir": str(tmp_path)}
    run_bundle(ACDC, "train.yaml", "evaluate.yaml", **places)
    testing = json.loads((prepared / "datalist.json").read_text())["testing"]
    with open(tmp_path / "cases.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [item["case"] for item in testing]
    summary = json.loads((tmp_path / "summary.json").read_text())
    mean = sum(float(row["ece"]) for row in rows) / len(rows)
    assert summary["cases"] == summary["ece"]["n"] == 4
    assert summary["ece"]["mean"] == pytest.approx(mean)
    assert summary["temperature"] == 1
    for name in ("reliability.png", "reliability_classes.png"):
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "kind"), [("nacl", NACLLoss), ("ce_dice", DiceCELoss), ("l1_ace", L1ACEDiceCELoss)], ids=str
)
def test_loss_overlay_trains(loss: str, kind: type, prepared: Path, tmp_path: Path) -> None:
    run(prepared, tmp_path, f"losses/{loss}.yaml", max_epochs=1)
    assert (tmp_path / "model.pt").is_file()
    parser = ConfigParser()
    parser.read_config([str(ACDC / "configs" / name) for name in ("train.yaml", f"losses/{loss}.yaml")])
    assert type(parser.get_parsed_content("loss")) is kind


@pytest.mark.slow
def test_tracking_with_mlflow(prepared: Path, tmp_path: Path) -> None:
    run(prepared, tmp_path, max_epochs=1, tracking="mlflow")
    with closing(sqlite3.connect(tmp_path / "mlruns.db")) as database:
        tracked = {name for (name,) in database.execute("SELECT DISTINCT key FROM metrics")}
    assert {"train_loss", "val_dsc"} <= tracked


class TestResuming:
    @pytest.fixture
    def copied(self, trained: Path, tmp_path: Path) -> Path:
        return shutil.copytree(trained, tmp_path / "copied")

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"learning_rate": 0.01}, "learning_rate (0.001, now 0.01)"),
            ({"any_orientation": False}, "train::preprocessing ("),
        ],
        ids=["learning rate", "augmentation"],
    )
    def test_with_other_settings_is_refused(
        self, options: dict[str, Any], named: str, copied: Path, prepared: Path
    ) -> None:
        before = snapshot(copied)
        places = {"dataset_dir": str(prepared), "ckpt_dir": str(copied), "output_dir": str(copied / "log")}
        ended = run_bundle_as_typed(ACDC, "train.yaml", resume="true", **{"max_epochs": 2, **places, **options})
        assert (ended.code, len(ended.err.splitlines())) == (1, 1)
        assert ended.err.startswith(f"{copied}/last.ckpt is of a run with other settings: ")
        assert named in ended.err
        assert {name: content for name, content in snapshot(copied).items() if "log" not in name} == before

    @pytest.mark.slow
    def test_workers_and_cache_change_no_bit(self, trained: Path, copied: Path, prepared: Path, tmp_path: Path) -> None:
        options = {"max_epochs": 2, "num_workers": 1, "train::dataset::cache": 0}
        assert run(prepared, copied, resume=True, **options)["epoch"] == 2
        weights = [torch.load(trained / "last.ckpt")["network"], run(prepared, tmp_path / "new", **options)["network"]]
        torch.testing.assert_close(*weights, rtol=0, atol=0)

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["bfloat16", "compile"])
    def test_ends_with_the_same_bits_in_each_mode(self, mode: str, prepared: Path, tmp_path: Path) -> None:
        options = {
            "num_workers": 1,
            "network_def::dropout": 0.1,
            "lr_scheduler::milestones": [2],
            "validate::handlers": [],
            "network_def::channels": [8, 16],  # compiling takes as long as there are layers
            "network_def::strides": [2],
            mode: True,
        }
        whole = run(prepared, tmp_path / "whole", max_epochs=3, **options)
        last = run(prepared, tmp_path / "parts", max_epochs=1, **options)
        for settings in (last["settings"], last["settings"]["train::trainer"]):
            settings["max_epochs"] = 3  # as if it had been killed
        torch.save(last, tmp_path / "parts" / "last.ckpt")
        resumed = run(prepared, tmp_path / "parts", max_epochs=3, resume=True, **options)
        assert resumed["epoch"] == 3
        for part in ("network", "optimizer"):
            torch.testing.assert_close(resumed[part], whole[part], rtol=0, atol=0)


def train(prepared: Path, folder: Path, log: Path) -> None:
    """Train in a session of its own, and write what is printed to a file."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # for workers that load data, as on a command line
    with open(log, "w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    run(prepared, folder, max_epochs=8, num_workers=1, resume=True)


def start_training(prepared: Path, folder: Path) -> tuple[BaseProcess, Path]:
    """Start a process that trains, and say where its log is; what takes long to import is imported once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["monai.bundle", "calib_components.handlers"])
    log = folder.with_suffix(".log")
    log.write_text("")  # not that of the process before
    process = context.Process(target=train, args=(prepared, folder, log))
    process.start()
    return process, log


@pytest.mark.slow
def test_training_killed_at_random_moments_resumes_to_the_same_bits(prepared: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process, log = start_training(prepared, whole)
    process.join()
    assert process.exitcode == 0, log.read_text()

    moments = random.Random(0)
    for wanted in ("Engine run", "Complete", "Complete"):  # the start of the run, or the end of its first epoch
        process, log = start_training(prepared, killed)
        while not re.search(f"SupervisedTrainer - INFO - .*{wanted}", log.read_text()):
            assert process.is_alive(), log.read_text()
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3))  # an epoch takes about as long
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL

    process, log = start_training(prepared, killed)
    process.join()
    assert process.exitcode == 0, log.read_text()
    expected, resumed = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (whole, killed))
    assert resumed["epoch"] == 8
    assert resumed["best_metric"] == expected["best_metric"]
    for part in ("network", "optimizer"):
        torch.testing.assert_close(resumed[part], expected[part], rtol=0, atol=0)
    expected, resumed = (torch.load(folder / "model.pt", weights_only=True) for folder in (whole, killed))
    torch.testing.assert_close(resumed, expected, rtol=0, atol=0)
    assert {path.name for path in killed.iterdir()} >= {"facts.yaml", "last.ckpt", "model.pt"}
