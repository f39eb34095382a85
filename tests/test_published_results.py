"""What is kept under `results/`, and what README and bundle say of it."""

from __future__ import annotations

import csv
import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest

from calib_components.comparison import read_results
from scripts.compare_losses import TABLE1
from scripts.report import report

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results/acdc/table1"
METADATA = json.loads((ROOT / "bundles/acdc_mri_nacl_segmentation/configs/metadata.json").read_text())


def test_table_is_complete() -> None:
    results = read_results(RESULTS)
    assert not results.missing
    assert [method.name for method in results.methods] == [setting.name for setting in TABLE1]


def test_report_is_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    report(str(RESULTS), str(tmp_path))
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_bytes() for path in (RESULTS / "report").iterdir()}
    assert made.keys() == kept.keys()
    assert made["report.md"] == kept["report.md"]  # three digits: with any version of what draws and computes
    drawn_with = {"numpy": METADATA["numpy_version"], **METADATA["required_packages_version"]}
    for name in ("matplotlib", "numpy", "scipy"):
        if version(name) != drawn_with[name]:
            pytest.skip(f"figures and last digits may differ: {name} is {version(name)}, was {drawn_with[name]}")
    assert [name for name in made if made[name] != kept[name]] == []


def test_readme_tells_the_means() -> None:
    with open(RESULTS / "report/means.csv", newline="") as file:
        means = {(row["method"], row["measure"]): float(row["mean"]) for row in csv.DictReader(file)}
    labels = {setting.label: setting.name for setting in TABLE1}
    row = r"^\| (\S+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$"
    rows = re.findall(row, (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [labels[label] for label, *_ in rows] == list(dict.fromkeys(method for method, _ in means))
    for label, *told in rows:
        measured = [means[labels[label], measure] for measure in ("dsc", "hd95", "ece", "cece")]
        assert told == [f"{value:.{digits}f}" for value, digits in zip(measured, (3, 2, 3, 3), strict=True)]
