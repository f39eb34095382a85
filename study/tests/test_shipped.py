"""Limits of the shipped weights hold for the patients at home, and the cards count for how many as
the page of new scans does.
"""

from __future__ import annotations

import numpy as np
import pytest

from calib_components.posthoc.network import REFERENCE
from calib_components.quality import Reference
from calib_workflows.pages.quality import Review, _tests_section
from calib_workflows.weights import read_weights
from study.tables.fill_tables import TABLE
from study.tables.shipped import BUNDLES, WEIGHTS, read_reference
from tests.helpers import ROOT


@pytest.mark.parametrize("network", WEIGHTS)
def test_limits_of_the_heart_hold_at_home(network: str) -> None:
    known = read_reference(BUNDLES[0], network)
    found = known.coverage(known.tests["ACDC and Siemens"])
    assert len(found) == 5
    assert not any(limit.fails for limit in found.values())


@pytest.mark.parametrize(("bundle", "network"), [(BUNDLES[0], "ensemble"), (BUNDLES[1], "nacl")])
def test_card_and_page_of_new_scans_count_alike(bundle: str, network: str) -> None:
    card = (ROOT / "bundles" / bundle / "docs" / "README.md").read_text()
    (table,) = (found[0] for found in TABLE.finditer(card) if "limits_table" in found[0])
    lines = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")]
    (_, *sets), _, *rows = [[cell.strip() for cell in line] for line in lines]
    shown = {
        (row[0], name): text for row in rows for name, text in zip(sets, row[1:], strict=False)
    }
    known = read_reference(bundle, network)
    (section,) = _tests_section(known, Review(0.2))
    for _, each in section.table.iterrows():
        if " volume" in each["measure"] or each["measure"].startswith("DSC"):
            assert shown[each["measure"], each["set"]] == each["text"]


@pytest.mark.parametrize("name", ["model.pt", "ensemble.pt"])
def test_volumes_of_the_hippocampus_have_no_ranges(name: str) -> None:
    """Theirs held for 23 of 39 further patients."""
    weights = read_weights(ROOT / "bundles" / BUNDLES[1] / "models" / name)
    known = Reference.from_tensor(weights[REFERENCE], ["anterior", "posterior"])
    assert np.isnan([known.volume_range(name, 1.0) for name in known.structures]).all()
    assert np.isfinite(known.lower_bound(known.structures[0], 0.9))


@pytest.mark.parametrize("name", ["model.pt", "ensemble.pt"])
def test_no_temperature_of_single_networks_is_that_of_their_average(name: str) -> None:
    weights = read_weights(ROOT / "bundles" / "flare_ct_nacl_segmentation" / "models" / name)
    assert weights["temperature"] == 1
    assert REFERENCE not in weights
