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
from calib_components.metrics.intervals import Estimate, interval
from calib_tools.report import comparison, report, statistics
from calib_tools.report.calibration import Judgement, structures_section
from calib_tools.report.comparison import compare, differences_section, means_section
from calib_tools.report.conclusion import conclude, next_step
from calib_tools.report.data import Context
from calib_tools.report.raters import MINUS
from calib_tools.report.readers import read_evaluations
from calib_tools.report.report import report_folders
from calib_tools.report.statistics import CalibrationGap, holm
from calib_tools.report.validation import read_validation
from calib_workflows.evaluation_files import Evaluation
from calib_workflows.pages.page import Answer, Section
from tests.calib_tools.report.made_up import (
    PNG,
    STRUCTURES,
    cases_of,
    patients_of,
    write_evaluation,
)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but not rendered."""
    monkeypatch.setattr(comparison, "to_png", lambda figure: PNG)


def dsc(value: Any) -> dict[str, Any]:
    return {f"dsc_{name}": value for name in STRUCTURES}


OPPOSITE = np.repeat([0.1, -0.1], 2).tolist() * 4  # by patients
DONE = {"calibrator": "temperature", "region": "all", "patients": 8}
OVER = "^Where it predicts a structure, it is overconfident: .* points.$"
ABOUT_ONE: dict[str, tuple[dict[str, Any], str, str]] = {
    "overconfident": (
        {"gap": 0.1},
        OVER,
        "configs/calibrate.yaml",
    ),
    "slightly": (
        {"gap": 0.004},
        "it is calibrated within 0.02, slightly overconfident: ",
        "Nothing on images like these",
    ),
    "underconfident": ({"gap": -0.05}, "it is underconfident: ", "configs/calibrate.yaml"),
    "with a temperature": ({"gap": 0.1, "calibration": DONE}, OVER, "--region predicted"),
    "with one where structures are": (
        {"gap": 0.1, "calibration": {**DONE, "region": "predicted"}},
        OVER,
        "about 16 more patients like these",
    ),
    "opposite patients": (
        {"gap": OPPOSITE},
        r"is undecided: confidence minus accuracy is -?\+?\d\.\d \[",
        "the interval would lie within 0.02 with about",
    ),
    "bad segmentation": (
        {"gap": OPPOSITE, "changed": dsc(0.4)},
        "^The mean DSC is below 0.7: calibration does not make up for that",
        "Find out whether these images are unlike the training's",
    ),
    "far apart": (
        {"gap": np.repeat([0.2, -0.2], 2).tolist() * 3, "patient_of": cases_of(6)},
        "whether it is calibrated is undecided",
        "more than 200 more patients like these are needed for the interval to lie within 0.02",
    ),
    "one patient": (
        {"patient_of": cases_of(1)},
        r"is undecided.* need six patients \(here: 1 patient\)",
        "Evaluate six patients or more: fewer",
    ),
    "label maps": (
        {"with_probabilities": False},
        "is unknown.$",
        "Evaluate probabilities",
    ),
}


def answer_about(*folders: Path) -> Answer:
    """The answer about one or several evaluations."""
    found = read_evaluations(folders)
    return conclude(Context(found))


@pytest.mark.parametrize("name", ABOUT_ONE)
def test_answer_about_one_network(name: str, tmp_path: Path) -> None:
    options, pattern, advice = ABOUT_ONE[name]
    answer = answer_about(write_evaluation(tmp_path, **options))
    text = " ".join(answer.sentences)
    assert re.search(pattern, text)
    assert len(answer.sentences) <= 3
    assert advice in answer.advice
    of_predictions = answer_about(write_evaluation(tmp_path, **options, source="predictions"))
    other = advice.replace("configs/calibrate.yaml", "calibrate_predictions")
    assert other in of_predictions.advice


def test_one_temperature_cannot_calibrate_two_opposite_regions() -> None:
    """Where structures are predicted, it is calibrated; the background is not."""
    judgements = {
        "predicted": Judgement(Estimate(0, -0.01, 0.01)),
        "all": Judgement(Estimate(-0.05, -0.06, -0.04)),
    }
    nothing = next_step({}, 0.9, judgements)
    assert nothing.startswith("Nothing on images like these")
    fitted = next_step({"calibration": {**DONE, "region": "predicted"}}, 0.9, judgements)
    assert fitted.startswith(f"{nothing} Over all voxels, it is underconfident by 0.050")


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
    judgement = Judgement(gap, pooled_ece=ece)
    assert (judgement.text, judgement.is_bent) == (text, is_bent)
    advice = next_step({}, 0.9, {"predicted": judgement, "all": judgement})
    assert advice.startswith("Rely on its mean confidence") is is_bent


@pytest.mark.parametrize(
    ("shift", "patients", "kind"),
    [
        (0.0, 8, "agrees with raters as they agree with each other, as far as is shown: "),
        (0.1, 8, "agrees with raters more than they agree with each other: "),
        (-0.1, 8, "agrees with raters less than they agree with each other: "),
        (0.1, 5, "as they agree with each other is unknown, as intervals need six patients: "),
    ],
)
def test_answer_about_raters_comes_first(
    shift: float, patients: int, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = np.tile([-0.01, 0.01], patients)
    changed = {f"dsc_{s}": 0.8 + shift + chance for s in STRUCTURES}
    changed |= {f"raters_dsc_{s}": 0.8 for s in STRUCTURES}
    rows = [{"rater": "all", "structure": s, "scans": 16, "dsc": 0.8} for s in STRUCTURES]
    parts = {"raters": pd.DataFrame(rows)}
    tested = write_evaluation(tmp_path / "net", cases_of(patients), changed=changed, parts=parts)
    report_folders(tested, out=tmp_path / "out")
    page, printed = (tmp_path / "out/index.html").read_text(), capsys.readouterr().out
    assert "<h1>Does it agree with the raters? net</h1>" in page
    interval = " [" if patients > 5 else "."
    for line, structure in zip(printed.splitlines(), STRUCTURES, strict=False):
        assert line.startswith(f"{structure}: ")
        value = f"minus theirs with each other is {shift + 0:+.4f}".replace("-0.0000", "+0.0000")
        assert kind in line
        assert f"{value}{interval}" in line
    assert page.index(f"{STRUCTURES[0]}: ") < page.index("it is overconfident")
    table = pd.read_csv(tmp_path / "out/raters_means.csv")
    assert table[table["title"] == MINUS]["mean"].tolist() == pytest.approx([shift] * 3)


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
        names = patients_of(patients)
        gaps = [CalibrationGap(*simulated(rng, patients, gap), names) for _ in range(runs)]
        found = [Judgement(gap.estimate()).verdict for gap in gaps]
        return sum(answer in answers for answer in found)

    assert share(0, "shown") <= stats.binom.ppf(0.99, runs, 0.06)
    assert share(0.03, "calibrated", "slight") <= stats.binom.ppf(0.99, runs, 0.05)
    if patients >= 20:
        assert share(0.1, "shown") >= 0.6 * runs
        assert share(0.1, "calibrated", "slight") == 0


def test_structures_have_their_gaps_and_errors_of_volumes(tmp_path: Path) -> None:
    changed = {"confidence_RV": 0.9, "accuracy_RV": 0.8, "accuracy_MYO": 0.9}
    found = read_evaluations([write_evaluation(tmp_path, changed=changed)])
    section = structures_section(Context(found))
    records = section.table.set_index(["structure", "measure"])
    assert records["mean"]["RV", "gap"] == pytest.approx(0.1)
    errors = records["mean"]["RV"][["segmented_volume_error", "expected_volume_error"]]
    assert errors.tolist() == [-1, 2]
    verdicts = records["text"].xs("calibrated?", level="measure")
    assert verdicts[["RV", "MYO"]].tolist() == ["overconfident", "calibrated within 0.02"]
    regions = {"predicted foreground", "all voxels"}
    assert {*verdicts.index} == {*STRUCTURES, *regions}


def titles_of(page: str) -> list[str]:
    return re.findall("<(?:h2|details><summary)>(.+?)</", page)


def test_report_of_one_evaluation(tmp_path: Path) -> None:
    tested = write_evaluation(tmp_path / "test")
    others = write_evaluation(tmp_path / "val", cases_of(9, first=30))
    report_folders(tested, out=tmp_path / "out", validation=others)
    page = (tmp_path / "out/index.html").read_text()
    assert "<h1>Is it calibrated? test</h1>" in page
    answer = "Where it predicts a structure, it is overconfident: "
    assert page.index(answer) < page.index("calibrate.yaml") < page.index("reliability")
    assert page.index("<h2>Which") < page.index("<summary>Structures")
    titles = [
        "What next",
        "Reliability",
        "Which cases to look at",
        "All 16",
        "About these numbers",
        "Structures and regions",
        "Means",
        "Does the expected DSC find the bad scans?",
        "Do the limits hold?",
        "Terms",
    ]
    assert titles_of(page) == titles
    assert "validation folder, too" not in page
    cases = pd.read_csv(tmp_path / "out/all_cases.csv")
    assert cases[cases["measure"] == "dsc"]["mean"].is_monotonic_increasing
    summary = pd.read_csv(tmp_path / "out/summary.csv", index_col="measure")
    assert summary["mean"]["sure"] - summary["mean"]["right"] == pytest.approx(8, abs=0.1)
    assert summary["text"]["calibrated?"] == "overconfident"
    report_folders(tested, out=tmp_path / "out", overwrite=True)
    titles.remove("Do the limits hold?")
    assert titles_of((tmp_path / "out/index.html").read_text()) == titles


def test_report_of_one_case_warns_of_nothing(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    report_folders(write_evaluation(tmp_path / "a", {"p": "p"}), out=tmp_path / "out")
    assert not [each for each in recwarn if issubclass(each.category, RuntimeWarning)]


def test_validation_cases_are_not_those_under_test(tmp_path: Path) -> None:
    cases = {case: case for case in cases_of(8)}
    tested, others = (
        write_evaluation(tmp_path / "test"),
        write_evaluation(tmp_path / "val", {"p07_3": "p07_3"}),
    )
    test = Evaluation.read(tested)
    with pytest.raises(InputError, match=r"--validation: .*val has 2 of .*p07_1 and p07_3"):
        read_validation(others, test.structures, test.summary, test.items(), r"p\d+")
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
    gaps = {"b": 0.004, "a": 0.1, "c": 0.1}
    folders = [write_evaluation(tmp_path / name, gap=gap) for name, gap in gaps.items()]
    report_folders(*folders, out=tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert "<h1>Which is better? b, a, c</h1>" in page
    for kind, name in (("overconfident", "a"), ("calibrated within 0.02, slightly over", "b")):
        assert f"<p>{name}: where it predicts a structure, it is {kind}" in page
    assert re.search(r"<p>a is worse than b: NLL over all voxels \+0\.\d+ \[", page)
    assert "What next" not in titles_of(page)
    assert page.count("<img") == page.count('alt="') == 3  # diagrams that are not folded
    labels = write_evaluation(tmp_path / "labels", with_probabilities=False)
    report_folders(labels, folders[0], out=tmp_path / "out", overwrite=True)
    page = (tmp_path / "out/index.html").read_text()
    assert "labels: without probabilities of predicted structures" in page
    assert "Structures and regions" in titles_of(page)


def test_differences_are_corrected_over_evaluations(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    found = read_evaluations(
        [write_evaluation(tmp_path / name, seed=seed) for seed, name in enumerate(names)]
    )
    table = compare(found, "a").set_index("measure")
    assert {*table["evaluation"]} == {"b", "c"}
    assert {"dsc", "hd95", "nll_all", "nll_near", "ece_all"} <= {*table.index}
    for measure in ("dsc", "nll_all", "nll_near"):
        together = table.loc[[measure]]
        assert together["p_value_holm"].tolist() == holm(together["p_value"]).tolist()
    difference = found.values("b", "ece_all") - found.values("a", "ece_all")
    assert table.loc["ece_all", "mean"].iloc[0] == pytest.approx(difference.mean())


def test_significant_differences_are_bold(tmp_path: Path) -> None:
    folders = [
        write_evaluation(tmp_path / name, gap=gap, changed=dsc(0.8))
        for name, gap in (("a", 0.1), ("b", 0.02))
    ]
    found = read_evaluations(folders)
    section = differences_section(Context(found))
    assert section is not None
    heads, rows = section.grid()
    assert heads[1] == "b minus a"
    cells = {str(measure): cell for measure, cell in rows}
    assert cells["NLL all ↓"].bold
    assert cells["NLL all ↓"].text.startswith("-")
    assert not cells["DSC ↑"].bold


def test_means_have_intervals_and_the_values_if_true(tmp_path: Path) -> None:
    found = read_evaluations([write_evaluation(tmp_path / "a", missed=[{"case": "p01_2"}])])
    section = means_section(Context(found))
    assert section is not None
    records = section.table.set_index("measure")
    expected = interval(found.values("a", "ece_all"), found.patients)[:3]
    assert tuple(records.loc["ece_all", ["mean", "low", "high"]]) == expected
    cells = {str(measure): cell for measure, cell in section.grid()[1]}
    assert "DSC ↑" in cells
    assert cells["missed / spurious"].text == "1 / 0"
    assert cells["ECE foreground ↓"].notes[-1] == "0.100 if true"


def test_a_section_of_the_list_is_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_up(context: Context) -> Section:
        count = {"label": "all", "measure": "scans", "mean": len(context.results.patients)}
        return Section("made_up", "Made up", "About it.", pd.DataFrame([count]))

    monkeypatch.setattr(report, "SECTIONS", (*report.SECTIONS, made_up, lambda context: None))
    report_folders(write_evaluation(tmp_path / "a"), out=tmp_path / "out")
    assert titles_of((tmp_path / "out/index.html").read_text())[-2:] == ["Made up", "Terms"]
    assert pd.read_csv(tmp_path / "out/made_up.csv")["mean"].tolist() == [16]


@pytest.mark.parametrize(
    ("folders", "options", "keyword"),
    [
        ([], {}, "No folder"),
        (["eval"], {"out": Path("eval")}, "eval holds files to read"),
        (["eval"], {"validation": Path("labels")}, "labels is of label maps"),
        (["eval", "eval2"], {"validation": Path("eval")}, "--validation"),
        (["eval", "eval"], {}, "twice"),
        (["runs"], {}, r"runs holds a comparison of losses.* python scripts/report\.py runs"),
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
    Path("runs").mkdir()
    Path("runs/plan.json").touch()
    with pytest.raises(InputError, match=keyword):
        report_folders(*map(Path, folders), **options)
    assert not Path("report").exists()
