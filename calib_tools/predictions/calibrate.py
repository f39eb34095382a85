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
from calib_components.posthoc import KINDS, Calibrator
from calib_tools.cli import patients_of
from calib_tools.parallel import map_cases
from calib_tools.predictions.cases import SavedCases, read_prediction, to_logits
from calib_tools.predictions.classes import (
    PROBABILITY,
    Classes,
    check_probabilities,
    classes_of,
)
from calib_tools.predictions.fit import fit_saved
from calib_tools.predictions.formats import Prediction
from calib_tools.predictions.pairing import (
    find_members,
    find_pairs,
    name_targets,
    named_patients,
    places_of,
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
    """See `calib_tools.commands.calibrate_predictions`."""
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
        cases = SavedCases(labelled, classes, patients, workers=workers)
        fitted, estimate = fit_saved(cases, fitted_on, calibrator)
        unfinished = [stack.enter_context(writing(file)) for file in files]
        apply = functools.partial(_calibrate_file, classes=classes, calibrator=fitted)
        map_cases(apply, [*zip(readers.values(), unfinished, strict=True)], workers, "scale")
        output.claim(names)
        for kind in KINDS:
            (out / f"{kind}.json").unlink(missing_ok=True)
        stack.close()
        write_estimate(estimate, out)  # where it is, all maps are of it
    print(printable(out))


def estimate_of(folder: Path, predictions: Iterable[Prediction]) -> Any:
    """Return the estimate that `calibrate_predictions` wrote beside calibrated maps; None if there
    is none.
    """
    if (folder / "class_temperature.json").exists():
        raise InputError(
            f"{folder} holds class_temperature.json: version 0.4 scaled its predictions"
            " by a temperature of each class, which this version does not know. Scale those before"
            " again."
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
    calibrated = calibrator(logits[None])[0]
    p = calibrated.sigmoid() if classes.sigmoid else calibrated.softmax(0)
    affine = prediction.header().affine
    if affine is None:
        np.savez_compressed(file, probabilities=p.permute(0, 3, 2, 1))
    else:
        write_map(file, p, affine)
