"""A comparison that really trains and evaluates the ACDC bundle, on phantoms, also when it is
killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from calib_workflows.calibrate import read_estimate
from calib_workflows.evaluation_files import Evaluation
from study.compare import compare_losses
from tests.helpers import ACDC, ROOT


@pytest.mark.slow
def test_a_killed_comparison_has_the_results_of_one_that_was_not(
    prepared: Path, tmp_path: Path
) -> None:
    """SIGKILL, which no process can handle, goes to the command and its training."""
    whole, continued = tmp_path / "whole", tmp_path / "continued"
    options = {"dataset_dir": prepared, "devices": ["cpu"], "max_epochs": 2, "num_workers": 0}
    compare_losses(ACDC, out=whole, losses=["ce_dice"], **options)
    one, other = (folder / "ce_dice" / "seed0" for folder in (whole, continued))
    loss = json.loads((one / "settings.json").read_text())["training"]["loss"]
    assert loss["_target_"] == "calib_components.losses.DiceCELoss"
    work, fit = whole / "work" / "ce_dice" / "seed0", read_estimate(one / "temperature")
    temperatures = [
        torch.load(work / name, weights_only=True)["temperature"]
        for name in ("model.pt", "model_calibrated.pt")
    ]
    assert (fit.patients, temperatures) == (2, [1, np.float32(fit.temperature)])
    plain, scaled = (Evaluation.read(folder).summary for folder in (one, one / "temperature"))
    assert plain["dsc"] == scaled["dsc"]  # the same label maps
    assert plain["nll_all"] != scaled["nll_all"]

    arguments = {"bundle": ACDC, "out": continued, "losses": "ce_dice", **options}
    command = [
        sys.executable,
        "scripts/compare_losses.py",
        *(f"--{name}={value}" for name, value in arguments.items()),
    ]
    killed = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    checkpoint = continued / "work" / "ce_dice" / "seed0" / "last.ckpt"
    while not checkpoint.exists():
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert torch.load(checkpoint, weights_only=True)["epoch"] in (1, 2)
    subprocess.run(command, cwd=ROOT, check=True)
    files = sorted(path.relative_to(one) for path in one.rglob("*"))
    assert sorted(path.relative_to(other) for path in other.rglob("*")) == files
    for file in files:
        # Times and paths
        if (one / file).is_file() and file.name not in ("history.csv", "settings.json"):
            assert (other / file).read_bytes() == (one / file).read_bytes(), file
    histories = [pd.read_csv(cell / "history.csv").drop(columns="seconds") for cell in (one, other)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
