"""Evaluation folders, read and brought to their common cases, whatever network they are of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calib_components.errors import InputError, printable, reading
from calib_components.handlers.evaluation_files import (
    read_cases,
    read_regions,
    read_risk_coverage,
    read_summary,
    read_thresholds,
)
from calib_components.metrics import CalibrationBins, ThresholdCounts
from calib_components.tools.report.measured import TOLERANCE, Comparison, Evaluation, Method, Run, same_cases
from calib_components.tools.report.statistics import Array
from calib_components.tools.report.tables import channels_text

__all__ = [
    "Evaluations",
    "FolderEvaluation",
    "check_last_line",
    "outside",
    "read_columns",
    "read_evaluation",
    "read_evaluations",
    "read_missed",
    "read_top_label",
    "shared_patients",
]

HIGHEST = {  # of each measure, with whatever follows its name; the lowest is 0
    **dict.fromkeys(("dsc", "ece", "cece", "smooth_ece", "expected_dsc", "aurc", "error_share_5"), 1),
    **dict.fromkeys(("hd95", "nll", "true_volume", "segmented_volume", "expected_volume"), math.inf),
    **dict.fromkeys(("volume_low", "volume_high"), math.inf),
    "brier": 2,
}
UNITS = {"unit": ("mm", "voxels"), "volume_unit": ("ml", "voxels")}
NAMED = 6  # columns and cases that a notice names; the rest is counted


@dataclass(frozen=True, eq=False)
class FolderEvaluation(Evaluation):
    """What an evaluation folder holds.

    Attributes:
        unit: Unit of HD95, "mm" or "voxels".
        volume_unit: Unit of volumes, "ml" or "voxels".
        channels: What probabilities are of, as text; empty where that is not known, and for label maps.
        threshold_structures: Names of the structures of `thresholds`.
        thresholds: Counts at each threshold; None where they were not kept, and for label maps.
        coverage: Shares of voxels that are kept, `(K,)`; empty where there is no risk.
        risk: Error rate among the most confident of these shares, `(cases, K)`.
    """

    unit: str
    volume_unit: str
    channels: str
    threshold_structures: list[str]
    thresholds: ThresholdCounts | None
    coverage: Array
    risk: Array


@dataclass(frozen=True, eq=False)
class FolderRun(Run):
    """The one evaluation of a folder."""

    evaluations: Sequence[FolderEvaluation]


@dataclass(frozen=True, eq=False)
class FolderMethod(Method):
    """A network, by its evaluation folder."""

    runs: Sequence[FolderRun]

    @property
    def evaluation(self) -> FolderEvaluation:
        """What its folder holds, of the common cases."""
        return self.runs[0].evaluations[0]


@dataclass(frozen=True, eq=False)
class Evaluations(Comparison):
    """Evaluation folders on their common cases.

    Attributes:
        methods: One for each folder.
        notices: What a reader should know before the numbers, such as cases that are left out.
        has_all_cases: Whether no folder has cases besides the common ones.
    """

    methods: Sequence[FolderMethod]
    notices: list[str]
    has_all_cases: bool


def read_evaluations(folders: Sequence[Path]) -> Evaluations:
    """Read evaluation folders and keep the cases and columns that all have.

    Args:
        folders: What `EvaluationWriter` or evaluate_predictions wrote. The last parts of their paths that tell them
            apart are their names.

    Raises:
        InputError: A file is missing or broken; folders have no case in common, or different structures, units,
            patients or true volumes.
    """
    labels = _labels(folders)
    read = [read_evaluation(folder) for folder in folders]
    first, *others = read
    for other in others:
        _check_comparable(other, first)
    common = [case for case in first.cases if all(case in other.patients for other in others)]
    if not common:
        raise InputError(f"{others[0].folder}: expected cases of {first.folder}, got none of the same name")
    for other in others:
        same = same_cases(other, first)
        if differing := [case for case in common if case not in same]:
            raise InputError(
                f"{other.folder}: expected the same ground truth as in {first.folder}, got another number of voxels or "
                f"other volumes of case {differing[0]}: another patient of this name, other labels, grid or part of it"
            )
    columns = [name for name in first.columns if all(name in other.columns for other in others)]
    regions = [name for name in first.regions if all(name in other.regions for other in others)]
    patients, notices = _patients(read, common)
    if others and not any(name.startswith("true_volume_") for other in others for name in other.columns):
        notices.append("Only names of cases were compared: label maps do not tell whether ground truths are the same.")
    for label, evaluation in zip(labels, read, strict=True):
        if left_out := [case for case in evaluation.cases if case not in patients]:
            notices.append(f"Cases that not all have, left out: {_listed(left_out)} of {label}.")
        if lacking := _lacking(evaluation, read):
            notices.append(f"{label} lacks what others have, which is not compared: {_listed(lacking)}.")
    methods = [
        FolderMethod(_file_name(label), label, [FolderRun([_restricted(evaluation, patients, columns, regions)])])
        for label, evaluation in zip(labels, read, strict=True)
    ]
    return Evaluations(methods, notices, all(len(evaluation.cases) == len(common) for evaluation in read))


def shared_patients(evaluation: FolderEvaluation, other: FolderEvaluation) -> set[str]:
    """Return the patients that two evaluations have in common by name, and whose cases do not say otherwise."""
    patients = {*evaluation.patients.values()} & {*other.patients.values()}
    if evaluation.volume_unit != other.volume_unit:  # volumes differ then, and so may grids
        return patients
    differing = ({*evaluation.cases} & {*other.cases}) - same_cases(evaluation, other)
    return patients - {evaluation.patients[case] for case in differing}


def read_evaluation(folder: Path) -> FolderEvaluation:
    """Read an evaluation folder.

    Raises:
        InputError: A file is missing or broken.
    """
    if not (folder / "cases.csv").exists():
        raise InputError(
            f"{folder}: expected an evaluation folder, or alone the results of compare_losses, got no cases.csv"
        )
    cases, columns = read_columns(folder)
    structures = [name.removeprefix("dsc_") for name in columns if name.startswith("dsc_")]
    required = [f"{metric}_{name}" for metric in ("dsc", "hd95") for name in structures or ["STRUCTURE"]]
    if lacking := [name for name in required if name not in columns]:
        raise InputError(f"{folder / 'cases.csv'}: expected the columns {', '.join(required)}, got no {lacking[0]}")
    missed, spurious = read_missed(folder)
    if unknown := {*missed, *spurious} - {*cases}:
        raise InputError(f"{folder / 'summary.json'}: expected cases of cases.csv, got {sorted(unknown)[0]!r:.60}")
    with reading(folder / "summary.json", "the summary of an evaluation"):
        summary = read_summary(folder)
        patients = summary["patients"]
        if not isinstance(patients, dict) or not all(isinstance(patients[case], str) for case in cases):
            raise TypeError("patients that are no names of the patient of each case")
        for name, known in UNITS.items():
            if summary[name] not in known:
                raise ValueError(f"the {name} {summary[name]!r:.60}")
        channels = _channels(summary)
    regions = read_top_label(folder) if "ece" in columns else {}
    names: list[str] = []
    thresholds, coverage, risk = None, np.empty(0), np.empty((len(cases), 0))
    if (folder / "thresholds.json").exists():
        names, thresholds = read_thresholds(folder)
        if names != structures:
            raise InputError(f"{folder / 'thresholds.json'}: expected the structures of cases.csv, got {names!r:.60}")
    if (folder / "risk_coverage.json").exists():
        coverage, risk = read_risk_coverage(folder)
    return FolderEvaluation(
        folder,
        {case: patients[case] for case in cases},
        cases,
        columns,
        missed,
        spurious,
        regions,
        summary["unit"],
        summary["volume_unit"],
        channels,
        names,
        thresholds,
        coverage,
        risk,
    )


def read_columns(folder: Path) -> tuple[list[str], dict[str, Array]]:
    """Read the names of the cases and the columns of `cases.csv`, and check that values are possible.

    Raises:
        InputError: The file is missing or broken, or a value is outside of its measure's range.
    """
    file = folder / "cases.csv"
    check_last_line(file)
    cases, columns = read_cases(folder)
    for name, values in columns.items():
        highest = next((HIGHEST[m] for m in HIGHEST if name == m or name.startswith(f"{m}_")), None)
        if highest is not None and (wrong := outside(values, highest)):
            upper = "" if highest == math.inf else f" and at most {highest}"
            raise InputError(f"{file}: expected {name} to be at least 0{upper}, got {wrong[0]}")
    return cases, columns


def outside(values: Array, highest: float) -> list[float]:
    """Return the values that are defined but not finite, below 0 or above `highest`."""
    inside = np.isnan(values) | ((values >= -TOLERANCE) & (values <= highest + TOLERANCE) & np.isfinite(values))
    return values[~inside].tolist()


def check_last_line(file: Path) -> None:
    """Raise `InputError` if the last line of a table is cut off: a number that is cut off is a number, too."""
    with reading(file, "a table") as table:
        if not table.read_bytes().endswith(b"\n"):
            raise ValueError("one without the end of its last line")


def read_missed(folder: Path) -> tuple[list[str], list[str]]:
    """Return the case of each missed and of each spurious structure from `summary.json`.

    Raises:
        InputError: The file is missing or broken.
    """
    summary = read_summary(folder)
    with reading(folder / "summary.json", "the summary of an evaluation"):
        missed, spurious = ([str(found["case"]) for found in summary[name]] for name in ("missed", "spurious"))
        return missed, spurious


def read_top_label(folder: Path) -> dict[str, CalibrationBins]:
    """Return the bins of the predicted class in each region, see `Evaluation`.

    Raises:
        InputError: The file is missing or broken.
    """
    file = folder / "calibration.json"
    with reading(file, "the bins of an evaluation"):
        regions = {
            name: kinds["top_label_per_case" if name in ("all", "predicted") else "top_label"]
            for name, kinds in read_regions(folder).items()
        }
    if any(bins.count.ndim != 2 for bins in regions.values()):
        raise InputError(f"{file}: expected bins of voxels in top_label, got none")
    return regions


def _channels(summary: Mapping[str, Any]) -> str:
    """Return what the probabilities are of, as text."""
    if "channels" not in summary:
        return ""
    channels, sigmoid = summary["channels"], summary["sigmoid"]
    if type(channels) is not int or type(sigmoid) is not bool:
        raise TypeError(f"{channels!r:.60} channels and the sigmoid {sigmoid!r:.60}")
    return channels_text(channels, sigmoid)


def _labels(folders: Sequence[Path]) -> list[str]:
    """Return what tells the folders apart: the last parts of their paths, as few as suffice."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        labels = [printable("/".join(of_folder[-count:])) for of_folder in parts]
        if len({_file_name(label) for label in labels}) == len(labels):
            return labels
    raise InputError(f"{folders[-1]}: expected each evaluation folder once, got {', '.join(map(str, folders))}")


def _file_name(label: str) -> str:
    return label.replace("/", "_")


def _check_comparable(other: FolderEvaluation, first: FolderEvaluation) -> None:
    """Check that two folders measured the same structures in the same units."""
    structures, expected = (
        [name.removeprefix("dsc_") for name in evaluation.columns if name.startswith("dsc_")]
        for evaluation in (other, first)
    )
    for what, here, there in (
        ("structures", ", ".join(structures), ", ".join(expected)),
        ("HD95", f"in {other.unit}", f"in {first.unit}"),
        ("volumes", f"in {other.volume_unit}", f"in {first.volume_unit}"),
        ("probabilities", other.channels or first.channels, first.channels or other.channels),
    ):
        if here != there and (what != "structures" or {*structures} != {*expected}):
            raise InputError(f"{other.folder}: expected the {what} of {first.folder}, {there}, got {here}")


def _patients(read: Sequence[FolderEvaluation], common: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the patient of each common case, from the folders that know them, and what to say of it."""
    known = [evaluation for evaluation in read if any(case != p for case, p in evaluation.patients.items())]
    first, *others = known or read[:1]
    for other in others:
        for case in common:
            if (here := other.patients[case]) != (there := first.patients[case]):
                raise InputError(
                    f"{other.folder}: expected case {case} to be of patient {there} as in {first.folder}, got {here}"
                )
    notices = []
    if not known:
        notices.append(
            "Each case counts as a patient of its own. If some are of the same patient, intervals are too narrow."
        )
    return {case: first.patients[case] for case in common}, notices


def _lacking(evaluation: FolderEvaluation, read: Sequence[FolderEvaluation]) -> list[str]:
    """Return the columns that another folder has; only one word for all of calibration in label maps."""
    names = dict.fromkeys(name for other in read for name in other.columns if name not in evaluation.columns)
    if "ece" in names:
        return ["all that needs probabilities"]
    here, everywhere = _parts(evaluation), dict.fromkeys(part for other in read for part in _parts(other))
    return [*names, *(part for part in everywhere if part not in here)]


def _parts(evaluation: FolderEvaluation) -> list[str]:
    """Return which sections an evaluation has, of those that no column tells of."""
    parts = {
        "reliability diagrams": len(evaluation.regions),
        "thresholds": evaluation.thresholds is not None,
        "risk over coverage": evaluation.risk.size,
    }
    return [name for name, has in parts.items() if has]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:NAMED])
    return shown + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _of_cases(bins: CalibrationBins, index: Sequence[int], cases: int) -> CalibrationBins:
    """Return the bins of some cases, if there are bins of each."""
    return CalibrationBins(*(field[index] for field in vars(bins).values())) if len(bins.count) == cases else bins


def _restricted(
    evaluation: FolderEvaluation, patients: Mapping[str, str], columns: Sequence[str], regions: Sequence[str]
) -> FolderEvaluation:
    """Return the evaluation of some of its cases in a given order, and some of its columns and regions."""
    index = [evaluation.cases.index(case) for case in patients]
    counts = evaluation.thresholds
    if counts is not None:
        fields = ("true_positive", "predicted", "true", "voxels")
        counts = replace(counts, **{name: getattr(counts, name)[index] for name in fields})
    return replace(
        evaluation,
        patients=dict(patients),
        cases=list(patients),
        columns={name: evaluation.columns[name][index] for name in columns},
        missed=[case for case in evaluation.missed if case in patients],
        spurious=[case for case in evaluation.spurious if case in patients],
        regions={name: _of_cases(evaluation.regions[name], index, len(evaluation.cases)) for name in regions},
        thresholds=counts,
        risk=evaluation.risk[index],
    )
