"""Training: every mistake ends with one line that names it, and leaves data and checkpoints as they were."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from calib_components.bundle import check_values
from calib_components.data.cases import LoadSliced, list_slices
from calib_components.errors import InputError
from tests.bad_input.harness import snapshot
from tests.helpers import ACDC, make_prepared, run_bundle, run_bundle_as_typed, save


class Row(NamedTuple):
    """A bad input: what is done to the prepared data or given as options, and what the one line starts with.

    Attributes:
        name: Name of the test.
        line: Start of the line; `{data}` is the folder of the data, `{ckpt}` that of checkpoints.
        damage: Changes the folder of the prepared data.
        options: Options of the run.
    """

    name: str
    line: str
    damage: Callable[[Path], Any] = lambda folder: None
    options: Mapping[str, Any] = MappingProxyType({})


def edit_list(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "datalist.json").read_text())
        (folder / "datalist.json").write_text(json.dumps(change(content) or content))

    return damage


def edit_facts(**values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = yaml.safe_load((folder / "facts.yaml").read_text())
        (folder / "facts.yaml").write_text(yaml.safe_dump({**content, **values}))

    return damage


def text(name: str, content: str | bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name: str, size: int) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def volume(name: str, array: np.ndarray) -> Callable[[Path], Any]:
    return lambda folder: save(folder / name, array)


def in_place_of_a_file(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


LIST = "{data}/datalist.json: expected "
FACTS = "{data}/facts.yaml: expected "
CASE = "{data}/training0/"
CODE = '$__import__("os").system("touch {}")'
ROWS = [
    # Options
    Row("misspelt id", "learning_rat: expected an id that the configuration uses", options={"learning_rat": 0.1}),
    Row("misspelt id is hinted at", "max_epoch: expected an id that the configuration uses, got one without effect; did you mean max_epochs?", options={"max_epoch": 1}),
    Row("misspelt nested id", "loss::penalty_wieght: expected an id that the configuration uses, got one without effect; did you mean loss::penalty_weight?", options={"loss::penalty_wieght": 0.1}),
    Row("misspelt part of train", "train::dataloder: expected an id that the configuration uses, got one without effect; did you mean train::dataloader?", options={"train::dataloder": 1}),
    Row("argument of a component", "train::trainer::max_epoch: expected an id that the configuration uses, got one without effect; did you mean train::trainer::max_epochs?", options={"train::trainer::max_epoch": 1}),
    Row("no epoch", "max_epochs: expected a whole number of at least 1, got 0", options={"max_epochs": 0}),
    Row("text for a number", "max_epochs: expected a whole number of at least 1, got 'ten'", options={"max_epochs": "ten"}),
    Row("fraction of an epoch", "max_epochs: expected a whole number", options={"max_epochs": 1.5}),
    Row("negative batch", "batch_size: expected a whole number of at least 1, got -1", options={"batch_size": -1}),
    Row("negative workers", "num_workers: expected a whole number of at least 0", options={"num_workers": -2}),
    Row("interval 0", "val_interval: expected a whole number of at least 1", options={"val_interval": 0}),
    Row("seed of text", "seed: expected a whole number from 0 to 4294967295, got 'abc'", options={"seed": "abc"}),
    Row("negative seed", "seed: expected a whole number from 0 to 4294967295, got -1", options={"seed": -1}),
    Row("rate 0", "learning_rate: expected a number above 0, got 0", options={"learning_rate": 0}),
    Row("negative rate", "learning_rate: expected a number above 0, got -0.1", options={"learning_rate": -0.1}),
    Row("rate of text", "learning_rate: expected a number above 0, got '1e-3.'", options={"learning_rate": "1e-3."}),
    Row("infinite rate", "learning_rate: expected a number above 0, got inf", options={"learning_rate": float("inf")}),
    Row("resume of text", "resume: expected true or false, got 'yes'", options={"resume": "yes"}),
    Row("amp of text", "amp: expected true or false, got 'no'", options={"amp": "no"}),
    Row("bfloat16 of text", "bfloat16: expected true or false, got 'half'", options={"bfloat16": "half"}),
    Row("flag of a component", "optimizer::amsgrad: expected true or false, got 'no'", options={"optimizer::amsgrad": "no"}),
    Row("another slice axis", "slice_axis: expected null, that of the facts, since prepared", options={"slice_axis": 0}),
    Row("path that a shell left as it is", "output_dir: expected a path without # or ::, with no ~ in front; write ./NAME if it reads as a number, got '~/a'", options={"output_dir": "~/a"}),
    Row("path that is a reference", "output_dir: expected a path without # or ::, with no ~ in front; write ./NAME if it reads as a number, got '@none', which MONAI cannot evaluate: ", options={"output_dir": "@none"}),
    Row("path that is an expression", "ckpt_dir: expected a path without # or ::, with no ~ in front; write ./NAME if it reads as a number, got '$HOME', which MONAI cannot evaluate: NameError: name 'HOME' is not defined", options={"ckpt_dir": "$HOME"}),
    Row("path with a number sign", "output_dir: expected a path without # or ::", options={"output_dir": "{data}/a#b"}),
    Row("compile of text", "compile: expected true or false, got 'inductor'", options={"compile": "inductor"}),
    Row("negative cache", "cache: expected a number of MiB of at least 0, got -1", options={"cache": -1}),
    Row("cache of text", "cache: expected a number of MiB of at least 0, got '1 GB'", options={"cache": "1 GB"}),
    Row("orientation of text", "any_orientation: expected true or false, got 'x'", options={"any_orientation": "x"}),
    Row("no such device", "device: expected one that PyTorch finds, got 'gpu'", options={"device": "gpu"}),
    Row("device without float64", "device: expected cpu or cuda, got mps:0, which has no", options={"device": "mps:0"}),
    Row("no such GPU", "device: expected one that PyTorch finds, got 'cuda:64'", options={"device": "cuda:64"}),
    Row("one size", "image_size: expected two multiples of 16, such as [128,128], got [64]", options={"image_size": [64]}),
    Row("odd size", "image_size: expected two multiples of 16", options={"image_size": [40, 32]}),
    Row("folder that reads as a number", "dataset_dir: expected a path", options={"dataset_dir": 20241125}),
    Row("empty folder name", "dataset_dir: expected a path", options={"dataset_dir": ""}),
    Row("another size", CASE + "image.nii: expected slices of the image_size [64, 64]", options={"image_size": [64, 64]}),
    Row("another number of channels", CASE + "image.nii: expected 2 channel(s)", options={"in_channels": 2}),
    Row("no such list", "{data}/absent.json: expected a list", options={"datalist": "{data}/absent.json"}),
    Row("checkpoints into a file", "ckpt_dir: expected a folder that can be written", options={"ckpt_dir": "{data}/facts.yaml"}),
    Row("log below a file", "output_dir: expected a folder that can", options={"output_dir": "{data}/facts.yaml/deep"}),
    Row("no such loss", "loss: expected a class or function that Python finds, got calib_components.losses.MbLS", options={"loss": {"_target_": "calib_components.losses.MbLS"}}),
    Row("unsuitable margin", "margin: expected a number of at least 0, got -1", options={"loss": {"_target_": "calib_components.losses.MbLSLoss", "margin": -1}}),
    Row("negative weight of the penalty", "penalty_weight: expected a number of at least 0, got -1", options={"loss::penalty_weight": -1}),
    Row("no such prior", "prior: expected one of", options={"loss::prior": "average"}),
    Row("even window", "kernel_size: expected an odd number of at least 1, got 4", options={"loss::kernel_size": 4}),
    Row("crop larger than the slice", "options: expected crop_size of at most the image_size", options={"crop_size": [48, 48]}),
    Row("classes beyond the facts", "options: expected 5 class_names", options={"num_classes": 5}),
    Row("structure of no class", "options: expected structures of class indices from 0 to 3", options={"structures": {"RV": [7]}}),
    Row("facts of another name", "facts_file: expected a file that is there and is called facts.yaml, got {data}/facts_2.yaml", lambda folder: shutil.copy(folder / "facts.yaml", folder / "facts_2.yaml"), options={"facts_file": "{data}/facts_2.yaml"}),
    Row("facts that are not there", "facts_file: expected a file that is there and is called facts.yaml, got {data}/none/facts.yaml", options={"facts_file": "{data}/none/facts.yaml"}),
    Row("weights among the cases", "ckpt_dir: expected another folder than that of prepared cases, whose facts.yaml would be replaced, got one with {data}/datalist.json", options={"ckpt_dir": "{data}"}),
    # The list of cases
    Row("no data", "{data}/none/datalist.json: expected a list of prepared cases", options={"dataset_dir": "{data}/none"}),
    Row("no list", LIST + "a list of prepared cases, got no such file", lambda folder: (folder / "datalist.json").unlink()),
    Row("list is a folder", LIST + "a list of prepared cases, got Is a directory", in_place_of_a_file("datalist.json")),
    Row("empty list", LIST + "a list of prepared cases, got", text("datalist.json", "")),
    Row("truncated list", LIST + "a list of prepared cases, got", cut("datalist.json", 100)),
    Row("binary list", LIST + "a list of prepared cases, got", text("datalist.json", b"\x00\xff\xfe")),
    Row("list is a number", LIST + "a list of prepared cases for training", text("datalist.json", "3")),
    Row("list of lists", LIST + "a list of prepared cases for training", text("datalist.json", "[[]]")),
    Row("no training", LIST + "a list of prepared cases for training", edit_list(lambda c: c.pop("training") and None)),
    Row("training is text", LIST + "a list of prepared cases for", edit_list(lambda c: {**c, "training": "all"})),
    Row("nobody to train on", LIST + "at least one case for training", edit_list(lambda c: {**c, "training": []})),
    Row("no validation", LIST + "a list of prepared cases for val", edit_list(lambda c: c.pop("validation") and None)),
    Row("case is text", LIST + "case of training case 1 to be text", edit_list(lambda c: {**c, "training": ["a"]})),
    Row("case without image", LIST + "image of training case 1", edit_list(lambda c: c["training"][0].pop("image") and None)),
    Row("case without label", LIST + "label of training case 2", edit_list(lambda c: c["training"][1].pop("label") and None)),
    Row("image is a number", LIST + "image of training case 1", edit_list(lambda c: c["training"][0].update(image=3))),
    Row("same case twice", LIST + "every case once, got training0", edit_list(lambda c: c["training"][1].update(case="training0"))),
    Row("case of elsewhere", "{data}/x/image.nii: expected a prepared volume, got no such file; prepare the data again", edit_list(lambda c: c["training"][0].update(image="x/image.nii"))),
    # The facts of the data
    Row("facts are empty", FACTS + "the facts of a data set, got None", text("facts.yaml", "")),
    Row("facts are a list", FACTS + "the facts of a data set, got ['a']", text("facts.yaml", "- a")),
    Row("facts are not YAML", FACTS + "the facts of a data set, got", text("facts.yaml", "a: [")),
    Row("facts are binary", FACTS + "the facts of a data set, got", text("facts.yaml", b"\x00\x01")),
    Row("facts of a Python object", FACTS + "the facts of a data set", text("facts.yaml", "!!python/object:os.system {}")),
    Row("facts with an unknown key", FACTS + "only dataset, num_classes, in_channels, class_names, label_codes, structures, file_suffixes, image_size, crop_size, slice_axis, pixel_size, source, got 'max_epochs'", edit_facts(max_epochs=1)),
    Row("code as crop size", FACTS + "crop_size to be two positive whole numbers", edit_facts(crop_size=CODE)),
    Row("code as class name", FACTS + "class_names to be a list of names", edit_facts(class_names=["background", CODE, "c", "d"])),
    Row("code as structure", FACTS + "structures to be", edit_facts(structures={CODE: [1]})),
    Row("reference as class name", FACTS + "class_names to be a list of names, got ['background', '@seed', 'c', 'd']", edit_facts(class_names=["background", "@seed", "c", "d"])),
    Row("macro as suffix", FACTS + "file_suffixes to be a list of texts, got ['%a.yaml::b']", edit_facts(file_suffixes=["%a.yaml::b"])),
    Row("component as size", FACTS + "image_size to be two positive whole numbers, got {{'_target_': 'os.getcwd'}}", edit_facts(image_size={"_target_": "os.getcwd"})),
    Row("facts of another data set", FACTS + "data prepared like acdc, the bundle's, got like flare", edit_facts(dataset="flare")),
    Row("classes without names", FACTS + "5 class_names", edit_facts(num_classes=5)),
    Row("structure of no class", FACTS + "structures of class indices from 0 to 3", edit_facts(structures={"RV": [4]})),
    Row("names twice", FACTS + "different names, got b twice", edit_facts(class_names=["background", "b", "b", "c"])),
    # The cases
    Row("no image", CASE + "image.nii: expected a prepared volume, got no such file", lambda f: (f / "training0/image.nii").unlink()),
    Row("no label", CASE + "label.nii: expected a prepared volume, got no such file", lambda f: (f / "training0/label.nii").unlink()),
    Row("no case", CASE + "image.nii: expected a prepared", lambda folder: shutil.rmtree(folder / "training0")),
    Row("empty image", CASE + "image.nii: expected a readable NIfTI file, got Empty file: ", cut("training0/image.nii", 0)),
    Row("header alone", CASE + "image.nii: expected 8544 bytes, as its header demands, got 352; it is truncated", cut("training0/image.nii", 352)),
    Row("truncated image", CASE + "image.nii: expected 8544 bytes, as its header demands, got 2000; it is truncated", cut("training0/image.nii", 2000)),
    Row("truncated label of validation", "{data}/validation1/label.nii: expected 3424 bytes, as its header demands, got 1000; it is truncated", cut("validation1/label.nii", 1000)),
    Row("text as image", CASE + "image.nii: expected a readable NIfTI file, got Cannot work out file type of ", text("training0/image.nii", "no image")),
    Row("image is a folder", CASE + "image.nii: expected a prepared volume, got no such file; prepare the data again", in_place_of_a_file("training0/image.nii")),
    Row("label of other shape", CASE + "label.nii: expected shape", volume("training0/label.nii", np.zeros((32, 32, 3), np.uint8))),
    Row("image of one slice", CASE + "image.nii: expected a volume, got shape (32, 32); prepare the data again", volume("training0/image.nii", np.zeros((32, 32), np.float32))),
    Row("complex image", CASE + "image.nii: expected one real number per voxel, got complex64", volume("training0/image.nii", np.zeros((32, 32, 2), np.complex64))),
    Row("class beyond the network", CASE + "label.nii: expected class indices from 0 to 3", volume("training0/label.nii", np.full((32, 32, 2), 9, np.uint8))),
    Row("class beyond the network in validation", "{data}/validation0/label.nii: expected class indices from 0 to 3", volume("validation0/label.nii", np.full((32, 32, 2), 9, np.uint8))),
    Row("class beyond the network in a worker", CASE + "label.nii: expected class indices from 0 to 3", volume("training0/label.nii", np.full((32, 32, 2), 9, np.uint8)), {"num_workers": 1}),
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prepared(ACDC, tmp_path_factory.mktemp("data"))


@pytest.fixture
def damaged(data: Path, tmp_path: Path) -> Path:
    return shutil.copytree(data, tmp_path / "data")


def options_of(row: Row, folder: Path, tmp_path: Path) -> dict[str, Any]:
    given = {k: v.format(data=folder) if isinstance(v, str) else v for k, v in row.options.items()}
    places = {"dataset_dir": str(folder), "ckpt_dir": str(tmp_path / "ckpt"), "output_dir": str(tmp_path / "out")}
    return {"max_epochs": 1, **places, **given}


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_one_line_and_nothing_lost(row: Row, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # code from data would leave a file here
    row.damage(damaged)
    before = snapshot(damaged)
    ended = run_bundle_as_typed(ACDC, "train.yaml", **options_of(row, damaged, tmp_path))
    assert ended.code == 1
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith(row.line.format(data=damaged))
    assert snapshot(damaged) == before
    assert not (tmp_path / "ckpt" / "model.pt").exists()
    assert not (tmp_path / "{}").exists()


def test_in_a_process_of_its_own(damaged: Path, tmp_path: Path) -> None:
    (damaged / "training1" / "image.nii").write_bytes(b"")
    options = [f"--dataset_dir={damaged}", f"--ckpt_dir={tmp_path}", f"--output_dir={tmp_path}", "--device=cpu"]
    options += ["--resume=true", "--any_orientation=false", "--image_size=32,32"]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(ACDC / "configs" / "train.yaml")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"{damaged}/training1/image.nii: expected a readable NIfTI file, got "
    )
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("typed", [["--ckpt_dir=weights#2"], ["--ckpt_dir", "weights#2"]])
def test_a_path_that_fire_cuts_is_refused(
    typed: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", *typed])
    places = {"dataset_dir": str(data), "ckpt_dir": str(tmp_path / "weights"), "output_dir": str(tmp_path / "out")}
    ended = run_bundle_as_typed(ACDC, "train.yaml", **places)
    assert (
        ended.err
        == "ckpt_dir: expected a path without # or ::, with no ~ in front; write ./NAME if it reads as a number, got 'weights#2'\n"
    )
    assert not any((tmp_path / "weights").iterdir())


RESUMED = [
    ("loss", {"loss::penalty_weight": 0.2}, "loss (0.1, now 0.2)"),
    ("another loss", {"loss": {"_target_": "calib_components.losses.FocalLoss"}}, "loss ("),
    ("learning rate", {"learning_rate": 0.01}, "learning_rate (0.001, now 0.01)"),
    ("batch size", {"batch_size": 8}, "batch_size (16, now 8)"),
    ("seed", {"seed": 1}, "seed (0, now 1)"),
    ("epochs", {"max_epochs": 2}, "max_epochs (1, now 2)"),
    ("augmentation", {"any_orientation": False}, "train::preprocessing ("),
    ("optimizer", {"optimizer::weight_decay": 0.1}, "optimizer (null, now 0.1)"),
]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ckpt")
    places = {"dataset_dir": str(data), "ckpt_dir": str(folder), "output_dir": str(folder)}
    run_bundle(ACDC, "train.yaml", max_epochs=1, **{"loss::penalty_weight": 0.1}, **places)
    return folder


def resume(trained: Path, data: Path, tmp_path: Path, **options: Any) -> tuple[Any, Path]:
    folder = shutil.copytree(trained, tmp_path / "ckpt")
    given = {"max_epochs": 1, "loss::penalty_weight": 0.1, "dataset_dir": str(data), "ckpt_dir": str(folder)}
    if isinstance(options.get("loss"), dict):
        del given["loss::penalty_weight"]
    return run_bundle_as_typed(
        ACDC, "train.yaml", **{**given, "output_dir": str(tmp_path), "resume": True, **options}
    ), folder


@pytest.mark.parametrize(("options", "named"), [row[1:] for row in RESUMED], ids=[row[0] for row in RESUMED])
def test_resuming_with_other_settings(
    options: dict[str, Any], named: str, trained: Path, data: Path, tmp_path: Path
) -> None:
    ended, folder = resume(trained, data, tmp_path, **options)
    assert ended.code == 1
    assert ended.err.startswith(
        f"{folder}/last.ckpt: expected a checkpoint of a run with the same settings, got one with"
    )
    assert named in ended.err
    assert snapshot(folder) == snapshot(trained)


def test_resuming_with_other_data(trained: Path, damaged: Path, tmp_path: Path) -> None:
    edit_list(lambda content: content["training"].pop() and None)(damaged)
    ended, folder = resume(trained, damaged, tmp_path)
    assert (ended.code, len(ended.err.splitlines())) == (1, 1)
    assert "other data (" in ended.err
    assert snapshot(folder) == snapshot(trained)


def test_resuming_with_what_leaves_the_numbers_alone(trained: Path, damaged: Path, tmp_path: Path) -> None:
    ended, _ = resume(trained, damaged, tmp_path, num_workers=1)
    assert ended.code == 0


@pytest.mark.parametrize("size", [0, 1000])
def test_resuming_from_a_broken_checkpoint(size: int, trained: Path, data: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(trained, tmp_path / "broken")
    cut("last.ckpt", size)(broken)
    ended, folder = resume(broken, data, tmp_path)
    assert (ended.code, len(ended.err.splitlines())) == (1, 1)
    assert ended.err.startswith(f"{folder}/last.ckpt: expected a checkpoint of a training, got ")


def test_one_epoch_is_trained_at_the_full_rate(trained: Path) -> None:
    last = torch.load(trained / "last.ckpt", weights_only=True)
    assert last["lr_scheduler"]["milestones"] == {1: 1}


def test_weights_remember_what_they_were_trained_on(trained: Path, damaged: Path, tmp_path: Path) -> None:
    facts = yaml.safe_load((damaged / "facts.yaml").read_text())
    assert yaml.safe_load((trained / "facts.yaml").read_text()) == {**facts, "source": ""}
    assert facts["source"] != ""


def test_a_full_disk_leaves_weights_of_other_facts(damaged: Path, tmp_path: Path) -> None:
    places = {"dataset_dir": str(damaged), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)}
    (tmp_path / "model.pt").write_bytes(b"of others")
    with mock.patch("pathlib.Path.write_bytes", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        ended = run_bundle_as_typed(ACDC, "train.yaml", max_epochs=1, crop_size=[32, 16], **places)
    assert ended.err.splitlines()[-1].startswith(f"{tmp_path}/model.pt: expected a file that can be written")
    assert (tmp_path / "model.pt").read_bytes() == b"of others"
    assert not (tmp_path / "facts.yaml").exists()


@pytest.mark.parametrize("name", ["ensemble.pt", "model.ts"])
def test_facts_are_not_written_beside_weights_of_others(name: str, damaged: Path, tmp_path: Path) -> None:
    """Which would be taken for weights of such data."""
    (tmp_path / name).write_bytes(b"of others")
    places = {"dataset_dir": str(damaged), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)}
    ended = run_bundle_as_typed(ACDC, "train.yaml", max_epochs=1, **places)
    expected = (
        f"ckpt_dir: expected a folder without weights of other data, got {tmp_path}/{name}; choose another folder"
    )
    assert ended.err.splitlines()[-1].startswith(expected)
    assert not (tmp_path / "facts.yaml").exists()


@pytest.mark.parametrize(("option", "means"), [("true", True), ("False", False), ("FALSE", False)])
def test_options_mean_what_is_typed(option: str, means: bool) -> None:
    loss = {"squared_pred": option, "weight": "null"}
    config = ConfigParser({"resume": option, "image_size": (128, 96), "loss": loss, "output_dir": Path("out")})
    check_values(config)
    assert (config["output_dir"], config["loss::weight"]) == ("out", None)
    assert (config["resume"], config["image_size"]) == (means, [128, 96])
    assert config["loss::squared_pred"] is means  # an option of a component


def test_a_volume_that_vanishes_in_the_middle_of_an_epoch(damaged: Path) -> None:
    (item,) = list_slices([{"image": str(damaged / "training0/image.nii")}], (32, 32))[:1]
    (damaged / "training0" / "image.nii").unlink()
    with pytest.raises(InputError, match=r"training0/image.nii: expected a whole prepared volume, got No such file"):
        LoadSliced("image")(item)
