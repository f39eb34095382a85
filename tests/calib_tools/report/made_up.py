"""Evaluation folders with made-up numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from calib_components.metrics import CalibrationBins
from calib_workflows.evaluation_files import Evaluation

STRUCTURES = ("RV", "MYO", "LV")
CLASSES = ["background", "right ventricle", "myocardium", "left ventricle"]
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x02\x00\x00\x00\x01\x00"


def cases_of(patients: int, first: int = 0) -> dict[str, str]:
    """Two cases of each patient, and their patient."""
    return {f"p{i:02d}_{j}": f"p{i:02d}" for i in range(first, first + patients) for j in (1, 2)}


def patients_of(cases: int, each: int = 1) -> list[str]:
    """The patient of each of some cases, of which each patient has as many."""
    return [f"p{i // each:02d}" for i in range(cases)]


def bins_of(gaps: np.ndarray) -> CalibrationBins:
    """Bins of cases that are overconfident by `gaps`."""
    count = torch.arange(1000, 16000, 1000).expand(len(gaps), -1)
    confidence = (torch.arange(15) + 0.5) / 15
    correct = (count * (confidence - torch.tensor(gaps.copy())[:, None])).clamp(min=0).double()
    return CalibrationBins(count, (count * confidence).double(), correct)


def write_evaluation(
    folder: Path,
    patient_of: Mapping[str, str] | None = None,
    seed: int = 0,
    gap: Sequence[float] | float = 0.08,
    with_probabilities: bool = True,
    changed: Mapping[str, Any] | None = None,
    parts: Mapping[str, pd.DataFrame] | None = None,
    **summary: Any,
) -> Path:
    """Write an evaluation whose probabilities are overconfident by `gap` in every case.

    Cases with a lower DSC have a lower expected DSC. `changed` replaces columns, and `summary`
    entries of summary.json.
    """
    patient_of = cases_of(8) if patient_of is None else patient_of
    rng, cases = np.random.default_rng(seed), list(patient_of)
    n, gaps = len(cases), np.broadcast_to(gap, len(cases))
    quality = rng.uniform(0.5, 0.9, n)
    columns = {f"dsc_{s}": quality + rng.uniform(0, 0.05, n) for s in STRUCTURES}
    columns |= {f"hd95_{s}": rng.uniform(1, 5, n) for s in STRUCTURES}
    folder.mkdir(parents=True, exist_ok=True)
    regions: dict[str, Any] = {}
    if with_probabilities:
        error = np.abs(gaps) + rng.uniform(0, 0.01, n)
        columns |= {"ece": error, "cece": error / 2, "ece_if_true": 0.1, "cece_if_true": 0.05}
        for region, share in (("all", 0.25), ("near", 0.5), ("predicted", 1)):
            columns[f"nll_{region}"] = 4 * share * error
        for s in STRUCTURES:
            true = 80 + 2.0 * np.arange(n)  # of a case the same in all folders
            columns |= {
                f"true_volume_{s}": true,
                f"segmented_volume_{s}": true - 1,
                f"expected_volume_{s}": true + 2,
                f"confidence_{s}": 0.9,
                f"accuracy_{s}": 0.9 - gaps,
                f"expected_dsc_{s}": columns[f"dsc_{s}"] + 0.05,
                f"mean_entropy_{s}": 1 - columns[f"dsc_{s}"],
            }
        bins = bins_of(gaps)
        kinds = dict.fromkeys(("top_label", "classwise"), bins.pooled())
        of_cases = kinds | {"top_label_per_case": bins}
        regions = {"foreground": kinds, "all": of_cases, "predicted": of_cases}
        columns |= dict.fromkeys(("ece_all", "ece_predicted"), bins.expected_error().numpy())
        summary = {"channels": len(CLASSES), "sigmoid": False, **summary}
    columns |= {name: np.broadcast_to(values, n) for name, values in (changed or {}).items()}
    table = pd.DataFrame({"case": cases, **columns})
    known = {
        **{
            name: {"mean": values.mean(), "std": values.std(), "n": int(values.count())}
            for name, values in table.drop(columns="case").items()
        },
        "rows": {name: len(part) for name, part in (parts or {}).items()},
        "labels": {},
        "missed": [],
        "spurious": [],
        "patients": dict(patient_of),
        "source": "bundle",
        "unit": "mm",
        "volume_unit": "ml",
    }
    Evaluation(table, known | summary, CLASSES, STRUCTURES, regions, parts or {}).write(folder)
    return folder
