"""Evaluation of saved predictions of any model against label maps."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from nibabel.orientations import apply_orientation

from calib_components.data.nifti import Grid, check_same_grid, open_nifti, read_values
from calib_components.errors import InputError, check_output, make_folder, printable, reading
from calib_components.handlers.evaluation import EvaluationRecords, record_case, write_evaluation
from calib_components.handlers.evaluation_files import Evaluation, check_output_dir
from calib_components.inference.images import find_images, shard_of
from calib_components.quality import (
    Reference,
    ScanEstimates,
    describe_scan,
    draw_slice,
    write_record,
    write_table,
)
from calib_components.quality.table import FOLDER, LOCK, choose
from calib_components.tools.cli import patients_of
from calib_components.tools.evaluate.calibrate import estimate_of
from calib_components.tools.evaluate.classes import IGNORED, Classes, paint
from calib_components.tools.evaluate.notes import check_notes, note
from calib_components.tools.evaluate.pairs import Case, classes_of, find_cases, read_case, turn_of
from calib_components.tools.parallel import map_cases
from calib_components.tools.report.quality import reference_of
from calib_components.tools.report.report import report_folders
from calib_components.tools.report.thresholds import check_apart

REPORT = "report"  # folder of the page inside the output folder


def evaluate_predictions(
    predictions: Path,
    labels: Path | None = None,
    out: Path = Path("evaluation"),
    *,
    structures: Sequence[str] | None = None,
    sigmoid: bool = False,
    ignore_index: int | None = None,
    patient_pattern: str | None = None,
    images: Path | None = None,
    validation: Path | None = None,
    review: str = "20%",
    review_below: float | None = None,
    workers: int | None = None,
    shard: str | None = None,
    skip_existing: bool = False,
    overwrite: bool = False,
) -> None:
    """Evaluate saved predictions of any model: segmentation, calibration, volumes and thresholds.

    `out` gets the files that `evaluate.yaml` writes, see
    `calib_components.handlers.EvaluationWriter`, except those of logits, and one page,
    `report/index.html`. HD95 is in millimetres, volumes in millilitres; bands are two voxels wide.
    Predictions that are label maps give the segmentation part only. Of predictions that
    `calibrate_predictions` has scaled, `temperature.json` beside them says by what, so that the
    plausible foreground has the same voxels as before.

    Without labels, `out` gets `quality.csv` and `quality.html`: what the probabilities say of the
        quality of each
    prediction, the worst first.

    Args:
        predictions: Folder of probabilities or label maps, see
            `calib_components.tools.evaluate.formats`.
        labels: Folder of label maps, NIfTI files of the same names; `_gt`, `_seg` or `_label` may
            follow. Default: the predictions have no labels.
        out: Folder of the results.
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
        workers: Number of processes, each with a case in memory. Default: one per core, at most 8.
        shard: Measure one of several shares of the cases, such as 2/8 in the second of eight jobs.
            The job that measures the last case writes the files.
        skip_existing: Keep what an evaluation that was interrupted has measured, of files that have
            not changed since.
        overwrite: Whether `out` may hold other files.

    Raises:
        InputError: A file or option is unsuitable, files do not belong together, or results cannot
            be written.
    """
    cases = find_cases(predictions, labels)
    names = [case.name for case in cases]
    classes = classes_of(cases, structures, sigmoid, ignore_index)
    patients = patients_of(names, patient_pattern)
    pictured = {} if images is None else _find_images(images, names)
    if out.resolve() in [
        source.resolve() for source in (predictions, labels, images) if source is not None
    ]:
        raise InputError(f"--out: {out} holds files to read. Give another folder.")
    reference = Reference.from_tensor(torch.empty(0), [*classes.structures])
    if validation is not None:
        if cases[0].channels == 0:
            raise InputError(
                "--validation chooses thresholds of probabilities, and the predictions are label"
                " maps."
            )
        fitted = Evaluation.read(validation)
        if (others := fitted.structures) != [*classes.structures]:
            raise InputError(
                f"--validation: {validation} has the structures {others}, not"
                f" {[*classes.structures]}."
            )
        tested = [{"case": case, "patient": patient} for case, patient in patients.items()]
        check_apart(tested, fitted.items(patient_pattern), validation)
        reference = reference_of(fitted, patient_pattern)
    if labels is None:
        choose([], review, review_below)
        check_output(out, LOCK, overwrite=overwrite)
        make_folder(out / FOLDER)
        (out / LOCK).touch()
        estimate = functools.partial(
            _estimate, out=out, classes=classes, reference=reference, images=pictured
        )
        map_cases(estimate, shard_of(cases, shard), workers, "estimate")
        for file in (out / FOLDER).glob("*.json") if shard is None else ():
            if file.stem not in patients:  # of an earlier run
                file.unlink()
        print(printable(write_table(out, review, review_below)))
        return
    estimate = estimate_of(predictions, [case.prediction for case in cases])
    temperature = getattr(estimate, "temperature", None)  # other calibrators have none
    items = []
    for case in cases:
        files = [*case.prediction.files, *case.prediction.grids, case.label]
        item = {"case": case.name, "patient": patients[case.name], "files": files}
        items.append({**item, "image": pictured.get(case.name, [])})
    records = EvaluationRecords(out, items, repr((classes, estimate)), files=["files", "image"])
    check_output(
        out, records.folder.name if records.folder.exists() else "cases.csv", overwrite=overwrite
    )
    if not overwrite:
        check_output_dir(out)
    chosen = {item["case"] for item in records.to_measure(shard, skip_existing)}
    measure = functools.partial(
        _measure, records=records, classes=classes, temperature=temperature, images=pictured
    )
    map_cases(measure, [case for case in cases if case.name in chosen], workers, "evaluate")
    check = functools.partial(check_notes, classes=classes, predictions=predictions, labels=labels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")  # figures show a box for each
        if write_evaluation(records, [*classes.structures], classes.names, "mm", "ml", check):
            report_folders(out, out=out / REPORT, validation=validation)


def _measure(
    case: Case,
    records: EvaluationRecords,
    classes: Classes,
    temperature: float | None,
    images: Mapping[str, Path],
) -> None:
    saved = read_case(case, classes, temperature)
    grey = None if case.name not in images else _read_image(images[case.name], case.label)
    label = saved.label.numpy()
    painted = (
        paint(label == 1, classes)
        if classes.sigmoid
        else np.where(label[0] == IGNORED, 0, label[0])
    )
    with reading(case.prediction.files[0], "a prediction that can be measured"):
        record = record_case(saved, saved.prediction, torch.from_numpy(painted), grey)
    records.write(case.name, {**record, "notes": note(case, saved, classes)})


def _estimate(
    case: Case, out: Path, classes: Classes, reference: Reference, images: Mapping[str, Path]
) -> None:
    """Write the quality of a prediction without a label; where it has an image, on the grid of
    that.
    """
    header, file = case.prediction.header(), images.get(case.name)
    values, affine, grey = (
        case.prediction.probabilities(classes.sigmoid, classes.skip).values,
        header.affine,
        None,
    )
    if values[not classes.sigmoid :].any() and not ((values > 0) & (values < 1)).any():
        name = case.prediction.files[0]
        raise InputError(
            f"{name}: all values are 0 or 1, as those of a label map. Save probabilities."
        )
    if file is not None:
        image = open_nifti(file)
        if (
            turn := turn_of(header, case.label, Grid(image.affine, image.shape[:3], file))
        ) is not None:
            values = np.stack([apply_orientation(channel, turn) for channel in values])
        affine, grey = image.affine, read_values(image, file).reshape(*image.shape[:3], -1)[..., 0]
    p, scan = (
        torch.from_numpy(values).permute(0, 3, 2, 1),
        ScanEstimates(classes.structures, classes.sigmoid),
    )
    scan.update(p)
    shown, index = p[:, scan.most_uncertain_slice], scan.most_uncertain_slice
    drawn = (
        (shown.amax(0) if classes.sigmoid else 1 - shown[0]) if grey is None else grey[..., index].T
    )
    picture = draw_slice(
        drawn, torch.stack(scan.masks(shown)), np.eye(4) if affine is None else affine
    )
    write_record(describe_scan(case.name, scan.compute(), reference, affine, picture), out)


def _read_image(file: Path, label_file: Path) -> torch.Tensor:
    check_same_grid(file, label_file)
    image = open_nifti(file)
    return torch.from_numpy(read_values(image, file).reshape(*image.shape[:3], -1)[..., 0].copy())


def _find_images(folder: Path, cases: Sequence[str]) -> dict[str, Path]:
    """Find the images in a folder, which has that of each case: NAME, or NAME_0000, nnU-Net's first
    channel.
    """
    files = {image.name: image.files[0] for image in find_images(folder)}
    files = {name.removesuffix("_0000"): file for name, file in files.items()} | files
    if missing := [name for name in cases if name not in files]:
        raise InputError(f"{folder}: no image is called {missing[0]} or {missing[0]}_0000.")
    return files
