"""Bad input of `compare_losses`: one line that names the file or argument, nothing run, and nothing written or lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.calib_components.tools.compare.made_up import make_datalist

from calib_components.tools.compare import compare_losses
from calib_components.tools.compare.cell_settings import CellSettings, write_settings
from tests.helpers import run_as_typed, run_script, snapshot

TRAIN = """
dataset_dir: "$@bundle_root + '/data'"
datalist: "$@dataset_dir + '/datalist.json'"
facts:
  _target_: calib_components.data.facts.read_facts
  file: "$@dataset_dir + '/facts.yaml'"
  dataset: acdc
  num_classes: 2
  in_channels: 1
  class_names: [background, heart]
  label_codes: [0, 1]
  structures: {heart: [1]}
  file_suffixes: []
  image_size: [64, 64]
  crop_size: [64, 64]
image_size: "$@facts.image_size"
crop_size: "$@facts.crop_size"
seed: 0
max_epochs: 3
batch_size: 4
learning_rate: 0.01
loss: {_target_: torch.nn.MSELoss}
optimizer: {_target_: torch.optim.Adam, lr: "@learning_rate"}
"""
LOSSES = {"nacl": "loss: {_target_: torch.nn.L1Loss}", "other": "loss: {_target_: torch.nn.HuberLoss}"}


class Case(NamedTuple):
    """What is done in the folder, the line that is expected, or its start, and further arguments.

    The folder has `bundle` and `data`, and in `out` the finished cell `other/seed0`.
    """

    name: str
    spoil: Callable[[Path], object]
    line: str
    arguments: tuple[str, ...] = ()


def nothing(_: Path) -> None:
    """All is as it should be."""


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def put(name: str, content: Any) -> Callable[[Path], object]:
    """Put a file, or for None a folder, in the place of what is there; what is not text is written as JSON."""

    def spoil(folder: Path) -> None:
        path = folder / name
        if path.exists():
            remove(name)(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))

    return spoil


def change_finished(**values: Any) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / FINISHED).read_text())
        (folder / FINISHED).write_text(json.dumps({**content, **values}))

    return spoil


def folds(number: int) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        for fold in range(number):
            put(f"data/datalist_fold{fold}.json", DATALIST)(folder)  # alike, which two folds must not be

    return spoil


DATALIST = make_datalist("a", "b", "c")
LIST, FINISHED, PLAN = "data/datalist.json", "out/other/seed0/settings.json", "out/plan.json"
CONFIG, LOSS = "bundle/configs/train.yaml", "bundle/configs/losses/nacl.yaml"
CALIBRATE, OTHER = "bundle/configs/calibrate.yaml", "scanner/datalist.json"
FACTS = "data/facts.yaml"
JUNK = bytes(range(128, 256))
NESTED = "[" * 100_000
A_JSON = f"{LIST}: expected a JSON file, got "
A_CASE = f"{LIST}: expected a case and its patient for "
A_TEST_SET = (
    "--evaluate_on: expected NAME=DIR, where a NAME has up to 64 letters, digits, _, - and . and does not start with ., "
    "got "
)
A_BUNDLE = "--bundle: expected a folder with configs/train.yaml, got "
IDS = "expected ids and their values, such as num_classes: 3, got "
CASES = [
    # the bundle
    Case("no bundle", remove("bundle"), f"{A_BUNDLE}bundle"),
    Case("bundle a file", put("bundle", ""), f"{A_BUNDLE}bundle"),
    Case("no train.yaml", remove(CONFIG), f"{A_BUNDLE}bundle"),
    Case("train.yaml a folder", put(CONFIG, None), f"{A_BUNDLE}bundle"),
    Case("train.yaml empty", put(CONFIG, ""), f"{CONFIG}: {IDS}None"),
    Case("train.yaml a list", put(CONFIG, "- 3"), f"{CONFIG}: {IDS}[3]"),
    Case("train.yaml broken", put(CONFIG, "a: ["), f"{CONFIG}: expected a readable file, got while parsing"),
    Case("train.yaml binary", put(CONFIG, JUNK), f"{CONFIG}: expected a readable file, got "),
    Case("train.yaml nested", put(CONFIG, "a: " + NESTED), f"{CONFIG}: expected a readable file, got "),
    Case("train.yaml refers to nothing", put(CONFIG, TRAIN + "amp: '@nothing'"), "amp: expected true or false, got '@nothing', which MONAI cannot"),
    Case("train.yaml refers to itself", put(CONFIG, TRAIN + "amp: '@amp'"), "amp: expected a value, got references"),
    Case("no evaluate.yaml", remove("bundle/configs/evaluate.yaml"), "bundle/configs/evaluate.yaml: expected a read"),
    Case("no calibrate.yaml", remove(CALIBRATE), f"{CALIBRATE}: expected a readable file, got"),
    Case("calibrate.yaml empty", put(CALIBRATE, ""), f"{CALIBRATE}: {IDS}None"),
    Case("calibrate.yaml without a split", put(CALIBRATE, "region: all"), f"{CALIBRATE}: expected split, got no split"),
    Case("no such loss", remove(LOSS), "bundle/configs/losses/nacl.yaml: expected a readable file, got"),
    Case("loss empty", put(LOSS, ""), f"{LOSS}: {IDS}None"),
    Case(
        "a loss changes more than the loss",
        put(LOSS, LOSSES["nacl"] + "\nlearning_rate: 1.0"),
        "other, seed 0: expected the same learning_rate as nacl, seed 0, got another",
        ("--losses=nacl,other",),
    ),
    # the list of prepared cases
    Case("no data", remove("data"), f"{LIST}: expected the list of prepared cases, got no such file; run prepare_data"),
    Case("data a file", put("data", ""), f"{LIST}: expected the list of prepared cases, got no such file; run prepare"),
    Case("no list", remove(LIST), f"{LIST}: expected the list of prepared cases, got no such file; run prepare_data"),
    Case("list a folder", put(LIST, None), f"{LIST}: expected the list of prepared cases, got no such file"),
    Case("list empty", put(LIST, ""), f"{A_JSON}Expecting value"),
    Case("list truncated", put(LIST, json.dumps(DATALIST)[:-3]), f"{A_JSON}Expecting ',' delimiter"),
    Case("list binary", put(LIST, JUNK), f"{A_JSON}'utf-8' codec can't decode"),
    Case("list nested", put(LIST, NESTED), f"{A_JSON}maximum recursion depth exceeded"),
    Case("list a list", put(LIST, "[]"), f"{LIST}: expected cases for training, got none"),
    Case("list null", put(LIST, "null"), f"{LIST}: expected cases for training, got none"),
    Case("no training", put(LIST, {**DATALIST, "training": []}), f"{LIST}: expected cases for training, got none"),
    Case("no testing", put(LIST, {"training": DATALIST["training"]}), f"{LIST}: expected cases for testing, got none"),
    Case("testing an object", put(LIST, {**DATALIST, "testing": {}}), f"{LIST}: expected cases for testing, got none"),
    Case("a case is text", put(LIST, {**DATALIST, "testing": ["c"]}), f"{A_CASE}testing, got 'c'"),
    Case("no patient", put(LIST, {**DATALIST, "testing": [{"case": "c"}]}), f"{A_CASE}testing, got {{'case': 'c'}}"),
    Case("patient 7", put(LIST, {**DATALIST, "testing": [{"case": "c", "patient": 7}]}), f"{A_CASE}testing, got"),
    Case("case of two lines", put(LIST, {**DATALIST, "testing": [{"case": "c\n", "patient": "c"}]}), f"{A_CASE}testi"),
    Case("a case twice", put(LIST, {**DATALIST, "testing": 2 * DATALIST["testing"]}), f"{LIST}: expected every case "),
    Case(
        "a patient trained on",
        put(LIST, make_datalist("a", "b", "a")),
        f"{LIST}: expected other patients for testing than for training, got a for both",
    ),
    Case(
        "a patient that chose the epoch",
        put(LIST, make_datalist("a", "b", "b")),
        f"{LIST}: expected other patients for testing than for validation, got b for both",
    ),
    Case("facts evaluate code", put(FACTS, "crop_size: $open('canary', 'w')"), f"{FACTS}: expected the facts of a data"),
    Case("facts unknown", put(FACTS, "imports: $open('canary', 'w')"), f"{FACTS}: expected only dataset, num_class"),
    Case("facts empty", put(FACTS, ""), f"{FACTS}: expected the facts of a data set, got None"),
    Case("facts broken", put(FACTS, "a: ["), f"{FACTS}: expected the facts of a data set, got while parsing"),
    Case("facts binary", put(FACTS, JUNK), f"{FACTS}: expected the facts of a data set, got"),
    # what is in --out
    *(
        Case(f"{Path(name).stem} {how}", put(name, content), f"{name}: expected a JSON file, got {got}")
        for name in (FINISHED, PLAN)
        for how, content, got in (
            ("empty", "", "Expecting value"),
            ("truncated", '{"method": "nacl', "Unterminated string"),
            ("binary", JUNK, "'utf-8' codec can't decode"),
            ("nested", NESTED, "maximum recursion depth"),
            ("a folder", None, "Is a directory"),
        )
    ),
    Case("plan an object", put(PLAN, {}), f"{PLAN}: expected a list of cells, got {{}}"),
    Case("plan of numbers", put(PLAN, [3]), f"{PLAN}: expected method, seed, commands, got 3"),
    Case("finished cell without seed", change_finished(seed=None), f"{FINISHED}: expected seed to be a whole number"),
    Case("another protocol finished", nothing, "nacl, seed 0: expected the same batch_size", ("--batch_size=9",)),
    Case("another list finished", change_finished(datalist="1"), "nacl, seed 0: expected the same datalist as out/other/seed0, got another"),
    Case("folds finished", change_finished(fold=0, folds=2), "nacl, seed 0: expected the same folds"),
    Case(
        "made with others",
        nothing,
        "out/other/seed0: expected results of the same settings, got others (max_epochs); delete it to run the cell again, or choose",
        ("--max_epochs=9", "--losses=other"),
    ),
    Case("half a cell", put("out/nacl/seed0/cases.csv", ""), "out/nacl/seed0: expected a finished cell, got a folder"),
    Case("work broken", put("out/work/nacl/seed0/settings.json", "{"), "out/work/nacl/seed0/settings.json: expected a"),
    # arguments
    Case("out a file", nothing, f"--out: expected a folder, got the file {LIST}\n", (f"--out={LIST}",)),
    Case("out below a file", nothing, f"--out: expected a folder, got the file {LIST}\n", (f"--out={LIST}/x/y",)),
    Case("out evaluates", nothing, "--out: expected a path that does not start with $, @ or %, got $x;", ("--out=$x",)),
    Case("out of two lines", nothing, "--out: expected a path that does not start with", ("--out=a\nb",)),
    Case("out empty", nothing, "--out: expected a path, got ''\n", ("--out=",)),
    Case("work a file", nothing, f"--work: expected a folder, got the file {LIST}\n", (f"--work={LIST}",)),
    Case("work is out", nothing, "--work: expected another folder than --out, got data/../out", ("--work=data/../out",)),
    Case("no such list", nothing, "nowhere.json: expected the list of prepared cases", ("--datalist=nowhere.json",)),
    Case("misspelt", nothing, "--max_epoch: expected an id of the bundle's train.yaml or evaluate.yaml, got no such "
         "id; did you mean --max_epochs?\n", ("--max_epoch=3",)),
    Case("one dash", nothing, "--max_epoch: expected an id of the bundle's train.yaml", ("-max_epoch=3",)),
    Case("one letter", nothing, "-d: expected one option, got one that may be --dataset_dir or --devices", ("-d=data",)),
    Case("unlike any", nothing, "--q: expected an id of the bundle's train.yaml or evaluate.yaml", ("-q=data",)),
    Case("misspelt inside", nothing, "--optimizer::lrr: expected an id of the bundle's", ("--optimizer::lrr=1",)),
    Case("set for each cell", nothing, "--seed: expected an option of the comparison, got one that it", ("--seed=1",)),
    Case("a single loss", nothing, "--loss::reduction: expected losses as files in configs", ("--loss::reduction=a",)),
    Case("no such losses", nothing, "--losses: expected names among table1, ", ("--losses=nacl,nalc",)),
    Case("losses elsewhere", nothing, "--losses: expected names among table1, ", ("--losses=../../train",)),
    Case("losses empty", nothing, "--losses: expected names such as table1 or nacl,ce_dice, got ['']", ("--losses=",)),
    Case("epochs 0", nothing, "max_epochs: expected a whole number of at least 1, got 0\n", ("--max_epochs=0",)),
    Case("epochs a word", nothing, "max_epochs: expected a whole number of at least 1, got", ("--max_epochs=ten",)),
    Case("epochs without", nothing, "max_epochs: expected a whole number of at least 1, got True", ("--max_epochs",)),
    Case("batch of 1.5", nothing, "batch_size: expected a whole number of at least 1, got 1.5", ("--batch_size=1.5",)),
    Case("rate of -1", nothing, "learning_rate: expected a number above 0, got -1\n", ("--learning_rate=-1",)),
    Case("a split", nothing, "split: expected training, validation or testing, got 'test'\n", ("--split=test",)),
    Case("seeds a range", nothing, "--seeds: expected a whole number, or several separated", ("--seeds=0-2",)),
    Case("seeds below 0", nothing, "--seeds: expected numbers of at least 0, such as 0,1,2, got [-1]", ("--seeds=-1",)),
    Case("seeds empty", nothing, "--seeds: expected a whole number, or several separated by commas, got ''", ("--seeds=",)),
    Case("workers 0", nothing, "--workers: expected a number of at least 1, got 0\n", ("--workers=0",)),
    Case("devices 0", nothing, "--devices: expected names such as cuda:0,cuda:1, got ['0']\n", ("--devices=0",)),
    Case("executor pbs", nothing, "--executor: expected local or slurm, got 'pbs'\n", ("--executor=pbs",)),
    Case(
        "several tasks in a job", nothing, "--slurm: expected jobs of one task, got nodes: 2\n",
        ("--executor=slurm", "--slurm={nodes: 2}"),
    ),
    Case("slurm here", nothing, "--slurm: expected --executor slurm, got local\n", ("--slurm={time: 3}",)),
    Case("folds 1", folds(1), "--folds: expected a number of at least 2, and no --datalist, got 1 and", ("--folds=1",)),
    Case("folds true", folds(2), "--folds: expected a whole number, got 'true'\n", ("--folds=true",)),
    Case("no folds", nothing, "--folds: expected datalist_fold0.json to datalist_fold4.json in data, got none; prepare_"
         "data --folds 5 writes them\n", ("--folds=5",)),
    Case("a fold less", folds(2), "--folds: expected datalist_fold0.json to datalist_fold2.json in data, got datalist_"
         "fold0.json, datalist_fold1.json; prepare_data", ("--folds=3",)),
    Case("a fold more", folds(3), "--folds: expected datalist_fold0.json to datalist_fold1.json in", ("--folds=2",)),
    Case("folds and a list", folds(2), "--folds: expected a number of at least 2, and no --datalist, got 2 and",
         ("--folds=2", f"--datalist={LIST}")),
    Case("a fold broken", lambda folder: (folds(2)(folder), put("data/datalist_fold1.json", "{")(folder)),
         "data/datalist_fold1.json: expected a JSON file, got Expecting property name", ("--folds=2", "--out=crossed")),
    Case("a patient in two folds", folds(2), "--folds: expected every patient in one fold, got c in 0 and 1\n",
         ("--folds=2", "--out=crossed")),
    Case("folds beside one split", folds(2), "nacl, seed 0, fold 0: expected the same folds",
         ("--folds=2",)),
    Case("a test set without a name", nothing, f"{A_TEST_SET}'scanner'\n", ("--evaluate_on=scanner",)),
    Case("a test set without a folder", nothing, f"{A_TEST_SET}'b='\n", ("--evaluate_on=b=",)),
    Case("a test set called nothing", nothing, f"{A_TEST_SET}'=scanner'\n", ("--evaluate_on==scanner",)),
    Case("a test set called a path", nothing, f"{A_TEST_SET}'a/b=scanner'\n", ("--evaluate_on=a/b=scanner",)),
    Case("a test set called ..", nothing, f"{A_TEST_SET}'..=scanner'\n", ("--evaluate_on=..=scanner",)),
    Case("a hidden test set", nothing, f"{A_TEST_SET}'.b=scanner'\n", ("--evaluate_on=.b=scanner",)),
    Case("a test set of a long name", nothing, A_TEST_SET, (f"--evaluate_on={65 * 'b'}=scanner",)),
    Case("a test set empty", nothing, f"{A_TEST_SET}''\n", ("--evaluate_on=",)),
    Case("two test sets of a name", nothing, "--evaluate_on: expected a name for each test set, got b twice\n",
         ("--evaluate_on=b=scanner,b=elsewhere",)),
    Case("a test set that evaluates", nothing, "--evaluate_on: expected a path that does not start with $",
         ("--evaluate_on=b=$x",)),
    Case("the own data as a test set", nothing, "--evaluate_on: expected other data than --dataset_dir, got data/x/..\n",
         ("--evaluate_on=b=./data/x/..",)),
    Case("no such test set", nothing, "nowhere/datalist.json: expected the list of prepared cases, got no such file; run",
         ("--evaluate_on=b=nowhere",)),
    Case("a test set broken", put(OTHER, "{"), f"{OTHER}: expected a JSON file, got", ("--evaluate_on=b=scanner",)),
    Case("a test set a list", put(OTHER, []), f"{OTHER}: expected cases for testing, got none", ("--evaluate_on=b=scanner",)),
    Case("a test set without test cases", put(OTHER, {"training": [], "validation": [{}], "testing": []}),
         f"{OTHER}: expected cases for testing, got some for validation alone; prepare the data again with --fractions 0,"
         "0,1, which makes all of them a test set\n", ("--evaluate_on=b=scanner",)),
    Case("a test set without patients", put(OTHER, {"testing": [{"case": "c"}]}), f"{OTHER}: expected a case and its pat",
         ("--evaluate_on=b=scanner",)),
    Case("a test set of another data set", lambda folder: (put(OTHER, DATALIST)(folder), put("scanner/facts.yaml", "a")(
         folder)), "scanner/facts.yaml: expected the facts of a data set, got", ("--evaluate_on=b=scanner",)),
    Case("a finished cell without weights", put(OTHER, DATALIST), "out/work/other/seed0/model.pt: expected the weights of",
         ("--evaluate_on=b=scanner", "--losses=other")),
    Case("twice", nothing, "--max_epochs: expected once, got twice\n", ("--max_epochs=3", "--max_epochs", "4")),
    Case("one more", nothing, "more: expected at most 13 values without an option, bundle, dataset_dir, out, ", tuple(13 * ["more"])),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle, prepared data of which planning reads the list, and results with a finished cell."""
    folder = tmp_path_factory.mktemp("whole")
    put(CONFIG, TRAIN)(folder)
    put("bundle/configs/evaluate.yaml", "split: testing")(folder)
    put("bundle/configs/calibrate.yaml", "split: validation\nregion: all")(folder)
    for name, text in LOSSES.items():
        put(f"bundle/configs/losses/{name}.yaml", text)(folder)
    put(LIST, DATALIST)(folder)
    with pytest.MonkeyPatch.context() as context:
        context.chdir(folder)
        context.setattr("calib_components.tools.compare.run.run_cell", finish)
        assert run("--losses=other").code == 0
    for left in (PLAN, "out/commands.sh", "out/work"):
        remove(left)(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to be spoiled."""

    def run_cell(*_: object) -> None:
        raise AssertionError("a cell was run")

    monkeypatch.setattr("calib_components.tools.compare.run.run_cell", run_cell)
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finish(cell: Any, *_: object) -> None:
    settings: CellSettings = cell.settings
    cell.results.mkdir(parents=True)
    write_settings(settings, cell.results)


def run(*arguments: str) -> Any:
    given = {argument.lstrip("-").partition("=")[0] for argument in arguments}
    usual = {"bundle": "bundle", "dataset_dir": "data", "out": "out", "losses": "nacl"}
    options = [f"--{name}={value}" for name, value in usual.items() if name not in given]
    return run_as_typed("compare_losses", compare_losses, [*options, *arguments])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_line_and_nothing_is_run_or_written(case: Case, folder: Path) -> None:
    case.spoil(folder)
    before = snapshot(folder)
    outcome = run(*case.arguments)
    assert outcome.err.startswith(f"compare_losses: {case.line}")
    assert outcome.err.count("\n") == 1
    assert (outcome.code, outcome.out) == (1, "")
    assert snapshot(folder) == before


def test_missing_arguments_are_one_line(folder: Path) -> None:
    outcome = run_as_typed("compare_losses", compare_losses, ["bundle", "--out=out"])
    line = "compare_losses: --dataset_dir: expected a value, got none; see compare_losses --help\n"
    assert outcome == (1, "", line)


def test_full_disk_leaves_the_earlier_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(PLAN, [{"method": "other", "seed": 0, "commands": []}])(folder)
    before = (folder / PLAN).read_bytes()
    write_text = Path.write_text

    def write_until_full(path: Path, text: str, **options: Any) -> int:
        if "plan" in path.name:
            write_text(path, text[:9])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, text, **options)

    monkeypatch.setattr(Path, "write_text", write_until_full)
    outcome = run()
    line = "compare_losses: out/plan.json: expected a file that can be written, got No space left on device\n"
    assert (outcome.code, outcome.err) == (1, line)
    assert (folder / PLAN).read_bytes() == before
    assert sorted(os.listdir(folder / "out")) == [".lock", "other", "plan.json", "work"]


def test_nothing_is_written_before_the_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands may start together."""
    found: list[list[str]] = []
    monkeypatch.setattr(fcntl, "flock", lambda *_: found.append(os.listdir(folder / "out" / "work")))
    monkeypatch.setattr("calib_components.tools.compare.run.run_cell", finish)
    assert run().code == 0
    assert found == [[]]
    assert sorted(os.listdir(folder / "out" / "work")) == [".gitignore"]


def test_as_a_process(folder: Path) -> None:
    put(LIST, "{")(folder)
    before = snapshot(folder)
    options = (f"--dataset_dir={folder / 'data'}", f"--out={folder / 'out'}", "--losses=nacl")
    done = run_script("scripts/compare_losses.py", folder / "bundle", *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"compare_losses: {folder / LIST}: expected a JSON file, got Expecting property")
    assert done.stderr.count("\n") == 1
    assert snapshot(folder) == before
