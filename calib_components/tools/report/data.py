"""What a report is made from: tables of cases, bins, cells and temperatures, and their compact form
on disk.

A *method* is a setting of a loss, or one evaluation folder. It is trained with one or more seeds.
With cross-validation, cases of all folds are joined; on a further test set, where the networks of
all folds have the same cases, a value is their mean.
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
from numpy.typing import NDArray

from calib_components.handlers.evaluation_files import Evaluation
from calib_components.metrics import CalibrationBins
from calib_components.tools.report.statistics import Array, Estimate, mean_of_defined

WITHOUT, WITH = "without", "with"  # a temperature
SUMS = ("count", "confidence", "correct")


class Row(NamedTuple):
    """A line of a table: a method on a test set, without or with its temperature."""

    method: str
    temperature: str = WITHOUT
    test_set: str = ""  # empty for the split that is compared


@dataclass(frozen=True, eq=False)
class Results:
    """What was measured.

    Tables of cases and bins begin with method, seed, fold, test set and temperature, those of cells
    and temperatures with the first three. `about` holds the `labels` of the methods, `split`,
    `folds`, `unit`, `missing` and others.
    """

    # Of each: `patient`, numbers of `missed` and `spurious` structures, columns of `cases.csv`
    cases: pd.DataFrame
    bins: pd.DataFrame  # of each case and region: sums of each bin
    cells: pd.DataFrame  # of each trained network: what was run; empty for evaluations
    temperatures: pd.DataFrame  # of each fit
    about: dict[str, Any]
    # Of a method, which may hold pictures
    folders: Mapping[str, Path] = field(default_factory=dict)
    # By method, if they are compared
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)

    @cached_property
    def groups(self) -> dict[Row, pd.DataFrame]:
        """The cases of each row, with the means over structures as columns of their own."""
        table = self.cases.copy()
        for measure in ("dsc", "hd95"):
            table[measure] = table[[f"{measure}_{name}" for name in self.structures]].mean(axis=1)
        return {Row(*key): group for key, group in table.groupby([*Row._fields], sort=False)}

    @cached_property
    def bins_of(self) -> dict[tuple[Row, str], pd.DataFrame]:
        """The bins of each row and region."""
        groups = self.bins.groupby([*Row._fields, "region"], sort=False)
        return {(Row(*row), region): group for (*row, region), group in groups}

    @property
    def sets(self) -> list[str]:
        """Names of the test sets; that of the split that is compared is empty."""
        return self.cases["test_set"].unique().tolist()

    @property
    def test_sets(self) -> list[str]:
        """Names of the further test sets."""
        return [name for name in self.sets if name]

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the methods that have results, by name, in their order."""
        return {
            name: label for name, label in self.about["labels"].items() if Row(name) in self.groups
        }

    @property
    def methods(self) -> list[str]:
        """Names of the methods that have results."""
        return [*self.labels]

    @property
    def structures(self) -> list[str]:
        """Names of the structures."""
        return [name.removeprefix("dsc_") for name in self.cases if name.startswith("dsc_")]

    def has(self, *measures: str) -> bool:
        """Return whether all of some measures were measured."""
        return {*measures} <= {*self.cases, "dsc", "hd95"}

    def label(self, row: Row) -> str:
        """Return the name of a row in tables and figures."""
        return self.about["labels"][row.method] + " + T" * (row.temperature == WITH)

    def rows(self, test_set: str = "", temperatures: Sequence[str] = (WITHOUT, WITH)) -> list[Row]:
        """Return the rows of a test set: each method, and below it the method with its temperature."""
        rows = (
            Row(name, temperature, test_set)
            for name in self.methods
            for temperature in temperatures
        )
        return [row for row in rows if row in self.groups]

    def patients(self, test_set: str = "") -> pd.Series:
        """Return the patient of each case of a test set, by case."""
        return self._patients[test_set]

    @cached_property
    def _patients(self) -> dict[str, pd.Series]:
        table = self.cases[["test_set", "case", "patient"]].drop_duplicates()
        return {
            name: of_set.set_index("case")["patient"] for name, of_set in table.groupby("test_set")
        }

    def of_cases(self, row: Row, measure: str) -> Array:
        """Return a measure of each case, `(cases,)`: the mean over the seeds that have a value."""
        return mean_of_defined(self.values(row, measure))

    def record(self, row: Row, measure: str, estimate: Estimate, **keys: Any) -> dict[str, Any]:
        """Return the record of an estimate, see `calib_components.tools.report.tables`."""
        return {
            **row._asdict(),
            "label": self.label(row),
            **keys,
            "measure": measure,
            **estimate._asdict(),
        }

    def count(self, test_set: str = "") -> str:
        """Return how many patients there are, as text; or cases, if each is its own patient."""
        patients = self.patients(test_set)
        number, kind = (
            patients.nunique(),
            "case" if (patients == patients.index).all() else "patient",
        )
        return f"{number} {kind}{'s' * (number != 1)}"

    def seeds(self, row: Row) -> int:
        """Return the number of seeds of a row."""
        return self.groups[row]["seed"].nunique()

    def values(self, row: Row, measure: str) -> Array:
        """Return a measure of each seed and case, `(seeds, cases)`; NaN where it is undefined."""
        return self._by_seed(row, self.groups[row][measure])

    def comparable(self, row: Row, measure: str) -> Array:
        """As `values`, for differences and ranks, which must not reward missing a difficult
        structure.

        A case with a missed or spurious structure in any seed has no HD95. The DSC is 1 where there
        is nothing to find and nothing is found.
        """
        table = self.groups[row]
        values = self._by_seed(
            row, table[measure].fillna(1) if measure == "dsc" else table[measure]
        )
        if not measure.startswith("hd95"):
            return values
        defined = [
            table[[f"{name}_{s}" for s in self.structures]].notna() for name in ("dsc", "hd95")
        ]
        complete = (
            self._by_seed(
                row, pd.Series((defined[0].values == defined[1].values).all(1), table.index)
            )
            == 1
        )
        return np.where(complete.all(0), values, np.nan)

    def finds_nothing(self, row: Row) -> NDArray[np.bool_]:
        """Return whether there is nothing to find in a case and a seed finds nothing, `(cases,)`."""
        return np.asarray((self._by_seed(row, self.groups[row]["dsc"].isna()) > 0).any(axis=0))

    def _by_seed(self, row: Row, column: pd.Series) -> Array:
        """Return a column as `(seeds, cases)`: the mean over the networks of several folds, where
        they have a value.
        """
        table = self.groups[row]
        by_seed = column.astype(float).groupby([table["seed"], table["case"]]).mean().unstack()
        return by_seed.reindex(columns=self.patients(row.test_set).index).to_numpy()

    def case_bins(self, row: Row, region: str) -> tuple[Array, Array, Array]:
        """Return count, sum of confidences and number correct of each bin, `(seeds, cases, bins)`."""
        names = [name for name in self.bins if name.startswith(SUMS)]
        summed = self.bins_of[row, region].groupby(["seed", "case"])[names].sum()
        index = pd.MultiIndex.from_product(
            [summed.index.unique("seed"), self.patients(row.test_set).index]
        )
        values = (
            summed.reindex(index).to_numpy().reshape(len(index.unique(0)), -1, 3, len(names) // 3)
        )
        return tuple(np.moveaxis(values, 2, 0))

    def pooled_bins(self, row: Row, region: str, seed: int | None = None) -> CalibrationBins:
        """Return the bins of a region, of all cases and of one or all seeds together, `(1, bins)`."""
        chosen = slice(None) if seed is None else [seed]
        sums = (np.nansum(part[chosen], axis=(0, 1))[None] for part in self.case_bins(row, region))
        count, *others = map(torch.from_numpy, sums)
        return CalibrationBins(count.long(), *others)
