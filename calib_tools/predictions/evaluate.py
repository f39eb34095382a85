"""Evaluation of saved predictions of any model, with labels or without them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calib_components.errors import InputError, check_choice, check_number, reading
from calib_components.metrics.measures import measure_case
from calib_components.metrics.objects import find_objects, largest_miss
from calib_components.metrics.raters import RatedCase
from calib_tools.cli import patients_of
from calib_tools.parallel import map_cases
from calib_tools.predictions.calibrate import describe_estimate, estimate_of
from calib_tools.predictions.cases import (
    Setting,
    check_background,
    count_agreement,
    find_case_images,
    read_case,
    read_image,
)
from calib_tools.predictions.classes import (
    IGNORED,
    check_probabilities,
    check_volume,
    classes_of,
    combine_masks,
)
from calib_tools.predictions.formats import Ensemble
from calib_tools.predictions.pairing import (
    OF_VALIDATION,
    LabelledPrediction,
    find_members,
    find_pairs,
    named_patients,
    places_of,
    places_of_validation,
    read_folders,
)
from calib_tools.predictions.quality import estimate_quality
from calib_tools.report.page import PAGE
from calib_tools.report.quality import reference_of
from calib_tools.report.report import report_folders
from calib_tools.report.thresholds import read_validation
from calib_workflows.evaluate import (
    EvaluationRecords,
    draw_slice,
    record_case,
    write_evaluation,
)
from calib_workflows.pages.table import TABLES
from calib_workflows.parts import measure_raters, rated_slice

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
    skip_existing: bool = False,
    overwrite: bool = False,
) -> None:
    """Evaluate saved predictions of any model: segmentation, calibration, volumes and thresholds.

    `out` gets the files that `evaluate.yaml` writes, see
    `calib_workflows.evaluate.EvaluationWriter`, except those of logits, and one page,
    `report/index.html`. HD95 is in millimetres, volumes in millilitres; bands are two voxels wide.
    Predictions that are label maps give the segmentation part only. Of predictions that
    `calibrate_predictions` has scaled, `temperature.json` beside them says by what, so that the
    plausible foreground has the same voxels as before.

    The predictions of several networks are averaged: `members.csv` has a row for each of them
    beside their average, and `pairwise_dsc` says how far their segmentations agree, also without
    labels. With several raters, the files hold the means over them: a voxel and a rater are one
    observation. `raters.csv` has a row for each rater and one for all.

    With `objects`, such as lesions, `objects.csv` has a row for each candidate and each true
    object: see `calib_components.metrics.objects`.

    Without labels, `out` gets `quality.csv` and `quality.html`: what the probabilities say of the
    quality of each prediction, the worst first.

    Args:
        predictions: Folder of probabilities or label maps, see
            `calib_tools.predictions.formats`. With members, a folder given alone is that of
            the labels.
        labels: Folder of label maps, files of the same names, which may end in `_gt`, `_seg` or
            `_label`. Default: the predictions have no labels.
        out: Folder of the results.
        members: In place of predictions, folders of several networks' predictions of the same
            cases, such as of folds or seeds: P1,P2. Label maps are votes.
        raters: In place of labels, folders of several raters' label maps: R1,R2. Each case needs
            the label of one of them.
        pairs: CSV file with the columns case, prediction and label, relative to the two folders.
            Default: files of the same name are a pair.
        structures: Label codes of the structures, such as `liver=1,tumour=2`, or `WT=1+2+4` of
            several codes. Default: class1, class2 and so on.
        sigmoid: Whether each channel is one of these structures, in this order, with a sigmoid of
            its own.
        ignore_index: Label code of voxels to leave out.
        patient_pattern: Regular expression for the part of a case's name that names the patient,
            such as `patient[0-9]+`. Default: each case is a patient.
        images: Folder of the images, for the pictures. Default: pictures without them.
        validation: Folder of an evaluation of other cases, on which the page chooses thresholds,
            and which gives limits of DSC and volume without labels. Default: neither.
        review: Share of the predictions without labels to list, those of the lowest quality.
        review_below: Expected DSC below which predictions without labels are listed, in place of a
            share.
        objects: Structures whose objects are counted, such as `lesion`; default: none.
        object_p: Lowest probability of a voxel in a candidate.
        overlap: Lowest IoU of a right candidate with a true object; 0 asks for one voxel in common.
        workers: Number of processes, each with a case in memory. Default: one per core, at most 8.
        skip_existing: Keep what an evaluation that was interrupted has measured, of files that have
            not changed since.
        overwrite: Whether results of other inputs or options in `out` are replaced.

    Raises:
        InputError: A file or option is unsuitable, files do not belong together, another run writes
            to `out`, or results cannot be written.
    """
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
    setting = Setting(
        out=out,
        classes=classes,
        patients=patients_of([*readers], patient_pattern) | named_patients(labelled),
        images={} if images is None else find_case_images(images, readers),
        workers=workers,
        overwrite=overwrite,
        run=run,
    )
    about: dict[str, Any] = {
        "source": "predictions",
        "sigmoid": setting.classes.sigmoid,
        "arguments": _arguments(run, patient_pattern, pairs),
        "calibration": describe_estimate(folder, calibration),
        "objects": run["objects"],
    }
    reference = None
    if validation is not None:
        check_probabilities(next(iter(readers.values())), "--validation")
        fitted, _ = read_validation(
            validation,
            [*setting.classes.structures],
            about,
            setting.items(),
            patient_pattern,
            by_name=not labellers,  # with labels, the report compares these
        )
        reference = reference_of(fitted, patient_pattern)
        about["arguments"] |= places_of_validation(fitted.summary.get("arguments", {}))
    if labellers:
        _evaluate_labelled(labelled, setting, calibration, validation, skip_existing, about)
    else:
        estimate_quality(readers, setting, reference, review, review_below)


def _arguments(
    run: Mapping[str, Any], patient_pattern: str | None, pairs: Path | None
) -> dict[str, str]:
    """Return the arguments of an evaluation as texts by name, for the commands of its report."""
    names = (*OF_VALIDATION, "structures", "sigmoid", "ignore_index")
    given = {name: run[name] for name in names if name in run}
    given |= {"patient_pattern": patient_pattern, "pairs": pairs}
    if given["structures"] is not None:
        given["structures"] = ",".join(given["structures"])
    if given["sigmoid"]:
        given["sigmoid"] = "true"
    return {name: str(value) for name, value in given.items() if value not in (None, False)}


def _evaluate_labelled(
    pairs: Sequence[LabelledPrediction],
    setting: Setting,
    calibration: Any,
    validation: Path | None,
    skip_existing: bool,
    about: Mapping[str, Any],
) -> None:
    """Measure the cases, and write files and page."""
    items = [
        {**item, "files": pair.files, "image": setting.images.get(pair.name, [])}
        for item, pair in zip(setting.items(), pairs, strict=True)
    ]
    out, classes = setting.out, setting.classes
    records = EvaluationRecords(out, items, setting.run, ["files", "image"], setting.overwrite)
    names = {item["case"] for item in records.to_measure(None, skip_existing)}
    temperature = getattr(calibration, "temperature", None)  # other calibrators have none
    measure = functools.partial(_measure, setting=setting, records=records, temperature=temperature)
    chosen = [pair for pair in pairs if pair.name in names]

    def check(measured: Sequence[Mapping[str, Any]]) -> None:
        check_background([record["agreement"] for record in measured], pairs[0].prediction.files[0])

    with records.claim(f"{REPORT}/{PAGE}", *TABLES), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")  # figures show a box for each
        map_cases(measure, chosen, setting.workers, "evaluate")
        if write_evaluation(records, [*classes.structures], classes.names, check, about):
            report_folders(out, out=out / REPORT, validation=validation, overwrite=True)


def _measure(
    pair: LabelledPrediction,
    setting: Setting,
    records: EvaluationRecords,
    temperature: float | None,
) -> None:
    """Write the record of a case."""
    case = read_case(pair, setting.classes, temperature)
    assert case.prediction is not None
    label, image = case.label.numpy(), None
    if setting.classes.sigmoid:
        drawn = combine_masks(label == 1, setting.classes)
    else:
        drawn = np.where(label[0] == IGNORED, 0, label[0])
    if pair.name in setting.images:
        image = torch.from_numpy(read_image(setting.images[pair.name], pair.grid()))
    with reading(pair.prediction.files[0], "a prediction that can be measured"):
        drawn_label = torch.from_numpy(drawn)
        record = record_case(case, case.prediction, drawn_label, image)
        names, *matching = setting.run["objects"].values()
        found = {name: find_objects(case, name, *matching) for name in names}
        record["objects"] = [(name, *each) for name, rows in found.items() for each in rows]
        if largest := largest_miss(chain.from_iterable(found.values())):
            index = int(largest.place.split()[-1])
            drawn_slice = draw_slice(case, case.prediction, drawn_label, image, index)
            record["miss"] = {"volume": largest.volume, "slice": drawn_slice}
        if isinstance(case, RatedCase):
            record["raters"], everyone = measure_raters(case)
            record["values"] |= everyone
            record["rated"] = rated_slice(case, image)
        if isinstance(pair.prediction, Ensemble):
            record["members"] = {
                name: measure_case(
                    read_case(replace(pair, prediction=member), setting.classes, temperature)
                )
                for name, member in pair.prediction.networks.items()
            }
    records.write(pair.name, {**record, "agreement": count_agreement(case)})
