"""The report of a results folder."""

from __future__ import annotations

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calib_components.errors import InputError
from calib_components.tools.comparison import report
from calib_components.tools.comparison.results import read_settings, write_settings
from tests.helpers import run_script

STRUCTURES = ("RV", "MYO", "LV")
PATIENTS = 6


def records(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with open(path, newline="") as file:
        return {(record["method"], record["measure"]): record for record in csv.DictReader(file)}


def test_is_the_same_byte_for_byte(results: Path, tmp_path: Path) -> None:
    for name in ("once", "twice"):
        report(results, tmp_path / name)
    once = sorted((tmp_path / "once").iterdir())
    assert [path.name for path in once] == [
        "cells.csv", "differences.csv", "index.html", "logits.png", "mean_case_rank.png", "means.csv", "ranks.csv",
        "reliability_ce_dice.png", "reliability_nacl.png", "report.md", "structures.csv", "sum_rank.png",
    ]  # fmt: skip
    for path in once:
        assert path.read_bytes() == (tmp_path / "twice" / path.name).read_bytes(), path.name


def test_page_loads_nothing(results: Path, tmp_path: Path) -> None:
    report(results, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    sources = re.findall(r'(?:src|href|srcset|data|action)\s*=\s*"([^"]{0,22})', page)
    assert len(sources) == 2 + 2 + 1 + 2 * 3  # ranks, reliability, logits, cases
    assert set(sources) == {"data:image/png;base64,"}
    for text in ("http:", "https:", "url(", "@import", "<script", "<link", "<iframe"):
        assert text not in page


def test_numbers_are_those_of_the_cases(results: Path, tmp_path: Path) -> None:
    report(results, tmp_path / "report")
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
    report(results, tmp_path / "report")
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
        assert "differences and ranks are not entirely fair: CE+DSC 0, 1; NACL 0." in text
        assert "of the best epoch on the validation split (validated every 4 epochs). Slices of 64 x 64" in text
        assert "64 x 64 pixels, of which the central 48 x 48 are segmented and scored; batch size 16" in text


def test_without_the_reference_there_are_no_differences(results: Path, tmp_path: Path) -> None:
    report(results, tmp_path / "report", reference="svls")
    assert not (tmp_path / "report" / "differences.csv").exists()
    assert "There are no differences, since svls is not finished." in (tmp_path / "report" / "index.html").read_text()


def test_another_split_has_no_published_numbers(results: Path, tmp_path: Path) -> None:
    for cell in results.glob("*/seed*"):
        write_settings(replace(read_settings(cell), evaluation={"split": "validation"}), cell)
    report(results, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Mean over the cases of the validation split" in page
    assert "paper 0" not in page


def test_structures_of_ones_own_have_no_published_numbers(results: Path, tmp_path: Path) -> None:
    for file in results.glob("*/seed*/cases.csv"):
        file.write_text(file.read_text().replace("_LV", "_aorta"))
    report(results, tmp_path / "report")
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
    report(results, tmp_path / "report")
    with open(tmp_path / "report" / "cells.csv", newline="") as file:
        assert {(record["epochs"], record["best_epoch"]) for record in csv.DictReader(file)} == {("2", "")}
    assert "with the weights of the last epoch. Slices" in (tmp_path / "report" / "report.md").read_text()


def test_whole_slices_are_not_called_central(results: Path, tmp_path: Path) -> None:
    for cell in results.glob("*/seed*"):
        settings = read_settings(cell)
        write_settings(replace(settings, training={**settings.training, "crop_size": [64, 64]}), cell)
    report(results, tmp_path / "report")
    assert "Slices of 64 x 64 pixels; batch size 16" in (tmp_path / "report" / "report.md").read_text()


def test_network_without_channels_has_none_in_the_report(results: Path, tmp_path: Path) -> None:
    report(results, tmp_path / "report")
    assert "learning rate 0.001, channels 16, 32. settings.json" in (tmp_path / "report" / "report.md").read_text()
    for cell in results.glob("*/seed*"):
        settings = read_settings(cell)
        write_settings(replace(settings, training={**settings.training, "network_def": {"_target_": "UNETR"}}), cell)
    report(results, tmp_path / "report")
    assert "learning rate 0.001. settings.json" in (tmp_path / "report" / "report.md").read_text()


def test_pictures_of_cases_are_shown_where_they_were_kept(results: Path, tmp_path: Path) -> None:
    shutil.rmtree(results / "ce_dice" / "seed0" / "cases")
    (results / "nacl" / "seed0" / "cases" / "worst.png").unlink()
    report(results, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Cases: CE+DSC" not in page
    assert "Cases: NACL" in page
    assert re.findall(r"(\w+) case</figcaption>", page) == ["Best", "Median"]


def test_one_case_has_no_intervals(results: Path, tmp_path: Path) -> None:
    for file in results.glob("*/seed*/cases.csv"):
        header, first, *_ = file.read_text().splitlines()  # where RV is missed: no HD95 to compare
        file.write_text(f"{header}\n{first}\n")
    report(results, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "nan" not in text.lower()
    assert "| CE+DSC | 0." in text
    assert "<br>[" not in text
    assert records(tmp_path / "report" / "means.csv")["nacl", "ece"]["low"] == "nan"


@pytest.mark.parametrize("out", ["results", ".", "results/../results"])
def test_report_in_place_of_the_results_is_an_error(results: Path, tmp_path: Path, out: str) -> None:
    with pytest.raises(InputError, match=r"--out: expected a folder of its own for the report, got .*"):
        report(results, tmp_path / out)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cases.csv", "", "nacl/seed0/cases.csv: expected a readable file, got"),
        ("cases.csv", "case,dsc_RV\na,good\n", "nacl/seed0/cases.csv: expected a readable file, got .*'good'"),
        ("settings.json", "{", "nacl/seed0/settings.json: expected a readable file, got"),
        ("settings.json", '{"method": "nacl"}', "nacl/seed0/settings.json: expected .*, got no label, seed, bundle"),
        ("calibration.json", "{}", "nacl/seed0/calibration.json: expected a readable file, got"),
        ("summary.json", None, "nacl/seed0/summary.json: expected a readable file, got"),
        ("logits.json", None, "nacl/seed0/logits.json: expected a readable file, got"),
        ("history.csv", None, "nacl/seed0/history.csv: expected a readable file, got"),
        ("history.csv", "epoch,seconds\n", "nacl/seed0/history.csv: expected a readable file, got no epoch in it"),
    ],
)
def test_broken_file_is_an_error_that_names_it(
    results: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    file = results / "nacl" / "seed0" / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(InputError, match=message):
        report(results, tmp_path / "report")


def test_files_of_another_report_are_an_error(results: Path, tmp_path: Path) -> None:
    report(results, tmp_path / "report")
    with pytest.raises(InputError, match=r"report: expected only files of this report, got differences.csv; move"):
        report(results, tmp_path / "report", reference="svls")


def test_report_in_place_of_a_file_is_an_error(results: Path, tmp_path: Path) -> None:
    (tmp_path / "report").touch()
    with pytest.raises(InputError, match=r"--out: expected a folder, got the file .*report"):
        report(results, tmp_path / "report")
