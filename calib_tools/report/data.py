"""What a report is made from: evaluations of the same cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from calib_components.metrics import CalibrationBins
from calib_tools.report.statistics import (
    Array,
    Estimate,
    mean_of_defined,
    mean_with_interval,
    paired_difference,
)
from calib_workflows.evaluation_files import Evaluation


@dataclass(frozen=True, eq=False)
class Results:
    """Evaluations of the same cases. Each has a name, by which all mappings are indexed.

    Attributes:
        cases: Measures of each case: the columns of `cases.csv`, numbers of `missed` and `spurious`
            structures, and what `derive` adds. All have the index of `patients`: the cases that
            all evaluations have.
        bins: Count, sum of confidences and number correct of each case and bin, `(3, cases, bins)`,
            by region.
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
    bins: Mapping[str, Mapping[str, Array]]
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
        number = self.patients.nunique()
        return f"1 {kind}" if number == 1 else f"{number} {kind}s"

    def has(self, *measures: str) -> bool:
        """Return whether all evaluations have some measures."""
        return all({*measures} <= {*table} for table in self.cases.values())

    def values(self, name: str, measure: str) -> Array:
        """Return a measure of each case, `(cases,)`; NaN where it is undefined."""
        return self.cases[name][measure].to_numpy(float)

    def mean(self, name: str, measure: str) -> Estimate:
        """Return the mean of a measure over the cases."""
        return mean_with_interval(self.values(name, measure), self.patients)

    def difference(self, name: str, reference: str, measure: str) -> Estimate:
        """Return the mean difference of two evaluations on the same cases.

        Missing a difficult structure must not be rewarded: a case with a missed or spurious
        structure has no HD95. The DSC is 1 where there is nothing to find and nothing is found.
        """
        here, there = (self._comparable(each, measure) for each in (name, reference))
        return paired_difference(here, there, self.patients)

    def _comparable(self, name: str, measure: str) -> Array:
        if measure == "dsc":
            return self.values(name, "compared_dsc")
        values = self.values(name, measure)
        if measure == "hd95":
            return np.where(self.values(name, "complete") == 1, values, np.nan)
        return values

    def case_means(self, name: str, region: str) -> Array:
        """Return mean confidence and accuracy of each case, `(2, cases)`; NaN without a voxel in
        the region.
        """
        count, *sums = self.bins[name][region].sum(2)
        return np.array(sums) / np.where(count > 0, count, np.nan)

    def pooled_bins(self, name: str, region: str) -> CalibrationBins:
        """Return the bins of a region, of all cases together, `(1, bins)`."""
        count, *sums = torch.from_numpy(np.nansum(self.bins[name][region], axis=1))[:, None]
        return CalibrationBins(count.long(), *sums)

    def keys(self, name: str) -> dict[str, Any]:
        """Return the columns of CSV files that say which evaluation a record is of."""
        return {"evaluation": name}

    def record(self, name: str, measure: str) -> dict[str, Any]:
        """Return the record of the mean of a measure, see `calib_workflows.pages.numbers`."""
        estimate = self.mean(name, measure)._asdict()
        del estimate["p_value"]
        return {**self.keys(name), "label": self.labels[name], "measure": measure, **estimate}


@dataclass(frozen=True, eq=False)
class Context:
    """What a section of a report is made from.

    Attributes:
        results: The evaluations.
        reference: Name of the evaluation that the others are compared with.
        differences: Those of the others to the reference, see
            `calib_tools.report.comparison.differences`; empty for one evaluation.
        validation: An evaluation of validation cases, whose limits are checked, and on which the
            threshold of objects is chosen.
        object_threshold: For what that of objects is chosen, see `report_folders`.
    """

    results: Results
    reference: str
    differences: pd.DataFrame = field(default_factory=pd.DataFrame)
    validation: Evaluation | None = None
    object_threshold: str = "f1"


def derive(cases: pd.DataFrame, structures: Sequence[str]) -> pd.DataFrame:
    """Return cases with further columns, which follow from those of `cases.csv`.

    `dsc` and `hd95` are means over structures. `compared_dsc` is 1 where there is nothing to find
    and nothing is found; `complete` says that no structure is missed or spurious. With
    probabilities: `expected_dsc`, the mean over the structures that have a DSC, too; `optimism`, by
    which it is above the DSC; and, of each structure, `optimism` and
    the errors of segmented and expected volume.
    """

    def by_structure(measure: str) -> Array:
        return cases[[f"{measure}_{name}" for name in structures]].to_numpy(float)

    dsc, hd95 = by_structure("dsc"), by_structure("hd95")
    mean_dsc = mean_of_defined(dsc, axis=1)
    derived = {
        "dsc": mean_dsc,
        "hd95": mean_of_defined(hd95, axis=1),
        "compared_dsc": np.where(np.isnan(mean_dsc), 1, mean_dsc),
        "complete": (np.isnan(dsc) == np.isnan(hd95)).all(axis=1).astype(float),
    }
    if f"expected_volume_{structures[0]}" in cases:  # it has probabilities
        expected_dsc = by_structure("expected_dsc")
        segmented, expected, true = (
            by_structure(f"{kind}_volume") for kind in ("segmented", "expected", "true")
        )
        optimism = expected_dsc - dsc
        derived["optimism"] = mean_of_defined(optimism, axis=1)
        defined = np.where(np.isnan(optimism), np.nan, expected_dsc)
        derived["expected_dsc"] = mean_of_defined(defined, axis=1)
        structure_measures = {
            "optimism": optimism,
            "segmented_volume_error": segmented - true,
            "expected_volume_error": expected - true,
        }
        for measure, values in structure_measures.items():
            derived |= {f"{measure}_{name}": values[:, i] for i, name in enumerate(structures)}
    return pd.concat([cases, pd.DataFrame(derived, index=cases.index)], axis=1)
