"""The report of a results folder that is made here."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from calib_components.comparison import ResultsError, read_results
from scripts.report import report
from tests.helpers import run_script

STRUCTURES = ("RV", "MYO", "LV")
CLASSES = ["background", "right ventricle", "myocardium", "left ventricle"]
METHODS = {"ce_dice": "CE+DSC", "svls": "SVLS", "nacl": "NACL"}
PATIENTS = 6


def make_cell(folder: Path, method: str, seed: int, ece: float, **train: Any) -> None:
    """A cell as compare_losses.py writes it: two cases a patient, random DSC and HD95, and an ECE about `ece`."""
    rng = np.random.default_rng([seed, *method.encode()])
    cell = folder / method / f"seed{seed}"
    (cell / "cases").mkdir(parents=True)
    cases = [f"patient{i:03d}_frame{j:02d}" for i in range(PATIENTS) for j in (1, 12)]
    settings = {
        "method": method,
        "label": METHODS[method],
        "seed": seed,
        "bundle": "acdc_mri_nacl_segmentation",
        "datalist": "0" * 64,
        "patients": {case: case.partition("_")[0] for case in cases},
        "crop_size": [48, 48],
        "train": {
            "image_size": [64, 64],
            "val_interval": 4,
            "batch_size": 16,
            "max_epochs": 2,
            "learning_rate": 0.001,
            "network_def": {"channels": [16, 32]},
            "loss": {"_target_": method},
            "seed": seed,
            **train,
        },
        "evaluate": {"split": "testing"},
        "made_with": {"torch": "2.13.0", "device": "cpu"},
    }
    (cell / "settings.json").write_text(json.dumps(settings))
    columns = {
        **{f"dsc_{s}": rng.uniform(0.7, 0.9, len(cases)) for s in STRUCTURES},
        **{f"hd95_{s}": rng.uniform(1, 5, len(cases)) for s in STRUCTURES},
        "ece": ece + rng.uniform(-0.01, 0.01, len(cases)),
        **{name: rng.uniform(0.1, 0.2, len(cases)) for name in ("cece", "nll", "brier")},
    }
    columns["dsc_RV"][0], columns["hd95_RV"][0] = 0, np.nan  # missed
    with open(cell / "cases.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", *columns])
        for case, *row in zip(cases, *columns.values(), strict=True):
            writer.writerow([case, *("" if np.isnan(value) else value for value in row)])
    (cell / "summary.json").write_text(json.dumps({"missed": [{"case": cases[0], "structure": "RV"}], "spurious": []}))
    count = rng.integers(1000, 9000, 15)
    middle = (np.arange(15) + 0.5) / 15
    bins = {
        "count": [count.tolist()],
        "confidence": [(count * middle).tolist()],
        "accuracy": [(count * middle**2).tolist()],
    }
    (cell / "calibration.json").write_text(json.dumps({"pooled": {"top_label": bins}}))
    logits = {"class_names": CLASSES, "magnitudes": rng.uniform(0, 9, (4, 4)).tolist()}
    (cell / "logits.json").write_text(json.dumps(logits))
    (cell / "history.csv").write_text("epoch,seconds,val_dsc\n1,2.5,0.7\n2,2.0,0.8\n")
    for name in ("best", "median", "worst"):
        figure = Figure(figsize=(3, 1))
        figure.suptitle(f"{method} {name}")
        figure.savefig(cell / "cases" / f"{name}.png")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """CE+DSC with two seeds, NACL with one; SVLS is planned but not finished."""
    folder = tmp_path / "results"
    for method, seed, ece in (("nacl", 0, 0.05), ("ce_dice", 0, 0.13), ("ce_dice", 1, 0.15)):
        make_cell(folder, method, seed, ece)
    plan = [{"method": method, "seed": 0} for method in METHODS] + [{"method": "ce_dice", "seed": 1}]
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def records(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with open(path, newline="") as file:
        return {(record["method"], record["measure"]): record for record in csv.DictReader(file)}


def test_is_the_same_byte_for_byte(results: Path, tmp_path: Path) -> None:
    for name in ("once", "twice"):
        report(str(results), str(tmp_path / name))
    once = sorted((tmp_path / "once").iterdir())
    assert [path.name for path in once] == [
        "cells.csv", "differences.csv", "index.html", "logits.png", "mean_case_rank.png", "means.csv", "ranks.csv",
        "reliability_ce_dice.png", "reliability_nacl.png", "report.md", "structures.csv", "sum_rank.png",
    ]  # fmt: skip
    for path in once:
        assert path.read_bytes() == (tmp_path / "twice" / path.name).read_bytes(), path.name


def test_page_loads_nothing(results: Path, tmp_path: Path) -> None:
    report(str(results), str(tmp_path / "report"))
    page = (tmp_path / "report" / "index.html").read_text()
    sources = re.findall(r'(?:src|href|srcset|data|action)\s*=\s*"([^"]{0,22})', page)
    assert len(sources) == 2 + 2 + 1 + 2 * 3  # ranks, reliability, logits, cases
    assert set(sources) == {"data:image/png;base64,"}
    for text in ("http:", "https:", "url(", "@import", "<script", "<link", "<iframe"):
        assert text not in page


def test_numbers_are_those_of_the_cases(results: Path, tmp_path: Path) -> None:
    report(str(results), str(tmp_path / "report"))
    by_seed = [
        np.genfromtxt(
            results / "ce_dice" / f"seed{seed}" / "cases.csv", delimiter=",", names=True, usecols=range(1, 11)
        )
        for seed in (0, 1)
    ]
    means = records(tmp_path / "report" / "means.csv")
    ece = means["ce_dice", "ece"]
    assert float(ece["mean"]) == pytest.approx(np.mean([seed["ece"] for seed in by_seed]))
    assert float(ece["low"]) < float(ece["mean"]) < float(ece["high"])
    assert (ece["cases"], ece["seeds"], ece["published"]) == ("12", "2", "0.137")
    # The mean of a case is over the structures that have a value ...
    hd95 = np.mean([np.nanmean([seed[f"hd95_{s}"] for s in STRUCTURES], axis=0) for seed in by_seed])
    assert float(means["ce_dice", "hd95"]["mean"]) == pytest.approx(hd95)
    # ... but a case with a structure missed is not compared.
    differences = records(tmp_path / "report" / "differences.csv")
    assert {method for method, _ in differences} == {"ce_dice"}
    assert differences["ce_dice", "hd95"]["cases"] == "11"
    assert differences["ce_dice", "dsc"]["cases"] == "12"
    assert float(differences["ce_dice", "ece"]["mean"]) == pytest.approx(0.09, abs=0.01)
    assert float(differences["ce_dice", "ece"]["p_value"]) == pytest.approx(2 / 2**PATIENTS)


def test_page_and_markdown_mark_the_best_and_name_what_is_missing(results: Path, tmp_path: Path) -> None:
    report(str(results), str(tmp_path / "report"))
    means = records(tmp_path / "report" / "means.csv")
    best, second = (f"{float(means[method, 'ece']['mean']):.3f}" for method in ("nacl", "ce_dice"))
    page = (tmp_path / "report" / "index.html").read_text()
    assert f'<span class="bold">{best}</span>' in page
    assert f'<span class="underlined">{second}</span>' in page
    assert "<small>paper 0.048</small>" in page
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert f"**{best}**" in markdown
    for text in (page, markdown):
        assert "Not finished yet: svls, seed 0." in text
        assert "differences and ranks are not quite fair: CE+DSC 0, 1; NACL 0." in text
        assert "val_interval 4; slices prepared at 64 x 64, of which the central 48 x 48 are seen and scored" in text


def test_without_the_reference_there_are_no_differences(results: Path, tmp_path: Path) -> None:
    report(str(results), str(tmp_path / "report"), reference="svls")
    assert not (tmp_path / "report" / "differences.csv").exists()
    assert "There are no differences, since svls is not finished." in (tmp_path / "report" / "index.html").read_text()


def test_another_split_has_no_published_numbers(results: Path, tmp_path: Path) -> None:
    for file in results.glob("*/seed*/settings.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "evaluate": {"split": "validation"}}))
    report(str(results), str(tmp_path / "report"))
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Mean over the cases of split validation" in page
    assert "paper 0" not in page


def test_structures_of_ones_own_have_no_published_numbers(results: Path, tmp_path: Path) -> None:
    for file in results.glob("*/seed*/cases.csv"):
        file.write_text(file.read_text().replace("_LV", "_aorta"))
    report(str(results), str(tmp_path / "report"))
    page = (tmp_path / "report" / "report.md").read_text()
    assert page.startswith("# Losses compared: RV, MYO, aorta\n")
    assert "paper" not in page


def test_misspelt_option_is_an_error_before_anything_is_written(results: Path, tmp_path: Path) -> None:
    arguments = ("scripts/report.py", results, "-o", tmp_path / "report")
    done = run_script(*arguments, "--referense", "svls")
    assert done.returncode == 2
    assert done.stderr.startswith("ERROR: Could not consume arg: --referense\n")
    assert not (tmp_path / "report").exists()
    assert run_script(*arguments).returncode == 0


def test_training_without_validation_has_no_best_epoch(results: Path, tmp_path: Path) -> None:
    for file in results.glob("*/seed*/history.csv"):
        file.write_text("epoch,seconds\n1,2.5\n2,2.0\n")
    report(str(results), str(tmp_path / "report"))
    with open(tmp_path / "report" / "cells.csv", newline="") as file:
        assert {(record["epochs"], record["best_epoch"]) for record in csv.DictReader(file)} == {("2", "")}
    assert "with the weights of the last epoch; slices" in (tmp_path / "report" / "report.md").read_text()


def test_whole_slices_are_not_called_central(results: Path, tmp_path: Path) -> None:
    for file in results.glob("*/seed*/settings.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "crop_size": [64, 64]}))
    report(str(results), str(tmp_path / "report"))
    assert "slices prepared at 64 x 64, batches of 16" in (tmp_path / "report" / "report.md").read_text()


def test_one_case_has_no_intervals(results: Path, tmp_path: Path) -> None:
    for file in results.glob("*/seed*/cases.csv"):
        header, first, *_ = file.read_text().splitlines()  # where RV is missed: no HD95 to compare
        file.write_text(f"{header}\n{first}\n")
    report(str(results), str(tmp_path / "report"))
    text = (tmp_path / "report" / "report.md").read_text()
    assert "nan" not in text.lower()
    assert "| CE+DSC | 0." in text
    assert "<br>[" not in text
    assert records(tmp_path / "report" / "means.csv")["nacl", "ece"]["low"] == "nan"


@pytest.mark.parametrize("out", ["results", ".", "results/../results"])
def test_report_in_place_of_the_results_is_an_error(results: Path, tmp_path: Path, out: str) -> None:
    with pytest.raises(ResultsError, match="holds the results themselves"):
        report(str(results), str(tmp_path / out))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cases.csv", "", "nacl/seed0/cases.csv: cannot be read"),
        ("cases.csv", "case,dsc_RV\na,good\n", "nacl/seed0/cases.csv: cannot be read: .*'good'"),
        ("settings.json", "{", "nacl/seed0/settings.json: cannot be read"),
        ("settings.json", '{"method": "nacl"}', "nacl/seed0/settings.json: lacks label, seed, bundle, .*crop_size"),
        ("logits.json", None, "nacl/seed0/logits.json: cannot be read"),
        ("history.csv", None, "nacl/seed0/history.csv: cannot be read"),
        ("history.csv", "epoch,seconds\n", "nacl/seed0/history.csv: cannot be read: no epoch in it"),
        ("cases/worst.png", None, "nacl/seed0/cases/worst.png: cannot be read"),
    ],
)
def test_broken_file_is_an_error_that_names_it(
    results: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    file = results / "nacl" / "seed0" / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(ResultsError, match=message):
        report(str(results), str(tmp_path / "report"))


def test_files_of_another_report_are_an_error(results: Path, tmp_path: Path) -> None:
    report(str(results), str(tmp_path / "report"))
    with pytest.raises(ResultsError, match=r"report: holds differences.csv, not of this report"):
        report(str(results), str(tmp_path / "report"), reference="svls")


def test_report_in_place_of_a_file_is_an_error(results: Path, tmp_path: Path) -> None:
    (tmp_path / "report").touch()
    with pytest.raises(ResultsError, match="report: a file; choose a folder"):
        report(str(results), str(tmp_path / "report"))


def test_cells_of_another_protocol_are_an_error(results: Path) -> None:
    make_cell(results, "svls", 0, 0.1, max_epochs=3)
    with pytest.raises(ResultsError, match=r"svls/seed0: not comparable with .*ce_dice/seed0: max_epochs differs"):
        read_results(results)


def test_no_cell_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no finished cell"):
        read_results(tmp_path)
