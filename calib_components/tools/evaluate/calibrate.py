"""Calibration of saved predictions, for a model whose code one cannot touch."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel import Nifti1Image

from calib_components.errors import UNFINISHED, InputError, check_output, make_folder, printable, writing
from calib_components.handlers import read_estimate, write_estimate
from calib_components.metrics.regions import Region
from calib_components.posthoc import KINDS, Calibrator
from calib_components.tools.evaluate.classes import Classes
from calib_components.tools.evaluate.fit import fit_calibrator, logits_of
from calib_components.tools.evaluate.formats import Header, Prediction
from calib_components.tools.evaluate.pairs import Case, classes_of, find_cases, find_predictions, patients_of
from calib_components.tools.parallel import map_cases

__all__ = ["calibrate_predictions", "calibrate_probabilities", "estimate_of"]


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
    patient_pattern: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Fit a temperature on saved predictions, and scale others by it.

    The logarithms of probabilities are the logits, up to one number for each voxel, which softmax ignores; with sigmoid
    channels, the logits are log p - log(1 - p). `out` gets a scaled map for each prediction in `apply_to`, float32 on
    its own grid: `NAME_probability.nii.gz` `(X, Y, Z, C)`, or where no file says where the voxels lie, `NAME.npz`
    `(C, Z, Y, X)` as nnU-Net writes it. They are written to a hidden folder in it, and replace those of an earlier run
    once all are there; `temperature.json` comes last.

    Args:
        predictions: Folder of predictions of validation cases: NIfTI files, nnU-Net's .npz, or .npy.
        labels: Folder of their labels, files of the same names, which may end in _gt, _seg or _label.
        apply_to: Folder of the predictions to scale, of the same model and format.
        out: Folder for the scaled predictions.
        structures: Names and label codes, such as liver=1,tumour=2; WT=1+2+4 is a structure of several codes. Default:
            the channels are label codes 0, 1, 2, and so on.
        sigmoid: Whether each channel is one of these structures, in this order, with a sigmoid of its own.
        ignore_index: Label code of voxels to leave out of the fit.
        region: Voxels to fit the temperature on, such as predicted, see `calib_components.metrics.regions`. Fitted to a
            region chosen by the ground truth, probabilities are not calibrated.
        patient_pattern: Regular expression for the part of a case's name that names the patient, such as patient[0-9]+.
            Default: each case is a patient.
        workers: Number of processes, each with a case in memory. Default: one per core, at most 8.
        overwrite: Whether `out` may hold other files.

    Raises:
        InputError: An argument or a file is unsuitable, or `out` cannot be written. Maps of an earlier run stay.
    """
    fitted_on = Region.parse(region)
    cases = find_cases(predictions, labels)
    classes = classes_of(cases, structures, sigmoid, ignore_index)
    patients = patients_of([case.name for case in cases], patient_pattern)
    if cases[0].channels == 0:
        raise InputError(f"{cases[0].prediction.files[0]} is a label map, which has no probabilities to calibrate.")
    targets = _find_targets(apply_to, cases[0])
    for folder, found in ((predictions, [case.prediction for case in cases]), (apply_to, [t for t, _ in targets])):
        if (earlier := estimate_of(folder, found)) is not None:
            raise InputError(
                f"{folder} holds {earlier.name}.json: its predictions are calibrated already. Give those before, or "
                "delete that file if the calibration is part of the network."
            )
    for source in (predictions, labels, apply_to):
        target = out.resolve()
        if source.resolve() in (target, *target.parents) or target in source.resolve().parents:
            raise InputError(f"--out: {out} holds {source} or is in it. Give another folder.")
    target_patients = patients_of([prediction.name for prediction, _ in targets], patient_pattern)
    known = sum(patient in set(patients.values()) for patient in target_patients.values())
    names = [_result_name(*target) for target in targets]
    _check_contents(out, names, overwrite)
    calibrator, estimate = fit_calibrator(cases, classes, fitted_on, patients, workers)
    if known:
        print(
            f"{known} of the {len(targets)} predictions to scale belong to patients of the fit: their evaluation will "
            "be too optimistic."
        )
    unfinished = out / f"{UNFINISHED}calibrated"
    shutil.rmtree(unfinished, ignore_errors=True)
    make_folder(unfinished)
    try:
        apply = functools.partial(_calibrate_file, classes=classes, calibrator=calibrator, folder=unfinished)
        map_cases(apply, targets, workers, "scale")
        try:
            for kind in KINDS:
                (out / f"{kind}.json").unlink(missing_ok=True)
            for name in names:
                (unfinished / name).replace(out / name)
        except OSError as error:
            raise InputError(f"--out: {out} cannot be written: {error.strerror}.") from error
        write_estimate(estimate, out)  # where it is, all maps are of it
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(printable(out))


def estimate_of(folder: Path, predictions: Sequence[Prediction]) -> Any:
    """Return the estimate that `calibrate_predictions` wrote beside calibrated maps; None if there is none."""
    beside = all(file.parent == folder for prediction in predictions for file in prediction.files)
    return read_estimate(folder) if beside and any((folder / f"{kind}.json").exists() for kind in KINDS) else None


def _find_targets(folder: Path, case: Case) -> list[tuple[Prediction, Header]]:
    """Find the predictions to calibrate, which must have the channels of those that the calibrator is fitted on."""
    found = find_predictions(folder, formats=[type(case.prediction)])
    targets = [(prediction, prediction.header()) for prediction in found.values()]
    for prediction, header in targets:
        if header.channels != case.channels:
            first = f"{case.prediction.files[0]} has {case.channels}"
            raise InputError(f"{prediction.files[0]} has {header.channels} channels, {first}.")
    return targets


def _result_name(prediction: Prediction, header: Header) -> str:
    return f"{prediction.name}.npz" if header.affine is None else f"{prediction.name}_probability.nii.gz"


def _check_contents(out: Path, names: Sequence[str], overwrite: bool) -> None:
    """Check that maps of this run and of another one will not be together in a folder, of two temperatures."""
    check_output(out, f"{next(iter(KINDS))}.json", overwrite)
    maps = {file.name for pattern in ("*_probability.nii.gz", "*.npz") for file in out.glob(pattern)}
    if others := sorted(maps - {*names}):
        raise InputError(f"--out: {out / others[0]} is of another prediction. Delete it, or give another folder.")


def calibrate_probabilities(
    probabilities: torch.Tensor,
    calibrator: torch.nn.Module,
    sigmoid: bool = False,
    lowest: float = 1e-12,
    highest: float = 1.0,
) -> torch.Tensor:
    """Apply a calibrator to the logits of probabilities.

    With a temperature T, this is `softmax(log p / T)`, that is, `p ** (1 / T)` divided by its sum over the classes; or
    `sigmoid(logit(p) / T)`.

    Args:
        probabilities: `(N, *S)`, of N classes, or of channels with a sigmoid each.
        calibrator: A function of logits `(1, N, *S)`.
        sigmoid: Whether each channel is a binary problem of its own.
        lowest: In place of lower probabilities, above 0.
        highest: In place of higher ones with `sigmoid`, below 1.

    Returns:
        Calibrated probabilities of the same shape.

    Examples:
        >>> from calib_components.posthoc import TemperatureScaling
        >>> calibrator = TemperatureScaling()
        >>> calibrator.set_state({"temperature": 2.0})
        >>> calibrate_probabilities(torch.tensor([0.8, 0.2]), calibrator)  # in the ratio 2 : 1, the root of 4 : 1
        tensor([0.6667, 0.3333])
    """
    logits = calibrator(logits_of(probabilities, lowest, highest, sigmoid)[None])[0]
    return logits.sigmoid() if sigmoid else logits.softmax(0)


def _calibrate_file(target: tuple[Prediction, Header], classes: Classes, calibrator: Calibrator, folder: Path) -> None:
    prediction, header = target
    stored = prediction.probabilities(classes.sigmoid, classes.skip)
    values = torch.from_numpy(stored.values)
    result = calibrate_probabilities(values, calibrator, classes.sigmoid, stored.lowest, stored.highest).numpy()
    with writing(folder / _result_name(prediction, header)) as file:
        if header.affine is None:
            np.savez_compressed(file, probabilities=result.transpose(0, 3, 2, 1))
        else:
            nifti = Nifti1Image(result[0] if len(result) == 1 else np.moveaxis(result, 0, -1), header.affine)
            nifti.set_sform(header.affine, code=1)
            nifti.set_qform(header.affine, code=1)
            nifti.to_filename(file)
