"""What calibrators cost: the errors of the probabilities that each makes of the same logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calib_components.metrics.bins import CalibrationBins
from calib_components.metrics.measuring import measure_regions
from calib_components.metrics.regions import Region
from calib_components.metrics.voxels import check_tensors, read_voxels

# That errors are reported in; what is predicted follows from these probabilities
REGIONS = ("all", "predicted")


@dataclass(frozen=True, eq=False)
class Costs:
    """Errors of probabilities in each of `REGIONS`, as sums; `+` adds those of other cases.

    Attributes:
        bins: Bins of the top label by region, `(1, 15)`.
        nll: Sum of the negative log-likelihood in each region, `(regions,)`.
        volumes: Expected and true number of voxels that are not background, `(2,)`.
    """

    bins: dict[str, CalibrationBins]
    nll: torch.Tensor
    volumes: torch.Tensor

    @classmethod
    def measure(
        cls,
        p: torch.Tensor,
        y: torch.Tensor,
        ignore_index: int | None = None,
        sigmoid: bool = False,
    ) -> Costs:
        """Measure probabilities `(B, N, *S)`. Other arguments: see `calib_components.metrics`."""
        regions = [Region(name) for name in REGIONS]
        found = measure_regions(
            p, y, regions, ["top_label", "nll"], ignore_index=ignore_index, sigmoid=sigmoid
        )
        bins = {
            name: each.bins["top_label"].pooled() for name, each in zip(REGIONS, found, strict=True)
        }
        nll = torch.stack(
            [(each.scores["nll"] * each.bins["top_label"].count.sum(-1)).nansum() for each in found]
        )
        volumes = torch.zeros_like(nll)
        for voxels in read_voxels(
            *check_tensors(p, y, sigmoid), ignore_index=ignore_index, sigmoid=sigmoid
        ):
            volumes += torch.stack([(1 - voxels.p[0]).sum(), (voxels.label != 0).sum()])
        return cls(bins, nll, volumes)

    def __add__(self, other: Costs) -> Costs:
        bins = {name: own + other.bins[name] for name, own in self.bins.items()}
        return Costs(bins, self.nll + other.nll, self.volumes + other.volumes)

    def describe(self) -> str:
        """Return the errors as one line."""
        regions = (
            f"{name} NLL {nll / bins.count.sum():.4f} ECE {bins.expected_error().item():.4f}"
            for (name, bins), nll in zip(self.bins.items(), self.nll, strict=True)
        )
        expected, true = self.volumes.tolist()
        return f"{', '.join(regions)}, expected volume {100 * (expected / max(true, 1) - 1):+.1f} %"
