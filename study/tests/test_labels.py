"""A few labels of another scanner: what the draws measure, and what the pages say of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from calib_components.posthoc import ClassBias, LeftOut, TemperatureScaling
from study.labels.draws import Draws
from study.labels.tables import (
    ADVISED,
    AT_HOME,
    HARM,
    NONE,
    RESULTS,
    change,
    change_of_nll,
    draws,
)
from tests.calib_components.posthoc.made_up import draw
from tests.helpers import ROOT

STRUCTURES = {"one": [1], "two": [2, 3]}


def stored_scans(patients: int = 6) -> dict[str, Any]:
    """What `study.labels.logits` stores, of scans of which all voxels are kept."""
    logits, label = draw((patients, 4, 12, 10), [0.6] * 4, [0.0, 0.8, -0.4, 0.0])
    scans = []
    for number in range(patients):
        scan = {"patient": f"patient{number}", "logits": logits[number].flatten(1)}
        scan |= {"label": label[number].flatten().to(torch.uint8), "outside": [3, 0]}
        scan |= {"weight": torch.ones(120), "near": torch.arange(120) < 60}
        for key, fit in {"t": TemperatureScaling(), "sample": ClassBias()}.items():
            fit.update(logits[[number]], label[[number]], scan["patient"])
            scan[key] = fit._patients[scan["patient"]]
        scans.append(scan)
    before = {"temperature": torch.tensor(0.9)}, "temperature"
    return {"cases": scans, "before": before, "structures": STRUCTURES}


def test_measures_are_those_of_the_comparison() -> None:
    stored = stored_scans()
    measured = Draws(stored)
    scan = stored["cases"][0]
    row = measured.measure(scan, measured.before)
    compared = LeftOut([], STRUCTURES, baseline=measured.before)
    logits, label = scan["logits"].view(1, 4, 12, 10), scan["label"].view(1, 12, 10)
    (expected,) = compared.rows_of(logits, label, "patient0", scan["outside"])
    assert row["nll"] == pytest.approx(expected.nll, rel=1e-6)
    np.testing.assert_allclose(row["estimates"], expected.values, rtol=1e-6)
    p = (logits / 0.9).softmax(1)[0].flatten(1)
    near = -p.gather(0, scan["label"][None].long())[0][:60].log().mean()
    assert row["nll_near"] == pytest.approx(float(near), rel=1e-5)


def test_a_draw_fits_some_patients_and_tests_the_others() -> None:
    measured = Draws(stored_scans())
    inside, others = measured.drawn(4, 0)
    assert len({scan["patient"] for scan in (*inside, *others)}) == 6
    assert len(inside) == 4
    rows = {row["calibrator"]: row for row in measured.rows(4, 0)}
    assert [*rows] == ["none", "temperature", "bias", "vector"]
    assert len({row["advised"] for row in rows.values()}) == 1
    assert rows["temperature"]["dsc"] == pytest.approx(rows["none"]["dsc"])
    assert rows["bias"]["nll"] < rows["none"]["nll"]


def gain(network: str, name: str, patients: int, kind: str = ADVISED) -> float:
    return float(change(network, name, patients, kind, "dsc").mean())


def harm(network: str, name: str, patients: int, least: float = HARM) -> float:
    return float((change(network, name, patients, ADVISED, "dsc") < -least).mean())


def share(network: str, name: str, patients: int, kind: str) -> float:
    return float((draws(network, name, patients)[NONE]["advised"] == kind).mean())


def class_conditional(name: str) -> float:
    """How much higher the DSC of CDC is than that of T and bias, mean over draws and numbers."""
    table = pd.read_csv(RESULTS / "class_conditional.csv.gz")
    rows = table[(table["set"] == name) & (table["calibrator"] == "CDC")]
    others = [draws("ensemble", name, each)["bias"]["dsc"].mean() for each in (5, 8)]
    return float(rows["dsc"].mean() - np.mean(others))


CLAIMS: dict[str, Callable[[], bool]] = {
    "On LGE, labels help the ensemble, and the advice finds it.": lambda: (
        min(share("ensemble", "lge", each, "bias") for each in (8, 12)) > 0.9
        and min(gain("ensemble", "lge", each) for each in (8, 12)) >= 0.0195
        and gain("ensemble", "lge", 5) < 0.012  # the goal
        and all(harm("ensemble", "lge", each) == 0 for each in (5, 8, 12))
        and all(change_of_nll("ensemble", "lge", each, ADVISED) < -0.05 for each in (3, 5, 8, 12))
    ),
    "NACL's network gains little DSC on LGE": lambda: all(
        gain("nacl", "lge", each) < gain("ensemble", "lge", each) / 4
        and change_of_nll("nacl", "lge", each, ADVISED) < -0.04
        for each in (5, 8, 12)
    ),
    "On cine MR, there is little to gain, and": lambda: all(
        abs(gain(network, name, each)) < 0.002 and harm(network, name, each) <= 0.04
        for network in ("ensemble", "nacl")
        for name in ("bssfp", "vendor_b", "home", "hippocampus")
        for each in (5, 8)
    ),
    "At home, chance names a calibrator in some draws of five": lambda: (
        0.005 < change_of_nll("ensemble", "home", 5, ADVISED) < 0.007
        and max(
            change_of_nll(network, name, each, ADVISED)
            for network in ("ensemble", "nacl")
            for name in ("home", "hippocampus")
            for each in (5, 8)
            if (network, name, each) != ("ensemble", "home", 5)
        )
        <= 0.005
        and all(
            harm(network, name, each, AT_HOME) <= 0.1
            for network in ("ensemble", "nacl")
            for name in ("home", "hippocampus")
            for each in (5, 8)
        )
    ),
    "with five patients or more, the advice does not name it": lambda: all(
        share("nacl", "vendor_b", each, "bias") == 0
        and change("nacl", "vendor_b", each, "bias", "dsc").mean() < 0
        for each in (5, 8, 12)
    ),
    "gains more than T and bias on bSSFP, and less on LGE.": lambda: (
        class_conditional("bssfp") > 0.005 > -0.003 > class_conditional("lge")
    ),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_hold(claim: str) -> None:
    page = " ".join((ROOT / "study" / "pages" / "evidence.md").read_text().replace("*", "").split())
    assert claim in page
    assert CLAIMS[claim]()
