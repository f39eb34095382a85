"""Training and evaluation of the ACDC bundle on phantoms."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss

from calib_components.losses import L1ACEDiceCELoss, NACLLoss
from tests.helpers import ACDC, run_bundle


def train(prepared: Path, folder: Path, log: Path) -> None:
    """Train in a session of its own, and write what is printed to a file."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # for workers that load data, as on a command line
    with open(log, "w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    places = {"dataset_dir": str(prepared), "ckpt_dir": str(folder), "output_dir": str(folder)}
    run_bundle(ACDC, "train.yaml", max_epochs=14, num_workers=1, resume=True, **places)


def start_training(prepared: Path, folder: Path) -> tuple[BaseProcess, Path]:
    """Start a process that trains, and say where its log is; what takes long to import is imported once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["monai.bundle", "calib_components.handlers"])
    log = folder.with_suffix(".log")
    log.write_text("")  # not that of the process before
    process = context.Process(target=train, args=(prepared, folder, log))
    process.start()
    return process, log


def test_training_keeps_best_and_last(trained: Path) -> None:
    best = torch.load(trained / "model.pt", weights_only=True)
    last = torch.load(trained / "last.ckpt", weights_only=True)
    assert best.keys() == last["network"].keys()
    assert last["epoch"] == 2
    assert 0 < last["best_metric"] <= 1
    assert list(trained.glob("events.out.tfevents.*"))
    # Of several, MONAI Label takes the one with the shortest name, and leaves out what does not fit the network.
    assert [file.name for file in trained.glob("*.pt")] == ["model.pt"]


def test_evaluation_writes_cases_summary_bins_and_figures(prepared: Path, trained: Path, tmp_path: Path) -> None:
    run_bundle(
        ACDC,
        "train.yaml",
        "evaluate.yaml",
        dataset_dir=str(prepared),
        ckpt_dir=str(trained),
        output_dir=str(tmp_path),
    )
    testing = json.loads((prepared / "datalist.json").read_text())["testing"]
    with open(tmp_path / "cases.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [item["case"] for item in testing]
    of_regions = ("ece", "cece", "nll", "brier", "smooth_ece")
    assert [name for name in rows[0] if "_" not in name or not name.startswith(of_regions)] == [
        "case", "dsc_RV", "dsc_MYO", "dsc_LV", "hd95_RV", "hd95_MYO", "hd95_LV", "ece", "cece", "nll", "brier",
        *(f"{kind}_{name}" for kind in VOLUMES for name in ("RV", "MYO", "LV")), "aurc", "error_share_5",
    ]  # fmt: skip
    structures = ["structure_RV", "structure_MYO", "structure_LV"]
    regions = ["all", "predicted", "plausible", "predicted_band", "union", "band", *structures]
    assert {f"{name}_{region}" for name in ("ece", "cece", "nll", "brier") for region in regions} <= rows[0].keys()
    assert [name for name in rows[0] if name.endswith("_resampled")] == [f"ece_{name}_resampled" for name in structures]

    summary = json.loads((tmp_path / "summary.json").read_text())
    ece = [float(row["ece"]) for row in rows]
    assert summary["cases"] == len(rows) == 4
    assert summary["ece"] == {"mean": pytest.approx(np.mean(ece)), "std": pytest.approx(np.std(ece, ddof=1)), "n": 4}
    assert summary["temperature"] == 1
    in_one_only = {(item["case"], item["structure"]) for item in summary["missed"] + summary["spurious"]}
    assert in_one_only == {
        (row["case"], structure)
        for row in rows
        for structure in ("RV", "MYO", "LV")
        if row[f"dsc_{structure}"] == "0.0" and row[f"hd95_{structure}"] == ""
    }

    calibration = json.loads((tmp_path / "calibration.json").read_text())
    foreground = sum(int((nib.load(prepared / i["label"]).get_fdata() > 0).sum()) for i in testing)
    assert np.sum(calibration["pooled"]["top_label"]["count"]) == foreground
    assert np.array(calibration["per_case"]["classwise"]["count"]).shape == (4, 4, 15)
    for name in ("reliability.png", "reliability_classes.png"):
        assert (tmp_path / name).stat().st_size > 10_000


VOLUMES = ("true_volume", "segmented_volume", "expected_volume", "volume_low", "volume_high", "expected_dsc")


@pytest.mark.parametrize(
    ("loss", "kind"), [("nacl", NACLLoss), ("ce_dice", DiceCELoss), ("l1_ace", L1ACEDiceCELoss)], ids=str
)
def test_loss_overlay_trains(loss: str, kind: type, prepared: Path, tmp_path: Path) -> None:
    run_bundle(
        ACDC,
        "train.yaml",
        f"losses/{loss}.yaml",
        dataset_dir=str(prepared),
        max_epochs=1,
        ckpt_dir=str(tmp_path),
        output_dir=str(tmp_path),
    )
    assert (tmp_path / "model.pt").is_file()
    parser = ConfigParser()
    parser.read_config([str(ACDC / "configs" / name) for name in ("train.yaml", f"losses/{loss}.yaml")])
    assert type(parser.get_parsed_content("loss")) is kind


def test_tracking_with_mlflow(prepared: Path, tmp_path: Path) -> None:
    run_bundle(
        ACDC,
        "train.yaml",
        dataset_dir=str(prepared),
        max_epochs=1,
        ckpt_dir=str(tmp_path),
        output_dir=str(tmp_path),
        tracking="mlflow",
    )
    with closing(sqlite3.connect(tmp_path / "mlruns.db")) as database:
        tracked = {name for (name,) in database.execute("SELECT DISTINCT key FROM metrics")}
    assert {"train_loss", "val_dsc"} <= tracked


@pytest.mark.slow
def test_training_killed_at_five_random_moments_resumes_to_the_same_bits(prepared: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process, log = start_training(prepared, whole)
    process.join()
    assert process.exitcode == 0, log.read_text()

    moments = random.Random(0)
    for _ in range(5):
        process, log = start_training(prepared, killed)
        wanted = moments.choice(["Engine run", "Complete"])  # the start of the run, or the end of its first epoch
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
    assert resumed["epoch"] == 14
    assert resumed["best_metric"] == expected["best_metric"]
    for part in ("network", "optimizer"):
        torch.testing.assert_close(resumed[part], expected[part], rtol=0, atol=0)
    expected, resumed = (torch.load(folder / "model.pt", weights_only=True) for folder in (whole, killed))
    torch.testing.assert_close(resumed, expected, rtol=0, atol=0)
    left_out = ("events.", ".unfinished-")  # the latter of a process that was killed, until the file is written again
    names, expected_names = (
        {path.name for path in folder.iterdir() if not path.name.startswith(left_out)} for folder in (killed, whole)
    )
    assert names == expected_names


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["bfloat16", "compile"])
def test_resumes_to_the_same_bits_in_each_mode(mode: str, prepared: Path, tmp_path: Path) -> None:
    def run(folder: Path, **options: Any) -> dict[str, Any]:
        places = {"dataset_dir": str(prepared), "ckpt_dir": str(folder), "output_dir": str(folder)}
        options = {
            "num_workers": 1,
            "network_def::dropout": 0.1,
            "lr_scheduler::milestones": [2],
            "validate::handlers": [],
            "network_def::channels": [8, 16],  # compiling takes as long as there are layers
            "network_def::strides": [2],
            mode: True,
            **options,
        }
        run_bundle(ACDC, "train.yaml", **places, **options)
        return torch.load(folder / "last.ckpt", weights_only=True)

    whole = run(tmp_path / "whole", max_epochs=3)
    run(tmp_path / "parts", max_epochs=1)
    last = torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)
    last["settings"]["max_epochs"] = last["settings"]["train::trainer"]["max_epochs"] = 3  # as if it had been killed
    torch.save(last, tmp_path / "parts" / "last.ckpt")
    resumed = run(tmp_path / "parts", max_epochs=3, resume=True)
    assert resumed["epoch"] == 3
    for part in ("network", "optimizer"):
        torch.testing.assert_close(resumed[part], whole[part], rtol=0, atol=0)


def test_workers_and_cache_change_no_bit(prepared: Path, tmp_path: Path) -> None:
    weights = []
    for number, options in enumerate(({"num_workers": 0, "cache": 0}, {"num_workers": 2})):
        folder = str(tmp_path / str(number))
        places = {"dataset_dir": str(prepared), "ckpt_dir": folder, "output_dir": folder}
        run_bundle(ACDC, "train.yaml", max_epochs=2, **places, **options)
        weights.append(torch.load(Path(folder, "last.ckpt"), weights_only=True)["network"])
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_compilation_without_a_compiler(prepared: Path, tmp_path: Path) -> None:
    places = {"dataset_dir": prepared, "bundle_root": tmp_path, "output_dir": tmp_path}
    options = [f"--{name}={value}" for name, value in {**places, "device": "cpu", "compile": True}.items()]
    without = {"CXX": str(tmp_path / "no-compiler"), "PATH": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", f"--config_file={ACDC}/configs/train.yaml", *options],
        env={**os.environ, **without},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    expected = "compile: expected a compiler that torch.compile can use, or false, got InvalidCxxCompiler: No working"
    assert done.stderr.splitlines()[-1].startswith(expected)
    assert not (tmp_path / "models").exists()
