"""Tables of the pages about the shipped weights are those of their results; their limits hold over
splits of their patients.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from study.tables.shipped import (
    BUNDLES,
    ROOT,
    ensemble_table,
    gaps_table,
    limits_table,
    order_table,
    read_reference,
    split_coverage,
)


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize("table", [gaps_table, limits_table])
def test_pages_of_bundles_have_the_tables(table: Callable[[str], str], bundle: str) -> None:
    assert table(bundle) in (ROOT / "bundles" / bundle / "docs" / "README.md").read_text()


def test_page_of_the_hippocampus_has_the_table_of_the_ensemble() -> None:
    assert ensemble_table() in (ROOT / "bundles" / BUNDLES[1] / "docs" / "README.md").read_text()


def test_page_of_quality_has_the_table_of_estimates() -> None:
    assert order_table(BUNDLES[0]) in (ROOT / "docs" / "quality.md").read_text()


@pytest.mark.parametrize("bundle", BUNDLES)
def test_limits_hold_for_nine_in_ten_patients_over_splits(bundle: str) -> None:
    coverage = split_coverage(read_reference(bundle))["coverage"]
    assert coverage.between(0.88, 0.935).all()
