"""Calibration of saved predictions, for a model whose code one cannot touch."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import ensure_tuple

from calib_components.errors import InputError, printable, writing
from calib_components.metrics.regions import Region
from calib_components.posthoc import KINDS, RETIRED, Calibrator
from calib_tools.cli import patients_of
from calib_tools.parallel import map_cases
from calib_tools.predictions.cases import read_prediction
from calib_tools.predictions.classes import (
    PROBABILITY,
    Classes,
    check_probabilities,
    classes_of,
)
from calib_tools.predictions.fit import fit_calibrator, to_logits, to_probabilities
from calib_tools.predictions.formats import Prediction
from calib_tools.predictions.pairing import (
    find_members,
    find_pairs,
    name_targets,
    named_patients,
    places_of,
    places_of_validation,
    read_folders,
)
from calib_workflows.calibrate import read_estimate, write_estimate
from calib_workflows.data.overlap import find_shared
from calib_workflows.folders import OutputFolder
from calib_workflows.inference.maps import write_map

ENDINGS = (f"{PROBABILITY}.nii.gz", ".npz")  # of calibrated maps: with a grid, and without


def calibrate_predictions(
    predictions: Path | None = None,
    labels: Path | None = None,
    *,
    apply_to: Sequence[Path],
    out: Path,
    members: Sequence[Path] | None = None,
    raters: Sequence[Path] | None = None,
    pairs: Path | None = None,
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
            .npy. With members, a folder given alone is that of the labels.
        labels: Folder of their labels, files of the same names, which may end in _gt, _seg or
            _label.
        apply_to: Folder of the predictions to scale, of the same model and format; with members,
            one of each, P1,P2.
        out: Folder for the scaled predictions.
        members: In place of predictions, folders of several networks' predictions of the same
            cases, V1,V2: the fit is to their average, which is what is scaled.
        raters: In place of labels, folders of several raters' labels, R1,R2: the fit is to all of
            them.
        pairs: CSV file with the columns case, prediction and label, relative to the two folders.
            Default: files of the same name are a pair.
        structures: Names and label codes, such as liver=1,tumour=2; WT=1+2+4 is a structure of
            several codes. Default: the channels are label codes 0, 1, 2, and so on.
        sigmoid: Whether each channel is one of these structures, in this order, with a sigmoid of
            its own.
        ignore_index: Label code of voxels to leave out of the fit.
        region: Voxels to fit the temperature on, such as predicted, see
            `calib_components.metrics.regions`. Fitted to a region chosen by the ground truth,
            probabilities are not calibrated.
        calibrator: temperature; vector, a scale and a bias for each class; or bias, a bias alone.
            The last two change labels.
        patient_pattern: Regular expression for the part of a case's name that names the patient,
            such as patient[0-9]+. Default: each case is a patient.
        workers: Number of processes, each with a case in memory. Default: one per core, at most 8.
        overwrite: Whether maps of other inputs or options in `out` are replaced.

    Raises:
        InputError: An argument or a file is unsuitable, another run writes to `out`, or it cannot
            be written. Maps of an earlier run stay.
    """
    fitted_on = Region.parse(region)
    networks, labellers = read_folders(predictions, labels, members, raters, pairs)
    if not labellers:
        raise InputError("labels: give a folder, or those of several raters to --raters.")
    targets = name_targets(ensure_tuple(apply_to), networks)
    labelled = find_pairs(networks, labellers, pairs)
    fit_readers = {pair.name: pair.prediction for pair in labelled}
    check_probabilities(labelled[0].prediction, "Calibration")
    readers = find_members(targets)
    classes = classes_of(
        [*fit_readers.values(), *readers.values()], structures, sigmoid, ignore_index
    )
    patients = patients_of([*fit_readers], patient_pattern) | named_patients(labelled)
    target_patients = patients_of([*readers], patient_pattern)
    _refuse_calibrated(networks.values(), fit_readers.values())
    _refuse_calibrated(targets.values(), readers.values())
    files = [out / f"{name}{_map_ending(reader)}" for name, reader in readers.items()]
    run = {
        **places_of(networks, labellers),
        "apply_to": ",".join(map(str, targets.values())),
        "structures": structures,
        "sigmoid": sigmoid,
        "ignore_index": ignore_index,
        "region": fitted_on.name,
        "calibrator": calibrator,
    }
    output = OutputFolder(out, run, overwrite=overwrite)
    names = {file.name for file in files} | {f"{kind}.json" for kind in KINDS}
    sources = (*networks.values(), *labellers.values(), *targets.values())
    _check_out(output, sources, names)
    shared = find_shared(_items(readers, target_patients), _items(fit_readers, patients))
    if shared:
        print(
            f"{len(shared)} of the {len(readers)} predictions to scale belong to patients of the"
            f" fit: {shared[0]}. Their evaluation will be too optimistic."
        )
    with output.claim(), ExitStack() as stack:
        fitted, estimate = fit_calibrator(
            labelled, classes, fitted_on, patients, workers, calibrator
        )
        unfinished = [stack.enter_context(writing(file)) for file in files]
        apply = functools.partial(_calibrate_file, classes=classes, calibrator=fitted)
        map_cases(apply, [*zip(readers.values(), unfinished, strict=True)], workers, "scale")
        output.claim(names)
        for kind in KINDS:
            (out / f"{kind}.json").unlink(missing_ok=True)
        stack.close()
        fitted_on_places = places_of_validation(places_of(networks, labellers))
        arguments = places_of(targets, {}) | fitted_on_places
        write_estimate(estimate, out, arguments)  # where it is, all maps are of it
    print(printable(out))


def estimate_of(folder: Path, predictions: Iterable[Prediction]) -> Any:
    """Return the estimate that `calibrate_predictions` wrote beside calibrated maps; None if there
    is none.
    """
    if (folder / f"{RETIRED}.json").exists():
        raise InputError(
            f"{folder} holds {RETIRED}.json: version 0.4 scaled its predictions by a temperature of"
            " each class, which this version does not know. Scale those before again."
        )
    folders = {file.parent for prediction in predictions for file in prediction.files}
    if folders == {folder} and any((folder / f"{kind}.json").exists() for kind in KINDS):
        return read_estimate(folder)
    return None


def describe_estimate(folder: Path, estimate: Any) -> dict[str, Any] | None:
    """Return what an estimate beside calibrated maps says, for the summary of their evaluation;
    None without one.
    """
    if estimate is None:
        return None
    content = json.loads((folder / f"{estimate.name}.json").read_bytes())
    return {
        "calibrator": estimate.name,
        "region": content.get("region", "all"),
        "patients": estimate.patients,
        "arguments": content.get("arguments", {}),
    }


def _refuse_calibrated(folders: Iterable[Path], predictions: Iterable[Prediction]) -> None:
    for number, folder in enumerate(folders):
        estimate = estimate_of(folder, [each.members[number] for each in predictions])
        if estimate is not None:
            raise InputError(
                f"{folder} holds {estimate.name}.json: its predictions are calibrated already. Give"
                " those before, or delete that file if the calibration is part of the network."
            )


def _check_out(folder: OutputFolder, sources: Sequence[Path], names: set[str]) -> None:
    """Check that the output is apart from the sources, and keeps no maps of other predictions."""
    out = folder.path
    for source in sources:
        if source.resolve() in (out.resolve(), *out.resolve().parents):
            raise InputError(f"--out: {out} is in {source}. Give another folder.")
    maps = {file.name for ending in ENDINGS for file in out.glob(f"[!.]*{ending}")}
    others = maps - names - folder.check(names)
    if others:
        raise InputError(
            f"--out: {out / min(others)} is of another prediction. Delete it, or give another"
            " folder."
        )


def _map_ending(prediction: Prediction) -> str:
    with_grid, without_grid = ENDINGS
    return without_grid if prediction.header().affine is None else with_grid


def _items(readers: Mapping[str, Prediction], patients: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"case": name, "patient": patients[name], "image": reader.files[0]}
        for name, reader in readers.items()
    ]


def _calibrate_file(
    target: tuple[Prediction, Path], classes: Classes, calibrator: Calibrator
) -> None:
    prediction, file = target
    logits = to_logits(read_prediction(prediction, classes), classes.sigmoid)
    p = to_probabilities(calibrator(logits[None]), classes.sigmoid)[0]
    affine = prediction.header().affine
    if affine is None:
        np.savez_compressed(file, probabilities=p.permute(0, 3, 2, 1))
    else:
        write_map(file, p, affine)
