"""Proper scoring rules of class probabilities, and the magnitude of logits.

`RegionMetric` is the base of these scores and of the calibration errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from calib_components.metrics.base import CaseMetric
from calib_components.metrics.measuring import Measured, measure_regions
from calib_components.metrics.regions import Region, choose_region
from calib_components.metrics.voxels import check_tensors, read_voxels


class RegionMetric(CaseMetric):
    """Base of the metrics of what `measure_regions` finds in a region.

    Arguments and errors: see `calib_components.metrics`.
    """

    measures: tuple[str, ...] = ()
    default_region = "foreground"
    num_bins = 15

    def __init__(
        self,
        foreground_only: bool | None = None,
        ignore_index: int | None = None,
        region: Any = None,
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        self.region = choose_region(region, foreground_only, self.default_region)
        self.ignore_index, self.sigmoid = ignore_index, sigmoid

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        (found,) = self.measure_in([self.region], y_pred, y)
        return self.stored(found)

    def measure_in(self, regions: Sequence[Region], y_pred: torch.Tensor, y: torch.Tensor) -> list[Measured]:
        """Measure a batch in several regions."""
        return measure_regions(y_pred, y, regions, self.measures, self.num_bins, self.ignore_index, self.sigmoid)

    def stored(self, found: Measured) -> list[torch.Tensor]:
        """Return what this metric stores of the measures of its region."""
        return [found.scores[self.measures[0]]]


class NLLMetric(RegionMetric):
    """Negative log-likelihood (NLL): mean over voxels (and channels of sigmoids) of `-log s_y`, in nats.

    `s_y` is the probability of the true class. Those below the smallest normal float32 (87.3 nats), in float16 below
    half its smallest step (17.3 nats), are replaced by it, so that a single voxel does not make the mean infinite.
    Likewise, a probability of 1 of a sigmoid in float16 or bfloat16 counts as half a step less (8.3 or 6.2 nats where
    the truth is 0).

    Arguments and errors: see `calib_components.metrics`. The default region is "foreground".

    Examples:
        >>> import torch
        >>> from calib_components.metrics import NLLMetric
        >>> metric = NLLMetric()
        >>> _ = metric(torch.tensor([[[0.1, 0.3], [0.9, 0.7]]]), torch.tensor([[[1, 1]]]))
        >>> metric.aggregate()  # -(log 0.9 + log 0.7) / 2
        tensor(0.2310, dtype=torch.float64)
    """

    measures = ("nll",)


class BrierMetric(RegionMetric):
    """Brier score: mean over voxels of `sum_k (s_k - q_k)^2`, from 0 (best) to 2.

    `s` are the probabilities and `q` is the one-hot ground truth. A channel of sigmoids counts as two classes. Used
    like `NLLMetric`.

    Source: Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78, 1950.
    """

    measures = ("brier",)


def logit_magnitude_sums(
    logits: torch.Tensor, y: torch.Tensor, ignore_index: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum `|l|` of every channel over the voxels of each ground-truth class, for their mean magnitude.

    Args:
        logits: Output of a network before softmax, `(B, N, *S)`.
        y, ignore_index: See `calib_components.metrics`.

    Returns:
        The float64 sums by ground-truth class and channel, `(B, N, N)`, and the int64 numbers of voxels of each class,
        `(B, N)`.

    Raises:
        InputError: Shapes do not match, some logits are NaN or infinite, or `y` holds invalid labels.

    Source: Murugesan et al., "Trust Your Neighbours: Penalty-Based Constraints for Model Calibration", MICCAI 2023,
    Fig. 2.
    """
    logits, y = check_tensors(logits, y, name="logits")
    batch, classes = logits.shape[:2]
    sums = logits.new_zeros(batch, classes, classes, dtype=torch.float64)
    count = logits.new_zeros(batch, classes, dtype=torch.int64)
    for voxels in read_voxels(logits, y, None, ignore_index, logits=True):
        one_hot = (voxels.label == torch.arange(len(voxels.values), device=y.device)[:, None]).double()
        sums[voxels.case] += (one_hot @ voxels.values.abs().T)[-classes:, -classes:]
        count[voxels.case] += one_hot.sum(1).long()[-classes:]
    return sums, count
