"""Headlines between networks, of made-up results, beside their tables."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pandas as pd

from calib_components.metrics.intervals import Estimate
from calib_tools.report.comparison import DIFFERENCE, compare, describe_differences
from calib_tools.report.data import Results
from calib_tools.report.statistics import MIN_PATIENTS
from calib_workflows.pages.numbers import heading, number

MEASURES = ("dsc", "nll_all", "nll_near", "ece_all", "cece")
ENDS = ("mean", "low", "high")
KINDS = ("better", "worse", "no difference", "neither", "unknown")
RNG = np.random.default_rng(0)


class MadeUp(Results):
    """Results with random differences, whose intervals and p-values need not agree."""

    def difference(self, name: str, reference: str, measure: str) -> Estimate:
        mean, half = RNG.choice([0.01, 0.08]) * RNG.normal(), 0.02 * RNG.uniform()
        p_value = RNG.choice([0.001, 0.03, 0.2])
        if self.patients.nunique() < MIN_PATIENTS:
            return Estimate(mean)
        return Estimate(mean, mean - half, mean + half, p_value, 8)


def made_up(turn: int) -> Results:
    """Results of two or three networks."""
    names = ["a", "b", "c"][: 2 + turn % 2]
    patients = [f"p{each}" for each in range(5 if turn % 10 == 0 else 8)]
    measures = MEASURES[: 1 if turn % 9 == 0 else None]  # label maps have a DSC alone
    cases = {name: pd.DataFrame(0.5, patients, measures) for name in names}
    labels = {name: f"network {name}" for name in names}
    return MadeUp(cases, {}, pd.Series(patients, patients), labels, ["s"], "mm", "ml")


def check(sentence: str, rows: pd.DataFrame) -> str:
    """Check a sentence beside the rows of its pair in the table, and return what it says."""
    measure = "nll_all" if "nll_all" in rows.index else "dsc"
    decisive, dsc = rows.loc[measure], rows.loc["dsc"]
    shown = ((rows["low"] > 0) | (rows["high"] < 0)) & (rows["p_value_holm"] < 0.05)
    if np.isfinite(decisive["low"]):
        mean, *ends = (number(decisive[each], measure, signed=True) for each in ENDS)
        assert f"{mean} [{', '.join(ends)}], p " in sentence
    verdict = re.search(" is (better|worse) than |(no difference|neither|unknown)", sentence)
    assert verdict
    kind = verdict[1] or verdict[2]
    expected = "better" if (decisive["mean"] > 0) == (measure == "dsc") else "worse"
    loses = decisive["mean"] * dsc["mean"] > 0 and (shown["dsc"] or abs(dsc["mean"]) > 0.05)
    if np.isnan(decisive["low"]):
        expected = "unknown"
    elif not shown[measure]:
        expected = "no difference"
    elif loses and measure != "dsc":
        expected = "neither"
    assert kind == expected
    named = re.search("and do not decide: (.*)\\.$", sentence)
    said = [measure, *(["dsc"] if kind == "neither" else [])]
    others = rows[shown].drop(said, errors="ignore")["mean"]
    explaining = [
        f"{heading(each, arrow=False)} {'higher' if mean > 0 else 'lower'}"
        for each, mean in others.items()
    ]
    assert (named[1].split(", ") if named else []) == explaining
    return kind


def test_no_headline_names_a_winner_that_the_table_does_not_show() -> None:
    kinds = Counter[str]()
    for turn in range(500):
        results = made_up(turn)
        table = compare(results, "a")
        sentences = describe_differences(results, table, "a")
        for name, sentence in zip(results.names[1:], sentences, strict=True):
            label = DIFFERENCE.format(name=results.labels[name], reference="network a")
            assert f"network {name} " in sentence
            kinds[check(sentence, table[table["label"] == label].set_index("measure"))] += 1
    assert min(kinds[kind] for kind in KINDS) > 40
