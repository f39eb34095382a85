"""Ranks of methods: of their means, as the paper has them, and on single cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from calib_components.metrics.case import find_column
from calib_tools.report.statistics import Array
from calib_workflows.pages.numbers import heading
from calib_workflows.pages.page import Section
from study.compare.data import Comparison, Row
from study.compare.statistics import mean_of_defined

RANKED = ("dsc", "hd95", "ece", "cece")  # what the paper reports and ranks by
TRUSTED = ("dsc", "hd95", "nll_all", "nll_predicted", "ece_predicted", "ece_all")
RANKINGS = {  # name in files: title, measures
    "paper": ("Ranks by the paper's measures", RANKED),
    "probabilities": ("Ranks by segmentation and probabilities", TRUSTED),
}
ABOUT = (
    "1 is best, ties share the mean rank. sum-rank: the sum of the ranks of the means, each over"
    " the cases in which all methods have a value. mean-case-rank: the mean of the ranks on single"
    " cases, where a method without a value ranks last. A case with nothing to find is ranked by"
    " DSC alone. Ranks do not tell differences from chance."
)


def ranks_of(costs: ArrayLike) -> Array:
    """Return the ranks of methods `(methods, ...)`: 1 is best, ties share the mean rank, undefined
    costs are last.
    """
    costs = np.asarray(costs, float)
    return rankdata(np.where(np.isnan(costs), np.inf, costs), axis=0)


def case_ranks(costs: ArrayLike) -> Array:
    """Return the ranks on each case and metric, `(methods, cases, metrics)`; NaN where no method
    has a value.
    """
    return np.where(np.isnan(costs).all(0), np.nan, ranks_of(costs))


def means_over_common_cases(costs: ArrayLike) -> Array:
    """Return the means `(methods, metrics)` over the cases where every method has a value."""
    return mean_of_defined(np.where(np.isnan(costs).any(0), np.nan, costs), axis=1)


def costs_of(comparison: Comparison, rows: Sequence[Row], measures: Sequence[str]) -> Array:
    """Return what rows of a test set are ranked by, `(methods, cases, metrics)`: lower is better.

    A value that is undefined in one seed counts as undefined. Cases with nothing to find are ranked
    by DSC alone: a method that rightly finds nothing has no error of calibration in what it
    predicts.
    """
    costs = []
    # Of a case where there is nothing to find and a seed finds nothing
    nothing = np.any([np.isnan(comparison.values(row, "dsc")).any(0) for row in rows], axis=0)
    for measure in measures:
        values = np.array([comparison.comparable(row, measure).mean(0) for row in rows])
        if measure != "dsc":
            values[:, nothing] = np.nan
        costs.append(-values if higher_is_better(measure) else values)
    return np.stack(costs, axis=2)


def higher_is_better(measure: str) -> bool:
    """Return whether higher values of a measure are better."""
    column = find_column(measure, [])
    return column is not None and column.measure.better == "higher"


def ranks_sections(comparison: Comparison) -> list[Section]:
    """Return the rankings of two or more methods, over the test sets where all have results."""
    sections = [_rank(comparison, name, *ranking) for name, ranking in RANKINGS.items()]
    return [section for section in sections if section is not None]


def _rank(comparison: Comparison, name: str, title: str, wanted: Sequence[str]) -> Section | None:
    """Return a ranking; None if there are not enough methods, or measures of the paper."""
    measures = [each for each in wanted if comparison.has(each)]
    methods = [each for each in comparison.labels if Row(each) in comparison.groups]
    if len(methods) < 2 or (wanted == RANKED and len(measures) < len(wanted)):
        return None
    costs = _costs_by_set(comparison, methods, measures)
    return _tabulate(name, title, measures, rank_methods(costs, comparison, methods))


def _costs_by_set(
    comparison: Comparison, methods: Sequence[str], measures: Sequence[str]
) -> dict[str, Array]:
    """Return the costs of methods on each test set where all have results."""
    costs = {}
    for test_set in comparison.test_sets:
        rows = [Row(method, test_set=test_set) for method in methods]
        if {*rows} <= {*comparison.groups}:
            costs[test_set] = costs_of(comparison, rows, measures)
    return costs


def _tabulate(name: str, title: str, measures: Sequence[str], ranks: pd.DataFrame) -> Section:
    names = ", ".join(heading(measure, arrow=False) for measure in measures)
    table = ranks.reset_index().melt("label", var_name="kind", value_name="mean")
    table["text"] = table["mean"].map(lambda rank: f"{round(rank, 2):g}")
    return Section(f"ranks_{name}", title, f"By {names}. {ABOUT}", table, column="kind")


def rank_methods(
    costs: Mapping[str, Array], comparison: Comparison, methods: Sequence[str]
) -> pd.DataFrame:
    """Return the ranks of methods from `costs_of` each test set."""
    labels = pd.Index([comparison.labels[method] for method in methods], name="label")
    table = pd.DataFrame(index=labels)
    for test_set, set_costs in costs.items():
        ranks = ranks_of(means_over_common_cases(set_costs))
        table[f"sum-rank {test_set}".strip()] = ranks.sum(1)
    if len(costs) > 1:
        table["sum-rank of all"] = table.sum(axis=1)
    by_case = np.hstack([case_ranks(set_costs) for set_costs in costs.values()])
    return table.assign(**{"mean-case-rank": np.nanmean(by_case, axis=(1, 2))})
