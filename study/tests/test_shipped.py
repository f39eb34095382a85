"""Limits of the shipped weights hold for the patients at home."""

from __future__ import annotations

import pytest

from study.tables.shipped import BUNDLES, WEIGHTS, labelled_scans, read_reference, scans_of


@pytest.mark.parametrize("name", ["ACDC", "Siemens"])
@pytest.mark.parametrize("network", WEIGHTS)
def test_limits_of_the_heart_hold_at_home(network: str, name: str) -> None:
    known, scans = read_reference(BUNDLES[0], network), scans_of(BUNDLES[0], network)[name]
    found = known.coverage(labelled_scans(scans, known.structures))
    assert len(found) == 5
    assert not any(limit.fails for limit in found.values())
