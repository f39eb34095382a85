"""Means and differences of settings of which several networks were trained, with seeds and scans
random, as Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from calib_components.metrics.intervals import Estimate
from calib_components.quality.shift import holm
from study.compare.statistics import mean_with_interval, paired_difference

Pair = tuple[Any, Any]  # a setting, and the one that it is compared with


class Networks:
    """Values of the networks of several settings on the same scans.

    Args:
        rows: A row for each setting, which is the index, `seed`, `case` and `patient`.
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows
        patients = rows.groupby("case")["patient"].first()
        self.cases, self.patients = [*patients.index], [*patients]

    def values(self, setting: Any, measure: str) -> np.ndarray:
        """Return a measure of the networks of a setting, `(seeds, cases)`."""
        chosen = self.rows.loc[setting].reset_index()
        return chosen.pivot(index="seed", columns="case", values=measure)[self.cases].to_numpy()

    def mean(self, setting: Any, measure: str) -> Estimate:
        """Return the mean of a setting."""
        return mean_with_interval(self.values(setting, measure), self.patients)

    def difference(self, pair: Pair, measure: str) -> Estimate:
        """Return the difference of two settings."""
        one, other = (self.values(setting, measure) for setting in pair)
        return paired_difference(one, other, self.patients)


def corrected(differences: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Return differences with p-values that are corrected by Holm for their family."""
    p_values = holm([each.p_value for each in differences.values()])
    return {
        title: each._replace(p_value=p)
        for (title, each), p in zip(differences.items(), p_values, strict=True)
    }


def markdown(rows: Mapping[str, Sequence[str]], columns: Sequence[str]) -> str:
    """Return rows of texts, by their titles, as a table in Markdown."""
    lines = [["", *columns], ["---"] * (1 + len(columns))]
    lines += [[title, *cells] for title, cells in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(found: Sequence[float], sign: str = "", digits: int = 4) -> str:
    """Return a mean with the ends of its interval; "+" as sign for differences."""
    mean, low, high = (f"{each:{sign}.{digits}f}" for each in found[:3])
    return f"{mean} [{low}, {high}]"


def p_text(value: float) -> str:
    """Return a p-value."""
    return "< .001" if value < 0.001 else f"{value:.3f}"
