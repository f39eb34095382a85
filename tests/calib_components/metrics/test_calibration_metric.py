"""`CalibrationMetric`: structures, sigmoids, and probabilities that were rounded to 0 and 1, against values by hand."""

from __future__ import annotations

import math

import pytest
import torch

from calib_components.errors import InputError
from calib_components.metrics import CalibrationMetric


def test_sigmoids_that_were_rounded_count_as_what_they_can_have_been() -> None:
    p = torch.tensor([[[0.0, 1.0, 1.0, 0.95, 0.5]]])
    y = torch.tensor([[[1, 0, 1, 0, 1]]])
    metric = CalibrationMetric(region="all", sigmoid=True, lowest=0.01, highest=0.9)
    metric(p, y)
    expected = -(math.log(0.01) + 2 * math.log(0.1) + math.log(1) + math.log(0.5)) / 5
    assert metric.nll.aggregate().item() == pytest.approx(expected)
    assert metric.brier.aggregate().item() == pytest.approx(2 * (1 + 1 + 0.95**2 + 0.5**2) / 5)  # as they are


def test_a_softmax_has_no_highest_probability() -> None:
    p = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]]])
    metric = CalibrationMetric(region="all", lowest=0.01, highest=0.9)
    metric(p, torch.tensor([[[1, 1, 1]]]))
    assert metric.nll.aggregate().item() == pytest.approx(-(math.log(0.01) + math.log(0.5)) / 3)


@pytest.mark.parametrize("highest", [-0.1, 1.1, "1"])
def test_highest_is_a_probability(highest: object) -> None:
    with pytest.raises(InputError, match="highest: expected a number from 0 to 1, got "):
        CalibrationMetric(highest=highest)  # type: ignore[arg-type]


def test_structures_are_not_for_sigmoids() -> None:
    """Whose channels a region of class indices does not choose."""
    with pytest.raises(ValueError, match=r"^structures: expected None for sigmoids, .*, got \{'tumour': \[0\]\}$"):
        CalibrationMetric(sigmoid=True, structures={"tumour": [0]})
    with pytest.raises(ValueError, match=r"^structures: expected None for one channel, .*, got some$"):
        CalibrationMetric(structures={"tumour": [0]})(torch.rand(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))
