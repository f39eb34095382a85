"""nnU-Net's own commands with our trainers, as docs/nnunet.md gives them: from a download to the
report.

On 8 patients of ACDC where they are there, on phantoms otherwise; a small network, two folds, two
epochs of five steps.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest

from calib_tools.predictions import evaluate_predictions
from calib_workflows.calibrate import read_estimate
from calib_workflows.evaluation_files import Evaluation
from tests.helpers import ROOT, SHARED
from tests.integration.test_docs import blocks, maps, run

PAGE = ROOT / "docs/nnunet.md"
PATIENTS, TEST_PATIENTS = 8, 2
# The latter also for nnU-Net's default
DOCUMENTED, SHORT = "nnUNetTrainerNACLDice", "nnUNetTrainerShort"
TRAINER = f"""
import torch
from calib_tools.nnunet.trainers.loss_trainers import {DOCUMENTED}

class {SHORT}({DOCUMENTED}):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 5, 1
"""
SHRINK = """
import json, sys
from pathlib import Path

file = Path(sys.argv[1], "Dataset027_ACDC", "nnUNetPlans.json")
plans = json.loads(file.read_text())
plans["configurations"]["2d"] |= {"batch_size": 2, "patch_size": [128, 128]}
network = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
network |= {"n_stages": 4, "features_per_stage": [8, 16, 32, 32]}
network |= {"n_conv_per_stage": [1] * 4, "n_conv_per_stage_decoder": [1] * 3}
network |= {name: network[name][:4] for name in ("strides", "kernel_sizes")}
file.write_text(json.dumps(plans))
"""
PREDICT = (
    "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as"
    " predict; predict()"
)


def probabilities(folder: Path) -> dict[str, np.ndarray]:
    """Saved probabilities `(C, Z, Y, X)` by case."""
    files = sorted(folder.glob("*.npz"))
    assert len(files) == 2 * TEST_PATIENTS
    return {file.stem: np.load(file)["probabilities"] for file in files}


def run_page(folder: Path, acdc: Path) -> str:
    """Run the commands of the page at a small size, and return what they print."""
    for index, patient in enumerate(sorted((acdc / "training").iterdir())[:PATIENTS]):
        part = "testing" if index >= PATIENTS - TEST_PATIENTS else "training"
        shutil.copytree(patient, folder / "ACDC" / part / patient.name)
    (folder / "trainers").mkdir()
    (folder / "trainers" / "short.py").write_text(TRAINER)
    (folder / "shrink.py").write_text(SHRINK)
    text = "\n".join(blocks(PAGE, "bash"))
    for pattern, replacement in {
        r"(nnUNetv2_plan_and_preprocess .*)": (
            r"\1 -np 1 -npfp 1; python shrink.py $nnUNet_preprocessed"
        ),
        "study/tables": f"{ROOT}/study/tables",
        r"(nnunet trainers\))": rf"\1:{folder / 'trainers'}",
        r"(?<=/)nnUNetTrainer(?=__)": SHORT,
        rf" -tr {DOCUMENTED}": "",
        "0 1 2 3 4": "0 1",
        "([, ])nnunet/fold2[, ]nnunet/fold3[, ]nnunet/fold4": "",
        # Its worker is a fork of a process with threads, which may hang
        r"nnUNetv2_train": f"nnUNet_n_proc_DA=0 nnUNetv2_train -device cpu -tr {SHORT}",
        r"-d 27 -c 2d(?= -f| --save)": f"-d 27 -c 2d -tr {SHORT}",
        r"(nnUNetv2_predict\w*)": r"\1 -device cpu",
        r"(nnUNetv2_predict) ": r"\1 -npp 0 -nps 0 ",  # in one process
        r"(nnUNetv2_predict_from_modelfolder) ": r"\1 -npp 1 -nps 1 ",
        r"(-tr \w+) --save": r"\1 -f 0 1 --save",  # all folds
        "nnUNetv2_ensemble": "nnUNetv2_ensemble -np 1",
        r"(nnunet calibrate|evaluate_predictions)": r"\1 --workers 1",
    }.items():
        text, changes = re.subn(pattern, replacement, text)
        assert changes, pattern
    limits = "export nnUNet_n_proc_DA=1 nnUNet_def_n_proc=1\n"  # 0 would stop the planning
    limits += (
        f"export nnUNet_extTrainer=$(calib-components nnunet trainers):{folder / 'trainers'}\n"
    )
    return run([limits, text], folder, {"ACDC": folder / "ACDC"})


def check_files(nnunet: Path, model: Path, printed: str) -> None:
    estimate = read_estimate(model)
    assert f"T = {estimate.summary()}" in printed
    splits = json.loads((nnunet / "preprocessed/Dataset027_ACDC/splits_final.json").read_text())
    assert set(estimate.leave_one_out) == {case[:10] for fold in splits[:2] for case in fold["val"]}
    options = {
        "structures": ["RV=1", "MYO=2", "LV=3"],
        "patient_pattern": "patient[0-9]+",
        "workers": 1,
    }
    for name in ("five_folds", "ensemble"):  # as the page evaluates others
        truth = nnunet / "raw" / "Dataset027_ACDC" / "labelsTs"
        evaluate_predictions(nnunet / name, truth, nnunet / f"evaluation_{name}", **options)
    for name in (
        "evaluation",
        "evaluation_folds",
        "evaluation_calibrated",
        "evaluation_five_folds",
        "evaluation_ensemble",
    ):
        assert (nnunet / name / "report" / "index.html").is_file()
        assert len(Evaluation.read(nnunet / name).summary["patients"]) == 2 * TEST_PATIENTS
    assert (nnunet / "maps" / "agreement.csv").is_file()
    done = Evaluation.read(nnunet / "evaluation_calibrated").summary["calibration"]
    assert done == {"calibrator": "temperature", "region": "all", "patients": estimate.patients}
    folds = Evaluation.read(nnunet / "evaluation_folds")
    assert folds.cases["pairwise_dsc_LV"].notna().any()
    assert [*folds.parts["members"]["member"].unique()] == ["fold0", "fold1", "average"]
    assert "evaluation_calibrated" in (nnunet / "report" / "index.html").read_text()
    with zipfile.ZipFile(nnunet / "model.zip") as archive:
        packed = {Path(name).name for name in archive.namelist() if name.endswith(".pth")}
    assert packed == {"checkpoint_calibrated.pth"}
    # A temperature changes no label
    np.testing.assert_equal(maps(nnunet / "segmented"), maps(nnunet / "calibrated"))


def check_without_this_package(nnunet: Path, model: Path, folder: Path) -> None:
    """Anyone predicts with the calibrated checkpoint.

    The environment has what ours has, but not this package, which is in ours by a `.pth` file.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    places = {f"nnUNet_{name}": str(nnunet / name) for name in ("raw", "preprocessed", "results")}
    environment = {
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "nnUNet_def_n_proc": "1",
        **places,
    }

    def run_alone(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [folder / "bin" / "python", "-c", code, *map(str, arguments)]
        return subprocess.run(
            command, cwd=folder, env=environment, check=False, capture_output=True, text=True
        )

    assert "No module named 'calib_components'" in run_alone("import calib_components").stderr
    options = [
        "-f",
        "0",
        "-device",
        "cpu",
        "-npp",
        "1",
        "-nps",
        "1",
        "--save_probabilities",
        "-m",
        model,
    ]
    options += ["-i", nnunet / "raw" / "Dataset027_ACDC" / "imagesTs", "-o", nnunet / "alone"]
    failed = run_alone(PREDICT, *options)  # with the checkpoint as it was trained
    assert f"Could not find requested nnunet trainer {SHORT}" in failed.stderr
    done = run_alone(PREDICT, *options, "-chk", "checkpoint_calibrated.pth")
    assert done.returncode == 0, done.stderr
    expected = probabilities(nnunet / "calibrated")
    for case, p in probabilities(nnunet / "alone").items():
        np.testing.assert_array_equal(p, expected[case])


@pytest.mark.slow
def test_commands_of_the_page(tmp_path: Path, phantoms: Path) -> None:
    real = SHARED / "data" / "acdc"
    printed = run_page(tmp_path, real if real.is_dir() else phantoms)
    nnunet = tmp_path / "nnunet"
    model = nnunet / "results" / "Dataset027_ACDC" / f"{SHORT}__nnUNetPlans__2d"
    check_files(nnunet, model, printed)
    check_without_this_package(nnunet, model, tmp_path / "venv")
