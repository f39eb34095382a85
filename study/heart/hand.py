"""Put together what users of the shipped weights are handed: the test scans of the heart, segmented
by `inference.yaml` and measured by `evaluate_predictions.py` on the grid of the images.

    python -m study.heart.hand FOLDER OUT.csv.gz

FOLDER has `METHOD/SET/maps` and `METHOD/SET/evaluation`, as the page "How were the results made?"
makes them. OUT gets one row for each network and scan.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from calib_workflows.evaluation_files import Evaluation
from study.heart.measure import STRUCTURES

MEASURES = ["nll_all", "nll_near", "nll_predicted", "ece_all", "ece_predicted", "ece"]
OF_STRUCTURES = [
    "dsc",
    "hd95",
    "expected_dsc",
    "true_volume",
    "segmented_volume",
    "expected_volume",
    "pairwise_dsc",  # of the members of an ensemble
]


def read_scans(folder: Path) -> pd.DataFrame:
    """Return the scans of a network and a test set."""
    cases = Evaluation.read(folder / "evaluation").cases
    quality = pd.read_csv(folder / "maps" / "quality.csv", dtype={"scan": str})
    if "pairwise_dsc" in quality:
        agreement = quality.pivot(index="scan", columns="structure", values="pairwise_dsc")
        cases = cases.merge(agreement.add_prefix("pairwise_dsc_"), left_on="case", right_index=True)
    columns = [f"{measure}_{name}" for measure in OF_STRUCTURES for name in STRUCTURES]
    patients = cases["case"].str.extract("(patient[0-9]+)", expand=False)
    chosen = cases.filter(items=["case", *MEASURES, *columns])
    chosen.insert(0, "test_set", folder.name)
    chosen.insert(2, "patient", patients)
    return chosen


def collect(folder: Path, out: Path) -> None:
    """Write the table of all networks and test sets."""
    tables = []
    for path in sorted(folder.glob("*/*/evaluation")):
        method = path.parents[1].name
        scans = read_scans(path.parent)
        tables.append(pd.concat({(method, 0): scans}, names=["method", "seed"]))
    table = pd.concat(tables).reset_index(["method", "seed"]).assign(temperature="")
    table.to_csv(out, index=False, float_format="%.6g", compression={"method": "gzip", "mtime": 0})


if __name__ == "__main__":
    collect(*map(Path, sys.argv[1:]))
