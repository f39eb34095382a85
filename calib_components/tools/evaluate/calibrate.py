"""Temperature scaling of saved predictions, for a model whose code one cannot touch."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel import Nifti1Image

from calib_components.errors import UNFINISHED, InputError, check_writable, make_folder, printable, writing
from calib_components.handlers.temperature import TEMPERATURE_FILE, read_temperature, write_temperature
from calib_components.metrics.regions import Region
from calib_components.tools.evaluate.classes import Classes
from calib_components.tools.evaluate.fit import fit_temperature, logits_of
from calib_components.tools.evaluate.formats import Header, Prediction, read_header, read_probabilities
from calib_components.tools.evaluate.pairs import Case, classes_of, find_cases, find_predictions, patients_of
from calib_components.tools.locks import only_run
from calib_components.tools.parallel import check_workers, parallel

__all__ = ["calibrate_predictions", "scale_probabilities", "temperature_of"]

PRELOAD = [__name__]

LONGEST_NAME = 255  # bytes


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
) -> None:
    """Fit a temperature on saved predictions, and scale others by it.

    The logarithms of probabilities are the logits, but for one number a voxel that softmax does not see; with sigmoid
    channels, the logits are log p - log(1 - p). `out` gets a scaled map for each prediction in `apply_to`, float32 on
    its own grid: `NAME_probability.nii.gz` `(X, Y, Z, C)`, or where no file says where the voxels lie, `NAME.npz`
    `(C, Z, Y, X)` as nnU-Net writes it. They are written to a hidden folder in it, and replace those of an earlier run
    once all are there; `temperature.json` comes last. While a run writes to `out`, others are refused.

    Args:
        predictions: Folder of predictions of validation cases: NIfTI files, nnU-Net's .npz, or .npy.
        labels: Folder of their labels, files of the same names, which may end in _gt, _seg or _label.
        apply_to: Folder of the predictions to scale, of the same model.
        out: Folder for the scaled predictions, without other files.
        structures: Names and label codes, such as liver=1,tumour=2; WT=1+2+4 is a structure of several codes. Default:
            the channels are label codes 0, 1, 2, and so on.
        sigmoid: Whether each channel is one of these structures, in this order, with a sigmoid of its own.
        ignore_index: Label code of voxels to leave out of the fit.
        region: Voxels to fit the temperature on, such as predicted, see `calib_components.metrics.regions`. Fitted to a
            region chosen by the ground truth, probabilities are not calibrated.
        patient_pattern: Regular expression for the part of a case's name that names the patient, such as patient[0-9]+.
            Default: each case is a patient.
        workers: Number of processes, each with a case in memory. Default: one per core, at most 8.

    Raises:
        InputError: An argument or a file is not as expected, or `out` cannot be written. Maps of an earlier run stay.
    """
    fitted_on = Region.parse(region)
    processes = check_workers(workers)
    cases = find_cases(predictions, labels)
    classes = classes_of(cases, structures, sigmoid, ignore_index)
    patients = patients_of([case.name for case in cases], patient_pattern)
    if cases[0].channels == 0:
        raise InputError(
            f"{cases[0].prediction.files[0]}: expected probabilities to fit a temperature, got a label map"
        )
    targets = _find_targets(apply_to, cases[0])
    for folder, found in (
        (predictions, [case.prediction for case in cases]),
        (apply_to, [each for each, _ in targets]),
    ):
        if (earlier := temperature_of(folder, found)) is not None:
            raise InputError(
                f"{folder}: expected predictions as the network gives them, got some that are divided by T = "
                f"{earlier:.4g} already, as {TEMPERATURE_FILE} there says; give those before scaling, or delete that "
                "file if this T is part of the network"
            )
    target_patients = patients_of([prediction.name for prediction, _ in targets], patient_pattern)
    both = sum(patient in set(patients.values()) for patient in target_patients.values())
    names = [*(_result_name(*target) for target in targets), TEMPERATURE_FILE]
    _check_place(out, [predictions, labels, apply_to])
    with only_run(out):  # maps of two temperatures would mix
        _check_contents(out, names, apply_to)
        estimate = fit_temperature(cases, classes, fitted_on, patients, processes)
        if both:
            are_of = "is of a patient" if both == 1 else "are of patients"
            print(
                f"{both} of the {len(targets)} predictions to scale {are_of} that T was fitted on: their evaluation "
                "will be too optimistic."
            )
        unfinished = out / f"{UNFINISHED}scaled"
        shutil.rmtree(unfinished, ignore_errors=True)
        make_folder(unfinished)
        try:
            scale = functools.partial(_scale_file, classes=classes, temperature=estimate.temperature, folder=unfinished)
            with parallel(scale, targets, processes, "scale", PRELOAD) as results:
                for _ in results:
                    pass
            write_temperature(estimate, unfinished)
            _move(names, unfinished, out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    print(printable(out))


def temperature_of(folder: Path, predictions: Sequence[Prediction]) -> float | None:
    """Return what `calibrate_predictions`, which writes its maps beside it, has divided the logits by, if it has."""
    beside = all(file.parent == folder for prediction in predictions for file in prediction.files)
    return read_temperature(folder).temperature if beside and (folder / TEMPERATURE_FILE).exists() else None


def _find_targets(folder: Path, case: Case) -> list[tuple[Prediction, Header]]:
    """Find the predictions to scale, which must have the channels of those that the temperature is fitted on."""
    found = find_predictions(folder, numbered=case.prediction.kind == "channels")
    targets = [(prediction, read_header(prediction)) for prediction in found.values()]
    for prediction, header in targets:
        if header.channels != case.channels:
            got = f"{header.channels} channel(s)" if header.channels else "a label map"
            expected = f"{case.channels} channel(s), as in {case.prediction.files[0]}"
            raise InputError(f"{prediction.files[0]}: expected {expected}, got {got}")
        name = _result_name(prediction, header)
        longer = len(os.fsencode(f"{UNFINISHED}{name}")) - LONGEST_NAME
        if longer > 0:
            raise InputError(
                f"{prediction.files[0]}: expected a shorter name, got one whose result, {name}, is {longer} byte(s) "
                "too long while it is written"
            )
    return targets


def _result_name(prediction: Prediction, header: Header) -> str:
    return f"{prediction.name}.npz" if header.affine is None else f"{prediction.name}_probability.nii.gz"


def _check_place(out: Path, sources: Sequence[Path]) -> None:
    target = out.resolve()
    for source in (folder.resolve() for folder in sources):
        if target == source or target in source.parents or source in target.parents:
            raise InputError(f"--out: expected a folder apart from {source}, got {out}, which holds it or is in it")
    check_writable("--out", out)


def _check_contents(out: Path, names: Sequence[str], apply_to: Path) -> None:
    """Refuse to write among other files, so that all predictions in the folder have one temperature."""
    present = sorted(out.iterdir())
    own = {file.name for file in present if file.name in names and file.is_file()}
    if others := [file.name for file in present if file.name not in own and not file.name.startswith(".")]:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise InputError(
            f"--out: expected a folder without other files, got {others[0]}{more} in {out}; delete what an earlier run "
            f"made of predictions that are no longer in {apply_to}, or choose another folder"
        )


def _move(names: Sequence[str], source: Path, target: Path) -> None:
    """Move the maps, and the temperature last: where it is, all maps are of it."""
    try:
        (target / TEMPERATURE_FILE).unlink(missing_ok=True)
        for name in names:
            (source / name).replace(target / name)
    except OSError as error:
        raise InputError(f"--out: expected a folder that can be written, got {target}: {error.strerror}") from error


def scale_probabilities(
    probabilities: torch.Tensor, temperature: float, sigmoid: bool = False, lowest: float = 1e-12, highest: float = 1.0
) -> torch.Tensor:
    """Divide the logits of probabilities by a temperature.

    `softmax(log p / T)`, that is, `p ** (1 / T)` divided by its sum over the classes; or `sigmoid(logit(p) / T)`.

    Args:
        probabilities: `(N, *S)`, of N classes, or of channels with a sigmoid each.
        temperature: The temperature T.
        sigmoid: Whether each channel is a binary problem of its own.
        lowest: In place of lower probabilities, above 0. With T = 1, only such probabilities change.
        highest: In place of higher ones with `sigmoid`, below 1.

    Returns:
        Scaled probabilities of the same shape.

    Examples:
        >>> scale_probabilities(torch.tensor([0.8, 0.2]), temperature=2.0)  # in the ratio 2 : 1, the root of 4 : 1
        tensor([0.6667, 0.3333])
        >>> scale_probabilities(torch.tensor([0.8, 0.2]), temperature=2.0, sigmoid=True)
        tensor([0.6667, 0.3333])
    """
    logits = logits_of(probabilities, lowest, highest, sigmoid) / temperature
    return logits.sigmoid() if sigmoid else logits.softmax(0)


def _scale_file(target: tuple[Prediction, Header], classes: Classes, temperature: float, folder: Path) -> None:
    prediction, header = target
    stored = read_probabilities(prediction, classes.sigmoid, classes.skip)
    values = torch.from_numpy(stored.values)
    scaled = scale_probabilities(values, temperature, classes.sigmoid, stored.lowest, stored.highest).numpy()
    with writing(folder / _result_name(prediction, header)) as file:
        if header.affine is None:
            np.savez_compressed(file, probabilities=scaled.transpose(0, 3, 2, 1))
        else:
            nifti = Nifti1Image(scaled[0] if len(scaled) == 1 else np.moveaxis(scaled, 0, -1), header.affine)
            nifti.set_sform(header.affine, code=1)
            nifti.set_qform(header.affine, code=1)
            nifti.to_filename(file)
