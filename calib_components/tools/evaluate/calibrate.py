"""Calibration of saved predictions, for a model whose code one cannot touch."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calib_components.data.overlap import find_shared
from calib_components.errors import InputError, check_output, make_folder, printable, writing
from calib_components.handlers import read_estimate, write_estimate
from calib_components.inference.maps import write_map
from calib_components.metrics.regions import Region
from calib_components.posthoc import KINDS, Calibrator
from calib_components.tools.cli import patients_of
from calib_components.tools.evaluate.classes import Classes
from calib_components.tools.evaluate.fit import fit_calibrator, logits_of
from calib_components.tools.evaluate.formats import Header, Prediction
from calib_components.tools.evaluate.pairs import classes_of, find_cases, find_predictions
from calib_components.tools.parallel import map_cases

EVALUATE = "calib-components evaluate_predictions {} LABELS --out evaluation_scaled"


def calibrate_predictions(
    predictions: Path,
    labels: Path,
    *,
    apply_to: Path,
    out: Path,
    structures: Sequence[str] | None = None,
    sigmoid: bool = False,
    ignore_index: int | None = None,
    region: Any = "all",
    calibrator: str = "temperature",
    patient_pattern: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Fit a temperature, or another calibrator, on saved predictions, and apply it to others.

    The logarithms of probabilities are the logits, up to one number for each voxel, which softmax
    ignores; with sigmoid channels, the logits are log p - log(1 - p). `out` gets a scaled map for
    each prediction in `apply_to`, float32 on its own grid: `NAME_probability.nii.gz` `(X, Y, Z,
    C)`, or where no file says where the voxels lie, `NAME.npz` `(C, Z, Y, X)` as nnU-Net writes it.
    They replace those of an earlier run once all are written; `temperature.json` comes last.

    Args:
        predictions: Folder of predictions of validation cases: NIfTI files, nnU-Net's .npz, or
            .npy.
        labels: Folder of their labels, files of the same names, which may end in _gt, _seg or
            _label.
        apply_to: Folder of the predictions to scale, of the same model and format.
        out: Folder for the scaled predictions.
        structures: Names and label codes, such as liver=1,tumour=2; WT=1+2+4 is a structure of
            several codes. Default: the channels are label codes 0, 1, 2, and so on.
        sigmoid: Whether each channel is one of these structures, in this order, with a sigmoid of
            its own.
        ignore_index: Label code of voxels to leave out of the fit.
        region: Voxels to fit the temperature on, such as predicted, see
            `calib_components.metrics.regions`. Fitted to a region chosen by the ground truth,
            probabilities are not calibrated.
        calibrator: temperature; vector, a scale and a bias for each class; or bias, a bias alone.
            The last two need more patients, and change labels.
        patient_pattern: Regular expression for the part of a case's name that names the patient,
            such as patient[0-9]+. Default: each case is a patient.
        workers: Number of processes, each with a case in memory. Default: one per core, at most 8.
        overwrite: Whether `out` may hold other files.

    Raises:
        InputError: An argument or a file is unsuitable, or `out` cannot be written. Maps of an
            earlier run stay.
    """
    fitted_on = Region.parse(region)
    cases = find_cases(predictions, labels)
    classes = classes_of(cases, structures, sigmoid, ignore_index)
    patients = patients_of([case.name for case in cases], patient_pattern)
    channels, first = cases[0].channels, cases[0].prediction.files
    if channels == 0:
        raise InputError(f"{first[0]} is a label map, which has no probabilities to calibrate.")
    found = find_predictions(apply_to, join_channels=len(first) > 1)
    headers = [prediction.header() for prediction in found.values()]
    for prediction, header in zip(found.values(), headers, strict=True):
        if header.channels != channels:
            here = f"{prediction.files[0]} has {header.channels}"
            raise InputError(f"{here} channels, {first[0]} has {channels}. Label maps have 0.")
    target_patients = patients_of([*found], patient_pattern)
    for folder, of_folder in (
        (predictions, [case.prediction for case in cases]),
        (apply_to, [*found.values()]),
    ):
        if (earlier := estimate_of(folder, of_folder)) is not None:
            raise InputError(
                f"{folder} holds {earlier.name}.json: its predictions are calibrated already. Give"
                " those before, or delete that file if the calibration is part of the network."
            )
    for source in (predictions, labels, apply_to):
        if source.resolve() in (out.resolve(), *out.resolve().parents):
            raise InputError(f"--out: {out} is in {source}. Give another folder.")
    endings = [".npz" if header.affine is None else "_probability.nii.gz" for header in headers]
    names = [f"{name}{ending}" for name, ending in zip(found, endings, strict=True)]
    estimates = [f"{kind}.json" for kind in KINDS]  # written last; calibrate.yaml writes one, too
    estimate_there = next((name for name in estimates if (out / name).exists()), estimates[0])
    check_output(out, names[0], estimate_there, overwrite=overwrite)
    if others := sorted(
        {file.name for end in ("_probability.nii.gz", ".npz") for file in out.glob(f"[!.]*{end}")}
        - {*names}
    ):
        raise InputError(
            f"--out: {out / others[0]} is of another prediction. Delete it, or give another folder."
        )
    fitted, estimate = fit_calibrator(cases, classes, fitted_on, patients, workers, kind=calibrator)
    targets, used = (
        [
            {"case": name, "patient": of[name], "image": prediction.files[0]}
            for name, prediction in named.items()
        ]
        for of, named in (
            (target_patients, found),
            (patients, {case.name: case.prediction for case in cases}),
        )
    )
    if shared := find_shared(targets, used):
        print(
            f"{len(shared)} of the {len(found)} predictions to scale belong to patients of the fit:"
            f" {shared[0]}. Their evaluation will be too optimistic."
        )
    make_folder(out)
    with ExitStack() as stack:
        files = [stack.enter_context(writing(out / name)) for name in names]
        apply = functools.partial(_calibrate_file, classes=classes, calibrator=fitted)
        map_cases(apply, [*zip(found.values(), headers, files, strict=True)], workers, "scale")
        for kind in KINDS:
            (out / f"{kind}.json").unlink(missing_ok=True)
    write_estimate(estimate, out)  # where it is, all maps are of it
    print(printable(out))
    print("Next, with the same options:", EVALUATE.format(shlex.quote(printable(out))))


def estimate_of(folder: Path, predictions: Sequence[Prediction]) -> Any:
    """Return the estimate that `calibrate_predictions` wrote beside calibrated maps; None if there
    is none.
    """
    beside = all(file.parent == folder for prediction in predictions for file in prediction.files)
    return (
        read_estimate(folder)
        if beside and any((folder / f"{kind}.json").exists() for kind in KINDS)
        else None
    )


def _calibrate_file(
    target: tuple[Prediction, Header, Path], classes: Classes, calibrator: Calibrator
) -> None:
    prediction, header, file = target
    stored = prediction.probabilities(classes.sigmoid, classes.skip)
    logits = logits_of(
        torch.from_numpy(stored.values), stored.lowest, stored.highest, classes.sigmoid
    )
    calibrated = calibrator(logits[None])[0]
    result = calibrated.sigmoid() if classes.sigmoid else calibrated.softmax(0)
    if header.affine is None:
        np.savez_compressed(file, probabilities=result.permute(0, 3, 2, 1))
    else:
        write_map(file, result, header.affine)
