"""Proper scoring rules of class probabilities, and the magnitude of logits.

`RegionMetric` is the base of these scores and of the calibration errors.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from calib_components.errors import InputError
from calib_components.metrics.base import CaseMetric
from calib_components.metrics.measuring import measure_regions
from calib_components.metrics.regions import choose_region
from calib_components.metrics.voxels import check_tensors, read_chunks

__all__ = ["BrierMetric", "NLLMetric", "RegionMetric", "logit_magnitude_sums"]

Own = TypeVar("Own", bound="RegionMetric")


class RegionMetric(CaseMetric):
    """Base of the metrics of what `measure_regions` finds in regions, of each case.

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
        self.measured = [self.region]
        self.options: dict[str, Any] = {}
        self.source, self.position = self, 0

    def view(self: Own, source: RegionMetric, position: int) -> Own:
        """Let this metric show the values of one region that another metric measures."""
        self.source, self.position = source, position
        return self

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        if self.source is not self:
            raise InputError(f"This {type(self).__name__} is part of another metric. Call that one.")
        options = {
            "num_bins": self.num_bins,
            "ignore_index": self.ignore_index,
            "sigmoid": self.sigmoid,
            **self.options,
        }
        results = measure_regions(y_pred, y, self.measured, self.measures, **options)
        self._stored = [(i, name) for i, found in enumerate(results) for name, values in found.items() for _ in values]
        return [value for found in results for values in found.values() for value in values]

    def found(self, name: str) -> list[torch.Tensor]:
        """Return what `measure_regions` calls by this name, of all cases; nothing if the region does not have it."""
        values = self.source.gathered()
        values = [values] if isinstance(values, torch.Tensor) else values
        at = zip(self.source._stored, values, strict=True)
        return [value for stored, value in at if stored == (self.position, name)]

    def case_values(self) -> torch.Tensor:
        return self.found(self.measures[0])[0]


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
    for voxels in read_chunks(logits, y, ignore_index, logits=True):
        one_hot = (voxels.label == torch.arange(len(voxels.logits), device=y.device)[:, None]).double()
        sums[voxels.case] += (one_hot @ voxels.logits.abs().T)[-classes:, -classes:]
        count[voxels.case] += one_hot.sum(1).long()[-classes:]
    return sums, count
