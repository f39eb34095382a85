"""Reader of a report: evaluation folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.core.groupby import DataFrameGroupBy

from calib_components.errors import InputError, printable, reading
from calib_tools.report.data import Results, derive
from calib_tools.report.statistics import Array
from calib_workflows.evaluation_files import Evaluation

TOLERANCE = 2e-6  # of volumes, relative
MAX_NAMED = 6  # cases that a notice names
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
    _check_comparable(evaluations, folders)
    tables = {name: case_table(evaluation) for name, evaluation in evaluations.items()}
    first, *_ = tables.values()
    about = evaluations[names[0]].summary
    cases = first.index[np.all([first.index.isin(t.index) for t in tables.values()], axis=0)]
    if cases.empty:
        raise InputError(f"No case is in all of {', '.join(names)}: their names differ.")
    notices, every = [], pd.concat(tables.values()).index
    if len(others := every.unique().difference(cases)):
        shown = ", ".join(map(printable, others[:MAX_NAMED]))
        notices.append(LEFT_OUT.format(number=len(others), names=shown))
    tables = {name: table.loc[cases] for name, table in tables.items()}
    volumes = pd.concat(tables.values()).filter(regex="^true_volume_")
    check_volumes(volumes.groupby(level=0))
    patients = _patients(tables)
    if (patients == patients.index).all():
        notices.append(CASES_ARE_PATIENTS)
    structures = _structures(first)
    return Results(
        cases={name: derive(table, structures) for name, table in tables.items()},
        bins={name: case_bins(evaluations[name], cases) for name in names},
        patients=patients,
        labels={name: name for name in names},
        structures=structures,
        unit=about["unit"],
        volume_unit=about["volume_unit"],
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


def case_bins(evaluation: Evaluation, cases: Sequence[str] | pd.Index) -> dict[str, Array]:
    """Return the bins of some cases, `(3, cases, bins)`, of the regions that have them."""
    bins, places = {}, pd.Index(evaluation.cases["case"]).get_indexer(cases)
    for region, kinds in evaluation.regions.items():
        if case_sums := kinds.get("top_label_per_case"):
            sums = (case_sums.count, case_sums.confidence_sum, case_sums.num_correct)
            bins[region] = np.stack([part.double().numpy()[places] for part in sums])
    return bins


def common_properties(folder: Path, evaluation: Evaluation) -> dict[str, str]:
    """Return what evaluations must have in common to be compared; empty if it does not matter."""
    summary, channels = evaluation.summary, ""
    with reading(folder / "summary.json", "the summary of an evaluation"):
        units = {name: summary[name] for name in ("unit", "volume_unit")}
        if evaluation.regions:
            kind = "{} sigmoid(s)" if summary.get("sigmoid") else "a softmax over {} classes"
            channels = kind.format(summary["channels"])
    structures = ", ".join(sorted(_structures(evaluation.cases)))
    return {**units, "channels": channels, "structures": structures}


def _structures(columns: Iterable[str]) -> list[str]:
    return [name.removeprefix("dsc_") for name in columns if name.startswith("dsc_")]


def name_folders(folders: Sequence[Path]) -> list[str]:
    """Return what tells the folders apart: the last parts of their paths, as few as suffice."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        labels = [printable("/".join(folder_parts[-count:])) for folder_parts in parts]
        if len({*labels}) == len(labels):
            return labels
    raise InputError(f"A folder is given twice: {', '.join(map(str, folders))}.")


def _check_comparable(evaluations: Mapping[str, Evaluation], folders: Sequence[Path]) -> None:
    """Raise `InputError` if evaluations differ in what they must have in common."""
    properties = [*map(common_properties, folders, evaluations.values())]
    for key in properties[0]:
        values = dict.fromkeys(each[key] for each in properties if each[key])
        if len(values) > 1:
            raise InputError(
                f"{', '.join(evaluations)}: their {key} differ: {'; '.join(values)}. They cannot be"
                " compared."
            )


def _patients(tables: Mapping[str, pd.DataFrame]) -> pd.Series:
    """Return the patient of each case; an evaluation in which a case is its own does not know."""
    recorded = pd.DataFrame({name: table["patient"] for name, table in tables.items()})
    cases = recorded.index.to_series()
    known = recorded.where(recorded.ne(cases, axis=0))
    differing = known.nunique(axis=1) > 1
    if differing.any():
        name = printable(differing.idxmax())
        raise InputError(f"Case {name} is of different patients in {', '.join(tables)}.")
    return known.bfill(axis=1).iloc[:, 0].fillna(cases).rename("patient")


def check_volumes(by_case: DataFrameGroupBy) -> None:
    """Raise `InputError` unless the true volumes of a case are the same in all evaluations."""
    largest = by_case.max()
    differs = ((largest - by_case.min()) > TOLERANCE * largest).any(axis=1)
    if differs.any():
        raise InputError(
            f"Case {printable(differs.idxmax())}: the ground truth differs between evaluations in"
            " its volumes or voxels. Evaluate all on the same labels and grid."
        )
