"""The report of networks without and with their temperature, on the own test cases and on those of another scanner."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.calib_components.tools.compare.made_up import make_finished_cell, make_fit

from calib_components.errors import InputError
from calib_components.handlers.evaluation import read_cases
from calib_components.tools.compare import report
from calib_components.tools.compare.cell_settings import Condition, read_settings, write_settings
from calib_components.tools.report.means import diagram_panels
from calib_components.tools.report.results import read_results

MEASURES = ["dsc", "hd95", "ece_all", "ece_predicted", "nll_all", "ece", "cece", "nll", "brier"]


RUNS = (("nacl", 0, 0.05, 0.79), ("ce_dice", 0, 0.13, 1.4), ("ce_dice", 1, 0.15, 1.6))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CE+DSC with two seeds and NACL with one, each with a temperature and evaluated on another scanner."""
    folder = tmp_path_factory.mktemp("whole") / "results"
    for method, seed, ece, temperature in RUNS:
        make_finished_cell(folder, method, seed, ece, temperature=temperature, test_sets=("scanner",))
    return folder


@pytest.fixture(scope="module")
def page(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of these results, which is not changed."""
    out = tmp_path_factory.mktemp("page") / "report"
    report(whole, out)
    return out


@pytest.fixture
def results(whole: Path, tmp_path: Path) -> Path:
    """A copy of these results, to be changed."""
    return shutil.copytree(whole, tmp_path / "results")


def records(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as table:
        return list(csv.DictReader(table))


def values(results: Path, condition: Condition, measure: str) -> np.ndarray:
    """The values of CE+DSC on each case, as the mean over its seeds."""
    folders = (results / "ce_dice" / f"seed{seed}" / condition.folder for seed in (0, 1))
    return np.mean([read_cases(folder)[1][measure] for folder in folders], axis=0)


def rows(markdown: str, title: str) -> list[list[str]]:
    """The header and the rows of a table."""
    section = markdown.split(f"\n## {title}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]


@pytest.mark.parametrize("test_set", ["", "scanner"])
def test_each_loss_is_beside_itself_with_temperature(whole: Path, page: Path, test_set: str) -> None:
    name, title = (f"means_on_{test_set}", f"Means on {test_set}") if test_set else ("means", "Means")
    table = records(page / f"{name}.csv")
    assert list(dict.fromkeys(row["measure"] for row in table)) == MEASURES
    assert [(row["method"], row["temperature"]) for row in table[:4]] == [
        ("ce_dice", "without"), ("ce_dice", "with"), ("nacl", "without"), ("nacl", "with")
    ]  # fmt: skip
    for row in table:
        if row["method"] == "ce_dice" and row["measure"] not in ("dsc", "hd95"):
            condition = Condition(test_set, row["temperature"] == "with")
            assert float(row["mean"]) == pytest.approx(values(whole, condition, row["measure"]).mean())
            assert row["seeds"] == "2"
            has_paper = row["measure"] in ("ece", "cece") and condition == Condition()
            assert (row["published"] != "") == has_paper
            if row["measure"] in ("ece", "cece"):
                if_true = values(whole, condition, f"{row['measure']}_if_true").mean()
                assert float(row["if_true"]) == pytest.approx(if_true)
            else:
                assert row["if_true"] == ""
    header, *lines = rows((page / "report.md").read_text(), title)
    assert header[1:-1] == [
        "DSC ↑", "HD95 ↓", "ECE all ↓", "ECE predicted ↓", "NLL all ↓",
        "ECE foreground ↓", "CECE foreground ↓", "NLL foreground ↓", "Brier foreground ↓",
    ]  # fmt: skip
    assert [line[0] for line in lines] == ["CE+DSC", "CE+DSC + T 1.40 to 1.60", "NACL", "NACL + T 0.79<br>[0.71, 0.87]"]
    if_true = values(whole, Condition(test_set, scaled=True), "ece_if_true").mean()
    assert lines[1][6].endswith(f"<br>{if_true:.3f} if true")


def test_what_temperature_changes_is_paired(whole: Path, page: Path) -> None:
    table = records(page / "temperature.csv")
    assert len(table) == 2 * 2 * 4
    for row in table:
        if row["method"] == "ce_dice":
            with_it, without = (
                values(whole, Condition(row["test_set"], scaled), row["measure"]) for scaled in (True, False)
            )
            assert float(row["mean"]) == pytest.approx((with_it - without).mean())
            assert int(row["cases"]) == len(with_it)
    assert [row["low"] != "nan" for row in table] == [True] * 8 + [False] * 8  # three patients of another scanner
    header, *lines = rows((page / "report.md").read_text(), "What temperature changes")
    assert header[1:] == ["T", "test set", "ECE all ↓", "ECE predicted ↓", "ECE foreground ↓", "NLL all ↓"]
    assert [line[:3] for line in lines] == [
        ["CE+DSC", "T 1.40 to 1.60", "own testing"],
        ["NACL", "T 0.79<br>[0.71, 0.87]", "own testing"],
        ["CE+DSC", "T 1.40 to 1.60", "scanner"],
        ["NACL", "T 0.79<br>[0.71, 0.87]", "scanner"],
    ]


def test_without_temperature_the_rest_is_the_same_and_further_tables_go(
    results: Path, page: Path, tmp_path: Path
) -> None:
    """Differences, ranks and structures are those without temperature; tables of an earlier report are removed."""
    shutil.copytree(page, tmp_path / "report")
    for cell in results.glob("*/seed*"):
        write_settings(replace(read_settings(cell), calibration={}, evaluate_on={}), cell)
    report(results, tmp_path / "report")
    for name in ("differences.csv", "ranks.csv", "structures.csv", "sum_rank.png", "mean_case_rank.png", "logits.png"):
        assert (tmp_path / "report" / name).read_bytes() == (page / name).read_bytes(), name
    left = {path.name for path in page.iterdir()} - {path.name for path in (tmp_path / "report").iterdir()}
    rankings = {f"calibration_ranks{name}" for name in (".csv", ".png", "_on_scanner.png")}
    conditions = {"conditions.csv", "conditions_on_scanner.csv"}
    assert left == {"means_on_scanner.csv", "temperature.csv", *rankings, *conditions}
    (tmp_path / "report" / "means_on_mine.csv").touch()
    with pytest.raises(InputError, match=r"expected only files of this report, got means_on_mine.csv"):
        report(results, tmp_path / "report")


def test_page_says_what_shift_and_if_true_mean(page: Path) -> None:
    text = (page / "index.html").read_text()
    assert '<p class="notice">Of other origin than the training data (shift): scanner. Networks and temp' in text
    assert "is this value, the error if the probabilities were true" in text
    assert "3 cases of 3 patients in scanner" in text
    assert text.count("These are too few for intervals") == 1


def test_diagrams_show_the_regions_without_and_with_temperature(whole: Path, page: Path) -> None:
    cells = read_results(whole).methods[0]
    panels = diagram_panels(cells)
    assert [*panels] == ["All voxels", "All voxels + T", "Predicted foreground", "Predicted foreground + T"]
    first, second = (cell.evaluations[Condition(scaled=True)].regions["all"] for cell in cells.cells)
    assert panels["All voxels + T"].count.equal((first + second).pooled().count)
    assert sorted(path.name for path in page.glob("reliability*")) == [
        "reliability_ce_dice.png", "reliability_nacl.png"
    ]  # fmt: skip


def test_means_are_drawn_for_each_test_set_with_patients_enough(page: Path) -> None:
    assert sorted(path.name for path in page.glob("means*.png")) == ["means.png"]  # "scanner" has three patients
    assert (
        "![Means: Means with 95 % intervals; hollow: with temperature](means.png)" in (page / "report.md").read_text()
    )


def test_network_that_predicts_no_foreground_has_no_diagram_of_it(results: Path) -> None:
    for file in results.glob("nacl/seed0/**/calibration.json"):
        content = json.loads(file.read_text())
        for field in content["regions"]["predicted"]["top_label_per_case"].values():
            field[:] = [[0] * 15] * len(field)
        file.write_text(json.dumps(content))
    assert [*diagram_panels(read_results(results).methods[1])] == ["All voxels", "All voxels + T"]


def test_cells_have_their_temperature(page: Path) -> None:
    names = (
        *("method", "temperature", "temperature_low", "temperature_high", "fitted_on"),
        *("val_nll", "val_nll_with_temperature"),
    )
    assert [tuple(row[name] for name in names) for row in records(page / "cells.csv")] == [
        ("ce_dice", "1.4", "1.26", "1.54", "7", "0.3", "0.2"),
        ("ce_dice", "1.6", "1.44", "1.76", "7", "0.3", "0.2"),
        ("nacl", "0.79", "0.711", "0.869", "7", "0.3", "0.2"),
    ]


def test_results_without_a_test_set_are_named_and_left_out_of_it(results: Path, tmp_path: Path) -> None:
    make_finished_cell(results, "svls", 0, 0.1, temperature=1.0)
    report(results, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Not evaluated on scanner: SVLS." in text
    assert [row[0] for row in rows(text, "Means on scanner")[1:]] == [
        "CE+DSC", "CE+DSC + T 1.40 to 1.60", "NACL", "NACL + T 0.79<br>[0.71, 0.87]"
    ]  # fmt: skip
    (warning,) = make_fit(1.0).warnings()
    assert f"SVLS: {warning}" in text
    assert "SVLS + T 1.00<br>[0.90, 1.10]" in text


def test_every_fold_is_evaluated_on_the_whole_of_a_further_test_set(tmp_path: Path) -> None:
    for fold in (0, 1):
        make_finished_cell(tmp_path / "results", "nacl", 0, 0.1, fold=fold, temperature=0.8, test_sets=("scanner",))
    report(tmp_path / "results", tmp_path / "report")
    cells = [tmp_path / "results" / "nacl" / f"seed0_fold{fold}" for fold in (0, 1)]
    by_fold = np.stack([read_cases(cell / "on_scanner")[1]["ece_all"] for cell in cells])
    (mean,) = [
        row
        for row in records(tmp_path / "report" / "means_on_scanner.csv")
        if row["measure"] == "ece_all" and row["temperature"] == "without"
    ]
    assert float(mean["mean"]) == pytest.approx(np.mean(by_fold))
    assert (mean["cases"], mean["seeds"]) == ("3", "1")
    own = records(tmp_path / "report" / "means.csv")
    assert {row["cases"] for row in own} == {"12"}  # joined
    shifted = read_results(tmp_path / "results").at(Condition("scanner")).methods[0]
    np.testing.assert_allclose(shifted.by_run("ece_all"), by_fold.mean(0)[None])  # one run: the seed's networks
    assert shifted.runs[0].patients == ["other0", "other1", "other2"]
    # A case without right ventricle and myocardium, in which one of the two networks finds a right ventricle.
    for cell, found in zip(cells, ("0", ""), strict=True):
        file = cell / "on_scanner" / "cases.csv"
        header, first, *rest = (line.split(",") for line in file.read_text().splitlines())
        changed = dict(zip(header, first, strict=True)) | {"dsc_RV": found, "dsc_MYO": "", "dsc_LV": "0.9"}
        file.write_text("\n".join(map(",".join, (header, changed.values(), *rest, ""))))
    shifted = read_results(tmp_path / "results").at(Condition("scanner")).methods[0]
    assert shifted.values("dsc")[0] == pytest.approx((0.45 + 0.9) / 2)  # the mean over structures is a network's own
    for cell in cells:
        file = cell / "on_scanner" / "cases.csv"
        header, first, *rest = (line.split(",") for line in file.read_text().splitlines())
        changed = dict(zip(header, first, strict=True)) | {"dsc_LV": ""}
        file.write_text("\n".join(map(",".join, (header, changed.values(), *rest, ""))))
    shifted = read_results(tmp_path / "results").at(Condition("scanner")).methods[0]
    assert shifted.comparable("dsc")[0, 0] == 0.5  # that of a network that rightly finds nothing is 1
    assert shifted.runs[0].finds_nothing.tolist() == [True, False, False]
    hd95 = np.stack([read_cases(cell / "on_scanner")[1]["hd95_RV"] for cell in cells])
    np.testing.assert_array_equal(np.isnan(shifted.comparable("hd95")[0]), np.isnan(hd95).any(0))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda cell: shutil.rmtree(cell / "on_scanner"), r"seed0/on_scanner/cases.csv: expected a table, got No such"),
        (
            lambda cell: (cell / "temperature" / "temperature.json").unlink(),
            r"temperature/temperature.json: expected a fitted temperature, got No such file",
        ),
        (
            lambda cell: shutil.copy(cell / "cases.csv", cell / "on_scanner" / "temperature"),
            r"on_scanner/temperature/cases.csv: expected the cases of settings.json, got",
        ),
        (
            lambda cell: (cell / "temperature/cases.csv").write_text(
                (cell / "temperature/cases.csv").read_text().replace("ece_all", "ece_some")
            ),
            r"seed0/temperature: expected the same columns of cases.csv as .*ce_dice/seed0, got another",
        ),
    ],
)
def test_broken_evaluation_is_an_error(results: Path, tmp_path: Path, spoil: object, message: str) -> None:
    spoil(results / "nacl" / "seed0")
    with pytest.raises(InputError, match=message):
        report(results, tmp_path / "report")
    assert not (tmp_path / "report").exists()
