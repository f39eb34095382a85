"""MONAI's calibration error and the agreement of seeds, from their definitions in NumPy."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from calib_components.errors import InputError
from study.tables.measure_networks import measure
from tests.helpers import HIPPOCAMPUS, SIZE, inference_config, make_prepared, make_weights


def dsc(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def average_error(p: np.ndarray, label: np.ndarray) -> float:
    """ACE of a case: probabilities `(N, *S)`, labels `(*S)`."""
    errors = []
    for k in range(1, len(p)):
        bins = np.minimum((p[k] * 20).astype(int), 19)
        errors.append(
            np.mean([abs((p[k] - (label == k))[bins == b].mean()) for b in np.unique(bins)])
        )
    return float(np.mean(errors))


def test_each_network_and_case_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = make_prepared(HIPPOCAMPUS, tmp_path / "data"), tmp_path / "results" / "networks.csv"
    options = {"bundle": HIPPOCAMPUS, "dataset_dir": data, "work": tmp_path / "work", "out": out}
    with pytest.raises(InputError, match=r"model_calibrated\.pt\. Run compare_losses first"):
        measure(**options)
    states = []
    for seed in range(2):
        weights = make_weights(HIPPOCAMPUS, tmp_path / "work" / "nacl" / f"seed{seed}") / "model.pt"
        state = torch.load(weights, weights_only=True)
        changed = {
            name: value * (1 + seed * torch.rand_like(value)) for name, value in state.items()
        }
        states.append(changed | {"temperature": state["temperature"]})
        torch.save(states[seed], weights)
        torch.save(
            {**states[seed], "temperature": torch.tensor(0.2)},
            weights.with_name("model_calibrated.pt"),
        )
    shutil.copytree(tmp_path / "work" / "nacl" / "seed0", tmp_path / "work" / "svls" / "seed0")
    measure(**options)

    table = pd.read_csv(out)
    alone, found = table[table["method"] == "svls"], table[table["method"] == "nacl"]
    assert len(alone) == 4
    assert alone["pairwise_dsc"].isna().all()
    networks = itertools.product(range(2), ("with", "without"))
    expected = [
        (seed, temperature, f"testing{index}")
        for seed, temperature in networks
        for index in range(2)
    ]
    assert [*found[["seed", "temperature", "case"]].itertuples(index=False, name=None)] == expected
    network, predicted = inference_config(HIPPOCAMPUS).get_parsed_content("network_def").eval(), {}
    for row in found.itertuples():
        network.load_state_dict(states[row.seed])
        image, label = (
            nib.load(data / row.case / f"{name}.nii").get_fdata() for name in ("image", "label")
        )
        volume = torch.from_numpy(image)[None, None].float()
        with torch.no_grad():
            logits = SlidingWindowInferer((*SIZE, 8), 2, 0.5, "gaussian")(volume, network)
        p = (logits / {"with": 0.2, "without": 1.0}[row.temperature]).softmax(1)[0].numpy()
        assert row.ace == pytest.approx(average_error(p, label), abs=1e-5)
        predicted[row.case, row.seed] = p.argmax(0)
        assert row.dsc == pytest.approx(
            np.mean([dsc(p.argmax(0) == k, label == k) for k in (1, 2)]), abs=1e-5
        )
    for row in found.itertuples():
        pair = [predicted[row.case, seed] for seed in range(2)]
        agreement = np.nanmean([dsc(*(labels == k for labels in pair)) for k in (1, 2)])
        assert row.pairwise_dsc == pytest.approx(agreement, abs=1e-5)
    assert f"{found[found.temperature == 'with'].ace[:2].mean():.4f}" in capsys.readouterr().out
