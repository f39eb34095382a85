"""Evaluation of saved predictions of any model."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calib_components.quality import Reference
from calib_tools.parallel import map_cases
from calib_tools.predictions.cases import SavedCases, content_of_prediction
from calib_tools.predictions.classes import Classes
from calib_tools.predictions.formats import Prediction
from calib_tools.report.report import PAGE, report_folders
from calib_tools.report.validation import read_validation
from calib_workflows.evaluate import Objects, evaluate
from calib_workflows.evaluation_files import FILES
from calib_workflows.folders import OutputFolder
from calib_workflows.pages.quality import TABLES

REPORT = "report"  # folder of the page inside the output folder


def evaluate_cases(
    cases: SavedCases,
    output: OutputFolder,
    about: Mapping[str, Any],
    objects: Objects,
    validation: Path | None,
) -> None:
    """Write the files of an evaluation and its page.

    Args:
        cases: The predictions and their labels.
        output: Folder of the files.
        about: Further entries of `summary.json`.
        objects: Objects to count.
        validation: Folder of an evaluation of other cases, for the page.
    """
    structures, names = [*cases.classes.structures], cases.classes.names
    files = [f"{REPORT}/{PAGE}", *TABLES, *FILES]
    output.check(files)
    with output.claim(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")  # figures show a box for each
        evaluate(cases, output.path, structures, names, about, objects, files, output.claim)
        report_folders(output.path, out=output.path / REPORT, validation=validation, overwrite=True)


def read_reference(
    validation: Path,
    predictions: Mapping[str, Prediction],
    classes: Classes,
    about: Mapping[str, Any],
    patients: Mapping[str, str],
    patient_pattern: str | None,
    by_name: bool,
    workers: int | None,
) -> Reference:
    """Return the labelled scans of an evaluation of other cases than the predictions, see
    `read_validation`.
    """
    read = functools.partial(content_of_prediction, classes=classes)
    contents = map_cases(read, [*predictions.values()], workers, "compare")
    items = [
        {"case": case, "patient": patients[case], "predicted": content}
        for case, content in zip(predictions, contents, strict=True)
    ]
    fitted, _ = read_validation(
        validation, [*classes.structures], about, items, patient_pattern, by_name=by_name
    )
    return fitted.reference(patient_pattern)


def arguments_of(
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
