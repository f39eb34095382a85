"""The ninth round: its splits, and the claims of its page."""

from __future__ import annotations

import numpy as np
import pytest

from study.glioma import tables
from study.glioma.tables import SETS, VIEWS, T, changes, known_losses, mean_of, rows_of, shipped
from study.glioma.train import splits_of
from tests.helpers import ROOT

HOME, OTHER = SETS


def test_no_patient_is_in_two_parts_and_the_other_institution_tests_alone() -> None:
    names = [f"TCGA_{site}_{number:04d}" for site in ("CS", "DU", "FG") for number in range(20)]
    splits = splits_of(names)
    home, other = splits["home"], splits["other"]
    assert home.keys() | other.keys() == {*names}
    assert not home.keys() & other.keys()
    assert {*other.values()} == {"testing"}
    counts = {part: [*home.values()].count(part) for part in ("training", "validation", "testing")}
    assert counts == {"training": 24, "validation": 8, "testing": 8}


def dsc(name: str, calibrator: str = T) -> str:
    return tables.shown(mean_of(rows_of(shipped(), calibrator, name)["dsc"]))


def gap(name: str) -> float:
    rows = rows_of(shipped(), T, name)
    return float((rows["confidence"] - rows["accuracy"]).mean())


CLAIMS = {
    "0.75 [0.64, 0.85]. Three patients are below 0.7": lambda: (
        dsc(HOME) == "0.75 [0.64, 0.85]" and (rows_of(shipped(), T, HOME)["dsc"] < 0.7).sum() == 3
    ),
    "Eight views do not change it": lambda: dsc(HOME)[:4] == dsc(HOME, VIEWS)[:4],
    "0.56 [0.35, 0.75], and in three of twelve patients next to nothing is found": lambda: (
        dsc(OTHER) == "0.56 [0.35, 0.75]"
        and (rows_of(shipped(), T, OTHER)["dsc"] < 0.02).sum() == 3
    ),
    "too sure by 21 points, at home by 9": lambda: (
        [round(100 * gap(name)) for name in (OTHER, HOME)] == [21, 9]
    ),
    "The rule chose CE + Dice": lambda: shipped() == "ce_dice",
    "On both test sets, cross-entropy and SVLS have a lower NLL": lambda: all(
        rows_of(loss, T, name)["nll_all"].mean() < rows_of("ce_dice", T, name)["nll_all"].mean()
        for loss in ("cross_entropy", "svls")
        for name in SETS
    ),
    "Yes, and so is that of the predicted volume": lambda: all(
        tables.order_of(shipped(), name, estimate).low > 0
        for name in SETS
        for estimate in tables.ESTIMATES
    ),
    "it is not shown to be better than the volume alone, nor are eight views": lambda: all(
        round(tables.order_of(shipped(), name, estimate, "predicted volume").low, 2) <= 0
        for name in SETS
        for estimate in ("expected DSC", "expected DSC, eight views")
    ),
    "The mean confidence is two to three times the share of candidates": lambda: all(
        2 < 1 + found[2].mean / found[1] < 2.8
        for found in (tables.calibration_of_candidates(shipped(), name, T) for name in SETS)
    ),
    "Nearly all false ones are smaller than 0.1 ml": lambda: all(
        (false["volume"] < 0.1).mean() > 0.9
        for false in (
            rows[(rows["kind"] == "candidate") & ~rows["matched"]]
            for rows in (tables.candidates(shipped(), name) for name in SETS)
        )
    ),
    "T lowers the NLL by 0.007 in the mean, in 17 of the draws, and moves no label": lambda: (
        round(changes(shipped(), "temperature", "nll").mean(), 3) == -0.007
        and (changes(shipped(), "temperature", "nll") < 0).sum() == 17
        and np.abs(changes(shipped(), "temperature", "dsc")).max() == 0
    ),
    "the DSC by 0.004 in the mean: it falls by more than 0.005 in four draws, and rises by more in"
    " seven": lambda: (
        [round(changes(shipped(), "bias", name).mean(), 3) for name in ("nll", "dsc")]
        == [-0.006, -0.004]
        and (changes(shipped(), "bias", "dsc") < -0.005).sum() == 4
        and (changes(shipped(), "bias", "dsc") > 0.005).sum() == 7
    ),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_hold(claim: str) -> None:
    page = (ROOT / "study" / "pages" / "glioma.md").read_text().replace("*", "")
    assert claim in " ".join(page.split())
    assert len(known_losses()) == 4
    assert CLAIMS[claim]()
