"""A temperature for a trained model of nnU-Net, in checkpoints that nnU-Net alone predicts with."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from calib_components.data.overlap import find_shared
from calib_components.errors import InputError, check_writable, reading, writing
from calib_components.handlers.calibration import write_estimate
from calib_components.handlers.weights import serialize
from calib_components.metrics.regions import Region
from calib_components.posthoc import KINDS
from calib_components.tools.cli import patients_of
from calib_components.tools.evaluate.fit import fit_calibrator
from calib_components.tools.evaluate.notes import Notes
from calib_components.tools.evaluate.pairs import Case, classes_of, find_cases, find_labels
from calib_components.tools.nnunet.checkpoint import (
    check_trainer,
    nnunet_module,
    read_checkpoint,
    scale_checkpoint,
)
from calib_components.tools.nnunet.dataset import SPLITS, folder_of

TRAINED, CALIBRATED = "checkpoint_final.pth", "checkpoint_calibrated.pth"
AGAIN = "Run nnUNetv2_train for this fold again, with --val --npz."


def calibrate_model(
    model: Path,
    *,
    labels: Path | None = None,
    region: Any = "all",
    calibrator: str = "temperature",
    patient_pattern: str | None = None,
    workers: int | None = None,
) -> None:
    """Fit one temperature, or another calibrator, for all folds of a model, and write it into
    copies of checkpoints.

    It is fitted on the probabilities that each fold saved of its own validation cases,
    `fold_N/validation/*.npz`, on the grid of the images: after mirroring, tiles and resampling, all
    of which average logits, so that dividing the network's logits by T divides these by T too. Each
    fold gets a `checkpoint_calibrated.pth`, with which nnU-Net predicts without this package, and
    the model's folder a `temperature.json`.

    Args:
        model: Folder of the trained model, `$nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION`.
        labels: Folder of the labels of the training cases. Default:
            `$nnUNet_preprocessed/DATASET/gt_segmentations`.
        region: Voxels to fit the temperature on, such as predicted, see
            `calib_components.metrics.regions`. Fitted to a region chosen by the ground truth,
            probabilities are not calibrated.
        calibrator: temperature, vector or bias, see `calibrate_predictions`.
        patient_pattern: Regular expression for the part of a case's name that names the patient,
            such as patient[0-9]+. Default: each case is a patient.
        workers: Number of processes, each with a case in memory. Default: one per core, at most 8.

    Raises:
        InputError: An argument or a file is not as expected; no fold is trained, or one has not
            saved all its probabilities; or the network has another architecture than nnU-Net's.
            Nothing is written then.
    """
    fitted_on = Region.parse(region)
    trained = [file.parent for file in model.glob(f"fold_*/{TRAINED}")]
    # Not fold_all
    folds = sorted((fold for fold in trained if re.fullmatch(r"fold_\d+", fold.name)), key=_number)
    if not folds:
        raise InputError(
            f"{model} has no fold_N/{TRAINED}. fold_all does not count, it validates on no other"
            " cases."
        )
    parts = model.absolute().name.split("__")
    if len(parts) != 3:
        raise InputError(
            f"{model} must be called TRAINER__PLANS__CONFIGURATION, as nnU-Net calls it."
        )
    trainer, plans_name, configuration = parts
    with reading(model / "plans.json", "the plans of nnU-Net") as file:
        plans = json.loads(file.read_bytes())
        dataset_name = plans["dataset_name"]
    with reading(model / "dataset.json", "the data set of nnU-Net") as file:
        dataset = json.loads(file.read_bytes())
        manager = (
            nnunet_module("utilities.plans_handling.plans_handler")
            .PlansManager(plans)
            .get_label_manager(dataset)
        )
        structures = [
            f"{name}={'+'.join(map(str, [codes] if isinstance(codes, int) else codes))}"
            for name, codes in dataset["labels"].items()
            if name not in ("background", "ignore")
        ]
    check_writable("model", model)
    if labels is None:
        labels = folder_of("nnUNet_preprocessed") / dataset_name / "gt_segmentations"
    for fold in folds:
        _check_fold(fold, configuration)
    splits = _read_splits(dataset_name, labels)
    found: dict[str, Case] = {}
    ending, raw = dataset["file_ending"], os.environ.get("nnUNet_raw", "")  # noqa: SIM112

    def items(names: Iterable[str]) -> list[dict[str, Any]]:
        images = Path(raw, dataset_name, "imagesTr")  # if they are here
        of = patients_of(sorted(names), patient_pattern)
        return [
            {"case": name, "patient": of[name], "image": images / f"{name}_0000{ending}"}
            for name in of
        ]

    for fold in folds:
        own = {case.name: case for case in _find_validation(fold, labels, splits, ending)}
        split = dict(enumerate(splits)).get(_number(fold), {})
        # Without a split, all others
        others = split.get("train", find_labels(labels).keys() - own.keys())
        if shared := find_shared(items(own), items(others)):
            raise InputError(
                f"{fold} is trained on its validation: {shared[0]}. Split by patient, and train it"
                " again."
            )
        for case in own.values():
            if found.setdefault(case.name, case) is not case:
                raise InputError(f"{model}: {case.name} is in the validation of several folds.")
    cases = [*found.values()]
    classes = classes_of(cases, structures, manager.has_regions, manager.ignore_label)
    patients = patients_of([*found], patient_pattern)
    print(f"{model}: {', '.join(fold.name for fold in folds)}, {len(cases)} validation cases")
    options = (cases, classes, fitted_on, patients, workers, True, _refuse_other_maps, calibrator)
    fitted, estimate = fit_calibrator(*options)
    with ExitStack() as stack:  # all of them or none
        for fold in folds:
            file = stack.enter_context(writing(fold / CALIBRATED))
            file.write_bytes(serialize(scale_checkpoint(read_checkpoint(fold / TRAINED), fitted)))
        for kind in KINDS:
            (model / f"{kind}.json").unlink(missing_ok=True)
        write_estimate(estimate, model)
    print(
        f"Predict with: nnUNetv2_predict -d {dataset_name} -tr {trainer} -p {plans_name} -c"
        f" {configuration} -f {_number(folds[0])} -chk {CALIBRATED} -i IMAGES -o PREDICTIONS"
    )
    if len(folds) > 1:
        print(
            "T is that of single folds. Several folds together average their logits, which is"
            " another model: evaluate its predictions of labelled cases that no fold has seen, or"
            " fit a T of its own to them with calibrate_predictions."
        )


def _number(fold: Path) -> int:
    return int(fold.name.removeprefix("fold_"))


def _check_fold(fold: Path, configuration: str) -> None:
    """Check that a checkpoint is of the fold and the configuration that its folder says."""
    checkpoint = read_checkpoint(fold / TRAINED)
    check_trainer(fold / TRAINED, checkpoint["trainer_name"])
    arguments = checkpoint["init_args"]
    if (arguments.get("fold"), arguments.get("configuration")) != (_number(fold), configuration):
        raise InputError(
            f"{fold / TRAINED} is the network of fold_{arguments.get('fold')} of"
            f" {arguments.get('configuration')}, which may have been trained on the validation"
            " cases here."
        )


def _read_splits(dataset_name: str, labels: Path) -> list[dict[str, list[str]]]:
    """Return the splits of nnU-Net, from beside the labels where no environment variable names a
    folder.
    """
    is_set = "nnUNet_preprocessed" in os.environ
    file = (folder_of("nnUNet_preprocessed") / dataset_name if is_set else labels.parent) / SPLITS
    if file.is_file():
        with reading(file, "the splits of nnU-Net"):
            return json.loads(file.read_bytes())
    message = (
        "%s: no such file, so whether a fold was trained on its validation cases is not checked"
    )
    logging.getLogger(__name__).warning(message, file)
    return []


def _find_validation(
    fold: Path, labels: Path, splits: Sequence[dict[str, list[str]]], ending: str
) -> list[Case]:
    """Find the probabilities that a fold saved of its validation cases, which must be all there and
    no others.
    """
    folder = fold / "validation"
    probabilities = {file.stem for file in folder.glob("[!.]*.npz")}
    label_maps = {file.name.removesuffix(ending) for file in folder.glob(f"[!.]*{ending}")}
    if not (folder / "summary.json").is_file() or not probabilities:
        raise InputError(
            f"{folder}: the validation is not finished, or saved no probabilities. {AGAIN}"
        )
    if others := sorted(label_maps ^ probabilities):
        raise InputError(f"{folder}: {others[0]} lacks its .npz or its {ending} file. {AGAIN}")
    if _number(fold) < len(splits):  # nnU-Net draws a split of its own otherwise
        expected = set(splits[_number(fold)]["val"])
        if others := sorted(probabilities - expected):
            raise InputError(
                f"{folder / others[0]}.npz: {SPLITS} does not validate {fold.name} on it. Move it"
                " away."
            )
        if others := sorted(expected - probabilities):
            raise InputError(f"{folder}: {others[0]}.npz is missing, which is in {SPLITS}. {AGAIN}")
    return find_cases(folder, labels, warn_left_out=False)


def _refuse_other_maps(notes: Sequence[Notes]) -> None:
    """Check that probabilities are those of the label map beside them, which any later validation
    replaces.
    """
    for note in notes:
        if note["beside"][0]:
            raise InputError(
                f"{note['file']} is of an earlier training than the label map beside it. {AGAIN}"
            )
