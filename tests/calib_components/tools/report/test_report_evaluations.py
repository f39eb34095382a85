"""The report of evaluation folders: one alone, and several on their common cases."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.calib_components.tools.compare.made_up import make_finished_cell, make_folder

from calib_components.errors import InputError
from calib_components.handlers.evaluation_files import read_cases, read_thresholds, write_cases, write_thresholds
from calib_components.tools.compare import report, report_evaluations, report_folders


def records(file: Path, *keys: str) -> dict[tuple[str, ...], dict[str, str]]:
    with open(file, newline="") as table:
        return {tuple(record[key] for key in keys): record for record in csv.DictReader(table)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three networks on the same cases; the second is better calibrated than the first."""
    place = tmp_path_factory.mktemp("folders")
    gaps = {"old": 0.08, "new": 0.03, "shy": -0.08}
    return [make_folder(place / name, seed=seed, gap=gap) for seed, (name, gap) in enumerate(gaps.items())]


@pytest.fixture(scope="module")
def one(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "report"
    report_evaluations(folders[:1], out)
    return out


@pytest.fixture(scope="module")
def three(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("three") / "report"
    report_evaluations(folders, out)
    return out


def test_page_of_one_begins_with_its_conclusion_then_pictures_then_tables(one: Path) -> None:
    page = (one / "index.html").read_text()
    assert "<title>Is it calibrated? old</title>" in page
    conclusion = (
        '<p class="conclusion">Not well calibrated: in the predicted foreground, the model is overconfident (confid'
    )
    assert "<h1>Is it calibrated? old</h1>\n" + conclusion in page
    titles = ["Cases: old", "Means", "Reliability diagrams", "Structures", "Volumes", "Thresholds"]
    assert re.findall("<h2>(.*?)</h2>", page) == [*titles, "Risk and coverage", "Cases by expected DSC"]
    assert re.findall(r"(\w+) case</figcaption>", page) == ["Best", "Median", "Worst"]
    assert "<details>" not in page
    markdown = (one / "report.md").read_text()
    assert markdown.startswith("# Is it calibrated? old\n\nNot well calibrated: ")
    assert "best case" not in markdown.lower()


def test_page_of_several_compares_them_with_the_first(three: Path) -> None:
    page = (three / "index.html").read_text()
    assert "<title>Evaluations compared: old, new, shy</title>" in page
    assert '<p class="conclusion">Compared with old, new has a lower NLL over all voxels (-0.' in page
    titles = ["Cases: old", "Cases: new", "Cases: shy", "Means", "Differences to old", "Ranks", "Reliability diagrams"]
    titles += ["Structures", "Volumes", "Thresholds", "Risk and coverage", "Cases by expected DSC"]
    assert re.findall("<h2>(.*?)</h2>", page) == titles
    assert {path.name for path in three.glob("*.png")} == {
        "sum_rank.png",
        "mean_case_rank.png",
        "risk_coverage.png",
        *(f"{kind}_{name}.png" for kind in ("reliability", "volumes", "thresholds", "expected_dsc")
          for name in ("old", "new", "shy")),
    }  # fmt: skip


def test_page_loads_nothing_and_fits_small_screens(three: Path) -> None:
    page = (three / "index.html").read_text()
    assert set(re.findall(r'(?:src|href|srcset|data|action)\s*=\s*"([^"]{0,22})', page)) == {"data:image/png;base64,"}
    for text in ("http:", "https:", "url(", "@import", "<script", "<link", "<iframe"):
        assert text not in page
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page


def test_is_the_same_byte_for_byte_and_replaces_an_earlier_one(
    folders: list[Path], three: Path, tmp_path: Path
) -> None:
    report_evaluations(folders[:1], tmp_path / "report")
    report_evaluations(folders, tmp_path / "report")
    written = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    assert written == {path.name: path.read_bytes() for path in three.iterdir()}


def test_report_of_losses_and_of_evaluations_replace_each_other(
    results: Path, folders: list[Path], one: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    report_evaluations(folders, out)
    report(results, out)
    assert not (out / "volumes.csv").exists()
    report_evaluations(folders[:1], out)
    assert {path.name for path in out.iterdir()} == {path.name for path in one.iterdir()}


def test_means_and_differences_are_those_of_the_cases(folders: list[Path], three: Path) -> None:
    means = records(three / "means.csv", "method", "measure")
    differences = records(three / "differences.csv", "method", "measure")
    (_, old), (_, new) = (read_cases(folder) for folder in folders[:2])
    for measure in ("ece_all", "ece_predicted", "smooth_ece_all", "nll_all", "brier_all"):
        assert float(means["new", measure]["mean"]) == pytest.approx(new[measure].mean())
        expected = (new[measure] - old[measure]).mean()
        assert float(differences["new", measure]["mean"]) == pytest.approx(expected)
        assert float(differences["new", measure]["p_value"]) == pytest.approx(2 / 2**8)
        tests = 2 * 3 if measure in ("ece_all", "nll_all", "ece_predicted") else 2  # methods, and measures
        assert float(differences["new", measure]["p_value_holm"]) == pytest.approx(tests * 2 / 2**8)
    assert means["old", "ece"]["if_true"] == "0.1"
    assert {method for method, _ in differences} == {"new", "shy"}
    assert ("new", "ece") not in differences  # the ground truth chooses its voxels
    assert "seeds" not in means["old", "ece"]


def test_another_reference(folders: list[Path], tmp_path: Path) -> None:
    report_evaluations(folders, tmp_path / "report", reference="shy")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<h2>Differences to shy</h2>" in page
    assert re.findall("<h2>(Cases: .*?)</h2>", page) == ["Cases: shy", "Cases: old", "Cases: new"]
    with pytest.raises(InputError, match=r"--reference: expected a name, old, new, shy, got 'nwe'; did you mean new\?"):
        report_evaluations(folders, tmp_path / "other", reference="nwe")


def test_cases_of_further_methods_are_folded_away(folders: list[Path], tmp_path: Path) -> None:
    fourth = make_folder(tmp_path / "fourth", with_probabilities=False)
    report_evaluations([*folders, fourth], tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<details><summary>Cases: fourth</summary>" in page
    assert '<p class="notice">fourth lacks what others have, which is not compared: all that needs' in page
    assert "Reliability diagrams" not in page


def test_volumes_by_hand(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a", with_probabilities=False)
    columns = "dsc_a,hd95_a,true_volume_a,expected_volume_a,volume_low_a,volume_high_a"
    rows = ["1,1,100,110,90,120", "1,1,50,40,45,60", "1,1,10,10,11,12", "1,1,0,5,0,9"]  # third: below the range
    lines = [f"case,{columns}", *(f"patient{i:03d}_frame01,{row}" for i, row in enumerate(rows))]
    (folder / "cases.csv").write_text("\n".join([*lines, ""]))
    report_evaluations([folder], tmp_path / "report")
    (record,) = records(tmp_path / "report" / "volumes.csv", "structure").values()
    assert record["unit"] == "ml"
    assert float(record["bias"]) == pytest.approx((10 - 10 + 0 + 5) / 4)
    assert float(record["relative_error_percent"]) == pytest.approx((10 + 20 + 0) / 3)  # a true volume of 0 has none
    assert (record["inside"], record["cases"]) == ("2", "3")  # of the cases that have it
    text = (tmp_path / "report" / "report.md").read_text()
    assert (
        "| structure | true volume (ml) | expected volume (ml) | its bias (ml) | its relative error ↓ | in range |"
        in text
    )
    assert "| a | 40.00 | 41.25 | +1.25 | 10.0 % | 2 of 3 |" in text


def test_segmented_volumes_come_first(one: Path, three: Path) -> None:
    """True volumes of 80, 82 ... 110, and one less segmented in each."""
    text = (one / "report.md").read_text()
    assert (
        "| structure | true volume (ml) | segmented volume (ml) | its bias (ml) | its relative error ↓ | expected v"
        in text
    )
    assert "| RV | 95.00 | 94.00 | -1.00<br>[-1.00, -1.00] | 1.1 %<br>[" in text
    assert "| old | RV | 95.00 | 94.00 | -1.00<br>[-1.00, -1.00] | 1.1 %<br>[" in (three / "report.md").read_text()
    record = records(one / "volumes.csv", "structure")["RV",]
    assert float(record["segmented_bias"]) == -1
    assert float(record["segmented_relative_error_percent"]) == pytest.approx(np.mean(100 / np.arange(80, 112, 2)))


def test_regions_near_borders_are_in_means_and_differences(tmp_path: Path) -> None:
    folders = [make_folder(tmp_path / name, gap=gap) for name, gap in (("a", 0.08), ("b", 0.03))]
    for folder in folders:
        cases, columns = read_cases(folder)
        columns |= {"ece_plausible": columns["ece_predicted"], "ece_predicted_band": 1 - columns["ece_predicted"]}
        write_cases(folder, cases, {name: torch.from_numpy(values) for name, values in columns.items()})
    report_evaluations(folders, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.count("| ECE all ↓ | ECE predicted ↓ | ECE plausible ↓ | ECE predicted_band ↓ |") == 2
    assert "predicted_band: at most 2 voxels from a border between predicted classes." in text


def test_threshold_is_chosen_on_validation_cases(folders: list[Path], tmp_path: Path) -> None:
    validation = make_folder(tmp_path / "validation", patients=3, seed=9)
    for file in ("cases.csv", "summary.json", "calibration.json", "thresholds.json", "risk_coverage.json"):
        (validation / file).write_text((validation / file).read_text().replace("patient0", "other0"))
    report_evaluations(folders[:1], tmp_path / "report", validation)
    _, counts = read_thresholds(validation)
    best = f"{counts.best()[0]:.2f}"
    assert best not in ("0.10", "0.25", "0.50", "0.75", "0.90")
    table = records(tmp_path / "report" / "thresholds.csv", "structure", "threshold")
    assert [key for key, record in table.items() if record["chosen"] == "True"] == [
        (name, best) for name in ("RV", "MYO", "LV")
    ]
    assert len(table) == 3 * 99
    text = (tmp_path / "report" / "report.md").read_text()
    assert "threshold with the highest mean DSC on the 6 cases of the validation folder." in text
    _, tested = read_thresholds(folders[0])
    expected = tested.table(0)
    index = round(100 * float(best)) - 1
    for name in ("sensitivity", "specificity", "ppv", "dsc"):
        assert float(table["RV", best][name]) == pytest.approx(float(getattr(expected, name)[index]))
    assert f"| RV | **{best}**<br>chosen |" in text
    change = (tested.dsc[:, 0, index] - tested.dsc[:, 0, 49]).mean()
    assert f"Thresholds chosen on the validation cases: RV {best} (DSC {change:+.4f} [" in text


def test_threshold_that_makes_little_difference_is_said_to(folders: list[Path], tmp_path: Path) -> None:
    """The DSC of LV is the same at all thresholds."""
    folder = shutil.copytree(folders[0], tmp_path / "same")
    names, counts = read_thresholds(folder)
    for field in (counts.true_positive, counts.predicted):
        field[:, 2] = field[:, 2, :1]
    write_thresholds(folder, names, read_cases(folder)[0], counts)
    report_evaluations([folder], tmp_path / "report", folders[0])
    text = (tmp_path / "report" / "report.md").read_text()
    assert re.search(r"Thresholds chosen on the validation cases: RV .*, LV 0\.\d\d \(DSC \+0\.0000 \[", text)
    assert text.count("Thresholds chosen on the validation cases: RV ") == 2  # in the conclusion and above the table


def test_without_validation_no_threshold_is_chosen(one: Path) -> None:
    text = (one / "report.md").read_text()
    assert "No threshold was chosen: to choose one by the highest mean DSC of validation cases" in text
    assert re.findall(r"\| LV \| (0\.\d\d)(?:<br>usual)? \|", text) == ["0.10", "0.25", "0.50", "0.75", "0.90"]
    assert {record["chosen"] for record in records(one / "thresholds.csv", "structure", "threshold").values()} == {
        "False"
    }


def test_validation_cases_that_are_tested_are_named(folders: list[Path], tmp_path: Path) -> None:
    report_evaluations(folders[:1], tmp_path / "report", folders[0])
    text = "8 of the patients are, by their names, in the validation folder too, so the thresholds were chosen on them."
    assert text in (tmp_path / "report" / "index.html").read_text()


def test_validation_cases_of_the_same_name_and_other_volumes_are_others(folders: list[Path], tmp_path: Path) -> None:
    validation = make_folder(tmp_path / "validation")
    cases, columns = read_cases(validation)
    columns["true_volume_LV"] += 0.01
    write_cases(validation, cases, {name: torch.from_numpy(values) for name, values in columns.items()})
    report_evaluations(folders[:1], tmp_path / "report", validation)
    assert "in the validation folder too" not in (tmp_path / "report" / "index.html").read_text()


def test_validation_that_does_not_fit(folders: list[Path], results: Path, tmp_path: Path) -> None:
    maps = make_folder(tmp_path / "maps", with_probabilities=False)
    with pytest.raises(
        InputError, match=r"maps/thresholds.json: expected thresholds, got no such file; evaluate again"
    ):
        report_evaluations(folders[:1], tmp_path / "report", maps)
    with pytest.raises(InputError, match="--validation: expected one evaluation folder with it, since it is of one"):
        report_evaluations(folders, tmp_path / "report", folders[0])
    with pytest.raises(InputError, match="--validation: expected an evaluation folder with it, got results of compare"):
        report_folders(results, out=tmp_path / "report", validation=maps)
    sigmoids = make_folder(tmp_path / "sigmoids", sigmoid=True)
    with pytest.raises(
        InputError, match=r"--validation: expected a softmax over 4 classes, got 4 sigmoid.* in .*sigmoids"
    ):
        report_evaluations(folders[:1], tmp_path / "report", sigmoids)
    other = make_folder(tmp_path / "other")
    for file in ("cases.csv", "thresholds.json"):
        (other / file).write_text((other / file).read_text().replace("LV", "aorta"))
    message = r"--validation: expected the structures RV, MYO, LV, got those of .*other, RV, MYO, aorta"
    with pytest.raises(InputError, match=message):
        report_evaluations(folders[:1], tmp_path / "report", other)


def test_cases_with_the_lowest_expected_dsc_first(folders: list[Path], one: Path) -> None:
    cases, columns = read_cases(folders[0])
    expected = np.mean([columns[f"expected_dsc_{name}"] for name in ("RV", "MYO", "LV")], axis=0)
    true = np.mean([columns[f"dsc_{name}"] for name in ("RV", "MYO", "LV")], axis=0)
    with open(one / "expected_dsc.csv", newline="") as table:
        written = list(csv.DictReader(table))
    order = np.argsort(expected)
    assert [record["case"] for record in written] == [cases[i] for i in order]
    assert [float(record["dsc"]) for record in written] == pytest.approx(true[order])
    text = (one / "report.md").read_text()
    assert f"| 1 | {cases[order[0]]} | {expected[order[0]]:.3f} | {true[order[0]]:.3f} | 1 |" in text
    assert "\n| 10 | patient" in text
    assert "\n| 11 | patient" not in text
    assert "with its 95 % interval over patients, and how many of the worst cases, a fifth of all, " in text
    assert "expected DSC: old 1.000 [1.000, 1.000], 3 of 3." in text


def test_label_maps_have_the_segmentation_part_alone(tmp_path: Path) -> None:
    maps = make_folder(tmp_path / "maps", with_probabilities=False)
    report_folders(maps, out=tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "There are no probabilities, so nothing can be said about calibration." in page
    assert re.findall("<h2>(.*?)</h2>", page) == ["Cases: maps", "Means", "Structures"]
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "index.html", "report.md", "means.csv", "structures.csv"
    }  # fmt: skip


def test_few_patients_have_no_intervals(tmp_path: Path) -> None:
    few = [make_folder(tmp_path / name, patients=2, seed=seed) for seed, name in enumerate("ab")]
    report_evaluations(few, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "2 patients are too few to tell which method has better probabilities." in text
    assert "> 2 patients: intervals and tests need at least 6." in text
    for absent in ("nan", "<br>[", "p = ", "**", "<ins>"):
        assert absent not in text.lower()


def test_report_may_be_in_the_evaluation_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a")
    for _ in range(2):
        report_evaluations([folder], folder / "report")
    assert (folder / "report" / "index.html").is_file()
    for out in (folder, folder / "cases", tmp_path):
        with pytest.raises(InputError, match=r"--out: expected a folder of its own for the report, got .*"):
            report_evaluations([folder], out)


def test_evaluation_of_a_trained_cell(tmp_path: Path) -> None:
    """Cells of compare_losses are evaluation folders without thresholds."""
    for method, temperature in (("nacl", 0.8), ("svls", 1.2)):
        make_finished_cell(tmp_path, method, 0, 0.1, temperature=temperature)
    report_folders(tmp_path / "nacl" / "seed0", tmp_path / "svls" / "seed0", out=tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<title>Evaluations compared: nacl/seed0, svls/seed0</title>" in page
    assert (tmp_path / "report" / "reliability_nacl_seed0.png").is_file()


def test_names_are_text_in_every_file(tmp_path: Path) -> None:
    name = "<b>x|y<!-- & $_$](z"
    folder = make_folder(tmp_path / name, patients=3)
    for file in ("cases.csv", "summary.json", "calibration.json", "thresholds.json", "risk_coverage.json"):
        text = (
            (folder / file)
            .read_text()
            .replace("patient000", "<i>p|q")
            .replace("_RV", "_<u>|")
            .replace('"RV"', '"<u>|"')
        )
        (folder / file).write_text(text)
    report_evaluations([folder], tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    for tag in ("<b>", "<i>", "<u>", "<!--"):
        assert tag not in page
    assert "&lt;b&gt;x|y&lt;!-- &amp; $_$](z" in page
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "| &lt;b>x\\|y&lt;!-- & $_$]\\(z | " in markdown
    assert "| &lt;u>\\| | " in markdown
    report_evaluations([folder], tmp_path / "report")


def test_one_folder_without_cases_is_that_of_a_comparison(results: Path, tmp_path: Path) -> None:
    report_folders(results, out=tmp_path / "losses")
    assert (tmp_path / "losses" / "cells.csv").is_file()
    page = (tmp_path / "losses" / "index.html").read_text()
    assert (
        '<p class="conclusion">Compared with NACL, CE+DSC has a higher ECE over the ground-truth foreground (' in page
    )
    assert page.index("Cases: NACL") < page.index("Cases: CE+DSC") < page.index("<h2>Means</h2>")
