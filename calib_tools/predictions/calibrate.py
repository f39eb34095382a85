"""Calibration of saved predictions, for a model whose code one cannot touch."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from calib_components.errors import InputError, writing
from calib_components.posthoc import KINDS, Calibrator, Estimate
from calib_tools.parallel import map_cases
from calib_tools.predictions.cases import read_prediction, to_logits
from calib_tools.predictions.classes import (
    PROBABILITY,
    Classes,
)
from calib_tools.predictions.formats import Prediction, Reader
from calib_tools.predictions.pairing import UNFINISHED
from calib_workflows.calibrate import read_estimate, write_estimate
from calib_workflows.data.overlap import find_shared
from calib_workflows.fit import COMPARISON
from calib_workflows.folders import OutputFolder
from calib_workflows.inference.maps import write_map

ESTIMATES = [f"{kind}.json" for kind in KINDS]
NEXT = (
    "{out}: {count} maps {what}\nNext: evaluate_predictions {out} LABELS --out SCALED,"
    " with the options of the evaluation BEFORE, and report BEFORE SCALED."
)
AS_THEY_ARE = "as they were: use those, or choose a --calibrator"
ENDINGS = (f"{PROBABILITY}.nii.gz", ".npz")  # of calibrated maps: with a grid, and without


def estimate_of(folder: Path, readers: Iterable[Reader]) -> Any:
    """Return the estimate that `calibrate_predictions` wrote beside calibrated maps; None if there
    is none.
    """
    if (folder / "class_temperature.json").exists():
        raise InputError(
            f"{folder} holds class_temperature.json: version 0.4 scaled its predictions"
            " by a temperature of each class, which this version does not know. Scale those before"
            " again."
        )
    folders = {reader.file.parent for reader in readers}
    if folders == {folder} and any((folder / name).exists() for name in ESTIMATES):
        return read_estimate(folder)
    return None


def describe_estimate(estimate: Any) -> dict[str, Any] | None:
    """Return what an estimate beside calibrated maps says, for the summary of their evaluation;
    None without one.
    """
    if estimate is None:
        return None
    return {
        "calibrator": estimate.name,
        "region": getattr(estimate, "region", "all"),
        "patients": estimate.patients,
    }


def refuse_calibrated(folders: Mapping[str, Path], predictions: Iterable[Prediction]) -> None:
    """Raise `InputError` if the predictions in the folders of networks are calibrated."""
    for name, folder in folders.items():
        estimate = estimate_of(folder, [each.members[name] for each in predictions])
        if estimate is not None:
            raise InputError(
                f"{folder} holds {estimate.name}.json: its predictions are calibrated already. Give"
                " those before, or delete that file if the calibration is part of the network."
            )


def check_out(folder: OutputFolder, sources: Sequence[Path], names: set[str]) -> None:
    """Check that the output is apart from the sources, and keeps no maps of other predictions."""
    out = folder.path
    check_apart(out, sources)
    maps = {file.name for ending in ENDINGS for file in out.glob(f"[!.]*{ending}")}
    others = maps - names - folder.check(names)
    if others:
        raise InputError(
            f"--out: {out / min(others)} is of another prediction. Delete it, or give another"
            " folder."
        )


def check_apart(out: Path, sources: Iterable[Path]) -> None:
    """Raise `InputError` if the output is in a folder of the input."""
    for source in sources:
        if source.resolve() in (out.resolve(), *out.resolve().parents):
            raise InputError(f"--out: {out} is in {source}. Give another folder.")


def names_of_files(readers: Mapping[str, Prediction]) -> set[str]:
    """Return the names of all files of a calibration of these predictions."""
    return {*_names_of_maps(readers), *ESTIMATES, COMPARISON}


def _names_of_maps(readers: Mapping[str, Prediction]) -> list[str]:
    with_grid, without_grid = ENDINGS
    return [
        f"{name}{without_grid if prediction.first.header().affine is None else with_grid}"
        for name, prediction in readers.items()
    ]


def tell_shared(
    readers: Mapping[str, Prediction],
    patients: Mapping[str, str],
    fit_readers: Mapping[str, Prediction],
    fit_patients: Mapping[str, str],
) -> None:
    """Print how many of the predictions to scale belong to patients of the fit."""
    shared = find_shared(_items(readers, patients), _items(fit_readers, fit_patients))
    if shared:
        print(
            f"{len(shared)} of the {len(readers)} predictions to scale belong to patients of the"
            f" fit: {shared[0]}. Their evaluation will be too optimistic."
        )


def _items(
    predictions: Mapping[str, Prediction], patients: Mapping[str, str]
) -> list[dict[str, Any]]:
    return [
        {"case": name, "patient": patients[name], "image": prediction.file}
        for name, prediction in predictions.items()
    ]


def write_maps(
    readers: Mapping[str, Prediction],
    classes: Classes,
    calibrator: Calibrator,
    output: OutputFolder,
    workers: int | None,
) -> None:
    """Write the calibrated map of each prediction, all of them or none, in place of the files of an
    earlier calibration.
    """
    with ExitStack() as stack:
        files = [
            stack.enter_context(writing(output.path / name)) for name in _names_of_maps(readers)
        ]
        apply = functools.partial(_calibrate_file, classes=classes, calibrator=calibrator)
        map_cases(apply, [*zip(readers.values(), files, strict=True)], workers, "scale")
        (output.path / UNFINISHED).touch()
        output.claim(names_of_files(readers))
        for name in (*ESTIMATES, COMPARISON):
            (output.path / name).unlink(missing_ok=True)


def write_fit(out: Path, estimate: Estimate | None, compared: str) -> None:
    """Write the comparison of a fit and its estimate, in place of those of an earlier fit; then the
    folder is finished.
    """
    for name in (*ESTIMATES, COMPARISON):
        (out / name).unlink(missing_ok=True)
    if compared:
        with writing(out / COMPARISON) as unfinished:
            unfinished.write_text(compared)
    if estimate is not None:
        write_estimate(estimate, out)
    (out / UNFINISHED).unlink(missing_ok=True)


def _calibrate_file(
    target: tuple[Prediction, Path], classes: Classes, calibrator: Calibrator
) -> None:
    prediction, file = target
    logits = to_logits(read_prediction(prediction, classes), classes.sigmoid)
    calibrated = calibrator(logits[None])[0]
    p = calibrated.sigmoid() if classes.sigmoid else calibrated.softmax(0)
    affine = prediction.first.header().affine
    if affine is None:
        np.savez_compressed(file, probabilities=p.permute(0, 3, 2, 1))
    else:
        write_map(file, p, affine)
