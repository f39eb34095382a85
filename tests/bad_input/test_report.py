"""Bad input of `report`: one line that names the file or argument, no report, and nothing lost."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.calib_components.tools.compare.made_up import make_finished_cell, make_folder, make_results

from calib_components.tools.compare import report_folders
from tests.bad_input.harness import run_as_typed, snapshot
from tests.helpers import run_script


class Case(NamedTuple):
    """What is done to the results, the line that is expected, or its start, and the arguments."""

    name: str
    spoil: Callable[[Path], object]
    line: str
    arguments: tuple[str, ...] = ("RESULTS", "--out", "OUT")


def nothing(_: Path) -> None:
    """The results stay whole."""


def remove(name: str) -> Callable[[Path], object]:
    return lambda results: (results / name).unlink()


def put(name: str, content: str | bytes | None) -> Callable[[Path], object]:
    """Put a file, or a folder, in the place of what is there."""

    def spoil(results: Path) -> None:
        path = results / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def truncate(name: str) -> Callable[[Path], object]:
    return lambda results: (results / name).write_bytes((results / name).read_bytes()[:-9])


def change(name: str, **values: Any) -> Callable[[Path], object]:
    """Change values of a JSON file; those that are None are removed."""

    def spoil(results: Path) -> None:
        content = {**json.loads((results / name).read_text()), **values}
        (results / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return spoil


def replace(name: str, old: str, new: str) -> Callable[[Path], object]:
    def spoil(results: Path) -> None:
        text = (results / name).read_text()
        assert old in text
        (results / name).write_text(text.replace(old, new, 1))

    return spoil


def of_training(**values: Any) -> Callable[[Path], object]:
    """Change settings of the training, in every cell alike."""

    def spoil(results: Path) -> None:
        for file in results.glob("*/seed*/settings.json"):
            content = json.loads(file.read_text())
            file.write_text(json.dumps({**content, "training": {**content["training"], **values}}))

    return spoil


def bins(**fields: Any) -> Callable[[Path], object]:
    """Change the bins of the predicted class."""

    def spoil(results: Path) -> None:
        content = json.loads((results / BINS).read_text())
        content["pooled"]["top_label"].update(fields)
        (results / BINS).write_text(json.dumps(content))

    return spoil


def row(cells: str) -> Callable[[Path], object]:
    """Add a row to the cases."""
    return lambda results: (results / CASES_CSV).open("a").write(cells + "\n")


def someones(name: str, content: str) -> Callable[[Path], object]:
    """A file of somebody else in the folder of the report."""
    return put(f"../report/{name}", content)


NACL = "nacl/seed0"
SETTINGS, CASES_CSV, BINS = f"{NACL}/settings.json", f"{NACL}/cases.csv", f"{NACL}/calibration.json"
LOGITS, SUMMARY, HISTORY = f"{NACL}/logits.json", f"{NACL}/summary.json", f"{NACL}/history.csv"
JUNK = bytes(range(128, 256))
NESTED = "[" * 100_000
CUT = "expected a table, got one without the end of its last line"
A_JSON = "expected a JSON file, got "
A_TABLE = "expected the cases of an evaluation, got "
SOME_BINS = "expected the bins of an evaluation, got "
SOME_LOGITS = "expected the logits of an evaluation, got "
A_SUMMARY = "expected the summary of an evaluation, got "
EPOCHS = "expected a row for each epoch, got "
OWN_FOLDER = "--out: expected a folder of its own for the report, got "
HTML = "<script>alert(1)</script>"
NAMES = [f"patient{i:03d}_frame{j:02d}" for i in range(8) for j in (1, 12)]

CASES = [
    Case("no results", lambda results: shutil.rmtree(results), "RESULTS: expected the folder of a comparison, got no"),
    Case("results a file", nothing, "RESULTS/plan.json: expected the folder of a comparison", ("RESULTS/plan.json",)),
    Case("no cell", nothing, "RESULTS/nacl: expected METHOD/seedN/settings.json, got no finished", ("RESULTS/nacl",)),
    *(
        Case(f"{Path(name).stem} {how}", spoil(name), f"RESULTS/{name}: {expected}{got}")
        for name, expected in (
            (SETTINGS, A_JSON),
            (BINS, SOME_BINS),
            (LOGITS, SOME_LOGITS),
            (SUMMARY, A_SUMMARY),
            ("plan.json", A_JSON),
        )
        for how, spoil, got in (
            ("empty", lambda name: put(name, ""), "Expecting value"),
            ("truncated", truncate, ""),
            ("binary", lambda name: put(name, JUNK), "'utf-8' codec can't decode byte"),
            ("nested", lambda name: put(name, NESTED), "maximum recursion depth"),
            ("a folder", lambda name: put(name, None), "Is a directory"),
        )
    ),
    *(
        Case(f"no {Path(name).name}", remove(name), f"RESULTS/{name}: expected the {what}, got No such file")
        for name, what in (
            (BINS, "bins of an evaluation"),
            (LOGITS, "logits of an evaluation"),
            (SUMMARY, "summary of an evaluation"),
        )
    ),
    Case("no history", remove(HISTORY), f"RESULTS/{HISTORY}: expected a table, got No such file"),
    # settings.json
    Case("settings a list", put(SETTINGS, "[1]"), f"RESULTS/{SETTINGS}: expected method, label, seed,"),
    Case("settings lack the bundle", change(SETTINGS, bundle=None), f"RESULTS/{SETTINGS}: expected method, label"),
    Case("seed a text", change(SETTINGS, seed="0"), f"RESULTS/{SETTINGS}: expected seed to be a whole number of at"),
    Case("seed of another", change(SETTINGS, seed=7), f"RESULTS/{SETTINGS}: expected the settings of nacl/seed0, got"),
    Case("method elsewhere", change(SETTINGS, method="../../x"), f"RESULTS/{SETTINGS}: expected the settings of nacl"),
    Case("method is HTML", change(SETTINGS, method=HTML), f"RESULTS/{SETTINGS}: expected the settings of nacl/seed0, "),
    Case("label of two lines", change(SETTINGS, label="a\nb"), f"RESULTS/{SETTINGS}: expected label to be a name of"),
    Case("label of another", change(SETTINGS, label="CE+DSC"), "RESULTS: expected a label for each method, got CE+DSC"),
    Case("training a list", change(SETTINGS, training=[]), f"RESULTS/{SETTINGS}: expected training to be settings by"),
    Case("patients a list", change(SETTINGS, patients=["a"]), f"RESULTS/{SETTINGS}: expected patients to be the"),
    Case("patients numbers", change(SETTINGS, patients={"a": 1}), f"RESULTS/{SETTINGS}: expected patients to be the"),
    Case("not finished", change(SETTINGS, made_with={}), f"RESULTS/{SETTINGS}: expected versions and device in made"),
    Case("made_with a number", change(SETTINGS, made_with={"torch": 2}), f"RESULTS/{SETTINGS}: expected made_with to"),
    Case("fold without folds", change(SETTINGS, fold=0), f"RESULTS/{SETTINGS}: expected fold and folds such as 0 of 5"),
    Case("fold beyond", change(SETTINGS, fold=2, folds=2), f"RESULTS/{SETTINGS}: expected fold and folds such as"),
    Case("calibration a list", change(SETTINGS, calibration=[]), f"RESULTS/{SETTINGS}: expected calibration to be"),
    Case("test sets a list", change(SETTINGS, evaluate_on=["b"]), f"RESULTS/{SETTINGS}: expected evaluate_on to be the"),
    *(
        Case(f"test set {how}", change(SETTINGS, evaluate_on=value), f"RESULTS/{SETTINGS}: expected evaluate_on to be the")
        for how, value in (
            ("elsewhere", {"../../b": {"datalist": "1", "patients": {}}}),
            ("empty", {"b": {}}),
            ("without patients", {"b": {"datalist": "1"}}),
            ("of two lines", {"a\nb": {"datalist": "1", "patients": {}}}),
            ("a text", {"b": "b"}),
        )
    ),
    Case(
        "test set without files",
        change(SETTINGS, evaluate_on={"b": {"datalist": "1", "patients": {}}}),
        f"RESULTS/{NACL}/on_b/cases.csv: expected a table, got No such file",
    ),
    Case(
        "temperature without files",
        change(SETTINGS, calibration={"split": "validation"}),
        f"RESULTS/{NACL}/temperature/cases.csv: expected a table, got No such file",
    ),
    Case("regions a list", change(BINS, regions=["all"]), f"RESULTS/{BINS}: {SOME_BINS}"),
    Case("regions of texts", change(BINS, regions={"all": {"top_label": "x"}}), f"RESULTS/{BINS}: {SOME_BINS}"),
    Case("regions without bins", change(BINS, regions={"all": {}}), f"RESULTS/{BINS}: {SOME_BINS}one that lacks 'top_lab"),
    Case("no split", change(SETTINGS, evaluation={}), f"RESULTS/{SETTINGS}: evaluation: expected split, got no split"),
    Case("epochs a text", of_training(max_epochs="2"), "RESULTS/ce_dice/seed0/settings.json: training: expected max_ep"),
    Case("size a number", of_training(image_size=64), "RESULTS/ce_dice/seed0/settings.json: training: expected image_"),
    Case("seed not a number", replace(SETTINGS, '"seed": 0', '"seed": NaN'), f"RESULTS/{SETTINGS}: {A_JSON}the number"),
    Case("another split", change(SETTINGS, evaluation={"split": "validation"}), "RESULTS/nacl/seed0: expected the same split as "),
    # plan.json
    Case("plan an object", put("plan.json", "{}"), "RESULTS/plan.json: expected a list of cells, got {}"),
    Case("plan of texts", put("plan.json", '["nacl"]'), "RESULTS/plan.json: expected method, seed, commands, got 'nacl'"),
    Case(
        "plan without a seed",
        put("plan.json", '[{"method": "nacl", "commands": []}]'),
        "RESULTS/plan.json: expected method, seed, commands, got no seed",
    ),
    Case(
        "plan with a list as method",
        put("plan.json", '[{"method": ["a"], "seed": 0, "commands": []}]'),
        "RESULTS/plan.json: expected method to be a name of one line, got ['a']",
    ),
    # cases.csv
    Case("no cases.csv", remove(CASES_CSV), f"RESULTS/{CASES_CSV}: expected a table, got No such file"),
    Case("cases empty", put(CASES_CSV, ""), f"RESULTS/{CASES_CSV}: {CUT}"),
    Case("cases truncated in a number", truncate(CASES_CSV), f"RESULTS/{CASES_CSV}: {CUT}"),
    Case("cases a folder", put(CASES_CSV, None), f"RESULTS/{CASES_CSV}: expected a table, got Is a directory"),
    Case("cases of none", put(CASES_CSV, "case,dsc_RV\n"), f"RESULTS/{CASES_CSV}: {A_TABLE}a table without cases"),
    Case("cases binary", put(CASES_CSV, JUNK + b"\n"), f"RESULTS/{CASES_CSV}: {A_TABLE}a table without cases"),
    Case("a case less", lambda results: cut_last_line(results / CASES_CSV), f"RESULTS/{CASES_CSV}: expected the cases"),
    Case("a case more", row("x" + 10 * ",0.5"), f"RESULTS/{CASES_CSV}: expected the cases of settings.json, got x in"),
    Case("a case twice", row("patient000_frame01" + 10 * ",0.5"), f"RESULTS/{CASES_CSV}: {A_TABLE}the case patient000_frame01 2"),
    Case("a row too short", row("x,0.5"), f"RESULTS/{CASES_CSV}: {A_TABLE}2 cells of case 13 in 11 columns"),
    Case("a word", row("x,good" + 9 * ",0.5"), f"RESULTS/{CASES_CSV}: {A_TABLE}could not convert string to float"),
    Case("infinite", row("x,inf" + 9 * ",0.5"), f"RESULTS/{CASES_CSV}: {A_TABLE}infinite values"),
    Case("no brier", replace(CASES_CSV, "brier", "beer"), f"RESULTS/{CASES_CSV}: expected the columns dsc_RV, dsc_MYO,"),
    Case("no hd95 of LV", replace(CASES_CSV, "hd95_LV", "hd95_X"), f"RESULTS/{CASES_CSV}: expected the columns dsc_R"),
    Case("columns twice", replace(CASES_CSV, "dsc_LV", "dsc_RV"), f"RESULTS/{CASES_CSV}: {A_TABLE}the column dsc_RV 2 times"),
    Case("dsc of 50", lambda results: set_number(results, 2, "50"), f"RESULTS/{CASES_CSV}: expected dsc_MYO to be at"),
    Case("dsc of -1", lambda results: set_number(results, 2, "-1"), f"RESULTS/{CASES_CSV}: expected dsc_MYO to be at"),
    Case("ece of 7", lambda results: set_number(results, 7, "7"), f"RESULTS/{CASES_CSV}: expected ece to be at least 0"),
    # calibration.json
    Case("bins a list", put(BINS, "[]"), f"RESULTS/{BINS}: {SOME_BINS}"),
    Case("no pooled bins", put(BINS, "{}"), f"RESULTS/{BINS}: {SOME_BINS}one that lacks 'pooled'"),
    Case("bins of text", bins(count="abc"), f"RESULTS/{BINS}: {SOME_BINS}count: expected nested lists of numbers"),
    Case("bins of two lengths", bins(count=[[1, 2]]), f"RESULTS/{BINS}: {SOME_BINS}count, confidence_sum and num_co"),
    Case("more correct than voxels", bins(num_correct=[[1e9] * 15]), f"RESULTS/{BINS}: {SOME_BINS}num_correct: expect"),
    Case(
        "no voxels",
        bins(count=[[0] * 15], num_correct=[[0.0] * 15], confidence_sum=[[0.0] * 15]),
        f"RESULTS/{BINS}: expected bins of voxels in top_label, got none",
    ),
    Case(
        "another number of bins",
        bins(count=[[9]], num_correct=[[4.0]], confidence_sum=[[5.0]]),
        "RESULTS/nacl/seed0: expected the same bins of calibration.json as RESULTS/ce_dice/seed0, got another",
    ),
    # logits.json
    Case("logits a list", put(LOGITS, "[]"), f"RESULTS/{LOGITS}: {SOME_LOGITS}"),
    Case("logits of 3 classes", change(LOGITS, class_names=["a", "b", "c"]), f"RESULTS/{LOGITS}: {SOME_LOGITS}magnitud"),
    Case("logits of texts", change(LOGITS, magnitudes=[["a"] * 4] * 4), f"RESULTS/{LOGITS}: {SOME_LOGITS}could not"),
    Case("ragged logits", change(LOGITS, magnitudes=[[1], [1, 2]]), f"RESULTS/{LOGITS}: {SOME_LOGITS}setting an array"),
    Case("logits below 0", change(LOGITS, magnitudes=[[-1.0] * 4] * 4), f"RESULTS/{LOGITS}: expected names and magni"),
    Case("class names of numbers", change(LOGITS, class_names=[0, 1, 2, 3]), f"RESULTS/{LOGITS}: expected names and"),
    Case("other class names", change(LOGITS, class_names=list("abcd")), "RESULTS/nacl/seed0: expected the same class_names of "),
    # summary.json
    Case("summary a list", put(SUMMARY, "[]"), f"RESULTS/{SUMMARY}: {A_SUMMARY}"),
    Case("no spurious", change(SUMMARY, spurious=None), f"RESULTS/{SUMMARY}: {A_SUMMARY}one that lacks 'spurious'"),
    Case("missed a number", change(SUMMARY, missed=3), f"RESULTS/{SUMMARY}: {A_SUMMARY}no list of missed"),
    # history.csv
    Case("history empty", put(HISTORY, ""), f"RESULTS/{HISTORY}: {CUT}"),
    Case("history of no epoch", put(HISTORY, "epoch,seconds\n"), f"RESULTS/{HISTORY}: {EPOCHS}no epoch in it"),
    Case("history binary", put(HISTORY, JUNK + b"\n"), f"RESULTS/{HISTORY}: {EPOCHS}'utf-8' codec can't decode"),
    Case("history without seconds", put(HISTORY, "epoch\n1\n"), f"RESULTS/{HISTORY}: {EPOCHS}one that lacks 'seconds'"),
    Case("history of words", put(HISTORY, "epoch,seconds\none,2\n"), f"RESULTS/{HISTORY}: {EPOCHS}could not convert"),
    Case("history cut", put(HISTORY, "epoch,seconds\n1"), f"RESULTS/{HISTORY}: {CUT}"),
    Case("endless seconds", put(HISTORY, "epoch,seconds\n1,inf\n"), f"RESULTS/{HISTORY}: {EPOCHS}the epoch 1.0 of inf"),
    Case("half an epoch", put(HISTORY, "epoch,seconds\n1.5,1\n"), f"RESULTS/{HISTORY}: {EPOCHS}the epoch 1.5"),
    # pictures and folders
    Case("a picture of text", put(f"{NACL}/cases/best.png", "no"), f"RESULTS/{NACL}/cases/best.png: expected a PNG file"),
    Case("a picture a folder", put(f"{NACL}/cases/best.png", None), f"RESULTS/{NACL}/cases/best.png: expected a PNG"),
    Case(
        "a copy of a cell",
        lambda results: shutil.copytree(results / NACL, results / NACL / ".." / "seed0_old"),
        "RESULTS/nacl/seed0_old/settings.json: expected the settings of nacl/seed0_old, got those of nacl/seed0",
    ),
    Case(
        "folds beside cells of one split",
        lambda results: make_finished_cell(results, "svls", 0, 0.1, fold=0),
        "RESULTS/svls/seed0_fold0: expected the same folds as RESULTS/ce_dice/seed0, got another",
    ),
    # arguments
    Case("out is results", nothing, f"{OWN_FOLDER}RESULTS, which holds the results", ("RESULTS", "--out", "RESULTS")),
    Case("out holds results", nothing, f"{OWN_FOLDER}RESULTS/.., which holds", ("RESULTS", "--out", "RESULTS/..")),
    Case("out in a cell", nothing, f"{OWN_FOLDER}RESULTS/nacl/seed0/a, which", ("RESULTS", "--out", f"RESULTS/{NACL}/a")),
    Case("out a method to come", nothing, f"{OWN_FOLDER}RESULTS/svls, which is", ("RESULTS", "--out", "RESULTS/svls")),
    Case("out a file", nothing, "--out: expected a folder, got the file", ("RESULTS", "--out", "RESULTS/plan.json")),
    Case("out below a file", nothing, "RESULTS/plan.json: expected a fol", ("RESULTS", "--out", "RESULTS/plan.json/x")),
    Case("someone's page", someones("index.html", "<title>Me</title>"), "OUT: expected only files of this report, got i"),
    Case("someone's empty page", someones("index.html", ""), "OUT: expected only files of this report, got index.html"),
    Case("someone's notes", someones("notes.txt", "mine"), "OUT: expected only files of this report, got notes.txt;"),
    Case("someone's table", someones("means.csv", "mine"), "OUT/report.md: expected an earlier report, got"),
    Case("unknown reference", nothing, "--reference: expected a method, ce_dice", ("RESULTS", "--reference", "nalc")),
    Case("reference empty", nothing, "--reference: expected a method, ce_dice", ("RESULTS", "--reference", "")),
    Case("misspelt", nothing, "--referense: expected an option, got no such option; did you mean --reference?\n",
         ("RESULTS", "--out", "OUT", "--referense", "svls")),
    Case("one dash", nothing, "-referense: expected an option, got no such", ("RESULTS", "-referense", "svls")),
    Case("out empty", nothing, "--out: expected a path, got ''\n", ("RESULTS", "--out", "")),
    Case("out without a value", nothing, "--out: expected a value, got none\n", ("RESULTS", "--out", "--reference", "a")),
    Case("out twice", nothing, "-o: expected once, got twice\n", ("RESULTS", "--out", "OUT", "-o", "OUT")),
    Case("no argument", nothing, "folders: expected at least one value, got none; see report --help\n", ()),
    Case("an empty argument", nothing, "folders: expected a path, got ''\n", ("RESULTS", "")),
    Case("validation of results", nothing, "--validation: expected an evaluation folder with it, got results of compare",
         ("RESULTS", "--validation", "EVAL/a")),
    # evaluation folders
    Case("results beside others", nothing, "RESULTS: expected an evaluation folder, or alone the", ("EVAL/a", "RESULTS")),
    Case("results as folder of cells", nothing, "RESULTS: expected an evaluation folder, or", ("RESULTS", f"RESULTS/{NACL}")),
    Case("no such folder", nothing, "EVAL/none: expected an evaluation folder, or alone the results of compare_losses, got",
         ("EVAL/a", "EVAL/none")),
    Case("a folder twice", nothing, "EVAL/a: expected each evaluation folder once, got EVAL/a, EVAL/a", ("EVAL/a", "EVAL/a")),
    *(
        Case(f"{name} of an evaluation {how}", put(f"../eval/b/{name}", content), f"EVAL/b/{name}: {expected}",
             ("EVAL/a", "EVAL/b"))
        for name, expected in (
            ("cases.csv", "expected a table, got "),
            ("calibration.json", SOME_BINS),
            ("summary.json", A_SUMMARY),
            ("thresholds.json", "expected the thresholds of an evaluation, got "),
            ("risk_coverage.json", "expected the risk-coverage curves of an evaluation, got "),
        )
        for how, content in (("empty", ""), ("binary", JUNK), ("nested", NESTED), ("a folder", None))
    ),
    Case("other structures", replace("../eval/b/cases.csv", "dsc_LV", "dsc_x"), "EVAL/b/cases.csv: expected the columns",
         ("EVAL/a", "EVAL/b")),
    Case("other unit", change("../eval/b/summary.json", unit="voxels"), "EVAL/b: expected the HD95 of EVAL/a, in mm, got in",
         ("EVAL/a", "EVAL/b")),
    Case("other patient", change("../eval/b/summary.json", patients=dict.fromkeys(NAMES, "x")),
         "EVAL/b: expected case patient000_frame01 to be of patient patient000 as in EVAL/a, got x", ("EVAL/a", "EVAL/b")),
    Case("patients a number", change("../eval/b/summary.json", patients=3), f"EVAL/b/summary.json: {A_SUMMARY}patients that",
         ("EVAL/a", "EVAL/b")),
    Case("missed texts", change("../eval/b/summary.json", missed=["x"]), f"EVAL/b/summary.json: {A_SUMMARY}", ("EVAL/b",)),
    Case("no name for reference", nothing, "--reference: expected a name, a, b, got 'nacl'\n",
         ("EVAL/a", "EVAL/b", "--reference", "nacl")),
    Case("validation of two", nothing, "--validation: expected one evaluation folder with it, since",
         ("EVAL/a", "EVAL/b", "--validation", "EVAL/b")),
    Case("no validation", nothing, "--validation: expected an evaluation folder, got EVAL/c, wh", ("EVAL/a", "--validation", "EVAL/c")),
    Case("out is an evaluation", nothing, f"{OWN_FOLDER}EVAL/b, which holds", ("EVAL/a", "EVAL/b", "--out", "EVAL/b")),
    Case("out holds evaluations", nothing, f"{OWN_FOLDER}EVAL, which holds", ("EVAL/a", "--out", "EVAL")),
    Case("a picture no PNG", put("../eval/a/cases/best.png", "x"), "EVAL/a/cases/best.png: expected a PNG", ("EVAL/a",)),
]  # fmt: skip


def cut_last_line(file: Path) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def set_number(results: Path, column: int, number: str) -> None:
    """Change a number of the last case."""
    *lines, last = (results / CASES_CSV).read_text().splitlines()
    cells = last.split(",")
    cells[column] = number
    (results / CASES_CSV).write_text("\n".join([*lines, ",".join(cells), ""]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of compare_losses and, beside them, two evaluation folders."""
    place = tmp_path_factory.mktemp("whole")
    for seed, name in enumerate("ab"):
        make_folder(place / "eval" / name, seed=seed)
    return make_results(place / "results").parent


@pytest.fixture
def results(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # where a report goes without --out
    return shutil.copytree(whole, tmp_path, dirs_exist_ok=True) / "results"


def filled_in(text: str, results: Path) -> str:
    places = {"RESULTS": results, "EVAL": results.parent / "eval", "OUT": results.parent / "report"}
    for name, place in places.items():
        text = text.replace(name, str(place))
    return text


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_line_and_nothing_is_written(case: Case, results: Path, tmp_path: Path) -> None:
    case.spoil(results)
    before = snapshot(tmp_path)
    outcome = run_as_typed("report", report_folders, [filled_in(argument, results) for argument in case.arguments])
    assert outcome.err.startswith(f"report: {filled_in(case.line, results)}")
    assert outcome.err.count("\n") == 1
    assert (outcome.code, outcome.out) == (1, "")
    assert snapshot(tmp_path) == before


def test_settings_and_plan_are_never_evaluated(results: Path, tmp_path: Path) -> None:
    """Text that a configuration would evaluate is shown as text."""
    code = f"$open({str(tmp_path / 'canary')!r}, 'w')"
    for file in results.glob("*/seed*/settings.json"):
        content = json.loads(file.read_text())
        content["training"]["network_def"] = {"_target_": code, "channels": [code]}
        content["made_with"]["torch"] = code
        content["overrides"] = {"imports": [code]}
        file.write_text(json.dumps(content))
    outcome = run_as_typed("report", report_folders, [results, "--out", tmp_path / "report"])
    assert (outcome.code, outcome.err) == (0, "")
    assert "$open(" in (tmp_path / "report" / "report.md").read_text()
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("earlier", [False, True])
def test_full_disk_leaves_the_earlier_report_or_nothing(
    earlier: bool, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [results, "--out", tmp_path / "report"]
    if earlier:
        assert run_as_typed("report", report_folders, arguments).code == 0
        replace(CASES_CSV, "patient000", "patient000")(results)
    before = snapshot(tmp_path)
    write_bytes = Path.write_bytes

    def write_until_full(path: Path, content: bytes) -> int:
        if path.name == "index.html":
            write_bytes(path, content[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    outcome = run_as_typed("report", report_folders, arguments)
    line = f"{tmp_path / 'report'}: expected a folder that can be written, got No space left on device"
    assert (outcome.code, outcome.out, outcome.err) == (1, "", f"report: {line}\n")
    assert snapshot(tmp_path) == before


def test_as_a_process(results: Path, tmp_path: Path) -> None:
    (results / HISTORY).unlink()
    before = snapshot(tmp_path)
    done = run_script("scripts/report.py", results, "--out", tmp_path / "report")
    line = f"{results / HISTORY}: expected a table, got No such file or directory"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"report: {line}\n")
    assert snapshot(tmp_path) == before
