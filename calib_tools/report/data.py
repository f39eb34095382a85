"""What a report is made from: evaluations of the same cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from calib_components.metrics import CalibrationBins
from calib_components.metrics.intervals import Estimate, interval
from calib_tools.report.statistics import Array, paired_difference
from calib_workflows.evaluation_files import Evaluation
from calib_workflows.pages.page import Picture

# Columns that evaluations are compared by: missing a difficult structure must not be rewarded. The
# DSC is 1 where there is nothing to find and nothing is found. A case with a missed or spurious
# structure has no HD95
COMPARED_AS = {"dsc": "compared_dsc", "hd95": "compared_hd95"}


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 case" or "3 lesions"."""
    ending = "" if number == 1 or noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


@dataclass(frozen=True, eq=False)
class Results:
    """Evaluations of the same cases. Each has a name, by which all mappings are indexed.

    Attributes:
        cases: Measures of each case: the columns of `cases.csv`, numbers of `missed` and `spurious`
            structures, and what `derive` adds. All have the index of `patients`: the cases that
            all evaluations have.
        bins: Bins of each case, `(cases, bins)`, by region.
        patients: The patient of each case.
        labels: What the evaluations are called in tables and figures.
        structures: Names of the structures.
        unit: Unit of distances.
        volume_unit: Unit of volumes.
        notices: What a reader should know before the numbers.
        folders: Folders that may hold pictures of cases.
        evaluations: The files of each, with all of its cases.
    """

    cases: Mapping[str, pd.DataFrame]
    bins: Mapping[str, Mapping[str, CalibrationBins]]
    patients: pd.Series
    labels: Mapping[str, str]
    structures: Sequence[str]
    unit: str
    volume_unit: str
    notices: Sequence[str] = ()
    folders: Mapping[str, Path] = field(default_factory=dict)
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the evaluations."""
        return [*self.labels]

    @property
    def count(self) -> str:
        """The number of patients as text; of cases, if each is its own patient."""
        kind = "case" if (self.patients == self.patients.index).all() else "patient"
        return count_of(self.patients.nunique(), kind)

    def has(self, *measures: str) -> bool:
        """Return whether all evaluations have some measures."""
        return all({*measures} <= {*table} for table in self.cases.values())

    def part(self, kind: str) -> pd.DataFrame | None:
        """Return a further table of the only evaluation, such as that of raters; None without."""
        evaluations = [*self.evaluations.values()]
        return evaluations[0].parts.get(kind) if len(evaluations) == 1 else None

    def values(self, name: str, measure: str) -> Array:
        """Return a measure of each case, `(cases,)`; NaN where it is undefined."""
        return self.cases[name][measure].to_numpy(float)

    def mean(self, name: str, measure: str) -> Estimate:
        """Return the mean of a measure over the cases."""
        return interval(self.values(name, measure), self.patients)

    def difference(self, name: str, reference: str, measure: str) -> Estimate:
        """Return the mean difference of two evaluations on the same cases, see `COMPARED_AS`."""
        column = COMPARED_AS.get(measure, measure)
        here, there = (self.values(each, column) for each in (name, reference))
        return paired_difference(here, there, self.patients)

    def confidence(self, name: str, region: str) -> Array:
        """Return mean confidence and accuracy of each case, `(2, cases)`; NaN without a voxel in
        the region.
        """
        bins = self.bins[name][region]
        sums = torch.stack([bins.confidence_sum, bins.num_correct]).sum(2)
        return (sums / bins.count.sum(1)).numpy()

    def pictures(self, name: str, *kinds: str) -> list[Picture]:
        """Return those pictures of cases that the folder of an evaluation holds."""
        files = [self.folders[name] / "cases" / f"{kind}.png" for kind in kinds]
        return [Picture(file.stem, "", file.read_bytes()) for file in files if file.exists()]

    def keys(self, name: str) -> dict[str, Any]:
        """Return the columns of tables that say which evaluation a row is of."""
        return {"evaluation": name, "label": self.labels[name]}

    def record(self, name: str, measure: str) -> dict[str, Any]:
        """Return the row of the mean of a measure, see `calib_workflows.pages.numbers`."""
        estimate = self.mean(name, measure)._asdict()
        del estimate["p_value"]
        return {**self.keys(name), "measure": measure, **estimate}


@dataclass(frozen=True, eq=False)
class Context:
    """What a section of a report is made from.

    Attributes:
        results: The evaluations.
        validation: An evaluation of validation cases, whose limits are checked, and on which the
            threshold of objects is chosen.
        object_threshold: For what that of objects is chosen, see `report_folders`.
    """

    results: Results
    validation: Evaluation | None = None
    object_threshold: str = "f1"


def derive(cases: pd.DataFrame, structures: Sequence[str]) -> pd.DataFrame:
    """Return cases with further columns, which follow from those of `cases.csv`.

    `dsc` and `hd95` are means over structures, and `compared_dsc` and `compared_hd95` are those of
    `COMPARED_AS`. With probabilities: `expected_dsc`, the mean over the structures that have a DSC,
    too; `optimism`, by which it is above the DSC; and the errors of segmented and expected volume
    of each structure.
    """

    def of_structures(measure: str) -> pd.DataFrame:
        columns = [f"{measure}_{name}" for name in structures]
        return cases[columns].set_axis([*structures], axis=1)

    dsc, hd95 = of_structures("dsc"), of_structures("hd95")
    is_complete = (dsc.isna() == hd95.isna()).all(axis=1)
    derived = {
        "dsc": dsc.mean(axis=1),
        "hd95": hd95.mean(axis=1),
        "compared_dsc": dsc.mean(axis=1).fillna(1),
        "compared_hd95": hd95.mean(axis=1).where(is_complete),
    }
    if f"expected_volume_{structures[0]}" in cases:  # it has probabilities
        true = of_structures("true_volume")
        # Of a structure whose probability is 0 everywhere, none is expected
        expected_dsc = of_structures("expected_dsc").fillna(0).where(dsc.notna())
        derived["optimism"] = (expected_dsc - dsc).mean(axis=1)
        derived["expected_dsc"] = expected_dsc.mean(axis=1)
        for volume in ("segmented_volume", "expected_volume"):
            errors = (of_structures(volume) - true).add_prefix(f"{volume}_error_")
            derived |= dict(errors.items())
    return pd.concat([cases, pd.DataFrame(derived)], axis=1)
