"""Numbers of the report as text."""

from __future__ import annotations

import pytest

from calib_components.tools.report.tables import DIFFERENCE, MEAN, number


@pytest.mark.parametrize(
    ("value", "measure", "style", "shown"),
    [
        (0.0123, "ece_all", MEAN, "0.012"),
        (-0.0123, "ece_all", DIFFERENCE, "-0.0123"),
        (0.00003, "nll_all", MEAN, "0.00003"),  # small structures in large volumes
        (-0.00003, "nll_all", DIFFERENCE, "-0.00003"),
        (0.00012, "brier_all", MEAN, "0.0001"),
        (0.000001, "ece_all", MEAN, "0.00000"),
        (-0.00003, "dsc", DIFFERENCE, "+0.0000"),
        (0.0, "nll_all", DIFFERENCE, "+0.0000"),
        (1.234, "hd95", MEAN, "1.23"),
        (7.5, "sum_rank", MEAN, "7.5"),
        (float("nan"), "dsc", MEAN, "n/a"),
    ],
)
def test_digits(value: float, measure: str, style: str, shown: str) -> None:
    assert number(value, measure, style) == shown
