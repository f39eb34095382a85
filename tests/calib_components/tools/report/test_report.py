"""The report of a results folder."""

from __future__ import annotations

import csv
import errno
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.calib_components.tools.compare.made_up import make_finished_cell

from calib_components.errors import InputError
from calib_components.tools.compare import report
from calib_components.tools.compare.cell_settings import read_settings, write_settings

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
        "variation.csv",
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


def keep_patients(results: Path, number: int) -> None:
    """Make cells of the first patients, two cases each."""
    for file in results.glob("*/seed*/cases.csv"):
        file.write_text("".join(file.read_text().splitlines(keepends=True)[: 1 + 2 * number]))
        settings = read_settings(file.parent)
        write_settings(replace(settings, patients=dict([*settings.patients.items()][: 2 * number])), file.parent)


def test_five_patients_are_too_few_for_intervals_marks_and_tests(results: Path, tmp_path: Path) -> None:
    """Ten cases, but five patients: even if all agree, p is not below 0.0625."""
    report(results, tmp_path / "six")
    keep_patients(results, 5)
    report(results, tmp_path / "five")
    for name, few in (("six", False), ("five", True)):
        page, markdown = ((tmp_path / name / file).read_text() for file in ("index.html", "report.md"))
        for text in ("<small>[", "<small>p = ", '<span class="bold">', '<span class="underlined">'):
            assert (text in page) != few, text
        for text in ("<br>[", "<br>p = ", "**", "<ins>"):
            assert (text in markdown) != few, text
        notice = "5 patients: too few to tell which loss is better."
        assert (f'<p class="notice">{notice}' in page) == few
        assert (f"\n> {notice}" in markdown) == few
        low = {record["low"] for record in records(tmp_path / name / "differences.csv").values()}
        assert (low == {"nan"}) == few
    with open(tmp_path / "five" / "ranks.csv", newline="") as file:
        assert {(row["sum_rank_low"], row["mean_case_rank_high"]) for row in csv.DictReader(file)} == {("nan", "nan")}


def test_folds_are_one_table(tmp_path: Path) -> None:
    for method in ("ce_dice", "nacl"):
        for fold in (0, 1):
            make_finished_cell(tmp_path / "results", method, 0, 0.1, fold=fold)
    report(tmp_path / "results", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "12 cases of 6 patients, each by the network of 2 that was not trained on it" in text
    assert "patients: too few" not in text
    assert records(tmp_path / "report" / "means.csv")["nacl", "ece"]["cases"] == "12"
    with open(tmp_path / "report" / "cells.csv", newline="") as file:
        assert [(row["method"], row["fold"]) for row in csv.DictReader(file)] == [
            ("ce_dice", "0"), ("ce_dice", "1"), ("nacl", "0"), ("nacl", "1")
        ]  # fmt: skip


def test_report_of_an_earlier_time_is_replaced(results: Path, tmp_path: Path) -> None:
    report(results, tmp_path / "report")
    keep_patients(results, 5)
    report(results, tmp_path / "report")
    report(results, tmp_path / "another")
    for path in (tmp_path / "another").iterdir():
        assert (tmp_path / "report" / path.name).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "report", "results"]


def test_page_of_somebody_else_is_not_replaced(results: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<title>My site</title>")
    with pytest.raises(InputError, match=r"site: expected only files of this report, got index.html; move or delete"):
        report(results, tmp_path / "site")
    assert (tmp_path / "site" / "index.html").read_text() == "<title>My site</title>"
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["index.html"]


@pytest.mark.parametrize("earlier", [False, True])
def test_full_disk_leaves_the_earlier_report_or_nothing(
    results: Path, tmp_path: Path, earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if earlier:
        report(results, tmp_path / "report")
        keep_patients(results, 5)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_bytes = Path.write_bytes

    def write_until_full(path: Path, content: bytes) -> int:
        if path.suffix == ".png":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    with pytest.raises(InputError, match=r"report: expected a folder that can be written, got No space left on device"):
        report(results, tmp_path / "report")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not any(path.name.startswith(".") for path in tmp_path.rglob("*"))


def test_names_are_text_in_every_file(results: Path, tmp_path: Path) -> None:
    for cell in results.glob("nacl/seed*"):
        write_settings(replace(read_settings(cell), label="<b>x|y</b>[a](b) $_$"), cell)
    report(results, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;x|y&lt;/b&gt;[a](b) $_$" in page
    assert "| &lt;b>x\\|y&lt;/b>[a]\\(b) $_$ |" in (tmp_path / "report" / "report.md").read_text()


def test_without_the_reference_there_are_no_differences(results: Path, tmp_path: Path) -> None:
    report(results, tmp_path / "report", reference="svls")
    assert not (tmp_path / "report" / "differences.csv").exists()
    assert "There are no differences, since svls is not finished." in (tmp_path / "report" / "index.html").read_text()
    with pytest.raises(InputError, match=r"--reference: expected a method, .*, got 'slvs'; did you mean svls\?"):
        report(results, tmp_path / "misspelt", reference="slvs")


def test_without_nacl_another_reference_can_be_chosen(results: Path, tmp_path: Path) -> None:
    shutil.rmtree(results / "nacl")
    (results / "plan.json").unlink()
    make_finished_cell(results, "svls", 0, 0.1)
    report(results, tmp_path / "default")
    assert "since nacl is not among the methods; choose --reference." in (tmp_path / "default/report.md").read_text()
    report(results, tmp_path / "chosen", reference="svls")
    assert {method for method, _ in records(tmp_path / "chosen" / "differences.csv")} == {"ce_dice"}


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
        settings = read_settings(file.parent)
        write_settings(replace(settings, patients=dict([*settings.patients.items()][:1])), file.parent)
    report(results, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "nan" not in text.lower()
    assert "| CE+DSC | 0." in text
    assert "<br>[" not in text
    assert "**" not in text
    assert "<ins>" not in text
    assert "p = " not in text
    assert "\n\n> 1 patient: too few to tell which loss is better." in text
    assert records(tmp_path / "report" / "means.csv")["nacl", "ece"]["low"] == "nan"


@pytest.mark.parametrize(
    "out",
    ["results", ".", "results/../results", "results/nacl", "results/nacl/seed0/report", "results/svls", "results/work"],
)
def test_report_in_place_of_the_results_is_an_error(results: Path, tmp_path: Path, out: str) -> None:
    with pytest.raises(InputError, match=r"--out: expected a folder of its own for the report, got .*"):
        report(results, tmp_path / out)


def test_what_only_the_earlier_report_has_is_removed(results: Path, tmp_path: Path) -> None:
    """Without the reference there are no differences, and without a method not its picture."""
    make_finished_cell(results, "svls", 0, 0.1)
    (results / "svls").rename(results / "a (b)")
    settings = read_settings(results / "a (b)" / "seed0")
    write_settings(replace(settings, method="a (b)", label="x](y"), results / "a (b)" / "seed0")
    report(results, tmp_path / "report")
    assert (tmp_path / "report" / "reliability_a (b).png").exists()
    shutil.rmtree(results / "a (b)")
    report(results, tmp_path / "report", reference="svls")
    report(results, tmp_path / "new", reference="svls")
    written = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert "differences.csv" not in written


@pytest.mark.parametrize("name", ["notes.csv", "reliability_other.png"])
def test_file_that_no_report_wrote_is_an_error(name: str, results: Path, tmp_path: Path) -> None:
    report(results, tmp_path / "report")
    (tmp_path / "report" / name).write_text("mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    with pytest.raises(InputError, match=rf"report: expected only files of this report, got {name}; move or delete"):
        report(results, tmp_path / "report", reference="svls")
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()} == before


def test_report_in_place_of_a_file_is_an_error(results: Path, tmp_path: Path) -> None:
    (tmp_path / "report").touch()
    with pytest.raises(InputError, match=r"--out: expected a folder, got the file .*report"):
        report(results, tmp_path / "report")
