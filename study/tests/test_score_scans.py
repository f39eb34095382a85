"""Estimates of the quality of scans, beside their DSC, from their definitions."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from study.tables.score_scans import score_scans
from tests.helpers import ACDC, inference_config, make_prepared, make_weights


def dsc(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def test_estimates_of_each_scan(tmp_path: Path) -> None:
    shutil.copytree(ACDC / "configs", tmp_path / "bundle" / "configs")
    make_weights(ACDC, tmp_path / "bundle" / "models")
    data = make_prepared(ACDC, tmp_path / "data")
    score_scans(tmp_path / "bundle", data, tmp_path / "scans.csv.gz", split="validation")

    table = pd.read_csv(tmp_path / "scans.csv.gz").set_index("case")
    assert [*table.index] == ["validation0", "validation1"]
    network = inference_config(ACDC).get_parsed_content("network_def").eval()
    network.load_state_dict(
        torch.load(tmp_path / "bundle" / "models" / "model.pt", weights_only=True)
    )
    for case, row in table.iterrows():
        image, label = (
            nib.load(data / str(case) / f"{name}.nii").get_fdata() for name in ("image", "label")
        )
        slices = torch.from_numpy(image).float().movedim(-1, 0)[:, None]
        with torch.no_grad():
            turned = [
                network(slices.flip(flip).rot90(quarter, (2, 3))).rot90(-quarter, (2, 3)).flip(flip)
                for flip in ([], [2])
                for quarter in range(4)
            ]
        p = turned[0].softmax(1).double()
        one, averaged = (
            logits.argmax(1).movedim(0, -1).numpy() for logits in (turned[0], sum(turned))
        )
        entropy = -(p * p.log()).sum(1).movedim(0, -1).numpy() / np.log(4)
        maps = [logits.argmax(1).movedim(0, -1).numpy() for logits in turned]
        for k, name in enumerate(("RV", "MYO", "LV"), start=1):
            own = p[:, k].movedim(0, -1).numpy()
            expected = 2 * own[one == k].sum() / ((one == k).sum() + own.sum())
            assert row[f"expected_dsc_{name}"] == pytest.approx(expected, abs=1e-5)
            assert row[f"mean_confidence_{name}"] == pytest.approx(own[one == k].mean(), abs=1e-5)
            pairs = [
                dsc(first == k, second == k) for first, second in itertools.combinations(maps, 2)
            ]
            assert row[f"pairwise_dsc_{name}"] == pytest.approx(np.nanmean(pairs), abs=1e-5)
            assert row[f"dsc_{name}"] == pytest.approx(dsc(one == k, label == k), abs=1e-5)
            assert row[f"averaged_dsc_{name}"] == pytest.approx(
                dsc(averaged == k, label == k), abs=1e-5
            )
            assert row[f"true_volume_{name}"] == (label == k).sum()
            assert row[f"expected_volume_{name}"] == pytest.approx(p[:, k].sum().item(), rel=1e-4)
        assert row["entropy_image"] == pytest.approx(entropy.mean(), abs=1e-5)
        assert row["entropy_predicted"] == pytest.approx(entropy[one > 0].mean(), abs=1e-5)
