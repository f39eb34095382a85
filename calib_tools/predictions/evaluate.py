"""Evaluation of saved predictions of any model, with labels or without them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calib_components.errors import InputError, check_choice, check_number
from calib_tools.cli import patients_of
from calib_tools.predictions.calibrate import describe_estimate, estimate_of
from calib_tools.predictions.cases import SavedCases, find_case_images
from calib_tools.predictions.classes import check_probabilities, check_volume, classes_of
from calib_tools.predictions.pairing import (
    find_members,
    find_pairs,
    named_patients,
    places_of,
    read_folders,
)
from calib_tools.predictions.quality import estimate_quality
from calib_tools.report.quality import reference_of
from calib_tools.report.report import PAGE, report_folders
from calib_tools.report.validation import read_validation
from calib_workflows.evaluate import Objects, evaluate
from calib_workflows.evaluation_files import FILES
from calib_workflows.folders import OutputFolder
from calib_workflows.pages.quality import TABLES

REPORT = "report"  # folder of the page inside the output folder


def evaluate_predictions(
    predictions: Path | None = None,
    labels: Path | None = None,
    out: Path = Path("evaluation"),
    *,
    members: Sequence[Path] | None = None,
    raters: Sequence[Path] | None = None,
    pairs: Path | None = None,
    structures: Sequence[str] | None = None,
    sigmoid: bool = False,
    ignore_index: int | None = None,
    patient_pattern: str | None = None,
    images: Path | None = None,
    validation: Path | None = None,
    review: str = "20%",
    review_below: float | None = None,
    objects: Sequence[str] = (),
    object_p: float = 0.5,
    overlap: float = 0.0,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """See `calib_tools.commands.evaluate_predictions`."""
    check_number("--object_p", object_p, 1e-6, 1)
    check_number("--overlap", overlap, 0, 1)
    networks, labellers = read_folders(predictions, labels, members, raters, pairs)
    if labellers:
        labelled = find_pairs(networks, labellers, pairs)
        readers = {pair.name: pair.prediction for pair in labelled}
    else:
        if objects:
            raise InputError("--objects needs labels. Give their folder.")
        labelled, readers = [], find_members(networks)
        check_volume(next(iter(readers.values())), sigmoid)
    (folder, *_) = networks.values()
    calibration = None if members else estimate_of(folder, readers.values())
    run = {
        **places_of(networks, labellers),
        "images": images,
        "validation": validation,
        "structures": structures,
        "sigmoid": sigmoid,
        "ignore_index": ignore_index,
        "calibration": repr(calibration),
        "objects": {"structures": [*objects], "threshold": object_p, "overlap": overlap},
    }
    classes = classes_of([*readers.values()], structures, sigmoid, ignore_index)
    for name in objects:
        check_choice("--objects", name, classes.structures)
    patients = patients_of([*readers], patient_pattern) | named_patients(labelled)
    case_images = {} if images is None else find_case_images(images, readers)
    about: dict[str, Any] = {
        "source": "predictions",
        "sigmoid": classes.sigmoid,
        "arguments": _arguments(run, patient_pattern, pairs),
        "calibration": describe_estimate(folder, calibration),
        "objects": run["objects"],
    }
    reference = None
    if validation is not None:
        check_probabilities(next(iter(readers.values())), "--validation")
        fitted, _ = read_validation(
            validation,
            [*classes.structures],
            about,
            [{"case": case, "patient": patient} for case, patient in patients.items()],
            patient_pattern,
            by_name=not labellers,  # with labels, the report compares these
        )
        reference = reference_of(fitted, patient_pattern)
    output = OutputFolder(out, run, overwrite=overwrite)
    if not labellers:
        estimate_quality(
            readers, classes, case_images, output, reference, review, review_below, workers
        )
        return
    cases = SavedCases(labelled, classes, patients, case_images, workers)
    counted = Objects([*objects], object_p, overlap)
    with output.claim([*FILES, f"{REPORT}/{PAGE}", *TABLES]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")  # figures show a box for each
        evaluate(cases, out, [*classes.structures], classes.names, about, counted)
        report_folders(out, out=out / REPORT, validation=validation, overwrite=True)


def _arguments(
    run: Mapping[str, Any], patient_pattern: str | None, pairs: Path | None
) -> dict[str, str]:
    """Return the arguments of an evaluation as texts by name, for its summary."""
    names = ("predictions", "members", "labels", "raters", "structures", "sigmoid", "ignore_index")
    given = {name: run[name] for name in names if name in run}
    given |= {"patient_pattern": patient_pattern, "pairs": pairs}
    if given["structures"] is not None:
        given["structures"] = ",".join(given["structures"])
    if given["sigmoid"]:
        given["sigmoid"] = "true"
    return {name: str(value) for name, value in given.items() if value not in (None, False)}
