"""Conclusions, sections and pages of reports of made-up numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from calib_components.errors import InputError
from calib_tools.report import comparison, report, statistics
from calib_tools.report.calibration import Judgement
from calib_tools.report.comparison import compare, means_section
from calib_tools.report.conclusion import conclude
from calib_tools.report.data import Context
from calib_tools.report.page import Answer, Section
from calib_tools.report.readers import read_evaluations
from calib_tools.report.report import report_folders
from calib_tools.report.statistics import (
    CalibrationGap,
    Estimate,
    holm,
    mean_with_interval,
)
from calib_tools.report.structures import structures_section
from calib_tools.report.tables import Cell
from calib_tools.report.thresholds import check_apart
from calib_workflows.evaluation_files import Evaluation
from tests.calib_tools.report.made_up import (
    PNG,
    cases_of,
    write_evaluation,
)

STRUCTURES = ("RV", "MYO", "LV")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but not rendered."""
    monkeypatch.setattr(comparison, "to_png", lambda figure: PNG)


def dsc(value: Any) -> dict[str, Any]:
    return {f"dsc_{name}": value for name in STRUCTURES}


OPPOSITE = np.repeat([0.1, -0.1], 2).tolist() * 4  # by patients
DONE = {"calibrator": "temperature", "region": "all", "patients": 8}
OVER = "^It is overconfident.$"
ABOUT_ONE: dict[str, tuple[dict[str, Any], str, str]] = {
    "overconfident": (
        {"gap": 0.1},
        OVER,
        "configs/calibrate.yaml",
    ),
    "slightly": (
        {"gap": 0.004},
        "^It is calibrated within 0.02, slightly overconfident.$",
        "Nothing on images like these",
    ),
    "underconfident": ({"gap": -0.05}, "^It is underconfident.$", "configs/calibrate.yaml"),
    "with a temperature": ({"gap": 0.1, "calibration": DONE}, OVER, "--region predicted"),
    "with one where structures are": (
        {"gap": 0.1, "calibration": {**DONE, "region": "predicted"}},
        OVER,
        "about 16 more patients like these",
    ),
    "opposite patients": ({"gap": OPPOSITE}, "is undecided.$", "more patients and evaluate them"),
    "bad segmentation": (
        {"gap": OPPOSITE, "changed": dsc(0.4)},
        "^The mean DSC is low: calibration does not make up for that",
        "train longer",
    ),
    "far apart": (
        {"gap": np.repeat([0.2, -0.2], 2).tolist() * 3, "patient_of": cases_of(6)},
        "Whether it is calibrated is undecided",
        "more than 200 more",
    ),
    "one patient": ({"patient_of": cases_of(1)}, "is undecided", "Label about 19 more patients"),
    "label maps": (
        {"with_probabilities": False},
        "is unknown.$",
        "Evaluate probabilities",
    ),
}


def answer_about(*folders: Path) -> Answer:
    """The answer about one or several evaluations."""
    found = read_evaluations(folders)
    return conclude(Context(found, found.names[0], compare(found, found.names[0])))


@pytest.mark.parametrize("name", ABOUT_ONE)
def test_answer_about_one_network(name: str, tmp_path: Path) -> None:
    options, pattern, advice = ABOUT_ONE[name]
    answer = answer_about(write_evaluation(tmp_path, **options))
    text = " ".join(answer.sentences)
    assert re.search(pattern, text)
    assert len(answer.sentences) <= 3
    assert advice in answer.advice + answer.command
    of_predictions = answer_about(write_evaluation(tmp_path, **options, source="predictions"))
    assert of_predictions.command.startswith("calib-components " if answer.command else "")
    assert bool(answer.command) == answer.advice.startswith("Fit ")


def test_cases_that_are_much_worse_than_the_others_are_named(tmp_path: Path) -> None:
    values = np.array([0.8, 0.2, 0.81, 0.79, 0.8, 0.82, 0.38, 0.8])
    folder = write_evaluation(tmp_path, {f"c{i}": f"c{i}" for i in range(8)}, changed=dsc(values))
    named = "Look first at c1 (DSC 0.200), c6 (DSC 0.380)."
    assert answer_about(folder).sentences[-1] == named


@pytest.mark.parametrize(
    ("low", "high", "ece", "text", "is_bent"),
    [
        (-0.01, 0.01, 0.01, "calibrated within 0.02", False),
        (-0.01, 0.01, 0.05, "calibrated within 0.02", True),
        (0.001, 0.019, 0.01, "calibrated within 0.02, slightly overconfident", False),
        (-0.021, 0.01, 0.05, "undecided", False),
    ],
)
def test_the_answer_follows_from_the_interval(
    low: float, high: float, ece: float, text: str, is_bent: bool
) -> None:
    gap = Estimate((low + high) / 2, low, high)
    judgement = Judgement(gap, 0.9, 0.9, pooled_ece=ece)
    assert (judgement.text, judgement.is_bent) == (text, is_bent)


Patients = tuple[np.ndarray, np.ndarray]


def of_patients(rng: np.random.Generator, patients: int, gap: float) -> Patients:
    """Confidence and accuracy of patients whose differences are normal."""
    confidence = rng.beta(40, 4, patients)
    return confidence, (confidence - gap - rng.normal(0, 0.03, patients)).clip(0, 1)


def of_blocks(rng: np.random.Generator, patients: int, gap: float) -> Patients:
    """Blocks of voxels with one outcome, in patients that are right more or less often."""
    confidence = 1 / (
        1 + np.exp(-rng.normal(2.5, 0.8, (patients, 40)) - rng.normal(0, 0.3, (patients, 1)))
    )
    outcome = 0.3 * rng.normal(size=(patients, 1)) + 0.95 * rng.normal(size=(patients, 40))
    right = stats.norm.cdf(outcome) <= confidence - gap
    return confidence.mean(1), right.mean(1)


def of_skewed(rng: np.random.Generator, patients: int, gap: float) -> Patients:
    """Most patients are all right, and a few mostly wrong."""
    confidence = rng.uniform(0.93, 0.97, patients)
    return confidence, rng.beta(3 * (confidence - gap), 3 * (1 - confidence + gap))


@pytest.mark.parametrize("simulated", [of_patients, of_blocks, of_skewed])
@pytest.mark.parametrize("patients", [2, 3, 6, 10, 20, 50])
def test_answers_about_simulated_networks(
    simulated: Callable[..., Patients], patients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Independent patients, and voxels in clusters."""
    monkeypatch.setattr(statistics, "RESAMPLES", 499)
    rng, runs = np.random.default_rng(patients), 150

    def share(gap: float, *answers: str) -> float:
        gaps = [CalibrationGap(*simulated(rng, patients, gap)) for _ in range(runs)]
        found = [Judgement(gap.estimate(), 0, 0).verdict for gap in gaps]
        return sum(answer in answers for answer in found)

    assert share(0, "shown") <= stats.binom.ppf(0.99, runs, 0.06)
    assert share(0.03, "calibrated", "slight") <= stats.binom.ppf(0.99, runs, 0.05)
    if patients >= 20:
        assert share(0.1, "shown") >= 0.6 * runs
        assert share(0.1, "calibrated", "slight") == 0


def compared(tmp_path: Path, *networks: dict[str, Any]) -> Answer:
    """The answer about two networks."""
    folders = [tmp_path / name for name in ("first", "second")]
    for seed, (folder, options) in enumerate(zip(folders, networks, strict=True)):
        write_evaluation(folder, seed=seed, **options)
    return answer_about(*folders)


def test_answer_about_two_networks_names_what_is_significant(tmp_path: Path) -> None:
    over, better = {"gap": 0.1, "changed": dsc(0.8)}, {"gap": 0.02, "changed": dsc(0.81)}
    answer = compared(tmp_path, over, better).sentences
    assert answer == [
        "Better than first: second (DSC, NLL all, NLL near).",
        "second: It is overconfident.",
    ]
    # Background alone may decide: near the structures, both are alike
    equal = {"gap": 0.05, "changed": dsc(0.8)}
    answer = compared(tmp_path, equal, {"gap": 0.05, "changed": {**dsc(0.8), "nll_all": 0.01}})
    assert answer.sentences[0] == "Better than first: second (NLL all)."
    assert answer.sentences[1].startswith("second: ")
    # Near the structures alone, it is told, but does not decide
    answer = compared(tmp_path, equal, {"gap": 0.05, "changed": {**dsc(0.8), "nll_near": 0.01}})
    assert answer.sentences[0] == "Better than first: second (NLL near)."
    assert answer.sentences[1].startswith("first: ")
    # A higher DSC does not make up for a higher NLL
    worse = {"gap": 0.05, "changed": {**dsc(0.81), "nll_all": 0.9}}
    answer = compared(tmp_path, equal, worse).sentences
    assert answer[:2] == ["Better than first: second (DSC).", "Worse than first: second (NLL all)."]
    assert answer[-1].startswith("first: ")
    # A network chooses its predicted voxels itself
    chosen = {"gap": 0.05, "changed": {**dsc(0.8), "nll_predicted": 0.01}}
    answer = compared(tmp_path, equal, chosen)
    assert answer.sentences[0].startswith("No significant difference in DSC, NLL all, NLL near on")
    assert "\"['configs/train.yaml','configs/calibrate.yaml']\"" in answer.command


def test_network_that_segments_badly_is_not_praised(tmp_path: Path) -> None:
    good, bad = {"gap": 0.1, "changed": dsc(0.82)}, {"gap": 0.02, "changed": dsc(0.4)}
    warning = "A lower NLL does not make up for a low DSC."
    answer = compared(tmp_path, good, bad).sentences
    assert answer == ["Worse than first: second (DSC).", warning, "first: It is overconfident."]
    answer = compared(tmp_path, bad, good).sentences  # nor is the reference
    assert answer[0] == "Better than first: second (DSC)."
    assert answer[2:] == [warning, "second: It is overconfident."]


def test_confidence_and_accuracy_of_a_structure_are_those_of_its_predicted_voxels(
    tmp_path: Path,
) -> None:
    """90 voxels are predicted, 72 rightly, with a sum of 81; there are 100 of them, and a sum of 95
    in all.
    """
    volumes = {"segmented_volume_RV": 90.0, "true_volume_RV": 100.0, "expected_volume_RV": 95.0}
    changed = volumes | {"dsc_RV": 2 * 72 / 190, "expected_dsc_RV": 2 * 81 / 185}
    found = read_evaluations([write_evaluation(tmp_path, changed=changed)])
    np.testing.assert_allclose(found.values(tmp_path.name, "confidence_RV"), 0.9)
    np.testing.assert_allclose(found.values(tmp_path.name, "accuracy_RV"), 0.8)
    section = structures_section(Context(found, tmp_path.name))
    records = pd.DataFrame(section.records).set_index(["structure", "measure"])["mean"]
    assert records["RV"][["confidence", "accuracy", "gap"]].tolist() == pytest.approx(
        [0.9, 0.8, 0.1]
    )
    assert records["MYO", "optimism"] == pytest.approx(0.05)
    assert records["RV"][["segmented_volume_error", "expected_volume_error"]].tolist() == [-10, -5]


def titles_of(page: str) -> list[str]:
    return re.findall("<(?:h2|details><summary)>(.+?)</", page)


def test_report_of_one_evaluation_with_chosen_thresholds(tmp_path: Path) -> None:
    tested = write_evaluation(tmp_path / "test")
    chosen_on = write_evaluation(tmp_path / "val", cases_of(6, first=30))
    report_folders(tested, out=tmp_path / "out", validation=chosen_on)
    page = (tmp_path / "out/index.html").read_text()
    assert "<h1>Is it calibrated? test</h1>" in page
    assert page.index("<th>too sure by</th>") < page.index("It is overconfident.")
    assert page.index("It is overconfident.") < page.index("reliability") < page.index("<h2>Which")
    assert page.index("p00_1") < page.index("calibrate.yaml") < page.index("<h2>Details")
    assert titles_of(page) == [
        "Reliability",
        "Which cases to look at",
        "All 16",
        "What next",
        "Details",
        "About this evaluation",
        "Structures and regions",
        "Means",
        "Thresholds",
        "Does the expected DSC find the bad scans?",
        "Terms",
    ]
    assert re.search(r"Its change against 0.5: RV [+-]0\.\d+ \[.*\], MYO", page)
    cases = pd.read_csv(tmp_path / "out/all_cases.csv")
    assert cases["dsc"].is_monotonic_increasing
    table = pd.read_csv(tmp_path / "out/thresholds.csv", index_col="structure").loc["RV"]
    best = Evaluation.read(chosen_on).thresholds
    assert best is not None
    assert table["threshold"].tolist() == [0.5, pytest.approx(best.best()[0].item())]
    # 900 of 1000 voxels, of 1050 that are predicted
    assert table["sensitivity ↑"].iloc[0] == pytest.approx(0.9)
    assert table["PPV ↑"].iloc[0] == pytest.approx(900 / 1050, abs=1e-3)
    assert "validation folder, too" not in page
    report_folders(tested, out=tmp_path / "out", overwrite=True)
    assert "Thresholds" not in titles_of((tmp_path / "out/index.html").read_text())


def test_thresholds_are_not_chosen_on_cases_under_test(tmp_path: Path) -> None:
    cases = {case: case for case in cases_of(8)}
    tested, others = (
        write_evaluation(tmp_path / "test"),
        write_evaluation(tmp_path / "val", {"p07_3": "p07_3"}),
    )
    items = [Evaluation.read(tested).items(), Evaluation.read(others).items(r"p\d+")]
    with pytest.raises(InputError, match=r"--validation: .*val has 2 of .*p07_1 and p07_3"):
        check_apart(*items, tmp_path / "val")
    with pytest.raises(InputError, match="--validation"):
        report_folders(tested, out=tmp_path / "out", validation=tested)
    report_folders(
        write_evaluation(tested, cases),
        out=tmp_path / "out",
        validation=write_evaluation(others, cases),
    )
    page = (tmp_path / "out/index.html").read_text()
    assert "16 of the cases have names of the validation folder, too." in page


def test_report_of_several_evaluations(tmp_path: Path) -> None:
    gaps = {"b": 0.02, "a": 0.1, "c": 0.1}
    folders = [write_evaluation(tmp_path / name, gap=gap) for name, gap in gaps.items()]
    report_folders(*folders, out=tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert "<h1>3 evaluations compared</h1>" in page
    assert "<p>Worse than b: a (NLL all, NLL near); c (NLL all, NLL near).</p>" in page
    assert page.count("<img") == page.count('alt="') == 3  # diagrams that are not folded
    labels = write_evaluation(tmp_path / "labels", with_probabilities=False)
    report_folders(labels, folders[0], out=tmp_path / "out", overwrite=True)
    page = (tmp_path / "out/index.html").read_text()
    assert "labels: Without probabilities of predicted structures" in page
    assert "Structures and regions" in titles_of(page)


def test_differences_are_corrected_over_evaluations(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    found = read_evaluations(
        [write_evaluation(tmp_path / name, seed=seed) for seed, name in enumerate(names)]
    )
    table = compare(found, "a").set_index("measure")
    assert {*table["name"]} == {"b", "c"}
    assert {"dsc", "hd95", "nll_all", "nll_near", "ece_all"} <= {*table.index}
    for measure in ("dsc", "nll_all", "nll_near"):
        together = table.loc[[measure]]
        assert together["p_value_holm"].tolist() == holm(together["p_value"]).tolist()
    difference = found.values("b", "ece_all") - found.values("a", "ece_all")
    assert table.loc["ece_all", "mean"].iloc[0] == pytest.approx(difference.mean())


def test_means_have_intervals_and_the_values_if_true(tmp_path: Path) -> None:
    found = read_evaluations([write_evaluation(tmp_path / "a", missed=[{"case": "p01_2"}])])
    section = means_section(Context(found, "a"))
    assert section is not None
    records = pd.DataFrame(section.records).set_index("measure")
    expected = mean_with_interval(found.values("a", "ece_all"), found.patients)[:3]
    assert tuple(records.loc["ece_all", ["mean", "low", "high"]]) == expected
    cells = section.table["a"]
    assert {"DSC ↑", "AURC ↓"} <= {*cells.index}
    assert cells["missed / spurious"].text == "1 / 0"
    assert cells["ECE foreground ↓"].notes[-1] == "0.100 if true"


def test_a_section_of_the_list_is_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_up(context: Context) -> Section:
        lines = pd.Index(["all"], name="scans")
        table = pd.DataFrame({"cases": [Cell(str(len(context.results.patients)))]}, lines)
        return Section("made_up", "Made up", "About it.", table, [{"cases": 16}])

    monkeypatch.setattr(report, "SECTIONS", (*report.SECTIONS, made_up, lambda context: None))
    report_folders(write_evaluation(tmp_path / "a"), out=tmp_path / "out")
    assert titles_of((tmp_path / "out/index.html").read_text())[-2:] == ["Made up", "Terms"]
    assert pd.read_csv(tmp_path / "out/made_up.csv")["cases"].tolist() == [16]


@pytest.mark.parametrize(
    ("folders", "options", "keyword"),
    [
        ([], {}, "No folder"),
        (["eval"], {"out": Path("eval")}, "eval holds files to read"),
        (["eval"], {"validation": Path("labels")}, "thresholds.json"),
        (["eval", "eval2"], {"validation": Path("eval")}, "--validation"),
        (["eval", "runs"], {}, r"summary\.json"),
        (["eval", "compared"], {}, "needs a clone"),
        (["eval", "eval"], {}, "twice"),
    ],
)
def test_options_and_folders_that_do_not_fit_are_refused(
    folders: list[str],
    options: dict[str, Any],
    keyword: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("eval", "eval2", "labels"):
        write_evaluation(Path(name), with_probabilities=name != "labels")
    Path("compared").mkdir()
    Path("compared/comparison.json").touch()
    with pytest.raises(InputError, match=keyword):
        report_folders(*map(Path, folders), **options)
    assert not Path("report").exists()
