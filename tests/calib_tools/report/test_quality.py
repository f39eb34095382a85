"""Whether estimates find bad segmentations, against NumPy, SciPy and scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from calib_components.quality.ranking import rank_scans
from calib_components.quality.reference import holding_patients
from calib_tools.report.data import Context
from calib_tools.report.quality import limits_section, quality_section
from calib_tools.report.readers import read_evaluations
from calib_workflows.evaluation_files import Evaluation
from tests.calib_tools.report.made_up import STRUCTURES, cases_of, write_evaluation


def aurc(estimates: np.ndarray, dsc: np.ndarray) -> float:
    risk = (1 - dsc)[np.argsort(-estimates)]
    return float(np.mean([risk[: i + 1].mean() for i in range(len(risk))]))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(5, 40))
def test_values_are_those_of_the_definitions(seed: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    dsc = rng.uniform(0.4, 1, number)
    dsc[:2] = 0.5, 0.9
    estimates = np.tanh(dsc + rng.normal(0, 0.2, number))
    found = rank_scans(estimates, dsc, ["one"] * number)
    random, optimal = (1 - dsc).mean(), aurc(dsc, dsc)
    assert found.gap_closed[0] == pytest.approx(
        (random - aurc(estimates, dsc)) / (random - optimal), abs=1e-9
    )
    assert found.aurc[0] == pytest.approx(aurc(estimates, dsc), abs=1e-9)
    assert found.roc[0] == pytest.approx(roc_auc_score(dsc < 0.7, -estimates), abs=1e-12)
    assert found.spearman[0] == pytest.approx(spearmanr(estimates, dsc).statistic, abs=1e-12)
    lowest = np.argsort(estimates)[: int(0.2 * number + 0.5)]
    assert found.found[0] == pytest.approx((dsc[lowest] < 0.7).sum() / (dsc < 0.7).sum(), abs=1e-12)


def test_intervals_are_over_patients_and_undefined_values_stay_out() -> None:
    rng = np.random.default_rng(0)
    dsc, patients = rng.uniform(0.75, 1, 30), [f"p{i}" for i in range(30)]
    once = rank_scans([*(dsc + rng.normal(0, 0.1, 30)), np.nan], [*dsc, 0.1], [*patients, "q"])
    mean, low, high = once.gap_closed
    assert low < mean < high
    assert np.isnan([*once.roc, *once.found]).all()  # no scan is bad
    few = rank_scans(dsc, dsc, ["a", "b", "c"] * 10)
    assert np.isnan(few.gap_closed[1:]).all()


def test_sections_rank_the_cases_and_count_the_limits_of_validation_patients(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    estimates = {f"expected_dsc_{s}": rng.uniform(0.3, 0.99, 16) for s in STRUCTURES}
    estimates["expected_dsc_RV"][3] = 0  # not predicted, though it is in every validation case
    changed = {**estimates, **{f"mean_entropy_{s}": rng.uniform(0, 1, 16) for s in STRUCTURES}}
    tested = write_evaluation(tmp_path / "test", changed=changed)
    fitted = write_evaluation(tmp_path / "val", cases_of(12, first=30), seed=1)
    validation = Evaluation.read(fitted)
    context = Context(read_evaluations([tested]), validation)
    section = quality_section(context)
    assert section is not None
    cases, known = (pd.read_csv(folder / "cases.csv") for folder in (tested, fitted))
    dsc, expected = (cases[[f"{m}_{s}" for s in STRUCTURES]] for m in ("dsc", "expected_dsc"))
    found = rank_scans(expected.mean(axis=1), dsc.mean(axis=1), [*cases_of(8).values()])
    is_gap = section.table["measure"] == "gap closed ↑"
    gaps = section.table[is_gap].set_index("score")
    record = gaps.loc["expected DSC"]
    assert (record["mean"], record["low"]) == tuple(found.gap_closed[:2])
    entropy = 1 - cases[[f"mean_entropy_{s}" for s in STRUCTURES]].mean(axis=1)
    by_entropy = rank_scans(entropy, dsc.mean(axis=1), [*cases_of(8).values()]).gap_closed[0]
    assert gaps["mean"]["1 - mean entropy"] == pytest.approx(by_entropy)
    assert {*gaps.index} == {"expected DSC", "mean confidence", "1 - mean entropy"}
    assert f"{(dsc.mean(axis=1) < 0.7).sum()} of 16 scans" in section.text
    assert ("not shown" in section.text) == (found.gap_closed[1] <= 0)
    limits = limits_section(context)
    assert limits is not None
    errors = (known["expected_volume_MYO"] - known["true_volume_MYO"]).abs()
    q = sorted((errors / known["expected_volume_MYO"]).to_numpy().reshape(12, 2).max(1))[11]
    error = (cases["expected_volume_MYO"] - cases["true_volume_MYO"]).abs()
    holds = error <= q * cases["expected_volume_MYO"]
    held = holds.to_numpy().reshape(8, 2).all(1).sum()
    low, high = holding_patients(12, 8)
    records = limits.table.set_index("limit")["text"]
    assert records["MYO volume"] == f"{held} of 8 ({low} to {high})"
    assert records["DSC of all structures"].endswith(f" of 8 ({low} to {high})")
    assert records["all volumes"].endswith(" of 8")
