"""Statistics of a comparison of losses: means with intervals, paired differences, ranks; and the paper's own numbers.

What is compared is a *method*, one setting of one loss. It is trained with one or more seeds; each of these *cells* is
a folder that `scripts/compare_losses.py` wrote. A method's value on a case is the mean over its seeds.

Undefined values are NaN. A structure that only the ground truth or only the prediction has (missed or spurious) has DSC
0 and no HD95, and one that neither has, no value at all:

- Means leave it out: a case's value is the mean over the structures that have one. How many were missed or spurious is
  reported beside the means.
- Differences and ranks must not reward missing a difficult structure. There a case with a structure missed or spurious
  has no HD95 at all: it gives no difference, and it ranks last.

Intervals are over patients: they say how far another choice of test patients could move a number, not another training.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata, wilcoxon

__all__ = [
    "METRICS",
    "PUBLISHED",
    "RANKED",
    "STRUCTURES",
    "Cell",
    "Difference",
    "Estimate",
    "Method",
    "Metric",
    "Results",
    "ResultsError",
    "case_ranks",
    "column_ranks",
    "differing_settings",
    "holm",
    "mean_case_rank",
    "mean_case_rank_with_interval",
    "mean_of_defined",
    "mean_with_interval",
    "means_over_common_cases",
    "paired_difference",
    "read_results",
    "sum_rank",
    "sum_rank_with_interval",
]

Array = NDArray[np.float64]

SETTINGS = ("method", "label", "seed", "bundle", "datalist", "patients", "crop_size", "train", "evaluate", "made_with")
RESAMPLES = 10_000
LEVEL = 0.95


class Metric(NamedTuple):
    """How a measure is called and which end of it is good."""

    label: str
    higher_is_better: bool


METRICS = {
    "dsc": Metric("DSC", True),
    "hd95": Metric("HD95", False),
    "ece": Metric("ECE", False),
    "cece": Metric("CECE", False),
    "nll": Metric("NLL", False),
    "brier": Metric("Brier", False),
}
RANKED = ("dsc", "hd95", "ece", "cece")  # those of the paper

# What the paper segments in each data set.
STRUCTURES = {
    "flare": ["liver", "kidneys", "spleen", "pancreas"],
    "acdc": ["RV", "MYO", "LV"],
    "brats": ["ET", "TC", "WT"],
}
# Murugesan et al., "Trust Your Neighbours", MICCAI 2023, Tables 1 to 3: data set -> method -> DSC, HD95, ECE, CECE.
PUBLISHED: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "flare": {
        "ce_dice": (0.846, 5.54, 0.058, 0.034),
        "focal": (0.834, 6.65, 0.053, 0.059),
        "entropy_penalty": (0.860, 5.30, 0.037, 0.027),
        "label_smoothing": (0.860, 5.33, 0.055, 0.049),
        "svls": (0.857, 5.72, 0.039, 0.036),
        "mbls": (0.836, 5.75, 0.046, 0.041),
        "nacl": (0.868, 4.88, 0.033, 0.031),
    },
    "acdc": {
        "ce_dice": (0.828, 3.14, 0.137, 0.084),
        "focal": (0.620, 7.30, 0.153, 0.179),
        "entropy_penalty": (0.782, 4.44, 0.130, 0.094),
        "label_smoothing": (0.809, 3.30, 0.083, 0.093),
        "svls": (0.824, 2.81, 0.091, 0.083),
        "mbls": (0.827, 2.99, 0.103, 0.081),
        "nacl": (0.854, 2.55, 0.048, 0.061),
        "nacl_softmax": (0.840, 2.66, 0.068, 0.071),
        "nacl_l2": (0.871, 1.78, 0.059, 0.080),
        "nacl_5x5": (0.813, 3.50, 0.078, 0.077),
        "nacl_gaussian": (0.876, 2.92, 0.042, 0.053),
        "nacl_max": (0.876, 1.74, 0.046, 0.054),
        "nacl_min": (0.881, 1.80, 0.040, 0.053),
        "nacl_median": (0.835, 3.29, 0.075, 0.075),
        "nacl_mode": (0.876, 1.62, 0.045, 0.056),
    },
    "brats": {
        "ce_dice": (0.777, 6.96, 0.178, 0.122),
        "focal": (0.848, 9.00, 0.097, 0.119),
        "entropy_penalty": (0.808, 8.71, 0.138, 0.099),
        "label_smoothing": (0.820, 7.78, 0.112, 0.108),
        "svls": (0.801, 8.44, 0.146, 0.111),
        "mbls": (0.838, 7.94, 0.127, 0.095),
        "nacl": (0.850, 5.78, 0.112, 0.097),
    },
}


# --- means and differences ----------------------------------------------------------------------------------------


def mean_of_defined(values: ArrayLike) -> Array:
    """Mean over the first axis without NaN; NaN where nothing is defined."""
    stacked = np.asarray(values, float)
    count = (~np.isnan(stacked)).sum(0)
    return np.where(count > 0, np.nansum(stacked, axis=0) / np.maximum(count, 1), np.nan)


class Estimate(NamedTuple):
    """A mean over cases, or what is computed of such means, and its 95 % interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """The mean difference to a reference on the same cases, its 95 % interval, and the p-value of Wilcoxon's test."""

    mean: float
    low: float
    high: float
    p_value: float
    cases: int


def mean_with_interval(values: ArrayLike, groups: Sequence[str] | None = None, seed: int = 0) -> Estimate:
    """Mean over cases and its 95 % percentile bootstrap interval.

    Cases of one patient are not independent, so whole groups are drawn: as many as there are, with replacement, 10 000
    times.

    Args:
        values: `(cases,)`; undefined ones (NaN) are left out.
        groups: what each case belongs to, such as its patient; None: every case is a group of its own.
        seed: of the resampling.

    Returns:
        NaN for what cannot be told: the mean without any defined value, the interval from fewer than two groups.
    """
    sums, counts = _group_sums(np.asarray(values, float), groups)
    if len(sums) == 0:
        return Estimate(np.nan, np.nan, np.nan)
    mean = float(sums.sum() / counts.sum())
    drawn = _draw_groups(len(sums), seed)
    return Estimate(mean, *_percentiles(sums[drawn].sum(1) / counts[drawn].sum(1), len(sums)))


def _draw_groups(number: int, seed: int) -> NDArray[np.int64]:
    """`(resamples, number)`: which groups each resample holds."""
    return np.random.default_rng(seed).integers(number, size=(RESAMPLES, number))


def _percentiles(resampled: Array, groups: int) -> tuple[float, float]:
    """Ends of the interval that holds 95 % of what was resampled from so many groups."""
    if groups < 2:
        return np.nan, np.nan
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_difference(
    values: ArrayLike, reference: ArrayLike, groups: Sequence[str] | None = None, seed: int = 0
) -> Difference:
    """Compare two methods on the same cases.

    Args:
        values: `(cases,)`. A case where either method is undefined (NaN) is left out.
        reference: `(cases,)`, the method to compare with.
        groups: what each case belongs to, as in `mean_with_interval`; the test is made on the means of the groups.
        seed: of the resampling.

    Returns:
        The mean of `values - reference` and its interval; the p-value of the two-sided Wilcoxon signed-rank test, 1
        where nothing differs and NaN where no case is left; and the number of cases compared.
    """
    differences = np.asarray(values, float) - np.asarray(reference, float)
    sums, counts = _group_sums(differences, groups)
    changed = sums[sums != 0] / counts[sums != 0]
    p_value = wilcoxon(changed).pvalue if len(changed) > 0 else 1.0 if len(sums) > 0 else np.nan
    return Difference(*mean_with_interval(differences, groups, seed), float(p_value), int(counts.sum()))


def _group_sums(values: Array, groups: Sequence[str] | None) -> tuple[Array, Array]:
    """Sum and number of the defined values of every group that has any."""
    defined = ~np.isnan(values)
    labels = np.arange(len(values)) if groups is None else np.asarray(groups)
    _, index = np.unique(labels[defined], return_inverse=True)
    return np.bincount(index, weights=values[defined]).astype(float), np.bincount(index).astype(float)


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down correction: adjusted p-values of tests that are made together, in their order.

    Args:
        p_values: `(tests,)`; NaN for a test that was not made: it stays NaN and is not counted.
    """
    p_values = np.asarray(p_values, float)
    adjusted = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]  # NaN sorts last
    stepped = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted


# --- ranks --------------------------------------------------------------------------------------------------------


def column_ranks(means: ArrayLike, higher_is_better: ArrayLike) -> Array:
    """Rank the methods in every column of a table of means.

    Args:
        means: `(methods, columns)`, a column for each data set and metric; NaN ranks last.
        higher_is_better: of each column.

    Returns:
        `(methods, columns)`: 1 is best, ties share the mean rank.
    """
    costs = np.where(higher_is_better, -1, 1) * np.asarray(means, float)
    return rankdata(np.where(np.isnan(costs), np.inf, costs), axis=0)


def sum_rank(means: ArrayLike, higher_is_better: ArrayLike) -> Array:
    """Sum of a method's ranks over the columns of the table of means, `(methods,)`. Arguments as in `column_ranks`."""
    return column_ranks(means, higher_is_better).sum(1)


def sum_rank_with_interval(
    values: ArrayLike, higher_is_better: ArrayLike, groups: Sequence[str], seed: int = 0
) -> list[Estimate]:
    """`sum_rank` of the means over common cases, and its 95 % percentile bootstrap interval.

    Args:
        values: `(methods, cases, metrics)`, see `means_over_common_cases`.
        higher_is_better: of each metric.
        groups: what each case belongs to, as in `mean_with_interval`.
        seed: of the resampling.

    Returns:
        One estimate for each method.
    """
    values = np.asarray(values, float)
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    by_group = index[:, None] == np.arange(len(names))  # (cases, groups)
    common = ~np.isnan(values).any(0)  # (cases, metrics)
    sums = np.einsum("cg,mck->gmk", by_group, np.where(common, values, 0))
    counts = by_group.T.astype(float) @ common  # (groups, metrics)
    drawn = _draw_groups(len(names), seed)
    shares = np.stack([np.bincount(row, minlength=len(names)) for row in drawn]).astype(float)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, which ranks last: for every method alike
        means = np.einsum("rg,gmk->mrk", shares, sums) / (shares @ counts)
    columns = means.reshape(len(values), -1)
    ranks = column_ranks(columns, np.tile(higher_is_better, len(drawn))).reshape(means.shape).sum(2)
    totals = sum_rank(means_over_common_cases(values), higher_is_better)
    return [
        Estimate(float(total), *_percentiles(resampled, len(names)))
        for total, resampled in zip(totals, ranks, strict=True)
    ]


def case_ranks(values: ArrayLike, higher_is_better: ArrayLike) -> Array:
    """Rank the methods on every case and metric.

    Args:
        values: `(methods, cases, metrics)`. An undefined value (NaN) ranks last.
        higher_is_better: of each metric.

    Returns:
        `(methods, cases, metrics)`: 1 is best, ties share the mean rank; NaN where no method has a value.
    """
    values = np.asarray(values, float)
    methods, cases, metrics = values.shape
    columns = values.reshape(methods, cases * metrics)
    ranks = column_ranks(columns, np.tile(higher_is_better, cases))
    ranks[:, np.isnan(columns).all(0)] = np.nan
    return ranks.reshape(values.shape)


def means_over_common_cases(values: ArrayLike) -> Array:
    """Mean of each metric over the cases for which every method has a value: what `sum_rank` can rank fairly.

    Args:
        values: `(methods, cases, metrics)`.

    Returns:
        `(methods, metrics)`; NaN where there is no such case.
    """
    values = np.asarray(values, float)
    common = np.where(np.isnan(values).any(0), np.nan, values)
    return mean_of_defined(common.swapaxes(0, 1))


def mean_case_rank(values: ArrayLike, higher_is_better: ArrayLike) -> Array:
    """Mean of a method's ranks over all cases and metrics, `(methods,)`. Arguments as in `case_ranks`."""
    ranks = case_ranks(values, higher_is_better)
    return mean_of_defined(ranks.reshape(len(ranks), -1).T)


def mean_case_rank_with_interval(
    values: ArrayLike, higher_is_better: ArrayLike, groups: Sequence[str], seed: int = 0
) -> list[Estimate]:
    """`mean_case_rank` and its 95 % percentile bootstrap interval. Arguments as in `sum_rank_with_interval`."""
    ranks = case_ranks(values, higher_is_better)
    repeated = [group for group in groups for _ in range(ranks.shape[2])]  # a case has a rank for each metric
    return [mean_with_interval(of_method.flatten(), repeated, seed) for of_method in ranks]


# --- reading what compare_losses.py wrote -------------------------------------------------------------------------


class ResultsError(ValueError):
    """The folder does not hold what a comparison needs; the message names the file and the reason."""


@dataclass(frozen=True, eq=False)
class Cell:
    """A finished cell: one method trained with one seed, and evaluated.

    Attributes:
        folder: where it was read from.
        settings: its `settings.json`.
        cases: names of the cases.
        columns: `(cases,)` for each column of `cases.csv`, NaN where it is empty.
    """

    folder: Path
    settings: dict[str, Any]
    cases: list[str]
    columns: dict[str, Array]

    @classmethod
    def read(cls, folder: Path) -> Cell:
        settings = _load(folder / "settings.json")
        if lacking := [name for name in SETTINGS if name not in settings]:
            raise ResultsError(f"{folder / 'settings.json'}: lacks {', '.join(lacking)}")
        with _reading(folder / "cases.csv") as file:
            header, *rows = csv.reader(file.read_text().splitlines())
            cases, *columns = zip(*rows, strict=True)
            numbers = [np.array([float(cell) if cell else np.nan for cell in column]) for column in columns]
            return cls(folder, settings, list(cases), dict(zip(header[1:], numbers, strict=True)))

    @property
    def structures(self) -> list[str]:
        """What is segmented."""
        return [name.removeprefix("dsc_") for name in self.columns if name.startswith("dsc_")]

    def values(self, measure: str) -> Array:
        """`(cases,)` of a column, or of `dsc` or `hd95` as the mean over the structures that have one."""
        if measure in self.columns:
            return self.columns[measure]
        return mean_of_defined([self.columns[f"{measure}_{name}"] for name in self.structures])

    @property
    def complete(self) -> NDArray[np.bool_]:
        """`(cases,)`: whether no structure is missed or spurious."""
        scored = np.array([~np.isnan(self.columns[f"dsc_{name}"]) for name in self.structures])
        measured = np.array([~np.isnan(self.columns[f"hd95_{name}"]) for name in self.structures])
        return (scored == measured).all(0)

    def load(self, name: str) -> Any:
        """Content of one of its JSON files."""
        return _load(self.folder / name)

    @property
    def history(self) -> list[dict[str, str]]:
        """Rows of `history.csv`, one an epoch."""
        with _reading(self.folder / "history.csv") as file:
            if rows := list(csv.DictReader(file.read_text().splitlines())):
                return rows
            raise ValueError("no epoch in it")

    def picture(self, name: str) -> bytes:
        """The case picture `name`: best, median or worst."""
        with _reading(self.folder / "cases" / f"{name}.png") as file:
            return file.read_bytes()


@dataclass(frozen=True, eq=False)
class Method:
    """All cells of one setting.

    Attributes:
        name: name of its folder.
        label: how tables and figures call it.
        cells: one for each seed.
    """

    name: str
    label: str
    cells: list[Cell]

    def values(self, measure: str) -> Array:
        """`(cases,)` of a column or measure, the mean over seeds: what means are taken of."""
        return mean_of_defined([cell.values(measure) for cell in self.cells])

    def comparable(self, measure: str) -> Array:
        """As `values`, but without HD95 where a structure is missed or spurious: for differences and ranks."""
        values = self.values(measure)
        if not measure.startswith("hd95"):
            return values
        return np.where(np.all([cell.complete for cell in self.cells], axis=0), values, np.nan)


@dataclass(frozen=True, eq=False)
class Results:
    """All finished cells of a results folder.

    Attributes:
        methods: in the order of the plan.
        missing: what the plan has and the folder has not, such as "svls, seed 1".
    """

    methods: list[Method]
    missing: list[str]

    @cached_property
    def first(self) -> Cell:
        """Any cell, for what all have in common."""
        return self.methods[0].cells[0]

    @property
    def split(self) -> str:
        """What the cells were evaluated on: testing, validation or training."""
        return self.first.settings["evaluate"]["split"]

    @property
    def patients(self) -> list[str]:
        """The patient of each case."""
        patients = self.first.settings["patients"]
        return [patients[case] for case in self.first.cases]

    @property
    def dataset(self) -> str | None:
        """The data set of the paper, by the structures: other images with the same ones count as it; or None."""
        return next((name for name, structures in STRUCTURES.items() if structures == self.first.structures), None)

    @property
    def published(self) -> dict[str, tuple[float, float, float, float]]:
        """What the paper reports for the test cases of this data set, by method; nothing for another split."""
        return PUBLISHED[self.dataset] if self.dataset is not None and self.split == "testing" else {}


def read_results(folder: str | os.PathLike) -> Results:
    """Read every finished cell of a folder that `scripts/compare_losses.py` wrote.

    Raises:
        ResultsError: there is none, or cells cannot be compared since they differ in more than loss and seed.
    """
    plan_file = Path(folder) / "plan.json"
    plan = _load(plan_file) if plan_file.is_file() else []
    cells: dict[str, list[Cell]] = {planned["method"]: [] for planned in plan}
    for settings_file in sorted(Path(folder).glob("*/seed*/settings.json")):
        cell = Cell.read(settings_file.parent)
        cells.setdefault(cell.settings["method"], []).append(cell)
    methods = [Method(name, found[0].settings["label"], found) for name, found in cells.items() if found]
    if not methods:
        raise ResultsError(f"{folder}: no finished cell in it; expected METHOD/seedN/settings.json")
    done = {(cell.settings["method"], cell.settings["seed"]) for method in methods for cell in method.cells}
    missing = [f"{p['method']}, seed {p['seed']}" for p in plan if (p["method"], p["seed"]) not in done]
    first = methods[0].cells[0]
    for method in methods:
        for cell in method.cells:
            differing = differing_settings(cell.settings, first.settings)
            if cell.cases != first.cases:
                differing.append("list of cases in cases.csv")
            if differing:
                raise ResultsError(f"{cell.folder}: not comparable with {first.folder}: {', '.join(differing)} differs")
    return Results(methods, missing)


@contextmanager
def _reading(file: Path) -> Iterator[Path]:
    try:
        yield file
    except (OSError, ValueError) as error:
        raise ResultsError(f"{file}: cannot be read: {error}") from None


def _load(file: Path) -> Any:
    with _reading(file):
        return json.loads(file.read_text())


def differing_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of what keeps two cells from being compared: what differs in their settings but for loss and seed."""
    differing = [key for key in ("bundle", "datalist", "evaluate") if one[key] != other[key]]
    here, there = ({**settings["train"], "loss": None, "seed": None} for settings in (one, other))
    return differing + sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
