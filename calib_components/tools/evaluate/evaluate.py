"""Evaluation of saved predictions of any model against label maps, case by case in parallel."""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calib_components import __version__
from calib_components.data.nifti import grid_distance, open_nifti, read_values
from calib_components.errors import InputError, check_writable, make_folder, reading
from calib_components.handlers.evaluation_pictures import DrawnSlice, draw_slice, largest_slice
from calib_components.handlers.evaluation_records import read_record, read_slice, record_file, write_record
from calib_components.handlers.evaluation_writing import check_evaluation, write_evaluation
from calib_components.inference.images import find_images
from calib_components.inference.maps import normalized_entropy
from calib_components.metrics import (
    CalibrationMetric,
    DSCMetric,
    ExpectedDSCMetric,
    HD95Metric,
    RiskCoverageMetric,
    SmoothECEMetric,
    ThresholdMetric,
    VolumeMetric,
    structure_masks,
)
from calib_components.metrics.case_metric import CaseMetric
from calib_components.tools.compare import report_evaluations
from calib_components.tools.evaluate.calibrate import temperature_of
from calib_components.tools.evaluate.classes import Classes, paint
from calib_components.tools.evaluate.noted import note, warn
from calib_components.tools.evaluate.pairs import Case, Saved, classes_of, find_cases, patients_of, read_case
from calib_components.tools.locks import only_run
from calib_components.tools.parallel import check_workers, parallel
from calib_components.tools.report.report import read_validation
from calib_components.tools.report.report_files import PAGE, check_report_folder
from calib_components.tools.report.tables import channels_text

__all__ = ["evaluate_predictions"]

REPORT, CASES = "report", "cases"  # folders inside the output folder, of the page and of pictures
MEASURED = ".measured"  # likewise, of the cases of an evaluation that is not finished
REGIONS = ("all", "predicted", "plausible", "predicted_band", "union", "band")
DRAWS = 20
RECORD = 3  # version of what is kept of a measured case
CUBIC_MM = 1000  # in a millilitre


def evaluate_predictions(
    predictions: Path,
    labels: Path,
    out: Path,
    *,
    structures: Sequence[str] | None = None,
    sigmoid: bool = False,
    ignore_index: int | None = None,
    patient_pattern: str | None = None,
    images: Path | None = None,
    validation: Path | None = None,
    workers: int | None = None,
) -> None:
    """Evaluate saved predictions of any model: segmentation, calibration, volumes and thresholds.

    `out` gets the files that `evaluate.yaml` writes, see `calib_components.handlers.EvaluationWriter`, but for those of
    logits, and one page, `report/index.html`. HD95 is in millimetres, volumes in millilitres; bands are two voxels
    wide. Predictions that are label maps give the segmentation part only. The same command continues after an
    interruption: cases that are measured, of files that have not changed since, are kept. Of predictions that
    `calibrate_predictions` has scaled, `temperature.json` beside them says by what, so that the plausible foreground
    has the same voxels as before. While a run writes to `out`, others are refused.

    Args:
        predictions: Folder of probabilities or label maps, see `calib_components.tools.evaluate.formats`.
        labels: Folder of label maps, NIfTI files of the same names; `_gt`, `_seg` or `_label` may follow.
        out: Folder of the results.
        structures: Label codes of the structures, such as `liver=1,tumour=2`, or `WT=1+2+4` of several codes. Default:
            class1, class2 and so on.
        sigmoid: Whether each channel is one of these structures, in this order, with a sigmoid of its own.
        ignore_index: Label code of voxels to leave out.
        patient_pattern: Regular expression for the part of a case's name that names the patient, such as
            `patient[0-9]+`. Default: each case is a patient.
        images: Folder of the images, for the pictures. Default: pictures without them.
        validation: Folder of an evaluation of other cases, on which the page chooses thresholds. Default: the page
            chooses none.
        workers: Number of processes, each with a case in memory. Default: one per core, at most 8.

    Raises:
        InputError: A file or option is unsuitable, files do not belong together, or results cannot be written.
    """
    workers = check_workers(workers)
    cases = find_cases(predictions, labels)
    classes = classes_of(cases, structures, sigmoid, ignore_index)
    patients = patients_of([case.name for case in cases], patient_pattern)
    pictured = {} if images is None else _find_images(images, cases)
    if predictions.resolve() == labels.resolve():
        raise InputError(f"labels: expected a folder of its own, got that of the predictions, {labels}")
    _check_folder(out, predictions, labels, *([images] if images else []))
    if validation is not None:
        _check_validation(validation, out, classes, cases[0].channels)
    temperature = temperature_of(predictions, [case.prediction for case in cases])
    metrics = _metrics(classes, cases[0].channels > 0, temperature)
    images_of_cases = [pictured.get(case.name) for case in cases]
    stamps = [_stamp(case, classes, temperature, image) for case, image in zip(cases, images_of_cases, strict=True)]
    order, measured = [case.name for case in cases], out / MEASURED
    check_evaluation(out, metrics, classes.structures)
    with only_run(out):
        make_folder(measured)
        measure = functools.partial(_measure, classes=classes, temperature=temperature, folder=measured)
        _measure_missing(list(zip(cases, stamps, images_of_cases, strict=True)), measure, measured, workers)
        notes = _gather(order, metrics, measured)
        if not any(noted["voxels"] for noted in notes):
            raise InputError(
                f"--ignore_index: expected voxels with other codes, got {ignore_index} in every voxel of all "
                f"{len(cases)} label(s)"
            )
        _, _, true = metrics["dsc"].gathered()
        warn(notes, cases, classes, true.sum(0), predictions, labels)
        slices = functools.partial(read_slice, measured)
        of_cases = [patients[name] for name in order]
        names = list(classes.names)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph .* missing from")  # figures show a box for each
            write_evaluation(
                out, order, metrics, classes.structures, names, slices, of_cases, unit="mm", volume_unit="ml"
            )
            (out / REPORT / PAGE).unlink(missing_ok=True)  # no page of other tables
            report_evaluations([out], out / REPORT, validation)
        shutil.rmtree(measured)


def _measure_missing(
    stamped: Sequence[tuple[Case, str, Path | None]], measure: Callable[[Any], None], folder: Path, workers: int
) -> None:
    """Measure the cases that were not measured before."""
    missing = [item for item in stamped if not _is_measured(folder, item[0].name, item[1])]
    if len(missing) < len(stamped):
        print(f"{len(stamped) - len(missing)} of {len(stamped)} cases measured before")
    with parallel(measure, missing, workers, "evaluate", ["calib_components.tools.evaluate"]) as results:
        for _ in results:
            pass


def _gather(cases: Sequence[str], metrics: Mapping[str, CaseMetric], folder: Path) -> list[dict[str, Any]]:
    """Give what was measured to the metrics, and return what was noted of each case."""
    notes = []
    for case in cases:
        content = read_record(folder, case)
        for name, metric in metrics.items():
            metric.extend(*content["stored"][name])
        notes.append(content["notes"])
    return notes


def _metrics(
    classes: Classes,
    has_probabilities: bool,
    temperature: float | None,
    spacing: Sequence[float] | None = None,
    lowest: float = 0.0,
    highest: float = 1.0,
) -> dict[str, CaseMetric]:
    """What is measured of each case, by name."""
    metrics: dict[str, CaseMetric] = {
        "dsc": DSCMetric(include_background=True),
        "hd95": HD95Metric(include_background=True, spacing=spacing),
    }
    if not has_probabilities:
        return metrics
    ignore, sigmoid = classes.ignore_index, classes.sigmoid
    return metrics | {
        "ece": CalibrationMetric(
            region="foreground",
            ignore_index=ignore,
            sigmoid=sigmoid,
            regions=REGIONS,
            structures=None if sigmoid else classes.structures,
            temperature=temperature,
            draws=DRAWS,
            lowest=lowest,
            highest=highest,
        ),
        "smooth_ece": SmoothECEMetric(ignore_index=ignore, sigmoid=sigmoid, regions=["all", "predicted"]),
        "volume": VolumeMetric(classes.structures, ignore, sigmoid),
        "expected_dsc": ExpectedDSCMetric(classes.structures, ignore, sigmoid),
        "thresholds": ThresholdMetric(classes.structures, ignore, sigmoid),
        "selective": RiskCoverageMetric(ignore_index=ignore, sigmoid=sigmoid),
    }


def _measure(item: tuple[Case, str, Path | None], classes: Classes, temperature: float | None, folder: Path) -> None:
    """Measure a case, and write what the metrics store of it."""
    case, stamp, image = item
    saved = read_case(case, classes)
    predicted, true = _masks(saved, classes)
    stored: dict[str, list[torch.Tensor]] = {}
    has_probabilities = saved.probabilities is not None
    metrics = _metrics(classes, has_probabilities, temperature, saved.spacing, saved.lowest, saved.highest)
    for name, metric in metrics.items():
        y_pred, y = predicted, true
        if saved.probabilities is not None and name not in ("dsc", "hd95"):
            y_pred, y = saved.probabilities, saved.label
        options = {"voxel_volume": abs(np.linalg.det(saved.affine[:3, :3])) / CUBIC_MM} if name == "volume" else {}
        with reading(case.prediction.files[0], "a prediction that can be measured"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "y_pred: expected probabilities, got only 0 and 1")  # see `_warn_of_hard`
            measured = metric.measure(y_pred[None], y[None], **options)
        stored[name] = [measured] if isinstance(measured, torch.Tensor) else measured
    drawn = _draw(saved, classes, image, case.label, predicted, true)
    write_record(folder, case.name, stored, drawn, stamp=stamp, notes=note(case, saved, classes))


def _masks(saved: Saved, classes: Classes) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of the structures in the prediction and in the label, `(S, *S)`, without voxels to leave out."""
    of_structures = list(classes.structures.values())
    not_ignored = torch.tensor(True) if classes.ignore_index is None else (saved.label != classes.ignore_index).all(0)
    if classes.sigmoid and saved.probabilities is not None:
        order = [channel for channel, *_ in of_structures]
        return (saved.probabilities[order] > 0.5) & not_ignored, (saved.label[order] == 1) & not_ignored
    predicted, true = (structure_masks(of, of_structures) for of in (saved.prediction[None], saved.label))
    return predicted & not_ignored, true & not_ignored


def _draw(
    saved: Saved, classes: Classes, image: Path | None, label_file: Path, predicted: torch.Tensor, true: torch.Tensor
) -> DrawnSlice:
    """Keep the slice with the most foreground, from masks `(S, *S)` of the structures."""
    grey = None if image is None else _read_image(image, saved, label_file)
    label = saved.label
    if classes.ignore_index is not None:
        label = label.masked_fill(label == classes.ignore_index, 0)
    label = torch.from_numpy(paint(label.numpy() == 1, classes)) if classes.sigmoid else label[0]
    index = largest_slice(saved.prediction, label)
    uncertainty = None
    if saved.probabilities is not None:
        p = saved.probabilities[..., index]
        of_channels = [normalized_entropy(torch.stack([1 - q, q]))[0] for q in p] if classes.sigmoid else []
        uncertainty = torch.stack(of_channels).amax(0) if classes.sigmoid else normalized_entropy(p)[0]
    return draw_slice(
        None if grey is None else grey[..., index],
        saved.prediction[..., index],
        label[..., index],
        uncertainty,
        {name: (predicted[i, ..., index], true[i, ..., index]) for i, name in enumerate(classes.structures)},
    )


def _read_image(file: Path, saved: Saved, label_file: Path) -> torch.Tensor:
    image = open_nifti(file)
    shape = tuple(saved.prediction.shape)
    if image.shape[:3] != shape or grid_distance(image.affine, saved.affine, shape):
        raise InputError(f"{file}: expected the voxels of {label_file}, {shape}, got others, {image.shape}")
    return torch.from_numpy(read_values(image, file).reshape(*shape, -1)[..., 0].copy())


def _is_measured(folder: Path, case: str, stamp: str) -> bool:
    """Whether a case was measured before, in the same way and from the same files."""
    if not record_file(folder, case).is_file():
        return False
    try:
        return read_record(folder, case)["stamp"] == stamp
    except InputError:  # measured again
        return False


def _stamp(case: Case, classes: Classes, temperature: float | None, image: Path | None) -> str:
    """Say what a case is measured from, and how."""
    files = [*case.prediction.files, case.label, *case.prediction.grids, *([image] if image else [])]
    states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return json.dumps([__version__, RECORD, case.prediction.kind, repr(classes), temperature, states])


def _find_images(folder: Path, cases: Sequence[Case]) -> dict[str, Path]:
    """Find the image of each case: NAME, or NAME_0000 as nnU-Net calls the first channel."""
    files: dict[str, Path] = {}
    for image in find_images(folder):
        if image.name in files:
            raise InputError(
                f"{image.files[0]}: expected one image of this name in {folder}, got another, {files[image.name]}"
            )
        files[image.name] = image.files[0]
    found = {}
    for name in (case.name for case in cases):
        file = files.get(name, files.get(f"{name}_0000"))
        if file is None:
            raise InputError(
                f"{folder}: expected an image for each case, called NAME or NAME_0000, got none for {name}"
            )
        found[name] = file
    return found


def _check_folder(out: Path, *inputs: Path) -> None:
    """Check that results can be written, and that neither inputs nor other files are in their places."""
    target = out.resolve()
    for source in (folder.resolve() for folder in inputs):
        if target == source:
            raise InputError(f"--out: expected a folder of its own for the results, got {out}, which holds the inputs")
        if target in source.parents and (name := source.relative_to(target).parts[0]) in (CASES, REPORT, MEASURED):
            raise InputError(f"--out: expected no inputs where results go, got {out}, whose folder {name} holds them")
    check_writable("--out", out)
    check_report_folder(out / REPORT)


def _check_validation(validation: Path, out: Path, classes: Classes, channels: int) -> None:
    if channels == 0:
        raise InputError("--validation: expected predictions with probabilities to choose thresholds, got label maps")
    if validation.resolve() == out.resolve():
        raise InputError(f"--validation: expected the evaluation of other cases, got the folder of --out, {out}")
    read_validation(validation, list(classes.structures), channels_text(len(classes.names), classes.sigmoid))
