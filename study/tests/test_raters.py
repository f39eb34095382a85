"""The study of raters: what its networks are trained on, how they are measured, and its tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from study.raters.measure import fit_temperature, measure_network, read_cases
from study.raters.tables import PRIMARY, brains, differences
from study.raters.train import make_target
from tests.calib_tools.predictions.made_up import save_channels_last, save_nifti


def test_targets_are_the_majority_or_the_share_of_raters() -> None:
    raters = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]]).view(1, 3, 1, 3)
    assert make_target(raters.float(), "majority").tolist() == [[[1, 1, 0]]]
    share = make_target(raters.float(), "mean")
    torch.testing.assert_close(share[0, 1, 0], torch.tensor([1, 2 / 3, 1 / 3]))
    torch.testing.assert_close(share.sum(1), torch.ones(1, 1, 3))


def test_a_temperature_of_other_scans_is_fitted_to_all_raters(tmp_path: Path) -> None:
    """Raters draw from probabilities; the network doubles their log-odds, so T is 2."""
    rng = np.random.default_rng(0)
    for scan in ("a", "b", "c"):
        logit = rng.normal(0, 1, (40, 40, 1))
        p = 1 / (1 + np.exp(-2 * logit))
        save_channels_last(tmp_path / "p" / f"{scan}.nii.gz", np.stack([1 - p, p]))
        for rater in ("r1", "r2", "r3"):
            label = rng.random(p.shape) < 1 / (1 + np.exp(-logit))
            save_nifti(tmp_path / rater / f"{scan}.nii.gz", label.astype(np.uint8))
    cases = read_cases(tmp_path / "p", [tmp_path / f"r{k}" for k in (1, 2, 3)], "organ")
    assert float(fit_temperature(cases).temperature) == pytest.approx(2, abs=0.1)
    tested = {"a": cases["a"]}
    others = {name: case for name, case in cases.items() if name != "a"}
    rows = pd.DataFrame(measure_network(tested, lambda _: others, "organ"))
    assert [*rows["rater"].unique()] == ["r1", "r2", "r3", "all"]
    plain, scaled = (each.set_index("rater") for _, each in rows.groupby(rows["temperature"] > 1))
    assert (scaled["nll_all"] < plain["nll_all"]).all()
    pd.testing.assert_series_equal(scaled["dsc"], plain["dsc"])
    mean = plain.loc[["r1", "r2", "r3"], "nll_all"].mean()
    assert plain.loc["all", "nll_all"] == pytest.approx(mean)


def test_the_words_of_the_page() -> None:
    primary = differences(PRIMARY)
    assert max(abs(found.mean) for found in primary.values()) < 0.016
    shown = {title: found.mean for title, found in primary.items() if found.p_value < 0.05}
    assert shown == {"NACL - CE, on the majority": pytest.approx(0.0113, abs=1e-4)}
    with_t = [found for title, found in differences(PRIMARY, True).items() if "mean - maj" in title]
    assert max(found.p_value for found in with_t) < 0.05
    assert sorted(-found.mean for found in with_t) == pytest.approx([0.009, 0.012, 0.013], abs=5e-4)
    gaps = {
        (target, loss): 100 * brains().mean((target, loss, False), "gap").mean
        for target in ("majority", "mean")
        for loss in ("cross_entropy", "nacl")
    }
    assert [*gaps.values()] == pytest.approx([5, 2, 2, -0.5], abs=0.5)
