"""The ignore label of nnU-Net: its voxels count in no training, calibration or evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from calib_tools.commands import evaluate_predictions
from calib_tools.prepare import prepare_data
from calib_workflows.calibrate import read_estimate
from calib_workflows.evaluation_files import Evaluation
from tests.helpers import ACDC, run_bundle, save

LABELS = {"background": 0, "RV": 1, "MYO": 2, "LV": 3, "ignore": 4}
PATIENTS = 5


@pytest.fixture(scope="module")
def raw(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw data of nnU-Net: phantom hearts, in whose labels half of each slice is ignored."""
    root = tmp_path_factory.mktemp("raw")
    for file in sorted(prepared.glob("*/label.nii"))[:PATIENTS]:
        folder = file.parent
        image, label = (nib.load(folder / f"{name}.nii") for name in ("image", "label"))
        values = np.asarray(label.dataobj).copy()
        values[len(values) // 2 :] = LABELS["ignore"]
        save(root / "imagesTr" / f"{folder.name}_0000.nii.gz", image.get_fdata(), image.affine)
        save(root / "labelsTr" / f"{folder.name}.nii.gz", values, label.affine)
    task = {"channel_names": {"0": "cine"}, "labels": LABELS, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(task))
    return root


def test_training_calibration_and_evaluation_leave_it_out(raw: Path, tmp_path: Path) -> None:
    options = {"like": "acdc", "image_size": (64, 64), "fractions": (0.4, 0.6, 0), "workers": 1}
    prepare_data("nnunet", raw, tmp_path / "data", **options)
    places = {"dataset_dir": str(tmp_path / "data"), "ckpt_dir": str(tmp_path / "models")}
    run_bundle(ACDC, "train.yaml", output_dir=str(tmp_path / "log"), max_epochs=4, **places)
    fit = {"output_dir": str(tmp_path / "fit"), "calibrator": "temperature"}
    run_bundle(ACDC, "train.yaml", "calibrate.yaml", **fit, **places)
    where = {"output_dir": str(tmp_path / "evaluation"), "split": "validation"}
    run_bundle(ACDC, "train.yaml", "evaluate.yaml", **where, **places)
    found = Evaluation.read(tmp_path / "evaluation")
    voxels = found.regions["all"]["top_label_per_case"].count.sum(-1)
    assert voxels.tolist() == [np.prod(shape(raw, case)) / 2 for case in found.cases["case"]]
    estimate = read_estimate(tmp_path / "fit")
    nll = np.average(found.cases["nll_all"], weights=voxels)
    assert nll == pytest.approx(estimate.nll_after, rel=1e-5)
    dsc = found.cases[["dsc_RV", "dsc_MYO", "dsc_LV"]].mean(axis=1).mean()
    state = torch.load(tmp_path / "models" / "last.ckpt", weights_only=True)
    assert state["best_metric"] == pytest.approx(dsc, abs=1e-6)  # chooses the epoch

    maps = {"dataset_dir": str(raw / "imagesTr"), "output_dir": str(tmp_path / "maps")}
    run_bundle(ACDC, "inference.yaml", **maps, ckpt_dir=str(tmp_path / "models"))
    saved = {"structures": ["RV=1", "MYO=2", "LV=3"], "ignore_index": LABELS["ignore"]}
    evaluate_predictions(
        tmp_path / "maps", raw / "labelsTr", tmp_path / "saved", workers=1, **saved
    )
    same = pd.merge(found.cases, Evaluation.read(tmp_path / "saved").cases, on="case")
    assert len(same) == len(found.cases)
    for name in ("dsc_LV", "nll_all", "ece_all", "true_volume_LV"):
        np.testing.assert_allclose(same[f"{name}_x"], same[f"{name}_y"], atol=2e-3, err_msg=name)


def shape(raw: Path, case: str) -> tuple[int, ...]:
    return nib.load(raw / "labelsTr" / f"{case}.nii.gz").shape
