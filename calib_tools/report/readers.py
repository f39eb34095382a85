"""Reader of a report: evaluation folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from calib_components.errors import InputError, printable
from calib_components.metrics import CalibrationBins
from calib_tools.report.data import Results, derive
from calib_workflows.evaluation_files import PER_CASE, Evaluation

TOLERANCE = 2e-6  # of volumes, relative
MAX_NAMED = 6  # cases that a notice names
UNMEASURED = "{name}: {number} cases could not be measured and are left out. {flaws}"
LEFT_OUT = "{number} cases that not all have are left out, such as {names}."
CASES_ARE_PATIENTS = (
    "Each case counts as a patient. If some are of the same patient, intervals are too narrow."
)


def read_evaluations(folders: Sequence[Path]) -> Results:
    """Read evaluations, as far as they have cases in common.

    Raises:
        InputError: A file is missing or broken, evaluations have other units, structures, kinds of
            probabilities or ground truths, or no case is in all of them.
    """
    names = name_folders(folders)
    evaluations = {
        name: Evaluation.read(folder) for name, folder in zip(names, folders, strict=True)
    }
    _check_comparable(evaluations)
    tables = {name: case_table(evaluation) for name, evaluation in evaluations.items()}
    together = pd.concat(tables.values())
    counts = together.groupby(level="case", sort=False).size()
    is_common = counts == len(tables)
    cases, others = counts.index[is_common], counts.index[~is_common]
    if cases.empty:
        raise InputError(f"No case is in all of {', '.join(names)}: their names differ.")
    notices = []
    if len(others):
        shown = ", ".join(map(printable, others[:MAX_NAMED]))
        notices.append(LEFT_OUT.format(number=len(others), names=shown))
    for name, evaluation in evaluations.items():
        if flaws := evaluation.summary.get("left_out"):
            notices.append(UNMEASURED.format(name=name, number=len(flaws), flaws=" ".join(flaws)))
    check_volumes(together.filter(regex="^true_volume_"))
    patients = _patients_of(together["patient"]).loc[cases]
    if (patients == patients.index).all():
        notices.append(CASES_ARE_PATIENTS)
    first = evaluations[names[0]]
    return Results(
        cases={name: derive(table.loc[cases], first.structures) for name, table in tables.items()},
        bins={name: case_bins(each, cases) for name, each in evaluations.items()},
        patients=patients,
        labels={name: name for name in names},
        structures=first.structures,
        unit=first.summary["unit"],
        volume_unit=first.summary["volume_unit"],
        notices=notices,
        folders=dict(zip(names, folders, strict=True)),
        evaluations=evaluations,
    )


def case_table(evaluation: Evaluation) -> pd.DataFrame:
    """Return the measures of each case, its patient, and numbers of missed and spurious
    structures.
    """
    table, summary = evaluation.cases.set_index("case"), evaluation.summary
    further = {"patient": table.index.map(dict(summary["patients"]))}
    for kind in ("missed", "spurious"):
        counts = Counter(entry["case"] for entry in summary[kind])
        further[kind] = table.index.map(counts)
    return table.assign(**further)


def case_bins(
    evaluation: Evaluation, cases: Sequence[str] | pd.Index
) -> dict[str, CalibrationBins]:
    """Return the bins of some cases, `(cases, bins)`, of the regions that have them."""
    places = pd.Index(evaluation.cases["case"]).get_indexer(cases)
    return {
        region: CalibrationBins(*(sums[places] for sums in vars(kinds[PER_CASE]).values()))
        for region, kinds in evaluation.regions.items()
        if PER_CASE in kinds
    }


def describe_measures(evaluation: Evaluation) -> dict[str, str]:
    """Return the units of an evaluation, and its kind of probabilities, "" for label maps."""
    summary, channels = evaluation.summary, ""
    if evaluation.regions:
        kind = "{} sigmoid(s)" if summary.get("sigmoid") else "a softmax over {} classes"
        channels = kind.format(len(evaluation.class_names))
    units = {name: summary[name] for name in ("unit", "volume_unit")}
    return {**units, "channels": channels}


def name_folders(folders: Sequence[Path]) -> list[str]:
    """Return the paths of the folders below the folder that they have in common."""
    paths = [folder.resolve() for folder in folders]
    common = os.path.commonpath([path.parent for path in paths])
    names = [printable(path.relative_to(common).as_posix()) for path in paths]
    if len({*names}) < len(names):
        raise InputError(f"A folder is given twice: {', '.join(map(str, folders))}.")
    return names


def _check_comparable(evaluations: Mapping[str, Evaluation]) -> None:
    """Raise `InputError` if evaluations differ in what they must have in common."""
    properties = [
        {**describe_measures(each), "structures": ", ".join(sorted(each.structures))}
        for each in evaluations.values()
    ]
    for key in properties[0]:
        values = dict.fromkeys(each[key] for each in properties if each[key])
        if len(values) > 1:
            raise InputError(
                f"{', '.join(evaluations)}: their {key} differ: {'; '.join(values)}. They cannot be"
                " compared."
            )


def _patients_of(recorded: pd.Series) -> pd.Series:
    """Return the patient of each case from what evaluations recorded, by case; where a case is its
    own patient, an evaluation does not know.
    """
    cases = recorded.index.unique()
    known = recorded[recorded != recorded.index].groupby(level="case")
    differing = known.nunique() > 1
    if differing.any():
        raise InputError(
            f"Case {printable(differing.idxmax())} is of different patients in these evaluations."
        )
    return known.first().reindex(cases).fillna(cases.to_series()).rename("patient")


def check_volumes(volumes: pd.DataFrame) -> None:
    """Raise `InputError` unless the true volumes of a case are the same in all evaluations.

    `volumes` has the name of a case in its index, and one row for each evaluation of it.
    """
    by_case = volumes.groupby(level="case")
    largest = by_case.max()
    differs = ((largest - by_case.min()) > TOLERANCE * largest).any(axis=1)
    if differs.any():
        raise InputError(
            f"Case {printable(differs.idxmax())}: the ground truth differs between evaluations in"
            " its volumes or voxels. Evaluate all on the same labels and grid."
        )
