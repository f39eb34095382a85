"""The files of a finished cell, read and checked; and its history, which is collected from TensorBoard's files."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calib_components.data.facts import is_size
from calib_components.errors import InputError, reading, writing
from calib_components.handlers.evaluation_files import read_calibration, read_logits
from calib_components.handlers.temperature import read_temperature
from calib_components.metrics import CalibrationBins
from calib_components.posthoc import TemperatureEstimate
from calib_components.tools.compare.cell_settings import (
    CellSettings,
    Condition,
    check_fields,
    is_count,
    is_name,
    is_texts,
    read_settings,
)
from calib_components.tools.report.evaluations import (
    check_last_line,
    outside,
    read_columns,
    read_missed,
    read_top_label,
)
from calib_components.tools.report.measured import Evaluation
from calib_components.tools.report.published import METRICS
from calib_components.tools.report.statistics import Array

__all__ = ["CellEvaluation", "FinishedCell", "collect_history", "read_cell", "write_history"]


def collect_history(work: Path) -> list[list[Any]]:
    """Collect the history of a training from TensorBoard's files: a header, and a row for each epoch.

    The columns are the epoch, its seconds, and what was validated. A resumed training has several files; for an epoch
    in more than one of them, the latest counts.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows: dict[int, dict[str, Any]] = {}
    for path in sorted(work.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["scalars"]:
            before = events.FirstEventTimestamp()
            for event in events.Scalars(tag):
                seconds = round(event.wall_time - before, 2)
                rows.setdefault(event.step, {}).update({"seconds": seconds, tag: event.value})
                before = event.wall_time
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    return [["epoch", *columns], *([epoch, *(rows[epoch].get(c, "") for c in columns)] for epoch in sorted(rows))]


def write_history(rows: Sequence[Sequence[Any]], folder: Path) -> None:
    """Write `history.csv` from the rows of `collect_history`.

    Raises:
        InputError: It cannot be written.
    """
    with writing(folder / "history.csv") as unfinished, open(unfinished, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


@dataclass(frozen=True, eq=False)
class CellEvaluation(Evaluation):
    """A trained network evaluated under one condition.

    Attributes:
        bins: Bins of the predicted class in the metric's own region, pooled over cases, `(1, bins)`.
        class_names: Names of the N classes.
        magnitudes: Mean magnitude of the logits, `(N, N)`, by ground-truth class and channel; NaN where undefined.
    """

    bins: CalibrationBins
    class_names: list[str]
    magnitudes: Array


@dataclass(frozen=True, eq=False)
class FinishedCell:
    """A cell that was trained and evaluated.

    Attributes:
        folder: Folder that it was read from.
        settings: Its `settings.json`.
        history: The number (`epoch`), the `seconds` and, where it was validated, the `val_dsc` of each epoch.
        evaluations: What was measured under each condition.
        temperature: The fit of its temperature; None without one.
    """

    folder: Path
    settings: CellSettings
    history: list[dict[str, float]]
    evaluations: dict[Condition, CellEvaluation]
    temperature: TemperatureEstimate | None


def read_cell(folder: Path) -> FinishedCell:
    """Read a cell.

    Raises:
        InputError: A file is missing or broken, or one does not belong to the others.
    """
    settings, file = read_settings(folder), folder / "settings.json"
    if not settings.made_with:
        raise InputError(f"{file}: expected versions and device in made_with, got none")
    if (here := "/".join(folder.parts[-2:])) != settings.folder:
        raise InputError(f"{file}: expected the settings of {here}, got those of {settings.folder}")
    check_fields(settings.training, list(REPORTED), REPORTED, f"{file}: training")
    check_fields(settings.evaluation, ["split"], {"split": ("a name of one line", is_name)}, f"{file}: evaluation")
    check_last_line(folder / "history.csv")
    evaluations = {
        condition: _read_evaluation(folder / condition.folder, settings.patients_of(condition.test_set))
        for condition in settings.conditions
    }
    temperature = read_temperature(folder / Condition(scaled=True).folder) if settings.calibration else None
    return FinishedCell(folder, settings, _read_history(folder), evaluations, temperature)


def _read_evaluation(folder: Path, patients: dict[str, str]) -> CellEvaluation:
    cases, columns = read_columns(folder)
    _check_cases(cases, columns, patients, folder / "cases.csv")
    missed, spurious = read_missed(folder)
    bins = read_calibration(folder)["top_label"]
    regions = read_top_label(folder)
    if bins.count.ndim != 2 or bins.count.sum() < 1:
        raise InputError(f"{folder / 'calibration.json'}: expected bins of voxels in top_label, got none")
    names, magnitudes = read_logits(folder)
    if not is_texts(names) or outside(magnitudes, math.inf):
        raise InputError(
            f"{folder / 'logits.json'}: expected names and magnitudes of at least 0, got {names!r:.60} and "
            f"{magnitudes.tolist()!r:.60}"
        )
    return CellEvaluation(folder, patients, cases, columns, missed, spurious, regions, bins, names, magnitudes)


def _read_history(folder: Path) -> list[dict[str, float]]:
    with reading(folder / "history.csv", "a row for each epoch") as file:
        rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
        names = [name for name in ("epoch", "seconds", "val_dsc") if rows and name in rows[0]]
        history = [{name: float(row[name]) for name in names if row[name] != ""} for row in rows]
        if not rows:
            raise ValueError("no epoch in it")
        for row in history:
            if not (row["epoch"].is_integer() and 0 <= row["seconds"] < math.inf):
                raise ValueError(f"the epoch {row['epoch']} of {row['seconds']} seconds")
        return [{name: value for name, value in row.items() if not math.isnan(value)} for row in history]


REPORTED = {  # settings of the training that the report shows
    "max_epochs": ("a whole number", is_count),
    "batch_size": ("a whole number", is_count),
    "learning_rate": ("a number", lambda value: type(value) in (int, float)),
    "val_interval": ("a whole number", is_count),
    "image_size": ("two positive whole numbers", is_size),
    "crop_size": ("two positive whole numbers", is_size),
    "network_def": ("a component and its arguments", lambda value: isinstance(value, dict)),
}


def _check_cases(cases: list[str], columns: dict[str, Array], patients: dict[str, str], file: Path) -> None:
    if wrong := sorted({*cases} ^ {*patients}):
        there = "in" if wrong[0] in cases else "not in"
        raise InputError(f"{file}: expected the cases of settings.json, got {wrong[0]} {there} cases.csv alone")
    structures = [name.removeprefix("dsc_") for name in columns if name.startswith("dsc_")]
    required = [*(f"{metric}_{name}" for metric in ("dsc", "hd95") for name in structures or ["STRUCTURE"])]
    required += [name for name in METRICS if name not in ("dsc", "hd95")]
    if lacking := [name for name in required if name not in columns]:
        raise InputError(f"{file}: expected the columns {', '.join(required)}, got no {', '.join(lacking)}")
