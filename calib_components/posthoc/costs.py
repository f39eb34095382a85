"""What calibrators cost: the errors of the probabilities that each makes of the same logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calib_components.metrics.bins import CalibrationBins
from calib_components.metrics.measuring import measure_regions
from calib_components.metrics.regions import Region

# That errors are reported in; what is predicted follows from these probabilities
REGIONS = ("all", "predicted")


@dataclass(frozen=True, eq=False)
class Costs:
    """Errors of probabilities in each of `REGIONS`, as sums; `+` adds those of other cases.

    Attributes:
        bins: Bins of the top label by region, `(1, 15)`.
        nll: Sum of the negative log-likelihood by region.
        expected_volume: Expected number of voxels that are not background.
        true_volume: True number of these voxels.
    """

    bins: dict[str, CalibrationBins]
    nll: dict[str, float]
    expected_volume: float
    true_volume: float

    @classmethod
    def measure(
        cls,
        p: torch.Tensor,
        y: torch.Tensor,
        ignore_index: int | None = None,
        sigmoid: bool = False,
    ) -> Costs:
        """Measure probabilities `(B, N, *S)`. Other arguments: see `calib_components.metrics`."""
        measured = measure_regions(
            p,
            y,
            [Region(name) for name in REGIONS],
            ["top_label", "classwise", "nll"],
            ignore_index=ignore_index,
            sigmoid=sigmoid,
        )
        bins, nll = {}, {}
        for name, region in zip(REGIONS, measured, strict=True):
            cases = region.bins["top_label"]
            bins[name] = cases.pooled()
            nll[name] = float((region.scores["nll"] * cases.count.sum(-1)).nansum())
        # Class 0 is the background, which channels of sigmoids do not have
        first = 0 if sigmoid or p.shape[1] == 1 else 1
        classes = measured[0].bins["classwise"]
        expected = classes.confidence_sum[:, first:].sum()
        true = classes.num_correct[:, first:].sum()
        return cls(bins, nll, float(expected), float(true))

    def __add__(self, other: Costs) -> Costs:
        bins = {name: each + other.bins[name] for name, each in self.bins.items()}
        nll = {name: each + other.nll[name] for name, each in self.nll.items()}
        return Costs(
            bins,
            nll,
            self.expected_volume + other.expected_volume,
            self.true_volume + other.true_volume,
        )

    def describe(self) -> str:
        """Return the errors as one line."""
        regions = (
            f"{name} NLL {self.nll[name] / bins.count.sum():.4f}"
            f" ECE {bins.expected_error().item():.4f}"
            for name, bins in self.bins.items()
        )
        excess = self.expected_volume / max(self.true_volume, 1) - 1
        return f"{', '.join(regions)}, expected volume {100 * excess:+.1f} %"
