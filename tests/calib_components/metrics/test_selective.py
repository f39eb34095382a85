from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from calib_components.metrics import RiskCoverageMetric, risk_coverage


def curve_by_definition(confidence: NDArray, wrong: NDArray) -> NDArray:
    """Expected error rate of the k most confident voxels, k = 1 ...

    n, over random orders of equal ones.
    """
    risks = []
    for k in range(1, len(confidence) + 1):
        last = np.sort(confidence)[::-1][k - 1]
        first, tied = confidence > last, confidence == last
        risks.append((wrong[first].sum() + (k - first.sum()) * wrong[tied].mean()) / k)
    return np.array(risks)


def example(ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y_pred = (2 * torch.randn(3, 3, 10, 20, generator=generator)).softmax(1)
    if ties:
        y_pred = (8 * y_pred).round() + 1
        y_pred = y_pred / y_pred.sum(1, keepdim=True)
    return y_pred, torch.multinomial(
        y_pred.movedim(1, -1).reshape(-1, 3), 1, generator=generator
    ).view(3, 1, 10, 20)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_by_definition(ties: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calib_components.metrics.voxels.CPU_CHUNK", 90)
    y_pred, y = example(ties)
    y_pred = y_pred.to(dtype)
    metric = RiskCoverageMetric()
    metric(y_pred, y)
    for case in range(3):
        confidence, predicted = (
            values.flatten().numpy() for values in y_pred[case].double().max(0)
        )
        wrong = predicted != y[case].flatten().numpy()
        assert (len(np.unique(confidence)) < 60) == ties
        risks = curve_by_definition(confidence, wrong)
        assert metric.aggregate("none")[case].item() == pytest.approx(risks.mean(), rel=1e-12)
        for number, coverage in enumerate(metric.coverage.tolist()):
            if (200 * coverage).is_integer():
                assert metric.risk[case, number].item() == pytest.approx(
                    risks[round(200 * coverage) - 1], rel=1e-9
                )
        share = 1 - risks[189] * 190 / wrong.sum()  # the 10 least confident of 200
        assert metric.error_share[case].item() == pytest.approx(share, rel=1e-9)
    assert metric.aggregate().item() == pytest.approx(metric.aggregate("none").mean().item())


def test_undefined_cases() -> None:
    y_pred = torch.tensor([[[0.1, 0.2], [0.9, 0.8]]] * 2)
    metric = RiskCoverageMetric("foreground")
    metric(y_pred, torch.tensor([[[1, 1]], [[0, 0]]]))
    assert metric.aggregate("none")[0].item() == 0  # no errors
    assert metric.risk[0].tolist() == [0] * 118
    assert metric.error_share.isnan().all()
    assert metric.aggregate("none")[1].isnan()  # no voxels
    assert metric.risk[1].isnan().all()
    assert metric.aggregate().item() == 0


def test_regions_ignored_voxels_and_sigmoids() -> None:
    y_pred, y = example(ties=False)
    y_pred = y_pred.double().square()  # not a softmax any more
    truth = (y == torch.arange(3).view(3, 1, 1)).long()
    truth[:, :, ::3] = 7
    found = risk_coverage(y_pred, truth, "predicted", ignore_index=7, sigmoid=True)
    for case in range(3):
        kept = (y_pred[case] > 0.5) & (truth[case] != 7)
        p = y_pred[case][kept]
        flat = risk_coverage(torch.stack([1 - p, p])[None], truth[case][kept][None, None])
        for one, other in zip(found[1:], flat[1:], strict=True):
            torch.testing.assert_close(one[case], other[0])
