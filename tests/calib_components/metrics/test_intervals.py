"""The interval of a mean over patients, against scipy and what reports show."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from calib_components.errors import InputError
from calib_components.metrics import interval
from calib_components.metrics.intervals import RESAMPLES, SEED


def test_interval_of_one_case_a_patient_is_scipys_bootstrap() -> None:
    values = np.random.default_rng(1).normal(size=14)
    found = interval(values, [f"p{number:02}" for number in range(14)])
    rng, options = np.random.default_rng(SEED), {"method": "percentile", "n_resamples": RESAMPLES}
    low, high = stats.bootstrap((values,), np.mean, rng=rng, **options).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert found[1:3] == pytest.approx((low, high), abs=0.03)


def test_cases_of_a_patient_are_resampled_together_and_undefined_ones_left_out() -> None:
    values, names = np.arange(7.0), [*"abcdefg"]
    twice = interval(np.repeat(values, 2), np.repeat(names, 2))
    assert twice[:3] == pytest.approx(interval(values, names)[:3])
    assert interval([*values, np.nan], [*names, "h"]) == interval(values, names)
    assert np.isnan(interval(values[:5], names[:5]).low)
    assert np.isnan(interval([np.nan], ["a"]).mean)


@pytest.mark.parametrize("patients", [["a"], "abc", [["a", "b"]]])
def test_values_need_a_patient_each(patients: object) -> None:
    with pytest.raises(InputError, match="two lists of one length"):
        interval([1.0, 2.0], patients)  # type: ignore[arg-type]
