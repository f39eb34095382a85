"""The measures of MONAI's tutorial on calibration, from the definition in NumPy."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from calib_components.errors import InputError
from scripts.measure_ace import measure
from tests.helpers import HIPPOCAMPUS, SIZE, inference_config, make_prepared, make_weights


def average_error(p: np.ndarray, label: np.ndarray) -> float:
    """ACE of a case: probabilities `(N, *S)`, labels `(*S)`."""
    errors = []
    for k in range(1, len(p)):
        bins = np.minimum((p[k] * 20).astype(int), 19)
        errors.append(np.mean([abs((p[k] - (label == k))[bins == b].mean()) for b in np.unique(bins)]))
    return float(np.mean(errors))


def test_each_network_and_case_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = make_prepared(HIPPOCAMPUS, tmp_path / "data"), tmp_path / "results" / "ace.csv"
    options = {"bundle": HIPPOCAMPUS, "dataset_dir": data, "work": tmp_path / "work", "out": out}
    with pytest.raises(InputError, match=r"model_calibrated\.pt\. Run compare_losses first"):
        measure(**options)
    weights = make_weights(HIPPOCAMPUS, tmp_path / "work" / "nacl" / "seed0") / "model.pt"
    state = torch.load(weights, weights_only=True)
    torch.save({**state, "temperature": torch.tensor(0.2)}, weights.with_name("model_calibrated.pt"))
    measure(**options)

    found = pd.read_csv(out)
    assert found[["temperature", "case"]].agg(" ".join, axis=1).tolist() == [
        f"{temperature} testing{index}" for temperature in ("with", "without") for index in range(2)
    ]
    network = inference_config(HIPPOCAMPUS).get_parsed_content("network_def").eval()
    network.load_state_dict(state)
    for row in found.itertuples():
        image, label = (nib.load(data / row.case / f"{name}.nii").get_fdata() for name in ("image", "label"))
        volume = torch.from_numpy(image)[None, None].float()
        with torch.no_grad():
            logits = SlidingWindowInferer((*SIZE, 8), 2, 0.5, "gaussian")(volume, network)
        p = (logits / {"with": 0.2, "without": 1.0}[row.temperature]).softmax(1)[0].numpy()
        assert row.ace == pytest.approx(average_error(p, label), abs=1e-5)
        masks = [(p.argmax(0) == k, label == k) for k in (1, 2)]
        assert row.dsc == pytest.approx(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in masks]), abs=1e-5)
    assert (printed := capsys.readouterr().out).startswith(" ")
    assert f"{found[found.temperature == 'with'].ace.mean():.4f}" in printed

    weights.unlink()  # is needed no more
    measure(**options)
    assert capsys.readouterr().out == printed
