"""Evaluation: every mistake ends with one line that names it, and leaves data, weights and earlier results as they were."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml

from calib_components import figures
from calib_components.handlers import evaluation_writing
from calib_components.handlers.evaluation import read_cases
from tests.helpers import ACDC, Ended, make_prepared, make_weights, run_bundle_as_typed, save, snapshot

Damage = Callable[[Path], Any]


NOTHING: dict[str, Any] = {}


class Row(NamedTuple):
    """A bad input: how it comes about, and what the one line starts with.

    Attributes:
        name: Name of the test.
        line: Start of the line; `{root}` is the folder that holds `data`, the earlier evaluation `eval`, and what the
            row adds.
        damage: Changes that folder.
        options: Options of the run.
    """

    name: str
    line: str
    damage: Damage = lambda root: None
    options: dict[str, Any] = NOTHING


def text(name: str, content: str | bytes) -> Damage:
    return lambda root: (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name: str, size: int) -> Damage:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:size])


def volume(name: str, value: float, shape: tuple[int, ...] = (32, 32, 2), dtype: Any = np.float32) -> Damage:
    return lambda root: save(root / "data" / name, np.full(shape, value, dtype))


def remove(name: str) -> Damage:
    return lambda root: (root / name).unlink()


def folder_in_place_of(name: str) -> Damage:
    def damage(root: Path) -> None:
        (root / name).unlink()
        (root / name).mkdir()

    return damage


def file_in_place_of(name: str) -> Damage:
    def damage(root: Path) -> None:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).write_text("mine")

    return damage


def edit_list(change: Callable[[list[dict[str, Any]]], Any]) -> Damage:
    """Change the test cases in the list; what the function returns, if anything, takes their place."""

    def damage(root: Path) -> None:
        content = json.loads((root / "data" / "datalist.json").read_text())
        result = change(content["testing"])
        content["testing"] = content["testing"] if result is None else result
        (root / "data" / "datalist.json").write_text(json.dumps(content))

    return damage


def edit_facts(**values: Any) -> Damage:
    def damage(root: Path) -> None:
        content = yaml.safe_load((root / "data" / "facts.yaml").read_text())
        (root / "data" / "facts.yaml").write_text(yaml.safe_dump({**content, **values}))

    return damage


def facts_of_weights(**values: Any) -> Damage:
    """Put facts beside the weights in the place that `OTHER` names: those of the data, with some replaced."""

    def damage(root: Path) -> None:
        content = yaml.safe_load((root / "data" / "facts.yaml").read_text())
        (root / "facts.yaml").write_text(yaml.safe_dump({**content, **values}))

    return damage


class Code:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("made-by-weights",)


def weights(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Put changed weights into the place that `OTHER` names."""

    def damage(root: Path) -> None:
        content = torch.load(root / "model.pt", weights_only=True)
        result = change(content)
        torch.save(content if result is None else result, root / "model.pt")

    return damage


def torchscript(root: Path) -> None:
    torch.jit.script(torch.nn.Conv2d(1, 4, 1)).save(root / "model.pt")


LIST, FACTS, CASE = "{root}/data/datalist.json: expected ", "{root}/data/facts.yaml: expected ", "{root}/data/testing0/"
WEIGHTS = "{root}/model.pt: expected trained weights, got "
OTHER = {"ckpt_dir": "{root}"}  # a copy of the weights, for rows that change them
FIRST, LAST = "model.0.conv.unit0.conv.weight", "model.2.1.conv.unit0.conv.bias"
EVAL = "{root}/eval/"
ECE = "validate::additional_metrics::ece::metric_fn::"
ROWS = [
    # Options
    Row("misspelt id", "spilt: expected an id that the configuration uses", options={"spilt": "testing"}),
    Row("misspelt id of weights", "load_pth: expected an id", options={"load_pth": "a"}),
    Row("misspelt nested id", "validate::evaluater: expected an id", options={"validate::evaluater": 1}),
    Row("misspelt argument", "validate::evaluator::ampp: expected an id", options={"validate::evaluator::ampp": True}),
    Row("unknown split", "split: expected training, validation or testing, got 'test'", options={"split": "test"}),
    Row("split of a number", "split: expected training, validation or testing, got 1", options={"split": 1}),
    Row("no such device", "device: expected one that PyTorch finds, got 'gpu'", options={"device": "gpu"}),
    Row("no batch", "batch_size: expected a whole number of at least 1, got 0", options={"batch_size": 0}),
    Row("negative workers", "num_workers: expected a whole number of at least 0, got -1", options={"num_workers": -1}),
    Row("amp of text", "amp: expected true or false, got 'no'", options={"amp": "no"}),
    Row("negative seed", "seed: expected a whole number from 0 to 4294967295, got -1", options={"seed": -1}),
    Row("data folder that reads as a number", "dataset_dir: expected a path", options={"dataset_dir": 20241125}),
    Row("empty data folder", "dataset_dir: expected a path", options={"dataset_dir": ""}),
    Row("output folder that reads as a number", "output_dir: expected a path", options={"output_dir": 20241125}),
    Row("empty output folder", "output_dir: expected a path", options={"output_dir": ""}),
    Row("weights that read as a number", "load_path: expected a path", options={"load_path": 20241125}),
    Row("weights folder that reads as a number", "ckpt_dir: expected a path", options={"ckpt_dir": 7}),
    Row("another size", CASE + "image.nii: expected slices of the image_size [64, 64]", options={"image_size": [64, 64]}),
    Row("odd size", "image_size: expected two multiples of 16", options={"image_size": [40, 32]}),
    Row("another number of channels", CASE + "image.nii: expected 2 channel(s)", options={"in_channels": 2}),
    # What is measured
    Row("region twice", "regions: expected each region once, got all, all", options={ECE + "regions": ["all", "all"]}),
    Row("unknown region", "region: expected one of 'all', 'predicted'", options={ECE + "regions": ["nope"]}),
    Row("one text of regions", "regions: expected a list of regions, got 'all'", options={ECE + "regions": "all"}),
    Row("region of two", "regions: expected a list of regions, got {{'a': 1}}", options={ECE + "regions": {"a": 1}}),
    Row("region of a class beyond the network", "region: expected class indices from 0 to 3, got [9]",
        options={ECE + "regions": [[9]]}),
    Row("temperature of text", "temperature: expected a number above 0, got 'x'", options={ECE + "temperature": "x"}),
    Row("sigmoids of a softmax", "structures: expected None for sigmoids, whose labels are 0 and 1, got ",
        options={ECE + "sigmoid": True}),
    Row("two regions", "foreground_only: expected None if region is given, got False", options={ECE + "foreground_only": False}),
    Row("structure of no classes", "structures: expected class indices for 'a', got []", options={ECE + "structures": {"a": []}}),
    Row("structures that share a column", "structures: expected names that give different columns, got ece_structure_a_if_true",
        options={ECE + "structures": {"a": [1], "a_if_true": [2]}}),
    # Weights
    Row("no weights", "{root}/none/model.pt: expected trained weights, got no such file; train first, or set --load_path",
        options={"ckpt_dir": "{root}/none"}),
    Row("no such weights", "{root}/a.pt: expected trained weights, got no such file", options={"load_path": "{root}/a.pt"}),
    Row("folder of weights", "{root}/data: expected trained weights, got Is a dir", options={"load_path": "{root}/data"}),
    Row("empty weights", WEIGHTS + "a broken file", text("model.pt", ""), OTHER),
    Row("weights of text", WEIGHTS + "another kind of file", text("model.pt", "weights"), OTHER),
    Row("weights of zeros", WEIGHTS + "a broken file", text("model.pt", b"\0" * 1000), OTHER),
    Row("truncated weights", WEIGHTS + "a broken file", cut("model.pt", 100_000), OTHER),
    Row("another zip", WEIGHTS + "a broken file", text("model.pt", b"PK\3\4" + b"\0" * 100), OTHER),
    Row("code in weights", WEIGHTS + "pickled code (posix.mkdir), which is not run", weights(lambda w: {FIRST: Code()}), OTHER),
    Row("TorchScript file", WEIGHTS + "a TorchScript file; add configs/inference_ts.yaml", torchscript, OTHER),
    Row("state of a training", WEIGHTS + "the state of a training; use model.pt beside it",
        weights(lambda w: {"network": w, "optimizer": {}, "epoch": 3}), OTHER),
    Row("list of weights", WEIGHTS + "a list", weights(lambda w: list(w.values())), OTHER),
    Row("tensor alone", WEIGHTS + "a Tensor", weights(lambda w: w[FIRST]), OTHER),
    Row("no weights in the file", WEIGHTS + f"those of another network, without {FIRST}", weights(lambda w: {}), OTHER),
    Row("weights without the last", WEIGHTS + f"those of another network, without {LAST}",
        weights(lambda w: {k: v for k, v in w.items() if k != LAST}), OTHER),
    Row("weights with another", WEIGHTS + "those of another network, with a.b", weights(lambda w: {**w, "a.b": w[LAST]}), OTHER),
    Row("number as weights", WEIGHTS + f"{LAST} of type float", weights(lambda w: {**w, LAST: 0.5}), OTHER),
    Row("whole numbers as weights", WEIGHTS + f"{LAST} of type torch.int32", weights(lambda w: {**w, LAST: w[LAST].int()}), OTHER),
    Row("weights of NaN", WEIGHTS + f"values that are NaN or infinite in {FIRST}",
        weights(lambda w: {**w, FIRST: w[FIRST] * np.nan}), OTHER),
    Row("infinite weight", WEIGHTS + f"values that are NaN or infinite in {LAST}",
        weights(lambda w: {**w, LAST: w[LAST] + np.inf}), OTHER),
    Row("temperature of zero", WEIGHTS + "a temperature of 0, which is not from 0.001 to 1000",
        weights(lambda w: {**w, "temperature": torch.zeros(())}), OTHER),
    Row("weights that overflow", "testing0: expected finite logits, got some that are NaN or infinite",
        weights(lambda w: {**w, FIRST: w[FIRST] + 3e38}), OTHER),
    Row("data of five classes", WEIGHTS + "those of another network of 1 channel(s) and 4 classes, not of "
        "1 channel(s) and 5 classes: model.2.0.conv.weight has shape (32, 4, 3, 3), not (32, 5, 3, 3)",
        edit_facts(num_classes=5, label_codes=[0, 1, 2, 3, 4], class_names=["background", "a", "b", "c", "d"]), OTHER),
    # The list of cases
    Row("no data", "{root}/none/datalist.json: expected a list of prepared cases", options={"dataset_dir": "{root}/none"}),
    Row("no list", LIST + "a list of prepared cases, got no such file", remove("data/datalist.json")),
    Row("list is a folder", LIST + "a list of prepared cases, got Is a dir", folder_in_place_of("data/datalist.json")),
    Row("empty list", LIST + "a list of prepared cases, got", text("data/datalist.json", "")),
    Row("truncated list", LIST + "a list of prepared cases, got", cut("data/datalist.json", 100)),
    Row("binary list", LIST + "a list of prepared cases, got", text("data/datalist.json", b"\xff\xfe\0")),
    Row("list without the split", LIST + "a list of prepared cases for testing", text("data/datalist.json", '{"training": []}')),
    Row("no case", LIST + "at least one case for testing, got none", edit_list(lambda cases: [])),
    Row("cases of text", LIST + "a list of prepared cases for testing", edit_list(lambda cases: "all")),
    Row("case of text", LIST + "case of testing case 1 to be text", edit_list(lambda cases: ["a"])),
    Row("case without image", LIST + "image of testing case 1", edit_list(lambda cases: cases[0].pop("image") and None)),
    Row("case without label", LIST + "label of testing case 2", edit_list(lambda cases: cases[1].pop("label") and None)),
    Row("case without name", LIST + "case of testing case 1", edit_list(lambda cases: cases[0].update(case=""))),
    Row("same case twice", LIST + "every case once, got testing0", edit_list(lambda cases: cases[1].update(case="testing0"))),
    Row("same name twice", "testing0: expected each case once in an evaluation, got it 2 times",
        edit_list(lambda cases: cases[1].update(case="x/testing0"))),
    Row("absent case", "{root}/data/a/image.nii: expected a prepared volume, got no such file; prepare the data again",
        edit_list(lambda cases: cases[0].update(image="a/image.nii"))),
    # The facts of the data
    Row("broken facts", FACTS + "the facts of a data set, got", text("data/facts.yaml", "a: [")),
    Row("code in facts", FACTS + "crop_size to be two positive whole numbers", edit_facts(crop_size="$__import__('os')")),
    Row("code as structure", FACTS + "structures to be names", edit_facts(structures={"$print(1)": [1]})),
    Row("structure of no class", FACTS + "structures of class indices from 0 to 3", edit_facts(structures={"RV": [4]})),
    Row("facts of another data set", FACTS + "data prepared like acdc", edit_facts(dataset="flare")),
    Row("weights of other classes", "{root}/facts.yaml: expected weights of the data's class_names, ['background', 'right",
        facts_of_weights(class_names=["background", "left ventricle", "myocardium", "right ventricle"]), OTHER),
    Row("weights of other channels", "{root}/facts.yaml: expected weights of the data's in_channels, 1, got 4; use",
        facts_of_weights(in_channels=4), OTHER),
    Row("weights of another data set", "{root}/facts.yaml: expected weights of the data's dataset, acdc, got flare",
        facts_of_weights(dataset="flare"), OTHER),
    Row("broken facts of the weights", "{root}/facts.yaml: expected the facts of a data set, got", text("facts.yaml", "a: ["),
        OTHER),
    # The cases
    Row("no image", CASE + "image.nii: expected a prepared volume, got no such file", remove("data/testing0/image.nii")),
    Row("no label", CASE + "label.nii: expected a prepared volume, got no such file", remove("data/testing0/label.nii")),
    Row("empty image", CASE + "image.nii: expected a readable NIfTI file, got Empty file: ",
        cut("data/testing0/image.nii", 0)),
    Row("truncated image", CASE + "image.nii: expected 8544 bytes, as its header demands, got 2000; it is truncated",
        cut("data/testing0/image.nii", 2000)),
    Row("truncated label of the last case",
        "{root}/data/testing1/label.nii: expected 3424 bytes, as its header demands, got 1000; it is truncated",
        cut("data/testing1/label.nii", 1000)),
    Row("text as image", CASE + "image.nii: expected a readable NIfTI file, got Cannot work out file type of ",
        text("data/testing0/image.nii", "no image")),
    Row("image is a folder", CASE + "image.nii: expected a prepared volume, got no such file; prepare the data again",
        folder_in_place_of("data/testing0/image.nii")),
    Row("label of other shape", CASE + "label.nii: expected shape", volume("testing0/label.nii", 0, (32, 32, 3))),
    Row("class beyond the network", CASE + "label.nii: expected class indices from 0 to 3, those of the network, got 4",
        volume("testing0/label.nii", 4, dtype=np.uint8)),
    Row("class 255", CASE + "label.nii: expected class indices from 0 to 3", volume("testing0/label.nii", 255, dtype=np.uint8)),
    Row("negative class", CASE + "label.nii: expected class indices from 0 to 3", volume("testing0/label.nii", -1)),
    Row("half a class", CASE + "label.nii: expected class indices from 0 to 3", volume("testing0/label.nii", 0.5)),
    Row("label of NaN", CASE + "label.nii: expected class indices from 0 to 3, those of the network, got nan",
        volume("testing0/label.nii", np.nan)),
    Row("image of NaN", CASE + "image.nii: expected finite values", volume("testing0/image.nii", np.nan)),
    Row("infinite image", CASE + "image.nii: expected finite values", volume("testing0/image.nii", np.inf)),
    Row("class beyond the network in a worker", CASE + "label.nii: expected class indices from 0 to 3",
        volume("testing0/label.nii", 9, dtype=np.uint8), {"num_workers": 1}),
    # Where the results go
    Row("results into a file", "output_dir: expected a folder that can be written", options={"output_dir": EVAL + "cases.csv"}),
    Row("results below a file", "output_dir: expected a folder that can be", options={"output_dir": EVAL + "cases.csv/a/b"}),
    Row("file in place of the pictures", EVAL + "cases: expected a folder of pictures or nothing, got a file",
        file_in_place_of("eval/cases")),
    Row("folder in place of the table", EVAL + "cases.csv: expected a file of an evaluation or nothing, got a folder",
        folder_in_place_of("eval/cases.csv")),
    Row("folder in place of a picture", EVAL + "cases/best.png: expected a file of an evaluation or nothing, got a folder",
        folder_in_place_of("eval/cases/best.png")),
    Row("folder in place of the summary", EVAL + "summary.json: expected a file of an evaluation or nothing",
        folder_in_place_of("eval/summary.json")),
    Row("file in place of the hidden folder", "{root}/eval: expected a folder that an evaluation can be written to, got File",
        file_in_place_of("eval/.unfinished-evaluation")),
]  # fmt: skip


def evaluate(root: Path, ckpt: Path, **options: Any) -> Ended:
    places = {"dataset_dir": f"{root}/data", "ckpt_dir": str(ckpt), "output_dir": f"{root}/eval"}
    return run_bundle_as_typed(ACDC, "train.yaml", "evaluate.yaml", **{**places, **options})


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(ACDC, tmp_path_factory.mktemp("ckpt"))


@pytest.fixture(scope="module")
def evaluated(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared cases, and an evaluation on them."""
    root = tmp_path_factory.mktemp("evaluated")
    make_prepared(ACDC, root / "data")
    assert evaluate(root, ckpt).code == 0
    return root


@pytest.fixture
def root(evaluated: Path, tmp_path: Path) -> Path:
    return shutil.copytree(evaluated, tmp_path / "root")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore:.torch.load. received a zip file")
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_one_line_and_nothing_lost(row: Row, root: Path, ckpt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)  # code from data or weights would leave something here
    options = {k: v.format(root=root) if isinstance(v, str) else v for k, v in row.options.items()}
    if row.options is OTHER:
        shutil.copy(ckpt / "model.pt", root)
    row.damage(root)
    before = snapshot(root)
    ended = evaluate(root, ckpt, **options)
    assert ended.code == 1
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith(row.line.format(root=root, ckpt=ckpt))
    assert snapshot(root) == before


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (evaluation_writing, "write_cases"),
        (evaluation_writing, "write_calibration"),
        (evaluation_writing, "write_logits"),
        (evaluation_writing, "write_thresholds"),
        (evaluation_writing, "write_risk_coverage"),
        (figures, "uncertainty_overlay"),
        (figures, "reliability_diagram"),
    ],
)
def test_full_disk(owner: Any, name: str, root: Path, ckpt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(root)
    monkeypatch.setattr(owner, name, full)
    ended = evaluate(root, ckpt)
    line = f"{root}/eval: expected a folder that an evaluation can be written to, got No space left on device\n"
    assert ended == Ended(1, line)
    assert snapshot(root) == before


@pytest.mark.parametrize("names", [("x$_$y", "_^{"), ("a\\b$", "<b>{}%s&amp;")])
def test_no_name_of_a_case_loses_the_evaluation(names: tuple[str, str], root: Path, ckpt: Path) -> None:
    edit_list(lambda cases: [{**case, "case": name} for case, name in zip(cases, names, strict=True)])(root)
    assert evaluate(root, ckpt) == Ended(0, "")
    assert read_cases(root / "eval")[0] == list(names)
    assert {path.name for path in (root / "eval" / "cases").iterdir()} == {"best.png", "worst.png"}


def test_disk_that_takes_no_large_file_in_a_process_of_its_own(root: Path, ckpt: Path) -> None:
    before = snapshot(root)
    configs = [str(ACDC / "configs" / name) for name in ("train.yaml", "evaluate.yaml")]
    options = [f"--dataset_dir={root}/data", f"--ckpt_dir={ckpt}", f"--output_dir={root}/eval", "--device=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs), "--num_workers=0", *options],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),  # smaller than a picture
    )
    assert done.returncode == 1
    line = f"{root}/eval: expected a folder that an evaluation can be written to, got File too large"
    assert done.stderr.splitlines()[-1] == line
    assert "Traceback" not in done.stdout + done.stderr
    assert snapshot(root) == before
