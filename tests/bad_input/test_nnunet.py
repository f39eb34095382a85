"""Bad input of the commands for nnU-Net: one line that names the file or argument, and nothing written."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)

from calib_components.tools.nnunet import COMMANDS, trainers
from calib_components.tools.nnunet.checkpoint import read_checkpoint
from tests.calib_components.tools.evaluate.made_up import (
    AFFINE,
    SHAPE,
    save_nifti,
    save_nnunet,
    sitk_properties,
)
from tests.calib_components.tools.nnunet.made_up import LABELS, NAME, make_model, plans_of, validation_of
from tests.helpers import make_acdc, run_as_typed, snapshot

MODEL = f"results/{NAME}/nnUNetTrainerNoMirroring__nnUNetPlans__2d"
LABELS_OF = f"preprocessed/{NAME}/gt_segmentations"
VALIDATION = f"{MODEL}/fold_1/validation"
TRAINED = f"{MODEL}/fold_1/checkpoint_final.pth"
AGAIN = "run nnUNetv2_train for this fold again, with --val --npz\n"
CALIBRATE = f"calibrate {MODEL} --workers 1"
ACDC = "acdc src"
P, PREDICTED, LABEL = validation_of("p3_a", LABELS)


class Case(NamedTuple):
    """What is done to the files or the environment, the line that is expected, or its start, and the arguments."""

    name: str
    spoil: Callable[[], object]
    line: str
    given: str = CALIBRATE


class Harmful:
    """Makes a folder when its pickle is run."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, ("harm",)


def nothing() -> None:
    """The files stay as they are."""


def rewrite(name: str, text: str) -> Callable[[], object]:
    return lambda: Path(name).write_text(text)


def remove(name: str) -> Callable[[], object]:
    return lambda: shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()


def move(name: str, target: str) -> Callable[[], object]:
    def spoil() -> None:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(name).rename(target)

    return spoil


def set_variable(name: str, value: str | None) -> Callable[[], object]:
    return lambda: os.environ.pop(name) if value is None else os.environ.update({name: value})


def change_json(name: str, **change: Any) -> Callable[[], object]:
    """Other values; None takes the key out."""

    def spoil() -> None:
        values = {**json.loads(Path(name).read_text()), **change}
        Path(name).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return spoil


def change_network(**change: Any) -> Callable[[], object]:
    plans = plans_of()
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"].update(change)
    return rewrite(f"{MODEL}/plans.json", json.dumps(plans))


def change_checkpoint(**change: Any) -> Callable[[], object]:
    return lambda: torch.save({**read_checkpoint(Path(TRAINED)), **change}, TRAINED)


def put_probabilities(values: np.ndarray) -> Callable[[], object]:
    return lambda: save_nnunet(Path(VALIDATION), "p3_a", values, sitk_properties(), dtype=np.float32)


def put_label(values: np.ndarray, affine: np.ndarray = AFFINE) -> Callable[[], object]:
    return lambda: save_nifti(Path(LABELS_OF, "p3_a.nii.gz"), values, affine)


def only_fold_all() -> None:
    shutil.rmtree(f"{MODEL}/fold_0")
    Path(f"{MODEL}/fold_1").rename(f"{MODEL}/fold_all")


def not_compressed() -> None:
    """A data set of `.nii` files, validated without `--npz`."""
    change_json(f"{MODEL}/dataset.json", file_ending=".nii")()
    for file in Path(MODEL).glob("*/validation/*.nii.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        for other in (file, file.with_name(file.name.replace(".nii.gz", ".npz"))):
            other.unlink()


def is_not_set(name: str) -> str:
    return f"{name}: expected nnU-Net's environment variable, the path of a folder, got none\n"


MODELS = [
    Case("no model", nothing, "gone: expected a trained model of nnU-Net, with fold_N/checkpoint_final.pth, got none\n", "calibrate gone"),
    Case("the folder of a fold", nothing, f"{MODEL}/fold_0: expected a trained model of nnU-Net, with fold_N/checkpoint_final.pth, got none\n", f"calibrate {MODEL}/fold_0"),
    Case("fold_all only", only_fold_all, f"{MODEL}: expected a trained model of nnU-Net, with fold_N/checkpoint_final.pth, got none; fold_all has no validation cases of its own\n"),
    Case("another name", move(MODEL, "mine"), "mine: expected a folder called TRAINER__PLANS__CONFIGURATION, got mine\n", "calibrate mine"),
    Case("no plans", remove(f"{MODEL}/plans.json"), f"{MODEL}/plans.json: expected the plans of nnU-Net, got No such file or directory\n"),
    Case("plans that are no JSON", rewrite(f"{MODEL}/plans.json", "{"), f"{MODEL}/plans.json: expected the plans of nnU-Net, got "),
    Case("plans that are a list", rewrite(f"{MODEL}/plans.json", "[]"), f"{MODEL}/plans.json: expected the plans of nnU-Net, got "),
    Case("plans without a data set", change_json(f"{MODEL}/plans.json", dataset_name=None), f"{MODEL}/plans.json: expected the plans of nnU-Net, got one that lacks 'dataset_name'\n"),
    Case("plans without the configuration", change_json(f"{MODEL}/plans.json", configurations={}), f"{MODEL}/plans.json: expected the plans of nnU-Net, got Requested configuration 2d not found in plans. "),
    Case("plans without an architecture", change_json(f"{MODEL}/plans.json", configurations={"2d": {"patch_size": [32, 32]}}), f"{MODEL}/plans.json: expected the plans of nnU-Net, got "),
    Case("no description", remove(f"{MODEL}/dataset.json"), f"{MODEL}/dataset.json: expected the data set of nnU-Net, got No such file or directory\n"),
    Case("description without labels", change_json(f"{MODEL}/dataset.json", labels=None), f"{MODEL}/dataset.json: expected the data set of nnU-Net, got one that lacks 'labels'\n"),
    Case("regions without an order", change_json(f"{MODEL}/dataset.json", labels={"background": 0, "whole": [1, 2], "core": 2}), f"{MODEL}/dataset.json: expected the data set of nnU-Net, got "),
    Case("images of another format", change_json(f"{MODEL}/dataset.json", file_ending=".nrrd"), f"{MODEL}/dataset.json: expected a file_ending of .nii.gz or .nii, got .nrrd\n"),
    Case("of one class less", change_json(f"{MODEL}/dataset.json", labels={"background": 0, "a": 1}), f"{MODEL}/fold_0/checkpoint_final.pth: expected the labels of dataset.json, {{'background': 0, 'a': 1}}, got a network trained with "),
    Case("other plans", lambda: Path(MODEL, "plans.json").write_text(json.dumps(plans_of(features=6))), f"{MODEL}/fold_0/checkpoint_final.pth: expected the weights of the network in plans.json, got "),
    Case("an architecture of one's own", lambda: Path(MODEL, "plans.json").write_text(json.dumps(plans_of(architecture="mine.Net"))), f"{MODEL}/fold_0/checkpoint_final.pth: expected an architecture of nnU-Net's own, got mine.Net\n"),
    Case("plans that run a program", change_network(nonlin="os.mkdir", nonlin_kwargs={"path": "harm"}), f"{MODEL}/fold_0/checkpoint_final.pth: expected plans with layers of PyTorch and nnU-Net, got os.mkdir; it was not run\n"),
    Case("plans that run one through PyTorch", change_network(nonlin="torch.nn.modules.module.torch.os.mkdir", nonlin_kwargs={"path": "harm"}), f"{MODEL}/fold_0/checkpoint_final.pth: expected plans with layers of PyTorch and nnU-Net, got torch.nn.modules.module.torch.os.mkdir; it was not run\n"),
    Case("plans without strides", change_network(strides=None), f"{MODEL}/fold_0/checkpoint_final.pth: expected a network that nnU-Net builds from plans.json and dataset.json, got "),
    Case("description without channels", change_json(f"{MODEL}/dataset.json", channel_names=None), f"{MODEL}/fold_0/checkpoint_final.pth: expected a network that nnU-Net builds from plans.json and dataset.json, got one that lacks 'channel_names'\n"),
    Case("text for a checkpoint", rewrite(TRAINED, "no checkpoint"), f"{TRAINED}: expected a checkpoint of nnU-Net, got "),
    Case("checkpoint cut", lambda: Path(TRAINED).write_bytes(Path(TRAINED).read_bytes()[:-300]), f"{TRAINED}: expected a checkpoint of nnU-Net, got "),
    Case("checkpoint empty", rewrite(TRAINED, ""), f"{TRAINED}: expected a checkpoint of nnU-Net, got "),
    Case("weights alone", lambda: torch.save({"a": torch.ones(1)}, TRAINED), f"{TRAINED}: expected a checkpoint of nnU-Net, got one that lacks 'network_weights'\n"),
    Case("a tensor alone", lambda: torch.save(torch.ones(1), TRAINED), f"{TRAINED}: expected a checkpoint of nnU-Net, got "),
    Case("a harmful checkpoint", change_checkpoint(logging=Harmful()), f"{TRAINED}: expected weights, numbers and texts, got {os.mkdir.__module__}.mkdir; it was not loaded\n"),
    Case("calibrated before", change_checkpoint(temperature=1.5), f"{TRAINED}: expected a checkpoint as trained, got one with temperature 1.5\n"),
    Case("unknown trainer", change_checkpoint(trainer_name="Mine"), f"{TRAINED}: expected a trainer that nnU-Net finds, got Mine; name its folder in nnUNet_extTrainer\n"),
    Case("trainers are not named", lambda: (change_checkpoint(trainer_name="nnUNetTrainerNACL")(), set_variable("nnUNet_extTrainer", None)()), f"{TRAINED}: expected a trainer that nnU-Net finds, got nnUNetTrainerNACL; name its folder in nnUNet_extTrainer\n"),
    Case("a trainer that cannot be imported", lambda: (change_checkpoint(trainer_name="Mine")(), rewrite("mine.py", "import absent")(), set_variable("nnUNet_extTrainer", ".")()), f"{TRAINED}: expected trainers that can be imported, got No module named 'absent' while nnU-Net looks for Mine\n"),
    Case("a trainer with its own network", change_checkpoint(trainer_name="nnUNetTrainerBN"), f"{TRAINED}: expected the network that nnUNetTrainer builds, got one that nnUNetTrainerBN builds in its own way\n"),
    Case("weights of another kind", change_checkpoint(network_weights={"a": 1}), f"{TRAINED}: expected the weights of the network in plans.json, got "),
    Case("fold_all under another name", change_checkpoint(init_args={"configuration": "2d", "fold": "all"}), f"{TRAINED}: expected a network of fold_1, got one of fold_all, which may have been trained on the validation cases\n"),
    Case("a network of another fold", lambda: shutil.copy(TRAINED.replace("fold_1", "fold_0"), TRAINED), f"{TRAINED}: expected a network of fold_1, got one of fold_0, which may have been trained on the validation cases\n"),
    Case("a configuration that is not in the plans", change_checkpoint(init_args={"configuration": "3d_lowres"}), f"{TRAINED}: expected a network of configuration 2d, got 3d_lowres\n"),
]  # fmt: skip

VALIDATIONS = [
    Case("another validation in a folder of its own", lambda: shutil.copytree(VALIDATION.replace("fold_1", "fold_0"), f"{VALIDATION}/old"), f"{VALIDATION}/old/p1_a.npz: expected the predictions of {VALIDATION} alone, got some in a folder in it; move it\n"),
    Case("no variable", set_variable("nnUNet_preprocessed", None), is_not_set("nnUNet_preprocessed")),
    Case("a variable of no folder", set_variable("nnUNet_preprocessed", "gone"), "nnUNet_preprocessed: expected the path of a folder, got gone, which is no folder\n"),
    Case("no labels", remove(LABELS_OF), f"{LABELS_OF}: expected a folder, got nothing\n"),
    Case("no labels where they are said to be", nothing, "gone: expected a folder, got nothing\n", f"{CALIBRATE} --labels gone"),
    Case("a label is missing", remove(f"{LABELS_OF}/p3_b.nii.gz"), f"{VALIDATION}: expected a label in {LABELS_OF} for each prediction, of the same name, got none for p3_b\n"),
    Case("no validation", remove(VALIDATION), f"{VALIDATION}: expected a validation that is finished, with summary.json, got none; {AGAIN}"),
    Case("a validation that is not finished", remove(f"{VALIDATION}/summary.json"), f"{VALIDATION}: expected a validation that is finished, with summary.json, got none; {AGAIN}"),
    Case("no probabilities of a case", remove(f"{VALIDATION}/p3_b.npz"), f"{VALIDATION}/p3_b.nii.gz: expected p3_b.npz beside it, got none; {AGAIN}"),
    Case("no label map of a case", remove(f"{VALIDATION}/p3_b.nii.gz"), f"{VALIDATION}/p3_b.npz: expected p3_b.nii.gz beside it, got none; {AGAIN}"),
    Case("neither label map nor properties", lambda: [remove(f"{VALIDATION}/p3_b.{ending}")() for ending in ("nii.gz", "pkl")], f"{VALIDATION}/p3_b.npz: expected p3_b.nii.gz beside it, got none; {AGAIN}"),
    Case("not compressed and without probabilities", not_compressed, f"{MODEL}/fold_0/validation/p1_a.nii: expected p1_a.npz beside it, got none; {AGAIN}"),
    Case("description without the ending of files", change_json(f"{MODEL}/dataset.json", file_ending=None), f"{MODEL}/dataset.json: expected the data set of nnU-Net, got one that lacks 'file_ending'\n"),
    Case("no probabilities at all", lambda: [remove(str(file))() for file in Path(MODEL).glob("*/validation/*.npz")], f"{MODEL}/fold_0/validation/p1_a.nii.gz: expected p1_a.npz beside it, got none; {AGAIN}"),
    Case("no cases", lambda: [remove(str(file))() for file in Path(VALIDATION).glob("p*")], f"{VALIDATION}: expected predictions, .nii, .nii.gz, .npz or .npy files, got none\n"),
    Case("of an earlier training", lambda: save_nifti(Path(VALIDATION, "p3_a.nii.gz"), 2 - PREDICTED), f"{VALIDATION}/p3_a.npz: expected the probabilities of p3_a.nii.gz beside it, got others, such as of an earlier training; {AGAIN}"),
    Case("a label map of another size", lambda: save_nifti(Path(VALIDATION, "p3_a.nii.gz"), PREDICTED[1:]), f"{VALIDATION}/p3_a.npz: expected shape (5, 5, 4) as in {VALIDATION}/p3_a.nii.gz, got (6, 5, 4)\n"),
    Case("a label map with another code", lambda: save_nifti(Path(VALIDATION, "p3_a.nii.gz"), PREDICTED + np.uint8(3)), f"{VALIDATION}/p3_a.nii.gz: expected label codes 0, 1, 2, got 3, 4, 5"),
    Case("probabilities cut", lambda: Path(VALIDATION, "p3_a.npz").write_bytes(Path(VALIDATION, "p3_a.npz").read_bytes()[:-300]), f"{VALIDATION}/p3_a.npz: expected an array of numbers, as numpy saves it, got "),
    Case("logits", put_probabilities(np.log(P)), f"{VALIDATION}/p3_a.npz: expected probabilities from 0 to 1, got "),
    Case("of one class more", put_probabilities(np.concatenate([P, 0 * P[:1]])), f"{VALIDATION}/p3_b.npz: expected probabilities of 4 channel(s) like {VALIDATION}/p3_a.npz, got probabilities of 3 channel(s)\n"),
    Case("properties that are no pickle", rewrite(f"{VALIDATION}/p3_a.pkl", "x"), f"{VALIDATION}/p3_a.pkl: expected the properties of an image that nnU-Net saves, got "),
    Case("label of another size", put_label(LABEL[1:]), f"{VALIDATION}/p3_a.npz: expected shape (5, 5, 4) as in {LABELS_OF}/p3_a.nii.gz, got (6, 5, 4)\n"),
    Case("label shifted", put_label(LABEL, AFFINE + np.eye(4)[:, [3, 3, 3, 0]] * 5), f"{VALIDATION}/p3_a.npz: expected the voxels of {LABELS_OF}/p3_a.nii.gz, got some that lie up to 5 mm off\n"),
    Case("unknown label code", put_label(np.full(SHAPE, 7, np.uint8)), f"{LABELS_OF}/p3_a.nii.gz: expected label codes 0, 1, 2, got 7"),
    Case("no worker", nothing, "workers: expected a whole number of at least 1, got 0\n", f"calibrate {MODEL} --workers 0"),
    Case("unknown region", nothing, "region: expected one of 'all', ", f"{CALIBRATE} --region predict"),
    Case("a region without voxels", nothing, "--region: expected voxels to fit a temperature on, got none: ", f"{CALIBRATE} --region plausible(0.9999999)"),
    Case("a pattern that is not in a name", nothing, "--patient_pattern: expected a part of each case's name, got 'p[12]', not in p3_a\n", f"{CALIBRATE} --patient_pattern p[12]"),
    Case("misspelt", nothing, "--lables: expected an option, got no such option; did you mean --labels?\n", f"{CALIBRATE} --lables x"),
]  # fmt: skip

FRAME = "src/training/patient002/patient002_frame09"
EXISTS = "--dataset_id: expected a number that is not used yet, got 27: {}\n"

DATASETS = [
    Case("no variable for images", set_variable("nnUNet_raw", None), is_not_set("nnUNet_raw"), ACDC),
    Case("an empty variable", set_variable("nnUNet_raw", ""), is_not_set("nnUNet_raw"), ACDC),
    Case("no variable for folds", set_variable("nnUNet_preprocessed", None), is_not_set("nnUNet_preprocessed"), ACDC),
    Case("a variable of a file", lambda: (rewrite("file", "")(), set_variable("nnUNet_raw", "file")()), "nnUNet_raw: expected the path of a folder, got file, which is no folder\n", ACDC),
    Case("no source", nothing, "gone: expected a folder, got no such folder\n", "acdc gone"),
    Case("no cases", nothing, "raw: expected training/patientNNN/Info.cfg or patientNNN/Info.cfg, got no cases\n", "acdc raw"),
    Case("four patients", remove("src/training/patient003"), "src: expected at least 5 patients, for 5 folds, got 4\n", ACDC),
    Case("no label", remove(f"{FRAME}_gt.nii.gz"), f"{FRAME}_gt.nii.gz: expected a NIfTI file, got no such file\n", ACDC),
    Case("no image", remove(f"{FRAME}.nii.gz"), f"{FRAME}.nii.gz: expected a NIfTI file, got no such file\n", ACDC),
    Case("no information", remove("src/training/patient002/Info.cfg"), "src/training/patient002/Info.cfg: expected a readable file, got No such file or directory\n", ACDC),
    Case("information of something else", rewrite("src/training/patient002/Info.cfg", "ED: x"), "src/training/patient002/Info.cfg: expected the lines 'ED: FRAME' and 'ES: FRAME', got a file without them\n", ACDC),
    Case("an incomplete test patient", rewrite("src/testing/patient101/Info.cfg", "ED: 1\nES: 2"), "src/testing/patient101/patient101_frame02.nii.gz: expected a NIfTI file, got no such file\n", ACDC),
    Case("patients in both parts", lambda: shutil.copytree("src/training/patient002", "src/testing/patient002"), "src/testing: expected other patients than in training, got patient002\n", ACDC),
    Case("a data set of this number", lambda: Path("raw/Dataset027_Other").mkdir(), EXISTS.format("raw/Dataset027_Other"), ACDC),
    Case("folds of this number", lambda: Path("preprocessed/Dataset027_ACDC").mkdir(), EXISTS.format("preprocessed/Dataset027_ACDC"), ACDC),
    Case("number 0", nothing, "--dataset_id: expected 1 to 999, got 0\n", f"{ACDC} --dataset_id 0"),
    Case("number 1000", nothing, "--dataset_id: expected 1 to 999, got 1000\n", f"{ACDC} --dataset_id 1000"),
    Case("no number", nothing, "--dataset_id: expected a whole number, got 'ACDC'\n", f"{ACDC} --dataset_id ACDC"),
    Case("trainers of something", nothing, "x: expected no value without an option, got one more", "trainers x"),
]  # fmt: skip


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders of nnU-Net in the current folder, and the trainers of this package."""
    monkeypatch.chdir(tmp_path)
    for name in ("raw", "preprocessed", "results"):
        Path(name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", name)
    monkeypatch.setenv("nnUNet_extTrainer", trainers.__path__[0])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, to copy."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("nnUNet_results", str(folder / "results"))
        make_model(folder / "results", folder / "preprocessed", trainer=nnUNetTrainerNoMirroring)
    return folder


def check(case: Case) -> None:
    case.spoil()
    before = snapshot(Path())
    outcome = run_as_typed("calib-components", {"nnunet": COMMANDS}, ["nnunet", *case.given.split()])
    assert outcome.err.startswith(f"calib-components: {case.line}")
    assert outcome.err.count("\n") == 1
    assert outcome.code == 1
    assert snapshot(Path()) == before


@pytest.mark.parametrize("case", [*MODELS, *VALIDATIONS], ids=lambda case: case.name)
def test_bad_models_are_one_line_and_nothing_is_written(case: Case, environment: None, made: Path) -> None:
    shutil.copytree(made, Path(), dirs_exist_ok=True)
    check(case)


@pytest.mark.parametrize("case", DATASETS, ids=lambda case: case.name)
def test_bad_data_sets_are_one_line_and_nothing_is_written(case: Case, environment: None) -> None:
    make_acdc(Path("src"), 5)
    shutil.copytree("src/training/patient001", "src/testing/patient101")
    for file in Path("src/testing/patient101").glob("patient001*"):
        file.rename(file.with_name(file.name.replace("patient001", "patient101")))
    check(case)
