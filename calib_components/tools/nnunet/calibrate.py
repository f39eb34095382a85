"""A temperature for a trained model of nnU-Net, in checkpoints that nnU-Net alone predicts with."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from calib_components.errors import InputError, check_writable, reading, writing
from calib_components.handlers.temperature import write_temperature
from calib_components.handlers.weights import serialize
from calib_components.metrics.regions import Region
from calib_components.tools.evaluate.classes import Classes
from calib_components.tools.evaluate.fit import fit_temperature
from calib_components.tools.evaluate.formats import read_label_map
from calib_components.tools.evaluate.pairs import Case, classes_of, find_cases, patients_of, read_case
from calib_components.tools.locks import LOCK, locked
from calib_components.tools.nnunet.checkpoint import check_network, read_checkpoint, scale_checkpoint
from calib_components.tools.nnunet.dataset import SPLITS
from calib_components.tools.nnunet.environment import folder_of, nnunet_module
from calib_components.tools.parallel import check_workers, parallel

__all__ = ["calibrate_model"]

TRAINED, CALIBRATED = "checkpoint_final.pth", "checkpoint_calibrated.pth"
AGAIN = "run nnUNetv2_train for this fold again, with --val --npz"
ENDINGS = (".nii.gz", ".nii")
FOLD = re.compile(r"fold_\d+")
PRELOAD = [__name__]
ROUNDING = 1e-6  # of probabilities in float32, and of their sum


def calibrate_model(
    model: Path,
    *,
    labels: Path | None = None,
    region: Any = "all",
    patient_pattern: str | None = None,
    workers: int | None = None,
) -> None:
    """Fit one temperature for all folds of a trained model, and write it into copies of their checkpoints.

    It is fitted on the probabilities that each fold saved of its own validation cases, `fold_N/validation/*.npz`, on
    the grid of the images: after mirroring, tiles and resampling, all of which average logits, so that dividing the
    network's logits by T divides these by T too. Each fold gets a `checkpoint_calibrated.pth`, with which nnU-Net
    predicts without this package, and the model's folder a `temperature.json`.

    Args:
        model: Folder of the trained model, `$nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION`.
        labels: Folder of the labels of the training cases. Default: `$nnUNet_preprocessed/DATASET/gt_segmentations`.
        region: Voxels to fit the temperature on, such as predicted, see `calib_components.metrics.regions`. Fitted to a
            region chosen by the ground truth, probabilities are not calibrated.
        patient_pattern: Regular expression for the part of a case's name that names the patient, such as patient[0-9]+.
            Default: each case is a patient.
        workers: Number of processes, each with a case in memory. Default: one per core, at most 8.

    Raises:
        InputError: An argument or a file is not as expected; no fold is trained, or one has not saved all its
            probabilities; or the network has another architecture than nnU-Net's. Nothing is written then.
    """
    fitted_on = Region.parse(region)
    processes = check_workers(workers)
    found = _read_model(model)
    check_writable("model", model)
    if labels is None:
        labels = folder_of("nnUNet_preprocessed") / found.dataset_name / "gt_segmentations"
    for fold in tqdm(found.folds, "check networks", leave=False, disable=None):
        checkpoint = read_checkpoint(fold / TRAINED)
        _check_trained(fold, checkpoint, found)
        check_network(fold / TRAINED, checkpoint, found.plans, found.dataset)
    splits = _find_splits(found.dataset_name, labels)
    cases = [case for fold in found.folds for case in _find_validation(fold, labels, splits, found.ending)]
    if twice := [name for name, times in Counter(case.name for case in cases).items() if times > 1]:
        raise InputError(f"{model}: expected every case in the validation of one fold, got {twice[0]} in several")
    channels = len(found.structures) + (not found.sigmoid)  # the background has one, too, but for regions
    if (others := cases[0].channels) != channels:
        file = cases[0].prediction.files[0]
        raise InputError(f"{file}: expected {channels} channels, as in dataset.json, got {others}; {AGAIN}")
    classes = classes_of(cases, found.structures, found.sigmoid, found.ignore)
    patients = patients_of([case.name for case in cases], patient_pattern)
    check = functools.partial(_check_current, classes=classes, order=found.order)
    with parallel(check, cases, processes, "check", PRELOAD) as results:
        for _ in results:
            pass
    print(f"{model}: {', '.join(fold.name for fold in found.folds)}, {len(cases)} validation cases")
    estimate = fit_temperature(cases, classes, fitted_on, patients, processes, cropped=True)
    with locked(model / LOCK), ExitStack() as stack:  # all of them or none, of one run
        for fold in found.folds:
            file = stack.enter_context(writing(fold / CALIBRATED))
            file.write_bytes(serialize(scale_checkpoint(read_checkpoint(fold / TRAINED), estimate.temperature)))
        write_temperature(estimate, model)
    print(
        f"Predict with: nnUNetv2_predict -d {found.dataset_name} -tr {found.trainer} -p {found.plans_name} "
        f"-c {found.configuration} -f {_number(found.folds[0])} -chk {CALIBRATED} -i IMAGES -o PREDICTIONS"
    )
    if len(found.folds) > 1:
        print(
            "T is that of single folds. Several folds together average their logits, which is another model: evaluate "
            "its predictions of labelled cases that no fold has seen, or fit a T of its own to them with "
            "calibrate_predictions."
        )


@dataclass(frozen=True)
class _Model:
    """A trained model.

    Attributes:
        folds: Folders of the trained folds.
        dataset_name: Such as Dataset027_ACDC.
        trainer: Name of the trainer, from that of the folder, as are the next two.
        plans_name: Such as nnUNetPlans.
        configuration: Such as 2d.
        plans: `plans.json`.
        dataset: `dataset.json`.
        structures: Name and label codes of each class or region, such as WT=1+2+3.
        order: Label code that each region is drawn with; empty for classes.
        ignore: Label code of voxels to leave out.
        ending: How files of label maps end, such as .nii.gz.
    """

    folds: list[Path]
    dataset_name: str
    trainer: str
    plans_name: str
    configuration: str
    plans: dict[str, Any]
    dataset: dict[str, Any]
    structures: list[str]
    order: list[int]
    ignore: int | None
    ending: str

    @property
    def sigmoid(self) -> bool:
        """Whether the model predicts regions, each with a sigmoid."""
        return bool(self.order)


def _read_model(model: Path) -> _Model:
    trained = [file.parent for file in model.glob(f"fold_*/{TRAINED}")]
    folds = sorted((fold for fold in trained if FOLD.fullmatch(fold.name)), key=_number)  # not fold_0_old, fold_all
    if not folds:
        remedy = "; fold_all has no validation cases of its own" if (model / "fold_all").is_dir() else ""
        raise InputError(f"{model}: expected a trained model of nnU-Net, with fold_N/{TRAINED}, got none{remedy}")
    called = model.absolute().name  # that of a link, if it is one
    parts = called.split("__")
    if len(parts) != 3:
        raise InputError(f"{model}: expected a folder called TRAINER__PLANS__CONFIGURATION, got {called}")
    with reading(model / "plans.json", "the plans of nnU-Net") as file:
        plans = json.loads(file.read_text())
        manager = nnunet_module("utilities.plans_handling.plans_handler").PlansManager(plans)
        manager.get_configuration(parts[2])
        dataset_name = plans["dataset_name"]
    with reading(model / "dataset.json", "the data set of nnU-Net") as file:
        dataset = json.loads(file.read_text())
        ending = dataset["file_ending"]
        label_manager = manager.get_label_manager(dataset)
        named = {name: codes for name, codes in dataset["labels"].items() if name not in ("background", "ignore")}
    if not label_manager.has_regions:  # their channels are in the order of codes, regions in that of the file
        named = dict(sorted(named.items(), key=lambda item: item[1]))
    if ending not in ENDINGS:
        raise InputError(f"{model / 'dataset.json'}: expected a file_ending of {' or '.join(ENDINGS)}, got {ending}")
    structures = [
        f"{name}={'+'.join(map(str, codes if isinstance(codes, list) else [codes]))}" for name, codes in named.items()
    ]
    order = list(label_manager.regions_class_order) if label_manager.has_regions else []
    trainer, plans_name, configuration = parts
    return _Model(
        folds=folds,
        dataset_name=dataset_name,
        trainer=trainer,
        plans_name=plans_name,
        configuration=configuration,
        plans=plans,
        dataset=dataset,
        structures=structures,
        order=order,
        ignore=label_manager.ignore_label,
        ending=ending,
    )


def _number(fold: Path) -> int:
    return int(fold.name.removeprefix("fold_"))


def _check_trained(fold: Path, checkpoint: Mapping[str, Any], model: _Model) -> None:
    """Check that a checkpoint is of the fold, configuration and labels that its folder says."""
    arguments = checkpoint["init_args"]
    if (other := arguments["configuration"]) != model.configuration:
        raise InputError(f"{fold / TRAINED}: expected a network of configuration {model.configuration}, got {other}")
    if (other := arguments.get("fold")) != _number(fold):
        raise InputError(
            f"{fold / TRAINED}: expected a network of {fold.name}, got one of fold_{other}, which may have been "
            "trained on the validation cases"
        )
    trained = arguments.get("dataset_json", {})
    for key in ("labels", "regions_class_order"):
        if (expected := model.dataset.get(key)) != trained.get(key):
            raise InputError(
                f"{fold / TRAINED}: expected the {key} of dataset.json, {expected}, got a network trained with "
                f"{trained.get(key)}"
            )


def _find_splits(dataset_name: str, labels: Path) -> Path | None:
    """Return the file of the splits, which is beside the labels unless these are given; None if there is none."""
    folders = [labels.parent]
    if "nnUNet_preprocessed" in os.environ:
        folders.insert(0, folder_of("nnUNet_preprocessed") / dataset_name)
    found = next((folder / SPLITS for folder in folders if (folder / SPLITS).is_file()), None)
    if found is None:
        logging.getLogger(__name__).warning(
            "%s: expected the splits of nnU-Net, got no such file; whether a fold was trained on its validation cases "
            "is not checked",
            folders[0] / SPLITS,
        )
    return found


def _find_validation(fold: Path, labels: Path, splits: Path | None, ending: str) -> list[Case]:
    """Find the probabilities that a fold saved of its validation cases, which must be all there and no others."""
    folder = fold / "validation"
    summary = folder / "summary.json"
    if not summary.is_file():
        raise InputError(f"{folder}: expected a validation that is finished, with summary.json, got none; {AGAIN}")
    if summary.stat().st_mtime < (fold / TRAINED).stat().st_mtime:
        logging.getLogger(__name__).warning(
            "%s: older than %s; if the fold was trained again since, %s", summary, TRAINED, AGAIN
        )
    probabilities = {file.stem for file in folder.glob("[!.]*.npz")}
    label_maps = {file.name.removesuffix(ending) for file in folder.glob(f"[!.]*{ending}")}
    for name in sorted(label_maps ^ probabilities):
        present, absent = (f"{name}{ending}", f"{name}.npz")[:: 1 if name in label_maps else -1]
        raise InputError(f"{folder / present}: expected {absent} beside it, got none; {AGAIN}")
    cases = find_cases(folder, labels, warn_left_out=False)
    for file in (case.prediction.files[0] for case in cases):
        if file.parent != folder:
            raise InputError(f"{file}: expected the predictions of {folder} alone, got some in a folder in it; move it")
    if splits is not None:
        _check_split(fold, splits, {case.name for case in cases})
    return cases


def _check_split(fold: Path, splits: Path, cases: set[str]) -> None:
    """Check that the cases are those of the fold's split: nnU-Net leaves those of earlier splits where they are."""
    with reading(splits, "the splits of nnU-Net") as file:
        parts = json.loads(file.read_text())
        if _number(fold) >= len(parts):  # nnU-Net draws a split of its own then
            return
        expected = set(parts[_number(fold)]["val"])
    if others := sorted(cases - expected):
        raise InputError(
            f"{fold / 'validation' / others[0]}.npz: expected only cases that {splits} validates {fold.name} on, got "
            "another; if it is of an earlier split, move it away"
        )
    if missing := sorted(expected - cases):
        raise InputError(f"{fold / 'validation'}: expected {missing[0]}.npz, as in {splits}, got none; {AGAIN}")


def _check_current(case: Case, classes: Classes, order: list[int]) -> None:
    """Check that probabilities are those of the label map beside them, which any later validation replaces."""
    file, label_map = case.prediction.files[0], case.prediction.grids[-1]
    saved = read_case(replace(case, label=label_map), classes)
    codes, _ = read_label_map(label_map)
    assert saved.probabilities is not None
    expected = saved.prediction.numpy()
    if order:
        expected = np.zeros_like(expected)
        for probability, code in zip(saved.probabilities.numpy(), order, strict=True):
            expected[probability > 0.5] = code
    differs = codes != expected
    if not order and differs.any() and codes[differs].max() < len(saved.probabilities):
        p = saved.probabilities.numpy()[:, differs]  # nnU-Net took the largest of them before they added up to 1
        differs = np.take_along_axis(p, codes[differs][None].astype(int), 0)[0] < p.max(0) - ROUNDING
    if differs.any():
        raise InputError(
            f"{file}: expected the probabilities of {label_map.name} beside it, got others, such as of an earlier "
            f"training; {AGAIN}"
        )
