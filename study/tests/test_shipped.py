"""Limits of the shipped weights hold over splits of their patients, and for those at home."""

from __future__ import annotations

import pytest

from calib_components.quality.reference import holding_patients
from calib_tools.report.quality import LIMITED
from study.tables.shipped import (
    BUNDLES,
    WEIGHTS,
    read_reference,
    scans_of,
    split_coverage,
    try_limits,
)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_limits_hold_for_nine_in_ten_patients_over_splits(bundle: str) -> None:
    coverage = split_coverage(read_reference(bundle))["coverage"]
    assert coverage.between(0.88, 0.935).all()


@pytest.mark.parametrize("name", ["ACDC", "Siemens"])
@pytest.mark.parametrize("network", WEIGHTS)
def test_limits_of_the_heart_hold_at_home(network: str, name: str) -> None:
    known, scans = read_reference(BUNDLES[0], network), scans_of(BUNDLES[0], network)[name]
    for structure in known.structures:
        table = {each: scans[f"{each}_{structure}"].to_numpy() for each in LIMITED}
        for held, count, _ in try_limits(known, structure, table, scans["patient"]).values():
            low, high = holding_patients(known.count_patients(structure), count)
            assert low <= held <= high
