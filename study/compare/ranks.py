"""Ranks of methods: of their means, as the paper has them, and on single cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from calib_components.tools.report.data import WITH, WITHOUT, Results, Row
from calib_components.tools.report.page import Section
from calib_components.tools.report.statistics import Array, mean_of_defined
from calib_components.tools.report.tables import (
    RANKED,
    TRUSTED,
    Cell,
    heading,
    higher_is_better,
    listed,
)

RANKINGS = {  # name in files: title, measures, temperature
    "paper": ("Ranks by the paper's measures", RANKED, WITHOUT),
    "paper_temperature": ("Ranks by the paper's measures, with temperature", RANKED, WITH),
    "probabilities": ("Ranks by segmentation and probabilities", TRUSTED, WITHOUT),
    "probabilities_temperature": (
        "Ranks by segmentation and probabilities, with temperature",
        TRUSTED,
        WITH,
    ),
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


def costs_of(results: Results, rows: Sequence[Row], measures: Sequence[str]) -> Array:
    """Return what rows of a test set are ranked by, `(methods, cases, metrics)`: the lower, the
    better.

    A value that is undefined in one seed counts as undefined. Cases with nothing to find are ranked
    by DSC alone: a method that rightly finds nothing has no error of calibration in what it
    predicts.
    """
    nothing = np.any([results.finds_nothing(row) for row in rows], axis=0)
    signs = [-1 if higher_is_better(name) else 1 for name in measures]
    values = np.array(
        [[results.comparable(row, name).mean(0) for row in rows] for name in measures]
    )
    costs = np.moveaxis(values, 0, 2) * signs
    costs[:, nothing] = np.where([name == "dsc" for name in measures], costs[:, nothing], np.nan)
    return costs


def ranks_sections(results: Results) -> list[Section]:
    """Return the rankings of two or more methods, over the test sets where all have results."""
    sections = []
    for name, (title, wanted, temperature) in RANKINGS.items():
        measures = [measure for measure in wanted if results.has(measure)]
        methods = [m for m in results.methods if Row(m, temperature) in results.groups]
        if len(methods) < 2 or (wanted == RANKED and measures != [*RANKED]):
            continue
        sets = {of: [Row(m, temperature, of) for m in methods] for of in results.sets}
        costs = {
            of: costs_of(results, rows, measures)
            for of, rows in sets.items()
            if {*rows} <= {*results.groups}
        }
        table = pd.DataFrame(index=pd.Index([results.labels[m] for m in methods], name="label"))
        for of, of_set in costs.items():
            table[f"sum-rank {of}".strip()] = ranks_of(means_over_common_cases(of_set)).sum(1)
        if len(costs) > 1:
            table["sum-rank of all"] = table.sum(axis=1)
        table["mean-case-rank"] = np.nanmean(
            np.hstack([*map(case_ranks, costs.values())]), axis=(1, 2)
        )
        names = listed([heading(measure, arrow=False) for measure in measures])
        cells = table.map(lambda rank: Cell(f"{round(rank, 2):g}"))
        sections.append(
            Section(f"ranks_{name}", title, f"By {names}. {ABOUT}", cells, table.reset_index())
        )
    return sections
