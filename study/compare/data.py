"""The results of a comparison: seeds, folds, test sets and temperatures of each method.

A *method* is a setting of a loss, trained with one or more seeds. With cross-validation, cases of
all folds are joined; on a further test set, where the networks of all folds have the same cases, a
value is their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from calib_components.errors import InputError, printable
from calib_components.metrics import CalibrationBins
from calib_components.metrics.intervals import Estimate
from calib_tools.report.data import COMPARED_AS, Results, derive
from calib_tools.report.readers import check_volumes
from calib_tools.report.statistics import Array
from study.compare.statistics import mean_of_defined, mean_with_interval, paired_difference

WITHOUT, WITH = "without", "with"  # a temperature
SUMS = ("count", "confidence", "correct")


class Row(NamedTuple):
    """A method on a test set, without or with its temperature."""

    method: str
    temperature: str = WITHOUT
    test_set: str = ""  # empty for the split that is compared

    @property
    def name(self) -> str:
        """Name in reports, such as `nacl+T`."""
        return f"{self.method}+T" if self.temperature == WITH else self.method


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was measured.

    Tables of cases and bins begin with method, seed, fold, test set and temperature, those of cells
    and temperatures with the first three.

    Attributes:
        cases: The columns of `calib_tools.report.readers.case_table`.
        bins: Sums of each bin, of each case and region.
        cells: What was run, of each trained network.
        temperatures: Each fit.
        about: The `labels` of the methods, `split`, `folds`, `unit`, `missing` and others.
        folders: Folders of methods that may hold pictures.
    """

    cases: pd.DataFrame
    bins: pd.DataFrame
    cells: pd.DataFrame
    temperatures: pd.DataFrame
    about: dict[str, Any]
    folders: Mapping[str, Path] = field(default_factory=dict)

    @cached_property
    def groups(self) -> dict[Row, pd.DataFrame]:
        """The cases of each row, with what follows from their measures."""
        table = derive(self.cases, self.structures)
        return {Row(*key): group for key, group in table.groupby([*Row._fields], sort=False)}

    @cached_property
    def bin_groups(self) -> dict[tuple[Row, str], pd.DataFrame]:
        """The bins of each row and region."""
        groups = self.bins.groupby([*Row._fields, "region"], sort=False)
        return {(Row(*row), region): group for (*row, region), group in groups}

    @cached_property
    def test_sets(self) -> list[str]:
        """Names of the test sets; that of the split that is compared is empty."""
        return self.cases["test_set"].unique().tolist()

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the methods that have results, by name, in their order."""
        labels = self.about["labels"]
        return {name: label for name, label in labels.items() if Row(name) in self.groups}

    @property
    def structures(self) -> list[str]:
        """Names of the structures."""
        return [name.removeprefix("dsc_") for name in self.cases if name.startswith("dsc_")]

    def has(self, measure: str) -> bool:
        """Return whether a measure was measured."""
        return all(measure in table for table in self.groups.values())

    def label(self, row: Row) -> str:
        """Return the name of a row in tables and figures, with its temperature or their range."""
        label = self.about["labels"][row.method]
        if row.temperature == WITHOUT or self.temperatures.empty:
            return label if row.temperature == WITHOUT else f"{label} + T"
        fits = self.temperatures
        values = fits["temperature"][fits["method"] == row.method]
        ends = dict.fromkeys(f"{end:.2f}" for end in (values.min(), values.max()))
        return f"{label} + T ({' to '.join(ends)})"

    def rows(self, test_set: str = "", temperatures: Sequence[str] = (WITHOUT, WITH)) -> list[Row]:
        """Return the rows of a test set: each method, and below it the one with its temperature."""
        rows = [Row(name, each, test_set) for name in self.labels for each in temperatures]
        return [row for row in rows if row in self.groups]

    @cached_property
    def patients(self) -> dict[str, pd.Series]:
        """The patient of each case, by test set."""
        table = self.cases[["test_set", "case", "patient"]].drop_duplicates()
        by_set = table.groupby("test_set", sort=False)
        return {name: group.set_index("case")["patient"] for name, group in by_set}

    def seeds(self, row: Row) -> int:
        """Return the number of seeds of a row."""
        return self.groups[row]["seed"].nunique()

    def values(self, row: Row, measure: str) -> Array:
        """Return a measure of each seed and case, `(seeds, cases)`; NaN where it is undefined."""
        table = self.groups[row]
        by_seed = table.groupby(["seed", "case"])[measure].mean().unstack()
        return by_seed.reindex(columns=self.patients[row.test_set].index).to_numpy(float)

    def comparable(self, row: Row, measure: str) -> Array:
        """As `values`, for differences and ranks, see `COMPARED_AS`. A case with a missed or
        spurious structure in any seed has no HD95.
        """
        values = self.values(row, COMPARED_AS.get(measure, measure))
        if measure == "hd95":
            return np.where(np.isnan(values).any(0), np.nan, values)
        return values

    def case_bins(self, row: Row, region: str) -> Array:
        """Return count, sum of confidences and number correct, `(3, seeds, cases, bins)`."""
        table = self.bin_groups[row, region]
        names = [name for name in table if name.startswith(SUMS)]
        summed = table.groupby(["seed", "case"])[names].sum()
        seeds = summed.index.unique("seed")
        index = pd.MultiIndex.from_product([seeds, self.patients[row.test_set].index])
        values = summed.reindex(index).to_numpy().reshape(len(seeds), -1, 3, len(names) // 3)
        return np.moveaxis(values, 2, 0)

    def pooled_bins(self, row: Row, region: str, seed: int | None = None) -> CalibrationBins:
        """Return the bins of a region, of all cases and of one or all seeds together, `(1,
        bins)`.
        """
        chosen = slice(None) if seed is None else [seed]
        sums = np.nansum(self.case_bins(row, region)[:, chosen], axis=(1, 2))
        return CalibrationBins(*torch.from_numpy(sums)[:, None])

    def on(self, test_set: str, rows: Sequence[Row] | None = None) -> OneTestSet:
        """Return a test set for the sections of a report; by default, with all its rows."""
        by_name = {row.name: row for row in (self.rows(test_set) if rows is None else rows)}
        folders = {name: self.folders.get(row.method) for name, row in by_name.items()}
        return OneTestSet(
            cases={name: self._means(row) for name, row in by_name.items()},
            bins={name: self._sums(row) for name, row in by_name.items()},
            patients=self.patients[test_set],
            labels={name: self.label(row) for name, row in by_name.items()},
            structures=self.structures,
            unit=self.about["unit"],
            volume_unit=self.about["volume_unit"],
            folders={name: folder for name, folder in folders.items() if folder is not None},
            comparison=self,
            rows=by_name,
        )

    def _sums(self, row: Row) -> dict[str, CalibrationBins]:
        """Return the bins of each region, summed over seeds, `(cases, bins)`."""
        regions = [region for each, region in self.bin_groups if each == row]
        sums = {region: np.nansum(self.case_bins(row, region), axis=1) for region in regions}
        return {region: CalibrationBins(*torch.from_numpy(each)) for region, each in sums.items()}

    def _means(self, row: Row) -> pd.DataFrame:
        """Return the means over the seeds of each case."""
        table = self.groups[row].select_dtypes("number").drop(columns=["seed", "fold"])
        cases = table.groupby([self.groups[row]["seed"], self.groups[row]["case"]]).mean()
        return cases.groupby(level="case").mean().reindex(self.patients[row.test_set].index)


@dataclass(frozen=True, eq=False, kw_only=True)
class OneTestSet(Results):
    """A test set of a comparison, whose rows take the place of evaluations.

    Values of cases are means over seeds. Intervals and tests are over seeds and patients.
    """

    comparison: Comparison
    rows: Mapping[str, Row]

    def mean(self, name: str, measure: str) -> Estimate:
        """Return the mean of a measure over seeds and cases."""
        return mean_with_interval(self.comparison.values(self.rows[name], measure), self.patients)

    def difference(self, name: str, reference: str, measure: str) -> Estimate:
        """Return the mean difference of two rows on the same cases."""
        row, base = self.rows[name], self.rows[reference]
        here, there = (self.comparison.comparable(each, measure) for each in (row, base))
        return paired_difference(here, there, self.patients)

    def confidence(self, name: str, region: str) -> Array:
        """Return mean confidence and accuracy of each case, means over seeds, `(2, cases)`."""
        count, *sums = self.comparison.case_bins(self.rows[name], region).sum(3)
        return mean_of_defined(sums / np.where(count > 0, count, np.nan), axis=1)

    def keys(self, name: str) -> dict[str, Any]:
        """Return the columns of tables that say what a row is of."""
        return {**self.rows[name]._asdict(), "label": self.labels[name]}


def check_same_cases(comparison: Comparison) -> None:
    """Raise `InputError` unless all networks of a test set have the same cases and ground truth."""
    volumes = [name for name in comparison.cases if name.startswith("true_volume_")]
    for (test_set, _), table in comparison.cases.groupby(["test_set", "fold"], sort=False):
        number = table.drop_duplicates(["method", "seed", "temperature"]).shape[0]
        counts = table.groupby("case").size()
        if (counts != number).any():
            name = printable(counts.index[counts != number][0])
            raise InputError(
                f"{test_set or 'cases.csv'}: case {name} is not in all evaluations, or twice in"
                " one."
            )
        check_volumes(table.set_index("case")[volumes])
