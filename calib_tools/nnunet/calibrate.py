"""A temperature for a trained model of nnU-Net, in checkpoints that nnU-Net alone predicts with."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calib_components.errors import InputError, check_writable, reading, writing
from calib_components.posthoc import Calibrator, Estimate
from calib_tools.nnunet.checkpoint import (
    check_trainer,
    nnunet_module,
    read_checkpoint,
    scale_checkpoint,
)
from calib_tools.parallel import map_cases
from calib_tools.predictions.cases import SavedCases, read_prediction
from calib_tools.predictions.classes import Classes, classes_of
from calib_tools.predictions.formats import NnUNetArray, Prediction, Reader, make_reader
from calib_tools.predictions.pairing import (
    LabelledPrediction,
    check_grids,
    find_labels,
    pair_by_name,
)
from calib_workflows.data.files import patients_of
from calib_workflows.data.nifti import Grid
from calib_workflows.data.overlap import find_shared
from calib_workflows.weights import serialize

SPLITS = "splits_final.json"  # where nnU-Net looks for the folds
TRAINED, CALIBRATED = "checkpoint_final.pth", "checkpoint_calibrated.pth"
# The fit is to logarithms of probabilities. Scales of classes tell them from the network's logits
CHOICES = ("temperature", "bias")
AGAIN = "Run nnUNetv2_train for this fold again, with --val --npz."
ROUNDING = 1e-6  # of probabilities that nnU-Net saved in float32


def folder_of(variable: str) -> Path:
    """Return the folder that an environment variable of nnU-Net names."""
    value = os.environ.get(variable, "")
    if not (value and Path(value).is_dir()):
        raise InputError(
            f"{variable} must name a folder, as nnU-Net's environment variable, got {value!r}."
        )
    return Path(value)


@dataclass(frozen=True)
class Model:
    """A trained model as nnU-Net's files describe it, and its folds.

    Attributes:
        folder: Its folder, which is called TRAINER__PLANS__CONFIGURATION.
        folds: Folders of the trained folds by their numbers.
        dataset: Name of its data set.
        structures: Label codes of the structures, such as `liver=1`.
        manager: nnU-Net's label manager.
        file_ending: Of images and label maps.
    """

    folder: Path
    folds: Mapping[int, Path]
    dataset: str
    structures: Sequence[str]
    manager: Any
    file_ending: str


def validation_cases(model: Model, patient_pattern: str | None, workers: int | None) -> SavedCases:
    """Return the validation cases of all folds of a model, once they and the checkpoints are
    checked, see `calib_tools.commands.calibrate_model`.
    """
    manager = model.manager
    preprocessed = folder_of("nnUNet_preprocessed") / model.dataset
    labels = find_labels(preprocessed / "gt_segmentations")
    pairs: dict[str, LabelledPrediction] = {}
    for number, fold in model.folds.items():
        checkpoint = read_checkpoint(fold / TRAINED)
        check_trainer(fold / TRAINED, checkpoint, manager.num_segmentation_heads)
        with reading(preprocessed / SPLITS, f"the split of {fold.name}") as file:
            split = json.loads(file.read_bytes())[number]
            training, validation = split["train"], split["val"]
        _check_patients(fold, validation, training, model, patient_pattern)
        predictions = {
            name: Prediction({"": _read_validation(fold, name)}) for name in sorted(validation)
        }
        pairs |= {pair.name: pair for pair in pair_by_name(predictions, {"": labels})}
    check_grids([*pairs.values()])
    found = [pair.prediction for pair in pairs.values()]
    classes = classes_of(found, model.structures, manager.has_regions, manager.ignore_label)
    if not classes.sigmoid:
        check = functools.partial(_check_label_map, classes=classes, ending=model.file_ending)
        map_cases(check, found, workers, "check")
    patients = patients_of([*pairs], patient_pattern)
    folds = ", ".join(fold.name for fold in model.folds.values())
    print(f"{model.folder}: {folds}, {len(pairs)} validation cases")
    return SavedCases([*pairs.values()], classes, patients, workers=workers, is_cropped=True)


def write_model(model: Model, calibrator: Calibrator, estimate: Estimate | None) -> None:
    """Write the calibrated checkpoint of each fold, all of them or none; without an estimate,
    remove those of an earlier fit.
    """
    if estimate is None:
        for fold in model.folds.values():
            (fold / CALIBRATED).unlink(missing_ok=True)
        return
    with ExitStack() as whole:
        for fold in model.folds.values():
            file = whole.enter_context(writing(fold / CALIBRATED))
            checkpoint = read_checkpoint(fold / TRAINED)
            file.write_bytes(serialize(scale_checkpoint(checkpoint, calibrator)))


def read_model(model: Path) -> Model:
    """Read what nnU-Net's files say of a trained model."""
    folds = {  # not fold_all
        int(match[1]): file.parent
        for file in model.glob(f"fold_*/{TRAINED}")
        if (match := re.fullmatch(r"fold_(\d+)", file.parent.name))
    }
    if not folds:
        raise InputError(
            f"{model} has no fold_N/{TRAINED}. fold_all does not count, it validates on no other"
            " cases."
        )
    if model.absolute().name.count("__") != 2:
        raise InputError(
            f"{model} must be called TRAINER__PLANS__CONFIGURATION, as nnU-Net calls it."
        )
    check_writable("model", model)
    with reading(model / "plans.json", "the plans of nnU-Net") as file:
        plans = json.loads(file.read_bytes())
        dataset_name = plans["dataset_name"]
    with reading(model / "dataset.json", "the data set of nnU-Net") as file:
        dataset = json.loads(file.read_bytes())
        handler = nnunet_module("utilities.plans_handling.plans_handler")
        manager = handler.PlansManager(plans).get_label_manager(dataset)
        structures = [
            _structure(name, codes)
            for name, codes in dataset["labels"].items()
            if name not in ("background", "ignore")
        ]
    return Model(
        model,
        dict(sorted(folds.items())),
        dataset_name,
        structures,
        manager,
        dataset["file_ending"],
    )


def _structure(name: str, codes: int | Sequence[int]) -> str:
    several = [codes] if isinstance(codes, int) else codes
    return f"{name}={'+'.join(map(str, several))}"


def _read_validation(fold: Path, name: str) -> Reader:
    """Return the reader of the probabilities that a fold saved of a validation case."""
    file = fold / "validation" / f"{name}.npz"
    if not file.is_file():
        raise InputError(f"{file} is missing: {SPLITS} has it in this validation. {AGAIN}")
    return NnUNetArray(file)


def _check_patients(
    fold: Path,
    validation: Iterable[str],
    training: Iterable[str],
    model: Model,
    patient_pattern: str | None,
) -> None:
    """Check that a fold was not trained on the patients of its validation."""
    raw = os.environ.get("nnUNet_raw", "")  # noqa: SIM112
    images = Path(raw, model.dataset, "imagesTr")  # compared if they are here

    def items(names: Iterable[str]) -> list[dict[str, Any]]:
        patients = patients_of(sorted(names), patient_pattern)
        return [
            {"case": name, "patient": patient, "image": images / f"{name}_0000{model.file_ending}"}
            for name, patient in patients.items()
        ]

    shared = find_shared(items(validation), items(training))
    if shared:
        raise InputError(
            f"{fold} is trained on its validation: {shared[0]}. Split by patient, and train it"
            " again."
        )


def _check_label_map(prediction: Prediction, classes: Classes, ending: str) -> None:
    """Check that probabilities are those of the label map beside them, which any later validation
    replaces.
    """
    file = prediction.file
    label_map = make_reader(file.with_name(f"{prediction.first.stem}{ending}"))
    header = label_map.header()
    assert header.affine is not None
    grid = Grid(header.affine, header.shape, label_map.file)
    p = torch.from_numpy(read_prediction(prediction, classes, grid).values)
    labels = torch.from_numpy(label_map.label_codes()).long()[None]
    if (p.amax(0) - p.gather(0, labels)[0] > ROUNDING).any():
        raise InputError(f"{file} is of an earlier training than the label map beside it. {AGAIN}")


def print_next(model: Model, estimate: Estimate | None) -> None:
    """Print how to predict with the calibrated checkpoints; without an estimate, with those as
    trained.
    """
    if estimate is None:
        print(f"No checkpoint was written: predict with {TRAINED}, or choose a --calibrator.")
        return
    trainer, plans, configuration = model.folder.absolute().name.split("__")
    print(
        f"Predict with: nnUNetv2_predict -d {model.dataset} -tr {trainer} -p {plans} -c"
        f" {configuration} -f {min(model.folds)} -chk {CALIBRATED} -i IMAGES -o PREDICTIONS"
    )
    if len(model.folds) > 1:
        print(
            "It is that of single folds. Several folds together average their logits, which is"
            " another model: evaluate its predictions of labelled cases that no fold has seen, or"
            " calibrate them with calibrate_predictions."
        )
