"""Reader of a report: evaluation folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.core.groupby import DataFrameGroupBy

from calib_components.errors import InputError, printable, reading
from calib_components.handlers.evaluation_files import Evaluation
from calib_components.tools.report.data import Results, derive
from calib_components.tools.report.statistics import Array

TOLERANCE = 2e-6  # of volumes, relative
MAX_NAMED = 6  # columns and cases that a notice names
LEFT_OUT = "{kind} that not all have are left out: {names}."
CASES_ARE_PATIENTS = (
    "Each case counts as a patient. If some are of the same patient, intervals are too narrow."
)
ONLY_NAMES = (
    "Only names of cases were compared: label maps do not tell whether ground truths are the same."
)


def read_evaluations(folders: Sequence[Path]) -> Results:
    """Read evaluations, as far as they have cases and columns in common.

    Raises:
        InputError: A file is missing or broken, evaluations have other units, structures, kinds of
            probabilities or ground truths, or no case is in all of them.
    """
    labels = {label.replace("/", "_"): label for label in name_folders(folders)}
    folder_by_name = dict(zip(labels, folders, strict=True))
    evaluations = {name: Evaluation.read(folder) for name, folder in folder_by_name.items()}
    about = _common_properties(folder_by_name, evaluations, labels)
    tables = {name: case_table(evaluation) for name, evaluation in evaluations.items()}
    cases, columns = _in_all([t.index for t in tables.values()]), _in_all([*tables.values()])
    if not cases:
        raise InputError(f"No case is in all of {', '.join(labels.values())}: their names differ.")
    notices = [
        *_left_out("Cases", [table.index for table in tables.values()], cases),
        *_left_out("Columns", [*tables.values()], columns),
    ]
    tables = {name: table.loc[cases, columns] for name, table in tables.items()}
    _check_same_truth(tables)
    patients, structures = _patients(tables, labels), _structures(columns)
    return Results(
        cases={name: derive(table, structures) for name, table in tables.items()},
        bins=_common_bins(evaluations, cases),
        patients=patients,
        labels=labels,
        structures=structures,
        unit=about["unit"],
        volume_unit=about["volume_unit"],
        notices=[*notices, *_what_is_unknown(patients, tables)],
        folders=folder_by_name,
        evaluations=evaluations,
    )


def _what_is_unknown(patients: pd.Series, tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return notices of patients and ground truths that the files do not tell apart."""
    notices = []
    if (patients == patients.index).all():
        notices.append(CASES_ARE_PATIENTS)
    first, *others = tables.values()
    if others and first.filter(regex="^true_volume_").empty:
        notices.append(ONLY_NAMES)
    return notices


def case_table(evaluation: Evaluation) -> pd.DataFrame:
    """Return the measures of each case, its patient, and numbers of missed and spurious structures."""
    table, summary = evaluation.cases.set_index("case"), evaluation.summary
    if table.index.has_duplicates:
        name = printable(table.index[table.index.duplicated()][0])
        raise InputError(f"cases.csv: case {name} is twice in one evaluation.")
    further = {"patient": table.index.map(dict(summary["patients"]))}
    for kind in ("missed", "spurious"):
        counts = Counter(entry["case"] for entry in summary[kind])
        further[kind] = table.index.map(counts)
    return table.assign(**further)


def case_bins(evaluation: Evaluation) -> dict[str, Array]:
    """Return the bins of each case, `(3, cases, bins)`, of the regions that have them."""
    bins = {}
    for region, kinds in evaluation.regions.items():
        if case_sums := kinds.get("top_label_per_case"):
            sums = (case_sums.count, case_sums.confidence_sum, case_sums.num_correct)
            bins[region] = np.stack([part.double().numpy() for part in sums])
    return bins


def common_properties(folder: Path, evaluation: Evaluation) -> dict[str, str]:
    """Return what evaluations must have in common to be compared; empty if it does not matter."""
    summary, channels = evaluation.summary, ""
    with reading(folder / "summary.json", "the summary of an evaluation"):
        units = {name: summary[name] for name in ("unit", "volume_unit")}
        if evaluation.regions:
            kind = "{} sigmoid(s)" if summary.get("sigmoid") else "a softmax over {} classes"
            channels = kind.format(summary["channels"])
    return {
        **units,
        "channels": channels,
        "structures": ", ".join(sorted(_structures(evaluation.cases))),
    }


def _structures(columns: Iterable[str]) -> list[str]:
    return [name.removeprefix("dsc_") for name in columns if name.startswith("dsc_")]


def name_folders(folders: Sequence[Path]) -> list[str]:
    """Return what tells the folders apart: the last parts of their paths, as few as suffice."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        labels = [printable("/".join(folder_parts[-count:])) for folder_parts in parts]
        if len({label.replace("/", "_") for label in labels}) == len(labels):
            return labels
    raise InputError(f"A folder is given twice: {', '.join(map(str, folders))}.")


def _common_properties(
    folders: Mapping[str, Path],
    evaluations: Mapping[str, Evaluation],
    labels: Mapping[str, str],
) -> dict[str, str]:
    common: dict[str, str] = {}
    first = next(iter(labels.values()))
    for name, evaluation in evaluations.items():
        for key, here in common_properties(folders[name], evaluation).items():
            if here and (there := common.setdefault(key, here)) != here:
                raise InputError(
                    f"{labels[name]}: {key} is {here}, that of {first} is {there}. They cannot be"
                    " compared."
                )
    return common


def _in_all(lists: Sequence[Iterable[str]]) -> list[str]:
    """Return the names that are in all lists, in the order of the first."""
    first, *others = ([*names] for names in lists)
    return [name for name in first if all(name in other for other in others)]


def _left_out(kind: str, lists: Iterable[Iterable[str]], kept: Sequence[str]) -> list[str]:
    """Return a notice of what not all evaluations have."""
    names = [*dict.fromkeys(name for names in lists for name in names if name not in kept)]
    if not names:
        return []
    shown = ", ".join(map(printable, names[:MAX_NAMED]))
    if len(names) > MAX_NAMED:
        shown = f"{shown} and {len(names) - MAX_NAMED} more"
    return [LEFT_OUT.format(kind=kind, names=shown)]


def _patients(tables: Mapping[str, pd.DataFrame], labels: Mapping[str, str]) -> pd.Series:
    """Return the patient of each case; an evaluation in which a case is its own does not know."""
    recorded = pd.DataFrame({name: table["patient"] for name, table in tables.items()})
    known = recorded.where(recorded.ne(recorded.index.to_series(), axis=0))
    differing = known.nunique(axis=1) > 1
    if differing.any():
        raise InputError(
            f"Case {printable(differing.idxmax())} is of different patients in"
            f" {', '.join(labels.values())}."
        )
    patients = known.bfill(axis=1).iloc[:, 0]
    return patients.fillna(patients.index.to_series()).rename("patient")


def _check_same_truth(tables: Mapping[str, pd.DataFrame]) -> None:
    """Raise `InputError` if volumes of the ground truth differ."""
    volumes = pd.concat([table.filter(regex="^true_volume_") for table in tables.values()])
    check_volumes(volumes.groupby(level=0))


def check_volumes(by_case: DataFrameGroupBy) -> None:
    """Raise `InputError` unless the true volumes of a case are the same in all evaluations."""
    largest = by_case.max()
    differs = ((largest - by_case.min()) > TOLERANCE * largest).any(axis=1)
    if differs.any():
        raise InputError(
            f"Case {printable(differs.idxmax())}: the ground truth differs between evaluations in"
            " its volumes or voxels. Evaluate all on the same labels and grid."
        )


def _common_bins(
    evaluations: Mapping[str, Evaluation], cases: Sequence[str]
) -> dict[str, dict[str, Array]]:
    """Return the bins of the regions that all evaluations have, of these cases."""
    bins = {name: case_bins(evaluation) for name, evaluation in evaluations.items()}
    regions = _in_all([*bins.values()])
    common: dict[str, dict[str, Array]] = {}
    for name, evaluation in evaluations.items():
        places = pd.Index(evaluation.cases["case"]).get_indexer(cases)
        common[name] = {region: bins[name][region][:, places] for region in regions}
    return common
