"""The results that are kept under `results/`, and what README and bundle say about them."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from calib_components.fingerprint import EVALUATION, TRAINING, fingerprint
from calib_components.handlers.temperature import read_temperature
from calib_components.tools.comparison import report, report_evaluations
from calib_components.tools.comparison.results import read_results
from calib_components.tools.comparison.settings import TABLE1
from tests.bad_input.harness import snapshot
from tests.helpers import ROOT, SHARED, run_script

DATA = SHARED / "data" / "acdc"
RESULTS = ROOT / "results/acdc/table1"
SEEDS = ROOT / "results/acdc/three_seeds"
CELL = RESULTS / "nacl/seed0"
BUNDLE = ROOT / "bundles/acdc_mri_nacl_segmentation"
METADATA = json.loads((BUNDLE / "configs/metadata.json").read_text())


def test_table_is_complete() -> None:
    results = read_results(RESULTS)
    assert not results.missing
    assert [method.name for method in results.methods] == [setting.name for setting in TABLE1]


def test_seeds_are_those_of_the_bundle_as_it_is() -> None:
    for method in read_results(SEEDS).methods:
        for settings in (cell.settings for cell in method.cells):
            for files, ids, expected in (
                (("train.yaml", f"losses/{method.name}.yaml"), TRAINING, settings.training),
                (("train.yaml", "evaluate.yaml"), EVALUATION, settings.evaluation),
            ):
                parser = ConfigParser()
                parser.read_config([str(BUNDLE / "configs" / file) for file in files])
                parser.update({"val_interval": 4, "compile": "true", "seed": settings.seed})
                assert fingerprint(parser.get(), ids) == expected


# What the bundle does otherwise since the table was made: it checks lists and labels, finds the axis of the slices,
# flips and turns them in training, and evaluates calibration in more regions. For speed, the network's weights lie in
# another order in memory, Adam updates them in one kernel, and bfloat16 and compilation are options; the order of the
# slices in an epoch is that of another sampler.
CHANGED = {"validate::dataset", "validate::postprocessing", "volume_transforms", "network"}
FOR_SPEED = {"optimizer", "train::dataloader", "train::inferer", "train::trainer"}
CHANGED_IN_TRAINING = {*CHANGED, *FOR_SPEED, "train::dataset", "train::preprocessing"}
CHANGED_IN_EVALUATION = {*CHANGED, "validate::additional_metrics"}


def test_bundle_has_the_settings_of_the_table_but_for_known_ones() -> None:
    """Otherwise a refactoring changed more than words."""
    for method in read_results(RESULTS).methods:
        loss = f"losses/{method.name}.yaml"
        (settings,) = (cell.settings for cell in method.cells)
        for files, ids, expected, changed in (
            (("train.yaml", loss), TRAINING, settings.training, CHANGED_IN_TRAINING),
            (("train.yaml", "evaluate.yaml"), EVALUATION, settings.evaluation, CHANGED_IN_EVALUATION),
        ):
            parser = ConfigParser()
            parser.read_config([str(BUNDLE / "configs" / file) for file in files])
            parser["val_interval"] = 4
            today = fingerprint(parser.get(), ids)
            assert today.keys() == expected.keys()
            assert {name for name in today if today[name] != expected[name]} == changed


def test_no_picture_of_a_patient_is_kept() -> None:
    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, check=False, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("needs a clone of the repository")
    assert "results/acdc/table1/nacl/seed0/cases.csv\n" in listed.stdout
    assert "/cases/" not in listed.stdout


@pytest.mark.parametrize(("folder", "reference"), [(RESULTS, None), (SEEDS, "ce_dice")], ids=["table1", "three_seeds"])
def test_report_is_rebuilt_byte_for_byte(folder: Path, reference: str | None, tmp_path: Path) -> None:
    results = shutil.copytree(folder, tmp_path / "results", ignore=shutil.ignore_patterns("cases", "work"))
    report(results, tmp_path / "report", reference)
    compare_with_kept(tmp_path / "report", folder / "report")


@pytest.mark.parametrize("test_set", ["own", "bssfp", "lge"])
def test_report_of_ensembles_is_rebuilt_byte_for_byte(test_set: str, tmp_path: Path) -> None:
    folder = ROOT / "results/acdc/ensembles" / test_set
    networks = [folder / f"ensemble_of_{name}" for name in ("ce_dice", "ce_dice_T", "nacl", "nacl_T")]
    report_evaluations(networks, tmp_path / "report")
    compare_with_kept(tmp_path / "report", folder / "report")


def compare_with_kept(report: Path, kept_report: Path) -> None:
    made = {path.name: path.read_bytes() for path in report.iterdir()}
    kept = {path.name: path.read_bytes() for path in kept_report.iterdir()}
    assert made.keys() == kept.keys()
    assert made["report.md"] == kept["report.md"]  # rounded, so the same with all versions of numpy and others
    drawn_with = {"numpy": METADATA["numpy_version"], **METADATA["required_packages_version"]}
    for name in ("matplotlib", "numpy", "scipy"):
        if version(name) != drawn_with[name]:
            pytest.skip(f"figures and last digits may differ: {name} is {version(name)}, was {drawn_with[name]}")
    assert [name for name in made if made[name] != kept[name]] == []


def test_pages_have_what_a_temperature_changes() -> None:
    """The rows of the README are the columns of the page."""
    readme, page = (
        {cells[0]: cells[1:] for cells in map(cells_of, re.findall(r"^\|.*\|$", path.read_text(), re.MULTILINE))}
        for path in (ROOT / "README.md", ROOT / "docs/posthoc.md")
    )
    names = ["NLL, all voxels", "ECE, all voxels", "ECE, predicted foreground", "ECE, plausible foreground"]
    columns = list(zip(*(page[name] for name in [*names, "ECE, true foreground (the paper's)"]), strict=True))
    networks = ("nacl/plain", "nacl/scaled", "ce_dice/plain", "ce_dice/scaled")
    for network, column, label in zip(networks, columns, ("NACL", "NACL, T", "CE + Dice", "CE + Dice, T"), strict=True):
        folder = ROOT / "results/acdc/temperature" / network
        summary = json.loads((folder / "summary.json").read_text())
        means = [summary[name]["mean"] for name in ("nll_all", "ece_all", "ece_predicted", "ece_plausible", "ece")]
        shown = [f"{mean:.3f}" for mean in means]
        shown[-1] += f" ({summary['ece_if_true']['mean']:.3f})"
        assert list(column) == shown
        fit = read_temperature(folder.parent)
        if network.endswith("scaled"):
            assert summary["temperature"] == pytest.approx(fit.temperature)
            label += f" = {fit.temperature:.2f}"
            interval = f"{fit.temperature:.2f}, {fit.low:.2f} to {fit.high:.2f}"
            assert interval in next(cells for name, cells in page.items() if name.startswith("T, 95 % interval"))
            assert f"{fit.coverage:.0%}".replace("%", " %") in (ROOT / "docs/posthoc.md").read_text()
        assert readme[label] == shown


def cells_of(row: str) -> list[str]:
    """The cells of a row of a table."""
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_bundle_says_what_its_weights_reach() -> None:
    summary = json.loads((CELL / "summary.json").read_text())
    assert METADATA["eval_metrics"] == {
        "mean_dice": round(summary["dsc"]["mean"], 3),
        "mean_hd95_voxels": round(summary["hd95"]["mean"], 2),
        "mean_ece": round(summary["ece"]["mean"], 3),
        "mean_cece": round(summary["cece"]["mean"], 3),
    }
    page = (BUNDLE / "docs/README.md").read_text()
    for measure, digits in (("dsc", 3), ("hd95", 2)):
        means = (summary[name]["mean"] for name in (measure, *(f"{measure}_{s}" for s in ("RV", "MYO", "LV"))))
        assert f"| {measure.upper()} | {' | '.join(f'{mean:.{digits}f}' for mean in means)} |" in page


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/acdc")
def test_weights_are_those_of_the_table(tmp_path: Path) -> None:
    """They give the table's numbers on the same test patients, prepared again; the table itself cannot be continued."""
    data, evaluation = tmp_path / "acdc", tmp_path / "eval"
    done = run_script("scripts/prepare_data.py", "acdc", DATA, data)
    assert done.returncode == 0, done.stderr
    table = shutil.copytree(RESULTS, tmp_path / "table1")
    before = snapshot(table)
    done = run_script("scripts/compare_losses.py", BUNDLE, data, table, "--val_interval=4")
    assert done.returncode == 1
    assert "made with other settings (network)" in done.stderr
    assert snapshot(table) == before
    config_file = f"['{BUNDLE}/configs/train.yaml','{BUNDLE}/configs/evaluate.yaml']"
    places = {"bundle_root": BUNDLE, "dataset_dir": data, "output_dir": evaluation}
    options = {"config_file": config_file, **places, "device": "cpu", "num_workers": 0}
    done = run_script("-m", "monai.bundle", "run", *(f"--{name}={value}" for name, value in options.items()))
    assert done.returncode == 0, done.stderr
    measured, expected = (list(csv.DictReader(file.open())) for file in (evaluation / "cases.csv", CELL / "cases.csv"))
    assert [row["case"] for row in measured] == [row["case"] for row in expected]
    # HD95 is left out: it does not change continuously with rounding errors.
    continuous = [name for name in expected[0] if name != "case" and not name.startswith("hd95")]
    for here, there in zip(measured, expected, strict=True):
        values = {name: float(there[name]) for name in continuous}
        assert {name: float(here[name]) for name in continuous} == pytest.approx(values, rel=1e-3, abs=1e-3)
